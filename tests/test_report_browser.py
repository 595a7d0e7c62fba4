"""The report in a real browser: Debian's Chromium, without a network, in light and dark and at phone width."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_runs import Made, make

from desim_fl import report

HERE = Path(__file__).parent / "browser"
WAYS = (("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390))
RUNS = {
    "normal": Made(
        updates=150,
        concurrency=25,
        max_staleness=2,
        links=True,
        balance=True,
        held_out=True,
        device_classes=("fast", "slow"),
    ),
    "diverged": Made(updates=150, nan_from=7, names=("<b>x</b>", "</script><script>alert(1)</script>")),
    "quadratic": Made(clients=3, accuracy=False, classes=0, updates=60, buffer=3, concurrency=3, wait=False),
    "plan": Made(updates=80, trained=False),
}


def browser() -> tuple[str, str]:
    """Return the programs that open a page; where one is missing the test fails and says how to get it."""
    node, chromium = shutil.which("node"), shutil.which("chromium")
    if node is None or chromium is None:
        pytest.fail("the browser tests need the programs node and chromium: apt-get install -y chromium nodejs npm")
    if not (HERE / "node_modules" / "playwright-core").is_dir():
        pytest.fail("the browser tests need playwright-core: npm ci --prefix tests/browser")
    return node, chromium


def opened(page: Path, scheme: str, width: int, *, act: bool = False) -> dict[str, Any]:
    """Open a page, drag, search and sort in it if asked to, and return what happened."""
    node, chromium = browser()
    command = [node, str(HERE / "check.mjs"), chromium, str(page), scheme, str(width), *(["act"] if act else [])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Write one page of each kind of run."""
    return {name: report.write(make(tmp_path_factory.mktemp("run"), made)) for name, made in RUNS.items()}


def check(found: dict[str, Any], width: int) -> None:
    """Nothing fetched, nothing said, every chart drawn once, inside the page, with words for a screen reader."""
    assert found["requests"] == []
    assert found["console"] == []
    assert found["errors"] == []
    assert found["faults"] == []
    assert found["scroll_width"] == width
    assert found["cut"] == []
    assert found["ready"] >= 1
    if "paper" in found:
        check_paper(found["paper"])
    for chart in found["charts"]:
        assert chart["svgs"] == 1, chart
        assert chart["marks"] > 3, chart
        assert chart["width"] - 26 < chart["svg_width"] <= chart["width"], chart
        assert len(chart["label"]) > 40, chart


def check_paper(found: dict[str, Any]) -> None:
    """On paper every chart is drawn anew in light colours, without a wait, inside its column, and can be read."""
    assert found["drawn"] > found["before"]
    assert found["scroll_width"] == 688
    assert found["background"] == "rgb(255, 255, 255)"
    assert found["axis_colour"] == "rgb(90, 99, 108)"
    assert found["cut"] == []
    for chart in found["charts"]:
        assert chart["left"] >= -1, chart
        assert chart["right"] >= -1, chart
        assert chart["room"] < chart["height"] + 12, chart
        assert chart["font"] > 8.5, chart


TIMED = {
    "learning-time",
    "learning-updates",
    "staleness-versions",
    "staleness-seconds",
    "timeline",
    "local-loss",
    "links",
}


def check_window(found: dict[str, Any], width: int) -> None:
    """Dragged in either chart or typed, a window of time changes all charts that know of time, and no other; Escape undoes it."""
    assert {name: set(charts) for name, charts in found["by"].items()} == dict.fromkeys(
        ("timeline", "learning", "typed"), TIMED
    )
    assert found["after"] == []
    assert found["narrow"] == width
    assert re.fullmatch(r"About \d+ updates arrived then\.", found["said"])


def check_clients(found: dict[str, Any]) -> None:
    """Orders are permutations of the clients; a search leaves who bears the name; picking a leg in the legend dims the others."""
    orders = found["orders"]
    assert set(orders) == {"number", "class", "updates", "fast", "slow", "first"}
    assert all(sorted(order) == sorted(orders["number"]) for order in orders.values())
    assert orders["fast"] == orders["slow"][::-1] != orders["number"]
    assert found["found"] == [found["wanted"]]
    assert found["wanted"] in found["rows"]
    assert found["nobody"] == "No client is called so."
    assert found["picked"]


@pytest.mark.parametrize(("scheme", "width"), WAYS)
def test_the_page_works_offline(pages: dict[str, Path], scheme: str, width: int) -> None:
    """Opened as a file: no request, an empty console, every chart; brushing links, searching, sorting, schemes redraw; CASES RE-03."""
    act = (scheme == "dark") == (width == 390)
    found = opened(pages["normal"], scheme, width, act=act)
    check(found, width)
    assert len(found["charts"]) == 21
    if act:
        check_window(found["window"], width)
        check_clients(found["clients"])
    assert found["linked"]
    assert "Accuracy" in found["tooltip"]
    assert "undefined" not in found["tooltip"]
    dark = sum(int(part) for part in found["background"].removeprefix("rgb(").rstrip(")").split(",")) < 300
    assert dark == (scheme == "dark")
    assert found["axis_colour"] != found["axis_colour_after"]


def test_tables_sort_search_and_copy(pages: dict[str, Path]) -> None:
    """A heading sorts up, then down; the search leaves rows that hold the words; the copy is as long as the table."""
    table = opened(pages["normal"], "light", 1200)["table"]
    assert sorted(table["up"]) == sorted(table["before"]) == sorted(table["down"])
    assert table["up"] == table["down"][::-1] or len(set(table["up"])) < len(table["up"])
    assert table["up"][0] <= table["up"][-1]
    assert table["left"]
    assert all(table["wanted"] in row for row in table["left"])
    assert table["copied"] > len("".join(table["before"]))
    assert table["said"] in {"Copied", "Copy as CSV"}


@pytest.mark.parametrize("name", ["diverged", "quadratic", "plan"])
def test_other_runs_draw_too(pages: dict[str, Path], name: str) -> None:
    """A diverged run, one without accuracy and one without training draw every chart that they have."""
    found = opened(pages[name], "light", 1200)
    check(found, 1200)
    assert not {"NaN", "undefined", "null", "Infinity"} & set(found["texts"])
    if name == "diverged":
        assert "<b>x</b>" in found["texts"]
        assert "diverged at version 7" in found["texts"]


def test_the_page_works_without_scripts(pages: dict[str, Path]) -> None:
    """With scripts off the main chart is there as a picture."""
    found = opened(pages["normal"], "no-preference", 1200)
    assert found["picture"] > 400
    assert found["errors"] == []
