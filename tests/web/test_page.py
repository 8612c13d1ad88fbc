"""What is served at /ui, without a browser: headers, links, keys, packaging."""

import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest

from s2d_serve.web import MEDIA_TYPES, static_files
from tests.serving.fakes import FakeService, fake_service

ROOT = Path(__file__).parents[2]
LOADING = ("src", "href", "action", "data", "poster", "srcset", "style")
"""Attributes by which an element can fetch something, or break the page's policy."""


@pytest.fixture
def fake(weights: Path) -> FakeService:
    """A service over fakes."""
    return fake_service(weights)


async def test_every_file_of_the_page_is_served(fake: FakeService) -> None:
    """With its own type, and headers by which nothing but its own scripts can run."""
    for name in ("", *(f"/{name}" for name in static_files())):
        answer = await fake.client.get(f"/ui{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == MEDIA_TYPES[name.rpartition(".")[2] or "html"]
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_other_files_are_not(fake: FakeService) -> None:
    """An unknown name is an error like all others."""
    for path in ("/ui/nothing.js", "/ui/..%2f__init__.py", "/ui/static/ui.css"):
        answer = await fake.client.get(path)
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


async def test_the_page_is_open_where_the_api_needs_a_key(weights: Path, tmp_path: Path) -> None:
    """It asks for the key itself; what only begins like it stays locked."""
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"open sesame").hexdigest())
    fake = fake_service(weights, auth={"api_keys_file": keys})
    for path in ("/ui", "/ui/main.js"):
        assert (await fake.client.get(path)).status_code == 200
    for path in ("/uis", "/ui/a/b", "/v1/models", "/ready"):
        assert (await fake.client.get(path)).status_code == 401


class Attributes(HTMLParser):
    """Collects (element, attribute, value) of all that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.inline = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what matters of an element."""
        self.found += [(tag, name, value or "") for name, value in attrs if name in LOADING]
        names = [name for name, _ in attrs]
        self.inline += tag == "style" or (tag == "script" and "src" not in names)
        self.inline += any(name.startswith("on") for name in names)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    """Its links lead to its own files, and no style or script stands in the page."""
    files = static_files()
    page = Attributes()
    page.feed(files["index.html"].body.decode())
    assert page.inline == 0
    assert not [entry for entry in page.found if entry[1] == "style"]
    loaded = [value for tag, _, value in page.found if tag != "a"]
    assert {value.removeprefix("ui/") for value in loaded} <= files.keys()
    assert {"ui/main.js", "ui/ui.css", "ui/icon.svg"} <= set(loaded)
    for name, file in files.items():
        text = file.body.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|url\(|@import", text), name
        imported = re.findall(r'from "\./([^"]*)"', text)
        assert set(imported) <= files.keys()


def test_a_wheel_carries_the_page(tmp_path: Path) -> None:
    """All of its files."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "s2d_serve", source / "s2d_serve")
    build = "from setuptools.build_meta import build_wheel; build_wheel('.')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = source.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        carried = {name for name in archive.namelist() if "/web/static/" in name}
    assert carried == {f"s2d_serve/web/static/{name}" for name in static_files()}
