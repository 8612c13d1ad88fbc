"""The command line's options. Python's own library only: run.py reads them before it installs."""

import argparse
from pathlib import Path

SCENARIOS = Path(__file__).parent / "scenarios"
"""Those that can be asked for by name."""
URL = "http://127.0.0.1:8000"
KEY = "S2D_API_KEY"
SMOKE = "smoke"
"""The scenario if none is named."""


def options_parser() -> argparse.ArgumentParser:
    """Of the command line."""
    names = ", ".join(sorted(path.stem for path in SCENARIOS.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        "loadtest/run.py",
        description="Throughput and latency of a running service, with speculation and without.",
        epilog=f"A service that wants a key: {KEY}=... in the environment. "
        "Exit code 0: all gates passed; 1: a gate failed; 2: it could not run; 130: Ctrl-C.",
    )
    add = parser.add_argument
    add("scenario", nargs="?", help=f"{names}, or a .yaml file (default: smoke)")
    add("--url", help=f"of the service (default: {URL})")
    add("--prompts", type=Path, help="JSON lines as Spec-Bench has them")
    add("--targets", help="names, comma-separated, instead of the scenario's")
    add("--levels", help="clients, rates or sizes, comma-separated, instead of the scenario's")
    add("--repeats", type=int, help="instead of the scenario's")
    add("--max-tokens", type=int, help="instead of the scenario's")
    add(
        "--minutes", type=float, help="start no batch of runs after so many; --resume goes on later"
    )
    add("--out", type=Path, help="the report's folder (default: loadtest/reports/...)")
    add("--resume", type=Path, metavar="FOLDER", help="go on with what is missing there")
    add("--start", metavar="COMMAND", help="starts a service where none answers; ended at the end")
    add("--null", action="store_true", help="against a server that answers at once, not --url")
    add("--compare", nargs=2, metavar=("A", "B"), help="two reports: what changed from A to B")
    return parser
