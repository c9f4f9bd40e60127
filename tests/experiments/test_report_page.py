"""The report page in a real Chromium: wide and narrow, light and dark, by keyboard, at 200 % zoom; axe-core finds no serious fault."""

from pathlib import Path

import numpy as np
import pytest
from browser import SCHEMES, WIDTHS, browsing, faults, is_scrolled_sideways, needs_axe, needs_chromium

from recbole_llara.experiments.study_definition import CasePattern
from recbole_llara.experiments.study_report import write_study_report

ANSWERS = {"A": np.array([[1, 1, 0, 0]] * 3), "A long name of a system": np.array([[0, 1, 0, 0]] * 3)}

pytestmark = needs_chromium


@pytest.fixture
def report(make_study, outcomes_of, no_pngs) -> Path:
    """A page with tables, all kinds of figures and cases."""
    names = tuple(ANSWERS)
    study = make_study(
        names,
        seeds=(1, 2, 3),
        compare=(names,),
        figures=("bars", "validity", "curves", "radar", "cases"),
        radars={"all": list(names)},
        cases=(CasePattern("Only A", names[:1], names[1:]),),
    )
    write_study_report(study, outcomes_of(ANSWERS))
    return (study.folder / "report.html").resolve()


@needs_axe
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_fault(report: Path, scheme: str, width: int) -> None:
    with browsing(color_scheme=scheme, viewport={"width": width, "height": 900}) as page:
        page.goto(report.as_uri())
        assert faults(page) == []


@pytest.mark.parametrize("width", [*WIDTHS, 190])  # 190: a window of 380 at 200 % zoom
def test_the_page_never_scrolls_sideways(report: Path, width: int) -> None:
    with browsing(viewport={"width": width, "height": 900}) as page:
        page.goto(report.as_uri())
        assert not is_scrolled_sideways(page)


def test_tables_are_scrolled_by_the_keyboard(report: Path) -> None:
    with browsing(viewport={"width": 380, "height": 900}) as page:
        page.goto(report.as_uri())
        page.keyboard.press("Tab")
        table = page.locator(".wide").first
        assert table.evaluate("place => place === document.activeElement && place.scrollWidth > place.clientWidth")
        page.keyboard.press("ArrowRight")
        page.wait_for_function("document.activeElement.scrollLeft > 0")
