"""Pages of studies and comparisons in a real browser, without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from test_report_browser import check, opened
from test_study import STUDY, write

from desim_fl import comparison_page
from desim_fl.compare import compare
from desim_fl.study import conduct, load
from scenarios import QUADRATIC, played

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a page of a study with a target, and one of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    conduct(load(write(folder, STUDY + '[target]\nmetric = "loss"\nvalue = 3.0\n')), folder / "study", 1)
    runs = [played(folder, QUADRATIC, *more, out=name)[0] for name, more in (("a", ()), ("b", ("run.delay_scale=3",)))]
    page = comparison_page.write(folder / "comparison.html", compare(runs))
    return {"study": folder / "study" / "report.html", "comparison": page}


@pytest.mark.parametrize(
    ("name", "scheme", "width"), [("study", "light", 1200), ("study", "dark", 390), ("comparison", "light", 390)]
)
def test_pages_draw_offline_and_are_accessible(pages: dict[str, Path], name: str, scheme: str, width: int) -> None:
    """No request, no message, every chart drawn inside the page, no serious fault of accessibility, tables that act."""
    found = opened(pages[name], scheme, width)
    check(found, width)
    assert len(found["charts"]) >= (8 if name == "study" else 3)
    assert not {"NaN", "undefined", "null", "Infinity"} & set(found["texts"])
    assert found["table"]["copied"] > 0
    assert found["axis_colour"] != found["axis_colour_after"]
