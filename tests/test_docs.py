"""What the documents show is run as it stands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import scenarios
from desim_fl.cli import app
from desim_fl.run import execute
from desim_fl.scenario import load
from desim_fl.study import load as load_study

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_the_strategy_in_the_docs_runs_as_it_stands(tmp_path, monkeypatch):
    """The guide's own strategy, saved as a module, plays and gives each update half its weight."""
    source = blocks((ROOT / "desim_fl" / "docs" / "strategies.md").read_text(), "python")[0]
    (tmp_path / "guide_strategy.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("guide_strategy", None)
    text = scenarios.QUADRATIC.replace('name = "fedbuff"\nbuffer_size = 2', 'name = "guide_strategy:Half"')
    manifest = execute(load(scenarios.write(tmp_path, text)), tmp_path / "run")
    assert manifest["summary"]["versions"] == manifest["summary"]["applied"] == 60


@pytest.mark.parametrize("line", [line for block in blocks(README, "sh")[2:] for line in block.splitlines() if line])
def test_readme_commands_are_valid(line):
    """Each further command of the README resolves its scenario or prints its help; none is misspelt."""
    words = shlex.split(line, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    assert words[0] == "desim-fl"
    arguments = [str(ROOT / word) if word.endswith(".toml") else word for word in words[1:]]
    tail = ["--print-config"] if arguments[0] in {"run", "plan"} else ["--help"]
    done = CliRunner().invoke(app, [*arguments, *tail])
    assert done.exit_code == 0, done.output


def test_links_in_the_documents_lead_somewhere():
    """Relative links of the README and of the docs point at files that exist."""
    for path in [ROOT / "README.md", *(ROOT / "desim_fl" / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert "://" in link or (path.parent / link).exists(), f"{path.name}: {link}"


def test_every_shipped_scenario_is_sound():
    """All files in scenarios/ load, studies with every variant; and plan plays each scenario."""
    files = sorted((ROOT / "scenarios").rglob("*.toml"))
    assert files
    for path in files:
        if path.parent.name == "studies":
            assert load_study(path).variants
            continue
        assert execute(load(path), None, timing_only=True)["summary"]["updates"] > 0
