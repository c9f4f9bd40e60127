"""The page of serve for everybody: axe-core finds no serious fault in any view, wide and narrow, light and dark; by keyboard; at 200 % zoom."""

import pytest
from browser import SCHEMES, WIDTHS, browsing, faults, is_scrolled_sideways, needs_axe, needs_chromium
from playwright.sync_api import expect

pytestmark = needs_chromium


def views(page, address):
    """Each view of the page in turn, filled: before a question, with titles found, answers and an explanation, the cases, and one case."""
    page.goto(address)
    expect(page.locator("#runs input")).to_have_count(2)
    yield "empty"
    search = page.get_by_role("searchbox", name="Search titles")
    for title in ("title 3", "title 4"):
        search.fill(title)
        page.get_by_role("button", name=f"Add {title.title()} é i{title[-1]}", exact=True).click()
    yield "history"
    page.get_by_role("button", name="Ask", exact=True).click()
    llara = page.get_by_role("article", name="LLaRA")
    expect(llara.locator(".free")).to_contain_text("valid")
    llara.locator("summary").click()
    llara.locator(".why").first.click()
    expect(llara.get_by_role("group", name="Left out of the history")).to_be_visible()
    yield "answers"
    page.get_by_role("link", name="Test cases").click()
    expect(page.locator("#case-list li")).to_have_count(12)
    yield "cases"
    page.locator("#case-list a").first.click()
    expect(page.locator("#case-body .wide tbody tr")).to_have_count(10)
    yield "case"
    page.goto(f"{address}#case=999999")
    page.reload()
    expect(page.locator("#error")).to_be_visible()
    yield "error"


@needs_axe
@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_fault(address, scheme, width):
    with browsing(color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True) as page:
        found = {view: faults(page) for view in views(page, address)}
    assert len(found) == 6 and not any(found.values()), found


@pytest.mark.parametrize("width", [380, 190])  # 190: a window of 380 at 200 % zoom
def test_no_view_scrolls_sideways(address, width):
    with browsing(viewport={"width": width, "height": 900}) as page:
        for view in views(page, address):
            assert not is_scrolled_sideways(page), view


def test_a_question_by_the_keyboard_alone(address):
    """Tab reaches everything, focus is seen, and it is nowhere lost."""
    with browsing(viewport={"width": 380, "height": 900}) as page:
        page.goto(address)
        expect(page.locator("#runs input")).to_have_count(2)
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        expect(page.locator(".skip")).to_be_in_viewport()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        expect(page.get_by_role("searchbox", name="Search titles")).to_be_focused()
        for title in ("title 3", "title 4"):
            page.keyboard.type(title)
            page.keyboard.press("Enter")
            expect(page.locator("#history")).to_contain_text(title.title())
            page.keyboard.press("Control+a")
        reached = _tab_until(page, "go")
        assert {"Remove Title 3 é", "Move Title 4 é earlier", "LLaRA", "SASRec", "k"} <= reached
        page.keyboard.press("Enter")
        expect(page.get_by_role("article", name="SASRec").locator("tr.answer")).to_have_count(5)
        assert page.evaluate("document.activeElement !== document.body"), "focus was lost when the answers came"


def _tab_until(page, wanted):
    """Press Tab until the element of an id has the focus; the names of all on the way, each of which shows that it has it."""
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        name, shows = page.evaluate(
            "(e => [e.id === 'history' ? '' : e.ariaLabel || e.value || e.id, getComputedStyle(e).outlineStyle !== 'none'])(document.activeElement)"
        )
        assert shows, name
        identity = page.evaluate("document.activeElement.id")
        reached |= {name, identity}
        if identity == wanted:
            return reached
    raise AssertionError(f"{wanted} is not reached: {reached}")
