"""The page in a browser: asked, stopped, rated, by keyboard, on a phone, in the dark, without a key."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from paged import KEY, Doubting, Server, wrong
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed to show the page in")
PHONE, DESK = {"width": 320, "height": 640}, {"width": 1280, "height": 800}
SLOW = 0.02  # seconds a word, where an answer has to be seen coming


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server(Doubting()) as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.engine.pause, running.engine.broken, running.refusal, running.edited = 0.0, False, None, False
    running.feedback.clear()
    running.asked.clear()
    return running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """Let in by its key. Whatever the content policy forbids, or a script throws, fails the test."""
    with opened(browser, server) as found:
        enter(found)
        yield found


class opened:
    """A new tab with the page, at a width."""

    def __init__(self, browser: Browser, server: Server, **more: object) -> None:
        self.context = browser.new_context(**{"viewport": DESK, **more})  # type: ignore[arg-type]
        self.page, self.url, self.problems = self.context.new_page(), server.url, list[str]()

    def __enter__(self) -> Page:
        def heard(message: ConsoleMessage) -> None:
            if message.type == "error" and "Failed to load resource" not in message.text:
                self.problems.append(message.text)

        self.page.on("console", heard)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(self.url)
        return self.page

    def __exit__(self, *error: object) -> None:
        self.context.close()
        assert self.problems == []


def enter(page: Page, key: str = KEY) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_label("API key").press("Enter")
    expect(page.get_by_label("Model", exact=True)).to_have_value("tiny")


def say(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def test_a_chat_streams_with_its_pace_and_goes_on(page: Page, server: Server) -> None:
    say(page, "one two three")
    expect(page.locator(".answer")).to_have_text("one two three")
    expect(page.locator(".facts")).to_contain_text("3 tokens · ")
    expect(page.locator(".facts")).to_contain_text("tokens/s · first token after")
    expect(page.get_by_label("Your message")).to_be_focused()
    say(page, "four")
    expect(page.locator(".answer")).to_have_text(["one two three", "four"])
    assert [m["role"] for m in server.asked[1]["messages"]] == ["user", "assistant", "user"]
    page.get_by_role("button", name="Start anew").click()
    expect(page.locator("article")).to_have_count(0)
    say(page, "five")
    expect(page.locator(".answer")).to_have_text("five")
    assert len(server.asked[2]["messages"]) == 1


def test_a_text_goes_on_with_the_settings(page: Page, server: Server) -> None:
    page.get_by_label("goes on with a text").check()
    page.get_by_label("Temperature").fill("0.3")
    page.get_by_label("Tokens at most").fill("2")
    page.get_by_label("Colour tokens").uncheck()
    page.get_by_label("Model", exact=True).select_option("other")
    say(page, "once upon a time")
    expect(page.locator(".answer")).to_have_text("once upon")
    expect(page.locator(".answer .t")).to_have_count(0)
    asked = server.asked[0]
    assert (asked["model"], asked["prompt"], asked["temperature"]) == ("other", "once upon a time", 0.3)
    assert "logprobs" not in asked


def test_settings_that_are_no_numbers_are_not_sent(page: Page, server: Server) -> None:
    page.get_by_label("Temperature").fill("7")
    say(page, "hello")
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert server.asked == []
    expect(page.get_by_label("Your message")).to_have_value("hello")


def test_what_the_model_is_worth(page: Page) -> None:
    expect(page.locator("#worth")).to_have_text("1.234 bits per byte of held-out text · 9.4 MB · echo")
    page.get_by_label("Model", exact=True).select_option("other")
    expect(page.locator("#worth")).to_have_text("9.4 MB · echo")


def test_stop_ends_the_generation_too(page: Page, server: Server) -> None:
    server.engine.pause = SLOW
    server.engine.said = 0
    say(page, "word " * 200)
    expect(page.locator(".answer")).to_contain_text("word word")
    expect(page.locator("article")).to_have_attribute("aria-busy", "true")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".facts")).to_contain_text("stopped")
    expect(page.locator("article")).to_have_attribute("aria-busy", "false")
    expect(page.get_by_label("Your message")).to_be_focused()
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    while server.engine.running:
        page.wait_for_timeout(10)
    assert server.engine.said < 200
    say(page, "again")
    expect(page.locator(".answer").last).to_have_text("again")


def test_tokens_are_coloured_and_tell_what_else_was_likely(page: Page) -> None:
    say(page, "a b c d e")
    tokens = page.locator(".answer .t")
    expect(tokens).to_have_count(5)
    for number in range(5):
        expect(tokens.nth(number)).to_have_class(f"t p{number}")
    colours = tokens.evaluate_all("all => all.map(t => getComputedStyle(t).backgroundColor)")
    legend = page.locator("#legend .t").evaluate_all(
        "all => all.map(t => getComputedStyle(t).backgroundColor)"
    )
    assert len(set(colours)) == 5
    assert colours == legend
    tokens.nth(1).hover()
    expect(page.locator(".detail")).to_have_text("“ b” 70%; else “ something” 2.0%, “↵” below 0.1%")
    page.locator(".answer").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".detail")).to_contain_text("“a” 97%")
    page.keyboard.press("End")
    expect(page.locator(".detail")).to_contain_text("“ e” 1.0%")


def test_thumbs_and_a_comment(page: Page, server: Server) -> None:
    say(page, "one two")
    page.get_by_role("button", name="Bad").click()
    expect(page.get_by_role("button", name="Bad")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text("Thank you; it is kept")).to_be_visible()
    chat = [{"role": "user", "content": "one two"}]
    sent = {"request_id": "req-7", "rating": "down", "prompt": chat, "answer": "one two"}
    assert server.feedback == [sent]
    page.get_by_label("Why?").fill("too short")
    page.get_by_label("Why?").press("Enter")
    expect(page.get_by_text("your comment is kept")).to_be_visible()
    assert server.feedback[1] == {**sent, "comment": "too short"}


def test_a_rating_of_what_was_not_answered_says_so(page: Page, server: Server) -> None:
    server.edited = True
    say(page, "one two")
    page.get_by_role("button", name="Good").click()
    expect(page.get_by_text("The answer was not whole, so no model learns from it.")).to_be_visible()


def test_the_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser, server: Server) -> None:
    with opened(browser, server) as page:
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill("isk_wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_role("alert")).to_have_text(
            "The server does not know this key: the API key is not known."
        )
        enter(page)
        expect(page.get_by_role("alert")).to_be_empty()
        kept = "[sessionStorage.length, localStorage.length, document.cookie]"
        assert page.evaluate(kept) == [1, 0, ""]
        page.reload()
        expect(page.get_by_label("Model", exact=True)).to_have_value("tiny")
        page.get_by_role("button", name="Forget the key").click()
        expect(page.get_by_label("API key")).to_be_visible()
        assert page.evaluate(kept) == [0, 0, ""]


@pytest.mark.parametrize(
    ("status", "message", "more", "headers", "words"),
    [
        (
            429, "slow down", {}, {"retry-after": "7"},
            "Too many requests or tokens for this key. Try again in 7 s.",
        ),
        (503, "gone", {}, {}, "The server is busy, or its engine is gone. Try again soon."),
        (413, "big", {}, {}, "The prompt is too long for this server."),
        (400, "the prompt has 9 tokens, more than 4", {}, {}, "The prompt has 9 tokens, more than 4."),
        (400, "they tell", {"param": "logprobs"}, {}, "they tell. Untick “Colour tokens by probability”."),
    ],
)  # fmt: skip
def test_errors_in_words(
    page: Page, server: Server, status: int, message: str, more: dict[str, str], headers: dict[str, str],
    words: str,
) -> None:  # fmt: skip
    server.refusal = wrong(status, message, **more)
    server.refusal.headers.update(headers)
    say(page, "hello")
    expect(page.get_by_role("alert")).to_have_text(words)
    expect(page.locator("article")).to_have_count(0)
    expect(page.get_by_label("Your message")).to_have_value("hello")
    server.refusal = None
    page.get_by_label("Your message").press("Enter")
    expect(page.locator(".answer").last).to_have_text("hello")
    expect(page.get_by_role("alert")).to_be_empty()


def test_an_answer_that_breaks_off_says_so(page: Page, server: Server) -> None:
    server.engine.broken = True
    say(page, "one two three four")
    expect(page.get_by_role("alert")).to_contain_text("The answer broke off")
    expect(page.locator(".answer")).to_have_text("one two")


def test_an_error_within_a_stream_is_told(page: Page) -> None:
    said = 'data: {"error": {"message": "the engine is gone"}}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=said))
    say(page, "hello")
    expect(page.get_by_role("alert")).to_have_text("The answer broke off: the engine is gone.")


def test_a_server_that_is_gone_is_told(page: Page) -> None:
    page.context.set_offline(True)
    say(page, "hello")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")


def test_by_keyboard_alone(browser: Browser, server: Server) -> None:
    with opened(browser, server) as page:
        expect(page.get_by_label("API key")).to_be_focused()
        page.keyboard.type(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_label("Your message")).to_be_focused()
        page.keyboard.type("first line")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("second")
        page.keyboard.press("Enter")
        expect(page.locator(".answer")).to_have_text("first line second")
        seen, focused = [], "(at => at.value || at.className || at.id)(document.activeElement)"
        for _ in range(5):
            page.keyboard.press("Shift+Tab")
            seen.append(page.evaluate(focused))
        assert seen == ["down", "up", "answer", "talk", "leave"]
        server.engine.pause = SLOW
        page.get_by_label("Your message").focus()
        page.keyboard.type("word " * 100)
        page.keyboard.press("Enter")
        expect(page.locator(".answer").last).to_contain_text("word word")
        page.keyboard.press("Escape")
        expect(page.locator(".facts").last).to_contain_text("stopped")
        page.evaluate("document.activeElement.blur(), scrollTo(0, 0)")
        page.get_by_role("heading", name="isoflop").click()
        page.keyboard.press("Tab")
        expect(page.get_by_label("Model", exact=True)).to_be_focused()


# What of the checks of accessibility can be asked of the page itself: names of controls, ids, contrast.
CHECKS = """() => {
  const wrong = [];
  const said = (e) => e?.textContent.trim();
  const name = (e) => e.getAttribute("aria-label") || said(e.labels?.[0]) || said(e);
  const shown = (e) => e.checkVisibility();
  const named = "button, input, select, textarea, summary, section, [role=group]";
  for (const e of document.querySelectorAll(named))
    if (shown(e) && !name(e)) wrong.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  if (new Set(ids).size !== ids.length) wrong.push("an id twice");
  for (const e of document.querySelectorAll("label[for]"))
    if (!document.getElementById(e.htmlFor)) wrong.push(`a label of nothing: ${e.htmlFor}`);
  for (const e of document.querySelectorAll("button, select, summary, textarea"))
    if (shown(e) && e.getBoundingClientRect().height < 24) wrong.push(`too small: ${e.outerHTML}`);
  const parts = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => parts(c).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (parts(c)[3] !== 0) return c;
  } };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.data.trim() || !shown(e) || e.closest(":disabled, template, script, option")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${node.data.trim().slice(0, 40)}`);
  }
  return wrong;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
def test_names_contrast_and_width(
    browser: Browser, server: Server, size: dict[str, int], scheme: str
) -> None:
    with opened(browser, server, viewport=size, color_scheme=scheme) as page:
        fits = "document.documentElement.scrollWidth <= innerWidth"
        expect(page.get_by_label("API key")).to_be_visible()
        assert page.evaluate(CHECKS) == []
        assert page.evaluate(fits)
        enter(page)
        say(page, "averyveryveryveryverylongwordwithoutanyspaceinit" * 3 + " and short ones too")
        expect(page.locator(".facts")).to_contain_text("5 tokens")
        page.get_by_role("button", name="Good").click()
        page.locator(".answer .t").nth(3).hover()
        page.locator("#settings").evaluate("settings => { settings.open = true }")
        server.refusal = wrong(503, "gone")
        say(page, "x")
        expect(page.get_by_role("alert")).not_to_be_empty()
        assert page.evaluate(CHECKS) == []
        assert page.evaluate(fits)


def test_motion_is_reduced_where_it_is_wished(browser: Browser, server: Server) -> None:
    server.engine.pause = SLOW
    moving = "getComputedStyle(document.querySelector('.answer'), '::after').animationName"
    for wish, name in (("no-preference", "blink"), ("reduce", "none")):
        with opened(browser, server, reduced_motion=wish) as page:
            enter(page)
            say(page, "word " * 100)
            expect(page.locator("article")).to_have_attribute("aria-busy", "true")
            assert page.evaluate(moving) == name
