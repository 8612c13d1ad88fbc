"""The `s2d` command.

s2d generate   a prompt in, text streaming out, in this process
s2d models     what a deployment file serves, and where its weights are
s2d doctor     whether it can be served here, and what to do if not
s2d plan       what it takes of memory and GPUs, and what to change where it does not fit
s2d serve      `serve run`, with the checks before it and a word when it is ready
s2d data       training text for a draft
s2d train      a sorted draft
s2d calibrate  how each target should use it on this machine
s2d eval       what it gains, measured side by side
"""

from s2d_serve.cli import draft_commands as draft_commands  # registers its commands
from s2d_serve.cli.commands import app


def main() -> None:
    """Entry point of the `s2d` script."""
    app()
