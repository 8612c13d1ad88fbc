"""Load tests of a running service: `python loadtest/run.py [SCENARIO] [options]`.

Stands on AIPerf, which sends the requests and takes the times; this folder adds scenarios, gates
and reports. AIPerf wants an environment of its own (1.2 GB, no torch): the first run makes it under
loadtest/.venv, in a minute or three, and goes on there. `--help` lists the rest, at once.

Written by hand, since AIPerf does not do it: the few requests that compare texts with and without
speculation, and the schedules of open loops. AIPerf draws arrivals itself, but then it does not say
when a request was meant to leave; given a schedule, how late it was can be checked.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE / ".venv"
STAMP = HOME / "installed"

REQUIREMENTS = (
    "aiperf>=0.13,<0.14",  # the load generator: its exports are read, so a tested range
    "httpx>=0.28,<0.29",  # models, metrics, texts
    "matplotlib>=3.10,<4",  # plots
    "prometheus-client>=0.23,<1",  # reading /metrics
    "psutil>=7,<8",  # the generator's processor time
    "pydantic>=2.10,<3",  # scenarios, report.json
    "pyyaml>=6,<7",  # scenarios
    "rich>=14,<16",  # progress
    "scipy>=1.13,<2",  # quantiles of Student's t
    "starlette>=0.50,<2",  # the null server
    "uvicorn>=0.34,<1",
)


def main() -> None:
    """Make the environment if it is not there, then go on in it."""
    if sys.version_info < (3, 11):  # noqa: UP036  # whoever runs it may have an older one
        sys.exit("Python 3.11 or newer is needed: /path/to/python3.11 loadtest/run.py")
    sys.path.insert(0, str(HERE.parent))
    from loadtest.options import options_parser

    options_parser().parse_args()  # `--help` and mistakes need no installation
    python = HOME / ("Scripts" if os.name == "nt" else "bin") / "python"
    wanted = hashlib.sha256("\n".join(REQUIREMENTS).encode()).hexdigest()
    if not STAMP.exists() or STAMP.read_text() != wanted:
        _install(python)
        STAMP.write_text(wanted)
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    os.execve(python, [str(python), "-m", "loadtest", *sys.argv[1:]], environment)


def _install(python: Path) -> None:
    sys.stderr.write(f"First run: installing AIPerf into {HOME} (1.2 GB, one to three minutes).\n")
    venv.create(HOME, with_pip=True, clear=not python.exists())
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    done = subprocess.run([*pip, *REQUIREMENTS])
    if done.returncode:
        sys.exit(f"pip could not install AIPerf (above); rm -r {HOME} starts afresh")


if __name__ == "__main__":
    main()
