import pytest

from benchmarks.__main__ import main


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_is_no_error(option, capsys):
    assert main([option]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("usage: python -m benchmarks ")
    assert "spectrum" in output.out
    assert not output.err


@pytest.mark.parametrize("arguments", [[], ["nothing"]])
def test_what_is_no_benchmark_is_an_error(arguments, capsys):
    assert main(arguments) == 2
    assert "expected python -m benchmarks " in capsys.readouterr().err
