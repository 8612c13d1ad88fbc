"""The page that people open at GET /ui: static files, and the headers that keep them apart from the
rest of the web.

It speaks to the public API like any other client, and loads nothing from anywhere else.
"""

from dataclasses import dataclass
from importlib.resources import files

MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""Of every file: only its own scripts and styles run, and they reach its own service only."""


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file of the page."""

    body: bytes
    media_type: str


def static_files() -> dict[str, StaticFile]:
    """All files of the page by their names; `index.html` is the page itself."""
    return {
        file.name: StaticFile(file.read_bytes(), MEDIA_TYPES[file.name.rpartition(".")[2]])
        for file in files(__name__).joinpath("static").iterdir()
    }
