"""`python -m loadtest`, in loadtest/.venv: run.py makes that."""

from loadtest.cli import main

main()
