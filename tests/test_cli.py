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


def test_a_users_mistake_ends_in_one_line(capsys):
    assert main(["mixers", "--streams", "0"]) == 1
    assert capsys.readouterr().err == "error: --streams: expected at least 1, got 0\n"


@pytest.mark.parametrize("module", ["tyro", "rich"])
def test_a_missing_extra_is_named(module):
    code = f"import sys; sys.modules['{module}'] = None; from jpmhc.cli import main; sys.exit(main(['mixers']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"error: {module}: not installed; pip install jpmhc[cli]\n"
