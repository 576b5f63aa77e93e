"""The page in a real browser, Debian's chromium: what a visitor types, sees, uploads and stops."""

import shutil

import polars as pl
import pytest
from conftest import length_when_still
from small_page import ask, page_of, stop_after

pytest.importorskip("gradio", reason="the page needs gradio")
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright is installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if not CHROMIUM:
    pytest.skip("no chromium is installed", allow_module_level=True)

playwright.expect.set_options(timeout=20_000)  # as long as a click may wait: machines are busy

# of its own use of pandas
pytestmark = pytest.mark.filterwarnings("ignore:.*keyword is deprecated", "ignore:.*downcasting")
TEXT = "A dull start, but <b>what</b> an ending!"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with page_of(tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture(scope="module")
def browser():
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update"]  # fmt: skip
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def visit(page, browser):
    """Open the page as a new visitor. At the end: nothing was fetched from elsewhere, no script
    failed, and nothing is wider than the window."""
    visitors, fetched, failed = [], [], []

    def open_page(tab="Classify", width=1280, scheme="light"):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True
        )
        visitor = context.new_page()
        visitor.set_default_timeout(20_000)
        visitor.on("request", lambda request: fetched.append(request.url))
        visitor.on("pageerror", lambda error: failed.append(str(error)))
        visitor.goto(page.url)
        visitor.get_by_role("tab", name=tab).click()
        visitors.append(context)
        return visitor

    yield open_page
    for context in visitors:
        for visitor in context.pages:
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert visitor.evaluate(wide) <= 0
        context.close()
    own = (page.url, "data:", "blob:")
    assert fetched and [url for url in fetched if not url.startswith(own)] == []
    assert failed == []


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_type_a_text_and_read_the_bars(visit, page, width, scheme):
    visitor = visit(width=width, scheme=scheme)
    visitor.fill("#text textarea", TEXT)
    visitor.get_by_role("button", name="Classify").click()
    card = visitor.locator(".cards section")
    playwright.expect(card).to_contain_text("The bag of words")
    (found,) = ask(page.url, "classify", TEXT)
    for row in card.locator("tr").all():
        label, _, shown = [cell.inner_text() for cell in row.locator("th, td").all()]
        assert shown == f"{100 * found['probabilities'][label]:.1f} %"
    bars = [bar.bounding_box()["width"] for bar in card.locator(".bar").all()]
    assert len(bars) == 2 and bars[0] >= bars[1] > 0
    words = card.locator(".words span")
    assert words.all_inner_texts() == TEXT.split()  # <b> is what was typed, and no markup
    assert card.locator("b").count() == 0


def test_an_example_of_the_test_split_and_a_mistake(visit):
    visitor = visit()
    visitor.get_by_role("button", name="Classify").click()
    playwright.expect(visitor.get_by_text("the text is empty")).to_be_visible()
    example = visitor.locator("button", has_text="positive:").first
    example.click()
    playwright.expect(visitor.locator(".cards .words")).to_be_visible()
    assert len(visitor.input_value("#text textarea")) > 20


def test_upload_a_table_and_download_the_labels(visit, tmp_path):
    texts = [f"film {number} <i>" for number in range(20)]
    pl.DataFrame({"id": range(20), "story": texts}).write_csv(tmp_path / "new.csv")
    visitor = visit(width=390)
    visitor.get_by_role("button", name="A whole table").click()
    visitor.set_input_files("#upload input[type=file]", tmp_path / "new.csv")
    column = visitor.locator("#column input")
    playwright.expect(column).to_have_value("id")
    column.click()
    visitor.get_by_role("option", name="story").click()
    visitor.get_by_role("button", name="Label the table").click()
    link = visitor.locator("#labelled a[download]").first
    with visitor.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "labelled.csv")
    assert download.value.suggested_filename == "new-labelled.csv"
    labelled = pl.read_csv(tmp_path / "labelled.csv")
    assert labelled.columns == ["id", "story", "label", "probability"]
    assert labelled["story"].to_list() == texts and labelled["label"].null_count() == 0


def few_tokens(visitor):
    visitor.get_by_role("button", name="Input, and how an answer").click()
    slider = visitor.get_by_label("range slider for Tokens")
    for _ in range(100):  # what is typed too early the page sets back, perhaps a moment later
        visitor.get_by_label("number input for Tokens").fill("6")
        visitor.wait_for_timeout(300)
        if slider.input_value() == "6":
            return
    raise AssertionError("the page took no number")


def test_a_conversation_of_three_turns(visit, page):
    """Two visitors at the same time, each with his own."""
    one, other = visit("Converse"), visit("Converse", width=390, scheme="dark")
    few_tokens(one)
    few_tokens(other)
    for turn in range(3):
        for visitor, asked in ((one, f"Say <b>{turn}</b>."), (other, f"Film {turn}?")):
            visitor.fill("#instruction textarea", asked)
            visitor.click("#send")
        for visitor, asked in ((one, f"Say <b>{turn}</b>."), (other, f"Film {turn}?")):
            (expected,) = ask(page.url, "respond", asked, "", 0.0, 1.0, 6, 1 + turn)
            playwright.expect(visitor.locator(".talk .user.message")).to_have_count(turn + 1)
            last = visitor.locator(".talk .bot.message").last
            tokens = visitor.get_by_label("range slider for Tokens").input_value()
            why = f"turn {turn}, {tokens} tokens"
            playwright.expect(last, why).to_have_text(expected["answer"].strip())
            playwright.expect(visitor.locator("#instruction textarea")).to_have_value("")
    assert one.locator(".talk .user.message").all_inner_texts() == [
        f"Say <b>{turn}</b>." for turn in range(3)
    ]
    assert "Say" not in other.locator(".talk").first.inner_text()


def test_before_and_after_side_by_side(visit):
    visitor = visit("Converse")
    few_tokens(visitor)
    visitor.check("#before input")
    playwright.expect(visitor.get_by_text("i, before fine-tuning")).to_be_visible()
    visitor.fill("#instruction textarea", "Hello.")
    visitor.click("#send")
    playwright.expect(visitor.locator(".talk .user.message")).to_have_count(2)
    boxes = [talk.bounding_box() for talk in visitor.locator(".talk").all()]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


@pytest.mark.parametrize("how", ["stop", "close"])
def test_an_answer_is_stopped(visit, page, how):
    """By the button, what is said stays and nothing comes after it; when the browser is closed, the
    model works no more either."""
    _, (assistant,) = page.models
    visitor = visit("Converse")
    with stop_after(assistant, seconds_a_token=0.05) as tokens:
        visitor.fill("#instruction textarea", "Go on.")
        visitor.click("#send")
        while len(tokens) < 8:
            visitor.wait_for_timeout(50)
        if how == "stop":
            visitor.click("#stop")
        else:
            visitor.close()
        count = length_when_still(tokens)
        assert 8 <= count < 120  # of 128
    if how == "stop":
        said = visitor.locator(".talk .bot.message").inner_text()
        assert said.strip()
        visitor.wait_for_timeout(300)
        assert visitor.locator(".talk .bot.message").inner_text() == said
    (found,) = ask(page.url, "respond", "Hello.", "", 0.0, 1.0, 2, 1)  # the page goes on
    assert "answer" in found


def test_what_is_typed_during_an_answer_stays(visit, page):
    """And Send, which would be ignored, is off until the answer ends, is stopped or cleared, or
    fails."""
    _, (assistant,) = page.models
    visitor = visit("Converse")
    box, send = visitor.locator("#instruction textarea"), visitor.locator("#send")
    with stop_after(assistant, seconds_a_token=0.05) as tokens:
        for end in ("#stop", "#clear"):
            box.fill("Go on.")
            send.click()
            playwright.expect(box).to_have_value("")
            playwright.expect(send).to_be_disabled()
            box.fill("And then?")
            before = len(tokens)
            while len(tokens) < before + 8:
                visitor.wait_for_timeout(50)
            box.press("Shift+Enter")
            playwright.expect(box).to_have_value("And then?")
            playwright.expect(visitor.locator(".talk .user.message")).to_have_count(1)
            visitor.click(end)
            playwright.expect(send).to_be_enabled()
            visitor.click("#clear")
            playwright.expect(visitor.locator(".talk .user.message")).to_have_count(0)
    few_tokens(visitor)
    for asked in ("Go on.", "go " * 600):  # the second leaves no room for an answer
        box.fill(asked)
        send.click()
        if asked == "Go on.":
            playwright.expect(box).to_have_value("")
        else:
            playwright.expect(visitor.get_by_text("no room for an answer")).to_be_visible()
        playwright.expect(send).to_be_enabled()
