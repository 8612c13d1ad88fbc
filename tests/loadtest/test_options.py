import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "loadtest" / "run.py"


@pytest.mark.parametrize(
    ("argument", "code", "says"),
    [("--help", 0, "burst, cancel, mix, poisson, smoke, sweep"), ("--level", 2, "one argument")],
)
def test_options_are_read_by_a_bare_python(argument: str, code: int, says: str) -> None:
    without_packages = [sys.executable, "-S", "-E", str(RUN), argument]
    done = subprocess.run(without_packages, capture_output=True, text=True)
    assert done.returncode == code
    assert says in " ".join((done.stdout + done.stderr).split())
