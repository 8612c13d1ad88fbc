"""A headless Chromium, and the tiny app behind the page."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.serving.conftest import Deploy, base_url, deploy, tiny_args, weights

__all__ = ["base_url", "deploy", "tiny_args", "weights"]  # fixtures of another folder

SCREENSHOTS = "S2D_SCREENSHOTS"
"""Environment variable: the folder that keeps the pictures which tests take."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium as the system has it: Playwright's own build is not downloaded."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("no Chromium on the PATH; on Debian: apt-get install chromium")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has no sandbox to use
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go."""
    folder = os.environ.get(SCREENSHOTS)
    if folder is None:
        return tmp_path_factory.mktemp("screenshots")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


@pytest.fixture(scope="module")
def url(deploy: Deploy, tiny_args: dict[str, Any]) -> str:
    """The tiny app."""
    return deploy(tiny_args)
