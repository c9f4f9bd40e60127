"""One visit in a real Chromium: search, a history of three, two runs side by side, a case; nothing in its console."""

import re
from contextlib import contextmanager

import pytest
from browser import CHROMIUM
from playwright.sync_api import expect, sync_playwright

from recbole_llara.serving.http.app import create_app


@pytest.fixture
def page(address):
    """The page in a browser."""
    with _visiting(address) as made:
        yield made


@contextmanager
def _visiting(address, may_say=()):
    """The page in a browser; fails on any other word of its console, any uncaught error, any request to elsewhere."""
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium, or Chrome")
    said, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        made = browser.new_page()
        made.on("console", lambda message: said.append(message.text))
        made.on("pageerror", lambda error: said.append(str(error)))
        made.on("request", lambda request: asked.append(request.url))
        made.goto(address)
        yield made
        browser.close()
    assert [line for line in said if not any(word in line for word in may_say)] == []
    assert all(url.startswith(address) for url in asked)


def test_a_visit(page, toy):
    search = page.get_by_role("searchbox", name="Search titles")
    search.fill("title 3")
    page.get_by_role("button", name="Add Title 3 é i3", exact=True).click()
    search.fill("title 4")
    search.press("Enter")
    expect(page.locator("#history li")).to_have_count(2)
    search.fill("img")  # an attack, added by the keyboard
    expect(page.get_by_role("button", name=f"Add {toy.attack}")).to_be_visible()
    search.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.locator("#history li")).to_have_count(3)
    expect(page.locator("#history .title").last).to_have_text(toy.attack)

    page.get_by_role("button", name="Ask", exact=True).click()
    for run in ("LLaRA", "SASRec"):
        expect(page.get_by_role("article", name=run).locator("tr.answer")).to_have_count(5)
    llara = page.get_by_role("article", name="LLaRA")
    expect(llara.locator(".free")).to_contain_text(re.compile("valid"))
    llara.locator("summary").click()
    expect(llara.locator(".prompt mark")).to_have_count(13)  # three of the history, ten candidates
    expect(llara.locator(".prompt")).to_contain_text(toy.attack)

    why = llara.locator(".why").first
    expect(why).to_have_attribute("aria-expanded", "false")
    why.focus()
    page.keyboard.press("Enter")
    expect(why).to_have_attribute("aria-expanded", "true")
    because = llara.locator("tr.because").first
    expect(because.get_by_role("row", name="without behavioural tokens")).to_have_text(re.compile(r"tokens−?-?\d+\.\d\d"))
    expect(because.get_by_role("group", name="Left out of the history").locator("tbody tr")).to_have_count(3)
    expect(because.get_by_role("group", name="Left out of the history")).to_contain_text(toy.attack)
    page.keyboard.press("Enter")
    expect(because).to_be_hidden()
    page.keyboard.press("Enter")  # kept: not asked again
    expect(because).to_be_visible()
    sasrec = page.get_by_role("article", name="SASRec")
    sasrec.locator(".why").nth(1).click()
    expect(sasrec.locator("tr.because").nth(1)).to_contain_text("unseen items")
    expect(sasrec.locator("tr.because").nth(1)).not_to_contain_text("without behavioural tokens")
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 1280, "height": 720})

    page.get_by_role("link", name="Test cases").click()
    page.get_by_label("SASRec").last.select_option("wrong")
    expect(page.locator("#cases-status")).to_contain_text("of 12 rows")
    page.get_by_label("SASRec").last.select_option("any")
    expect(page.locator("#case-list li")).to_have_count(12)
    page.locator("#case-list a").first.click()
    expect(page.locator("#case tr.target")).to_have_count(1)
    expect(page.locator("#case-body .wide tbody tr")).to_have_count(10)
    expect(page.locator("#case-title")).to_be_focused()
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("button", name="Ask this now").click()
    expect(page.locator("#given-text")).to_contain_text("the 10 candidates of row")
    expect(page.get_by_role("article", name="LLaRA").locator(".free")).to_contain_text(re.compile("valid"))

    text = page.locator("main").inner_text()
    assert not re.search("undefined|NaN|\\[object", text)
    assert page.evaluate("window.harmed") is None
    assert page.locator("main img").count() == 0


def test_a_visitor_is_asked_for_the_token(service, listening):
    with listening(create_app(service, token="s3cret")) as address, _visiting(address, may_say=["401 (Unauthorized)"]) as page:
        for given in ("wrong", "s3cret"):
            expect(page.get_by_label("Token of this service")).to_be_visible()
            page.get_by_label("Token of this service").fill(given)
            page.get_by_label("Token of this service").press("Enter")
        expect(page.get_by_label("Token of this service")).to_be_hidden()
        expect(page.locator("#about")).to_contain_text("toy · LLaRA, SASRec")
        page.get_by_role("searchbox", name="Search titles").fill("title 3")
        page.get_by_role("button", name="Add Title 3 é i3", exact=True).click()
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_role("article", name="SASRec").locator("tr.answer")).to_have_count(5)


def test_a_film_that_no_run_has_seen_is_added_and_recommended(make_changing, listening, tmp_path):
    with listening(create_app(make_changing(tmp_path / "more.item"))) as address, _visiting(address) as page:
        page.get_by_text("Add an item that no run has seen").click()
        page.get_by_label("Title", exact=True).fill("Dune: <b>Part Two</b>")
        page.get_by_label("Id", exact=True).fill("dune-2")
        page.get_by_role("button", name="Add item").click()
        expect(page.locator("#new-status")).to_have_text("Added: Dune: <b>Part Two</b>.")
        expect(page.get_by_label("Title", exact=True)).to_be_focused()
        page.get_by_role("searchbox", name="Search titles").fill("title 3")
        page.get_by_role("button", name="Add Title 3 é i3", exact=True).click()
        page.get_by_label("Show").select_option("10")
        page.get_by_role("button", name="Ask", exact=True).click()
        answers = page.get_by_role("article", name="LLaRA").locator("tr.answer")
        expect(answers).to_have_count(10)
        expect(page.get_by_role("article", name="LLaRA")).to_contain_text("Dune: <b>Part Two</b>")
        page.get_by_role("searchbox", name="Search titles").fill("dune")
        expect(page.get_by_role("button", name="Add Dune: <b>Part Two</b>")).to_be_visible()
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_where_items_cannot_change_the_page_offers_no_form(page):
    expect(page.locator("#about")).to_contain_text("SASRec")
    expect(page.locator("#new-item")).to_be_hidden()
