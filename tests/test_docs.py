"""What the documents show is run as it stands."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

import scenarios
from desim_fl.cli import app
from desim_fl.run import execute
from desim_fl.scenario import load, schema
from desim_fl.study import conduct
from desim_fl.study import load as load_study
from desim_fl.testing import PROMISES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """The files that the guide to strategies of one's own shows, each under the name in its first line."""
    text = (ROOT / "desim_fl" / "docs" / "your-own.md").read_text()
    shown = [block for language in ("python", "toml") for block in blocks(text, language)]
    for block in shown:
        (tmp_path / block.split("\n")[0].removeprefix("# ")).write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in tmp_path.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    assert len(list(tmp_path.iterdir())) == len(shown) == 11
    return tmp_path


def test_what_the_guide_to_strategies_of_one_s_own_shows_works(guide):
    """Each scenario plays to its stop with the classes shown, plan knows its timeline, and each test function passes."""
    assert load(guide / "mine.toml", ["strategy.args.wait=5"]).strategy.args == {"wait": 5}
    ends = {}
    for path in sorted(guide.glob("*.toml")):
        run, plan = scenarios.in_memory(load(path)), scenarios.in_memory(load(path), timing_only=True)
        assert plan.sha256 == run.sha256
        ends[path.stem] = (run.engine.ledger.arrived, run.engine.model.version)
    assert ends == {"mine": (60, 20), "biggest": (60, 6), "clipped": (60, 30), "sparse": (12, 6)}
    for path in sorted(guide.glob("test_*.py")):
        module = importlib.import_module(path.stem)
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        assert tests
        for test in tests:
            test()


def test_the_guide_s_strategy_is_short_and_lists_every_promise(guide):
    """Its class has at most 20 lines of code, and the table of promises is the one that is checked."""
    lines = (guide / "mine.py").read_text().split("class Damped:")[1].splitlines()
    assert 10 < len([line for line in lines if line.strip()]) <= 20
    text = (ROOT / "desim_fl" / "docs" / "your-own.md").read_text()
    assert [name for name in re.findall(r"^\| ([a-z ]+) \| .", text, flags=re.MULTILINE) if name != "promise"] == list(
        PROMISES
    )


EMBEDDED = {"fashion_mnist_6k", "blobs", "quadratic", "least_squares", "logistic"}
DOCS = sorted((ROOT / "desim_fl" / "docs").glob("*.md"))
COMMANDS = {
    line.split("#")[0].strip(): None
    for text in (blocks(README, "sh")[2:], *(blocks(path.read_text(), "sh") for path in DOCS))
    for block in text
    for line in block.splitlines()
    if line.startswith("desim-fl")
}
CHEAP = {"plan", "compare", "export", "schema", "report", "verify"}  # these are carried out, the others asked for help


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder as a reader has it: the scenarios, two runs of the first one, and a study."""
    folder = tmp_path_factory.mktemp("workplace")
    shutil.copytree(ROOT / "scenarios", folder / "scenarios")
    quick = ["strategy.buffer_size=5", "run.max_updates=60", "model={name='mlp',hidden=[8]}"]
    for number, name in enumerate(("quickstart", "quickstart-2")):
        execute(load(folder / "scenarios" / "quickstart.toml", quick, number), folder / "reports" / name)
    path = folder / "small.toml"
    path.write_text(
        'scenario = "scenarios/quickstart.toml"\ntiming_only = true\nseeds = [0]\nset = { "run.max_updates" = 60 }\n'
        '[[factors]]\nname = "buffer"\nkey = "strategy.buffer_size"\nvalues = [5, 10]\n'
    )
    conduct(load_study(path), folder / "reports" / "concurrency_u_shape", 1)
    return folder


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_documents_works(line, workplace, monkeypatch):
    """Each command of the README and the docs does what it says; what takes long resolves its scenario or prints its help."""
    monkeypatch.chdir(workplace)
    words = shlex.split(line)[1:]
    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "run":
        words.append("--print-config")
    elif words[0] not in CHEAP or {"--rerun", "--oracles"} & {*words}:  # test_oracles plays each oracle
        words.append("--help")
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output or done.exception


def test_the_study_of_the_docs_is_one(workplace):
    """The study file that the docs show loads beside the shipped ones, with six variants."""
    path = workplace / "scenarios" / "studies" / "docs.toml"
    path.write_text(blocks((ROOT / "desim_fl" / "docs" / "studies.md").read_text(), "toml")[0])
    assert len(load_study(path).variants) == 6


def test_the_scenario_reference_is_the_schema_written_out():
    """The page is what ``desim-fl schema --markdown`` prints today, and names every key of every table."""
    page = (ROOT / "desim_fl" / "docs" / "scenario.md").read_text()
    assert CliRunner().invoke(app, ["schema", "--markdown"]).output == page
    keys = {key for table in schema()["$defs"].values() for key in table["properties"]}
    assert {key for key in keys if f"`{key}`" not in page} <= {"law", "name"}  # which stand in headings


def test_links_in_the_documents_lead_somewhere():
    """Relative links of the README and of the docs point at files that exist."""
    for path in [ROOT / "README.md", *(ROOT / "desim_fl" / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert "://" in link or (path.parent / link).exists(), f"{path.name}: {link}"


STUDIES = [path.stem for path in (ROOT / "scenarios" / "studies").glob("*.toml")]
FIGURES = sorted((ROOT / "desim_fl" / "docs" / "figures").glob("*.svg"))
WITH_FIGURES = "".join(
    (ROOT / "desim_fl" / "docs" / f"{name}.md").read_text() for name in ("published", "large-delays")
)


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_figures_of_the_docs_show_what_their_tables_say(path):
    """Each is a small picture with words and dark colours, of a shipped study, in a section with its command; every mean is in that section."""
    picture = path.read_text()
    tags = [element.tag.rpartition("}")[2] for element in ET.fromstring(picture).iter()]  # noqa: S314  (our own)
    assert len(picture) < 100_000
    assert tags.count("text") > 10
    assert "prefers-color-scheme: dark" in picture
    study = next(stem for stem in STUDIES if path.stem.startswith(f"{stem}-"))
    section = next(part for part in WITH_FIGURES.split("\n## ") if f"](figures/{path.name})" in part)
    assert f"desim-fl study scenarios/studies/{study}.toml" in section
    assert len(re.search(rf"!\[(.*)\]\(figures/{path.name}\)", section)[1]) > 60
    told = [float(number.replace(",", "")) for number in re.findall(r"[0-9][0-9,]*\.?[0-9]*", section)]
    drawn = [float(mean.replace(",", "")) for mean in re.findall(r"; Mean: ([-+.,e0-9]+);", picture)]
    assert drawn or "bands" in path.stem
    for mean in drawn:
        assert any(number == pytest.approx(mean, rel=0.01) for number in told), mean


def test_every_figure_of_the_docs_is_shown_and_travels():
    """All files in docs/figures are embedded, and the package takes them along."""
    assert len(FIGURES) >= 9
    assert set(re.findall(r"\]\(figures/([^)]+)\)", WITH_FIGURES)) == {path.name for path in FIGURES}
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["desim_fl"]
    assert {"docs/*.md", "docs/figures/*.svg"} <= set(data)


def test_every_shipped_scenario_is_sound():
    """All files in scenarios/ load, studies with every variant; and plan plays each scenario."""
    files = sorted((ROOT / "scenarios").rglob("*.toml"))
    assert files
    for path in files:
        if path.parent.name == "studies":
            assert load_study(path).variants
            continue
        scenario = load(path)
        if (
            scenario.data.name not in EMBEDDED
        ):  # the user's own files: its timeline is played with the images in the package
            scenario = load(path, ['data={name="fashion_mnist_6k"}'])
        assert execute(scenario, None, timing_only=True)["summary"]["updates"] > 0
