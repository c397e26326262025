"""The report in a real browser: nothing missing, nothing complained about."""

import re
import shutil
import subprocess

import pytest

from benchmarks.arc.report import write_report
from tests.benchmarks.arc.synthetic import write_comparison

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_the_report_opens_without_a_missing_figure_or_a_console_message(tmp_path):
    write_comparison(tmp_path, seeds=(0, 1, 2))
    page = write_report(tmp_path)
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    opened = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in opened.stderr
    figures = re.findall(r"<figure.*?</figure>", opened.stdout, re.DOTALL)
    assert len(figures) > 5
    assert sum("Distance of the mixers from their set" in figure for figure in figures) == 1
    assert all("<svg" in figure or "nothing" in figure for figure in figures)
