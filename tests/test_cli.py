import re
import subprocess
import sys

import pytest

from jpmhc import layers
from jpmhc.cli import main


def test_mixers_prints_every_one(capsys):
    assert main(["mixers"]) == 0
    printed = capsys.readouterr().out
    for info in layers.mixers():
        assert info.name in printed


def test_doctor_checks_the_maps(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed
    assert "cpu        processor: exact mixers within" in printed
    assert re.search(r"numba +on cpu: sinkhorn_forward within \de-0\d of the reference", printed)
    assert "triton     on cpu: no GPU" in printed


def test_a_users_mistake_ends_in_one_line(capsys):
    assert main(["mixers", "--streams", "0"]) == 1
    assert capsys.readouterr().err == "error: --streams: expected at least 1, got 0\n"


@pytest.mark.parametrize("module", ["tyro", "rich"])
def test_a_missing_extra_is_named(module):
    code = f"import sys; sys.modules['{module}'] = None; from jpmhc.cli import main; sys.exit(main(['mixers']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {module}: not installed; pip install jpmhc[cli]\n"


def test_spectrum_prints_the_numbers_and_writes_the_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "plot.png"
    arguments = ["--mixer", "sinkhorn", "--layers", "3", "--streams", "2", "--width", "24", "--out", str(out)]
    assert main(["spectrum", *arguments]) == 0
    printed = capsys.readouterr().out
    for line in (
        "sinkhorn: 3 layers of 2 streams",
        "singular values",
        "mixers' product    1,",
        "width 24",
        f"wrote {out}",
    ):
        assert line in printed
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_mixer_may_carry_arguments(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    quantiles = []
    for mixer in ("cayley:step=0.1", "cayley"):
        options = ["--layers", "2", "--streams", "2", "--spread", "1", "--energy", "0.01"]
        assert main(["spectrum", "--mixer", mixer, *options, "--out", str(tmp_path / "plot.png")]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"{mixer}: 2 layers of 2 streams")
        quantiles.append(printed.splitlines()[2])
    assert quantiles[0] != quantiles[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "0"], "--layers: expected at least 1, got 0"),
        (["--mixer", "magic"], "mixer: unknown name 'magic', expected one of"),
        (["--mixer", "quaternion", "--streams", "3"], "streams: "),
        (
            ["--mixer", "cayley:step"],
            "mixer 'cayley:step': expected argument=value,... with literal values, got 'step'",
        ),
        (["--mixer", "cayley:stride=2"], "--mixer: mixer: 'cayley' refused {'stride': 2}"),
        (["--gate", "magic"], "gate: "),
        (["--branch", "magic"], "branch: "),
        (["--energy", "-1"], "energy: "),
        (["--spread", "-1"], "spread: expected a finite number of at least 0"),
        (["--out", "nowhere/plot.png"], "--out: the folder nowhere does not exist"),
        (["--out", "plot.docx"], "--out: expected a name that ends in one of"),
    ],
)
def test_mistakes_with_spectrum_end_in_one_line(arguments, message, capsys):
    pytest.importorskip("matplotlib")
    assert main(["spectrum", "--layers", "2", *arguments]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_an_interrupt_ends_in_one_line(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(layers, "mixers", interrupted)
    assert main(["mixers"]) == 130
    assert capsys.readouterr().err == "stopped\n"
