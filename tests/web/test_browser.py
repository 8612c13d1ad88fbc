"""The page as a person uses it: a real Chromium, the real API, tiny targets on Ray."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, ViewportSize, expect

from tests.serving.conftest import Deploy

pytestmark = [pytest.mark.browser, pytest.mark.ray]

PROMPT = "the thing in the string"
PHONE: ViewportSize = {"width": 400, "height": 800}
DESKTOP: ViewportSize = {"width": 1280, "height": 900}
OpenPage = Callable[..., Page]
SLOW_BYTES_PER_S = 20_000
"""Of a connection over which 900 tokens take longer than a look and a key press, however fast the
tiny model is.
"""


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console says of mistakes; a test that provokes some clears it."""
    return []


@pytest.fixture
def open_page(browser: Browser, url: str, complaints: list[str]) -> Iterator[OpenPage]:
    """Opens the page in a window of its own; at the end nothing may have gone wrong in it."""
    contexts = []

    def open_it(view: str = "chat", viewport: ViewportSize = DESKTOP, **options: Any) -> Page:
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{url}/ui#{view}")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert complaints == []


def chat(page: Page, text: str = PROMPT, max_tokens: int = 60, seed: int = 5) -> None:
    """Ask for an answer with sampling."""
    expect(page.locator("#target option")).to_have_count(2)
    page.get_by_label("Max tokens").fill(str(max_tokens))
    page.get_by_label("Temperature").fill("0.8")
    page.get_by_label("Seed").fill(str(seed))
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def await_answer(page: Page) -> None:
    """Until the answer is complete."""
    expect(page.locator("#status")).to_contain_text("is complete", timeout=60_000)


def slow_down(page: Page, bytes_per_s: int) -> None:
    """Let the page receive so much from now on."""
    conditions = {"offline": False, "latency": 0, "uploadThroughput": -1}
    page.context.new_cdp_session(page).send(
        "Network.emulateNetworkConditions", {**conditions, "downloadThroughput": bytes_per_s}
    )


def count(page: Page, name: str) -> str:
    """What the page shows for one of its counts."""
    return page.locator(f"#chat-counts div:has(dt:text-is('{name}')) dd").inner_text()


def api_answer(url: str, max_tokens: int = 60) -> dict[str, Any]:
    """The same answer, asked for without the page."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": PROMPT}],
        "temperature": 0.8,
        "seed": 5,
        "max_tokens": max_tokens,
        "speculation": {"enabled": False},
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    result: dict[str, Any] = answer.json()
    return result


def token_texts(tokens: Locator) -> str:
    """Text of the tokens that add to the text."""
    shown = tokens.evaluate_all(
        "all => all.filter(t => !t.classList.contains('special')).map(t => t.textContent).join('')"
    )
    assert isinstance(shown, str)
    return shown


def test_a_chat_streams_and_each_token_shows_its_origin(
    open_page: OpenPage, url: str, screenshots: Path
) -> None:
    """The text is the API's; rounds, counts and colours fit each other."""
    page = open_page()
    chat(page)
    await_answer(page)
    tokens = page.locator("#log .token")
    assert token_texts(tokens) == api_answer(url)["choices"][0]["message"]["content"]
    columns = page.locator("#strip .column")
    assert count(page, "Tokens") == str(tokens.count())
    assert count(page, "Rounds") == str(columns.count())
    assert float(count(page, "Tokens/round")) == pytest.approx(
        tokens.count() / columns.count(), abs=0.01
    )
    assert float(count(page, "Tokens/s")) > 0
    kinds = {
        kind: page.locator(f"#log .token.{kind}").count()
        for kind in ("exit-1", "exit-2", "lookup", "bonus", "correction", "alone")
    }
    assert sum(kinds.values()) == tokens.count()
    assert kinds["exit-1"] > 0
    assert kinds["correction"] > 0
    assert page.locator("#strip .rejected").count() > 0
    page.screenshot(path=screenshots / "chat.png")


def test_tokens_are_shown_while_they_come(open_page: OpenPage) -> None:
    """And Stop ends the answer, which the chat goes on from."""
    page = open_page()
    slow_down(page, SLOW_BYTES_PER_S)
    chat(page, max_tokens=900)
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_visible()
    tokens = page.locator("#log .token")
    expect(tokens.nth(3)).to_be_attached()
    expect(tokens.nth(tokens.count())).to_be_attached()  # another one
    expect(stop).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert tokens.count() < 900
    slow_down(page, -1)  # no longer
    chat(page, "and then", max_tokens=5)
    await_answer(page)
    assert page.locator("#log .turn").count() == 4


def test_pointing_at_a_token_tells_of_its_round(open_page: OpenPage) -> None:
    """By mouse and by keyboard: the guess that was wrong, the round's number, its times."""
    page = open_page()
    chat(page)
    await_answer(page)
    correction = page.locator("#log .token.correction").first
    correction.hover()
    inspector = page.locator("#inspector")
    number = correction.get_attribute("data-round")
    expect(inspector).to_contain_text(f"Round {number}")
    expect(inspector.locator(".guesses .rejected")).to_have_count(1)
    expect(inspector.locator(".times")).to_have_text(
        re.compile(r"^[\d.]+ m?s: draft [\d.]+ m?s, verify [\d.]+ m?s, rest [\d.]+ m?s$")
    )
    page.locator("#log .token").first.focus()
    expect(inspector).to_contain_text("Round 1")
    page.keyboard.press("End")
    last = page.locator("#strip .column").count()
    expect(inspector).to_contain_text(f"Round {last}")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#log .token").nth(-2)).to_be_focused()


def test_the_race_ends_with_identical_text(open_page: OpenPage, screenshots: Path) -> None:
    """And says by how much one was faster."""
    page = open_page("race")
    expect(page.locator("#target option")).to_have_count(2)
    page.get_by_label("Max tokens").fill("80")
    page.get_by_label("Temperature").fill("0.8")
    page.get_by_role("button", name="Start").click()
    verdict = page.locator("#verdict")
    expect(verdict).to_contain_text("Identical text", timeout=60_000)
    expect(verdict).to_contain_text(re.compile(r"\d\.\d\d"))
    off, on = page.locator("#lane-off"), page.locator("#lane-on")
    assert token_texts(off.locator(".token")) == token_texts(on.locator(".token")) != ""
    assert on.locator(".token.exit-1").count() > 0
    assert off.locator(".token").count() == off.locator(".token.alone").count()
    assert page.locator("#race-chart polyline").count() == 2
    page.screenshot(path=screenshots / "race.png", full_page=True)
    page.get_by_label("Max tokens").fill("9")
    page.get_by_role("button", name="Start").click()
    expect(verdict).to_contain_text("9 tokens", timeout=60_000)
    last_seen = on.locator(".token:not(:empty)").last  # an end token has no text to point at
    last_seen.hover()
    last = last_seen.get_attribute("data-round")
    expect(page.locator("#race-inspector")).to_contain_text(f"Round {last}")


def test_a_race_with_different_texts_says_where(open_page: OpenPage) -> None:
    """As it would be with another seed in the second run."""
    page = open_page("race")
    expect(page.locator("#target option")).to_have_count(2)
    page.get_by_label("Max tokens").fill("20")
    page.get_by_label("Temperature").fill("1")

    def with_another_seed(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        body["seed"] += body["speculation"]["enabled"]
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", with_another_seed)
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#verdict")).to_contain_text(
        re.compile(r"The texts differ from character \d+ on"), timeout=60_000
    )


def test_errors_are_sentences(
    open_page: OpenPage, complaints: list[str], screenshots: Path
) -> None:
    """The API's own, a service that is gone, and a stream that breaks off."""
    page = open_page()
    alert = page.get_by_role("alert")
    chat(page, max_tokens=5000)
    expect(alert).to_have_text(re.compile(r"^[A-Z\d].*1024.*\.$"))
    assert page.get_by_label("Message").input_value() == PROMPT, "nothing typed is lost"
    page.screenshot(path=screenshots / "error.png")
    page.route("**/v1/chat/completions", lambda route: route.abort())
    chat(page)
    expect(alert).to_have_text(re.compile(r"^The service does not answer; .*\.$"))
    event = 'event: error\ndata: {"error": {"message": "the target is lost"}}\n\n'
    for body, sentence in ((event, "The target is lost."), ("", "The answer broke off before its")):
        page.route("**/v1/chat/completions", streamed(body))
        chat(page)
        expect(alert).to_contain_text(sentence)
    assert len(complaints) == 2, "the browser's own words on what failed"
    complaints.clear()


def streamed(body: str) -> Callable[[Route], None]:
    """Answers a request with a stream of this text."""
    return lambda route: route.fulfill(body=body, content_type="text/event-stream")


def test_a_phone_has_no_sideways_scroll(open_page: OpenPage, screenshots: Path) -> None:
    """In all views, with an answer, a round pointed at, and a race in them."""
    page = open_page(viewport=PHONE, has_touch=True)
    chat(page, max_tokens=200)
    await_answer(page)
    page.locator("#log .token:not(:empty)").first.tap()  # a part of a character shows nothing
    expect(page.locator("#inspector")).to_be_in_viewport()
    page.screenshot(path=screenshots / "phone-chat.png")
    page.get_by_role("button", name="Close").tap()
    expect(page.locator("#inspector")).to_be_hidden()
    assert overflow(page) == 0
    page.get_by_role("link", name="Race").tap()
    page.get_by_label("Max tokens").fill("40")
    page.get_by_role("button", name="Start").tap()
    expect(page.locator("#verdict")).to_contain_text("Identical text", timeout=60_000)
    assert overflow(page) == 0
    page.screenshot(path=screenshots / "phone-race.png", full_page=True)
    page.get_by_role("link", name="State").tap()
    expect(page.locator(".card")).to_have_count(3)
    assert overflow(page) == 0


def overflow(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert isinstance(wider, int)
    return wider


def test_the_state_of_all_models(open_page: OpenPage, screenshots: Path) -> None:
    """Targets, draft, and each replica's slots."""
    page = open_page("state", color_scheme="dark")
    for name, facts in {
        "Draft": ["Exits after layers2, 4", "Replica 10 of"],
        "tiny": ["Context1024 tokens", "Replica 10 of"],
        "tiny-int8": ["Speculationwith the draft"],
    }.items():
        card = page.locator(f".card:has(h2:text-matches('^{name}'))").first
        expect(card).to_contain_text("ready")
        for fact in facts:
            expect(card).to_contain_text(fact)
    page.screenshot(path=screenshots / "state-dark.png")


def test_dark_and_light(open_page: OpenPage, screenshots: Path) -> None:
    """As the system has it, or as chosen; the choice is remembered."""
    page = open_page(color_scheme="dark")

    def ground() -> Any:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    dark = ground()
    chat(page)
    await_answer(page)
    page.screenshot(path=screenshots / "chat-dark.png")
    page.get_by_role("button", name="Theme: auto").click()
    light = ground()
    assert light != dark
    page.reload()
    assert ground() == light
    page.get_by_role("button", name="Theme: light").click()
    assert ground() == dark


@pytest.fixture
def key(url: str, deploy: Deploy, tiny_args: dict[str, Any], tmp_path: Path) -> str:
    """The app again, which this key opens now."""
    keys = tmp_path / "keys"
    keys.write_text(hashlib.sha256(b"open sesame").hexdigest())
    deploy(tiny_args | {"auth": {"api_keys_file": keys}}, key="open sesame")
    return "open sesame"


def test_a_key_is_asked_for_and_kept_in_the_tab(
    open_page: OpenPage, key: str, complaints: list[str]
) -> None:
    """A wrong one is refused in a sentence; the right one is not written to disk."""
    page = open_page()
    alert = page.get_by_role("alert")
    expect(alert).to_have_text(re.compile(r"^A valid API key is needed.*\.$"))
    field = page.get_by_label("API key", exact=True).and_(page.locator("input"))
    expect(field).to_be_focused()
    field.fill("guess")
    field.press("Enter")
    expect(alert).to_be_visible()
    field.fill(key)
    field.press("Enter")
    expect(field).to_be_hidden()
    chat(page)
    await_answer(page)
    page.reload()
    expect(page.locator("#target option")).to_have_count(2)
    assert page.evaluate("Object.values({...localStorage})").count(key) == 0
    assert page.context.cookies() == []
    assert complaints
    assert all("401" in complaint for complaint in complaints)
    complaints.clear()
