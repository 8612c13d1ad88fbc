"""Pictures of a running service's page, such as the README's.

python -m tests.web.screenshots http://127.0.0.1:8000 FOLDER
"""

import os
import sys
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

WINDOWS: dict[str, ViewportSize] = {
    "desktop": {"width": 1280, "height": 900},
    "phone": {"width": 400, "height": 800},
}
PROMPT = "Why is the sky blue?"
MAX_TOKENS = 80
PATIENCE_MS = 200_000


def main(url: str, folder: Path) -> None:
    """Playground, race and state, each in two windows, light and dark."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=flags)
        for window, viewport in WINDOWS.items():
            page = browser.new_page(viewport=viewport)
            page.goto(f"{url}/ui")
            for name, show in (("chat", show_chat), ("race", show_race), ("state", show_state)):
                show(page)
                for theme in ("light", "dark"):
                    page.emulate_media(color_scheme=theme)
                    page.screenshot(path=folder / f"{window}-{name}-{theme}.png")
        browser.close()


def show_chat(page: Page) -> None:
    """An answer, and one of its tokens pointed at: a correction, if there is one."""
    expect(page.locator("#target option").first).to_be_attached()
    page.get_by_label("Max tokens").fill(str(MAX_TOKENS))
    page.get_by_label("Message").fill(PROMPT)
    page.get_by_label("Message").press("Enter")
    expect(page.locator("#status")).to_contain_text("is complete", timeout=PATIENCE_MS)
    page.evaluate("scrollTo(0, 0)")
    corrections = page.locator("#log .token.correction")
    (corrections if corrections.count() else page.locator("#log .token")).first.hover()


def show_race(page: Page) -> None:
    """A race that is over."""
    page.get_by_role("link", name="Race").click()
    page.get_by_role("button", name="Start").click()
    verdict = page.locator("#verdict.same, #verdict.differs")
    expect(verdict).to_be_visible(timeout=PATIENCE_MS)


def show_state(page: Page) -> None:
    """All cards."""
    page.get_by_role("link", name="State").click()
    expect(page.locator(".card").first).to_be_visible()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
