"""Where the `s2d` command writes: results to standard output, all else to standard error."""

from rich.console import Console

RESULTS = Console(highlight=False)
NOTES = Console(stderr=True, highlight=False)

GIB = 1024**3


def size(num_bytes: float) -> str:
    """A number of bytes for people: 88 MiB, 1.4 GiB."""
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 1024**2:.0f} MiB"
