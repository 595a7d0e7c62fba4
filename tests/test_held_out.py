"""What clients keep back from training: dealt by key, never trained on, scored once, and told by client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from desim_fl import datasets, held_out, report, reserve
from desim_fl.allotment import allotted
from desim_fl.build import build
from desim_fl.core import Score
from desim_fl.errors import ScenarioError
from desim_fl.population import divide
from desim_fl.run import execute
from desim_fl.scenario import load
from desim_fl.verify import verify
from scenarios import BLOBS, played, write

if TYPE_CHECKING:
    from pathlib import Path

LABELS = np.arange(500) % 4
KEYS = [9, 4, 7, 1]
LOGISTIC = BLOBS.replace('name = "mlp"\nhidden = [16]', 'name = "logistic"')
KEPT = "data.client_test_share=0.25"


def test_parts_are_split_by_key_alone() -> None:
    """Kept and trained samples are disjoint and make the part up, in the stated number; permuted keys take their split along."""
    whole = divide(LABELS, seed=1, count=4, classes=4, partition="dirichlet", alpha=0.4, keys=KEYS)
    people, held = held_out.kept_back(whole, 0.3, seed=1, labels=LABELS, classes=4)
    for part, trained, kept, size in zip(whole.parts, people.parts, held, people.sizes, strict=True):
        assert np.union1d(trained, kept).tolist() == part.tolist()
        assert (len(trained), len(kept)) == (size, round(0.3 * len(part)))
        assert len(trained) + len(kept) == len(part)
    assert people.class_counts is not None
    assert people.class_counts.sum(axis=1).tolist() == list(people.sizes)
    turned = divide(LABELS, seed=1, count=4, classes=4, partition="dirichlet", alpha=0.4, keys=KEYS[::-1])
    _, again = held_out.kept_back(turned, 0.3, seed=1, labels=LABELS, classes=4)
    assert [part.tolist() for part in again[::-1]] == [part.tolist() for part in held]
    _, other = held_out.kept_back(whole, 0.3, seed=2, labels=LABELS, classes=4)
    assert [part.tolist() for part in other] != [part.tolist() for part in held]


def test_everybody_trains_on_something() -> None:
    """Of one sample none is kept back, of two at most one; where nobody would keep any, the key is named."""
    pairs = divide(LABELS[:4], seed=1, count=2, classes=4)
    people, held = held_out.kept_back(pairs, 0.9, seed=1, labels=LABELS, classes=4)
    assert (people.sizes, [len(part) for part in held]) == ((1, 1), [1, 1])
    singles = divide(LABELS[:2], seed=1, count=2, classes=4)
    with pytest.raises(ScenarioError, match=r"client_test_share = 0\.9 leaves nobody"):
        held_out.kept_back(singles, 0.9, seed=1, labels=LABELS, classes=4)


def test_a_run_scores_its_last_model_on_every_part(tmp_path: Path) -> None:
    """Accuracy and loss by hand from the stored model and samples; the plan has that timeline; verify and the stored parts agree."""
    folder, manifest = played(tmp_path, LOGISTIC, KEPT)
    scenario = load(write(tmp_path, LOGISTIC), [KEPT])
    kept, scores = (pl.read_parquet(folder / f"{name}.parquet") for name in ("kept_back", "held_out"))
    stored = reserve.stored(folder)
    assert stored is not None
    assert [part.tolist() for part in stored.held] == [part.tolist() for part in allotted(scenario).held]
    data = datasets.load("blobs", seed=3, examples=600, test_examples=200, classes=4, features=8, spread=1.0)
    model = build(scenario, stored=stored)
    assert [part.tolist() for part in model.held] == [part.tolist() for part in stored.held]
    tensors = _tensors(folder)
    for client, examples, loss, accuracy in scores.rows():
        rows = kept.filter(pl.col("client") == client)["index"].to_numpy()
        logits = data.train_images[rows].astype(float) @ tensors["weight"].T + tensors["bias"]
        labels = data.train_labels[rows]
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        assert examples == len(rows)
        assert accuracy == np.mean(logits.argmax(axis=1) == labels)
        assert loss == pytest.approx(-np.mean(np.log(chances[np.arange(len(rows)), labels])))
    assert scores["client"].to_list() == list(range(6))
    assert execute(scenario, None, timing_only=True)["timeline_sha256"] == manifest["timeline_sha256"]
    assert verify(folder) == []
    assert 'id="figure-held-out"' in report.write(folder).read_text(encoding="utf-8")
    dealt = pl.read_parquet(folder / "partition.parquet")
    mixed = kept.with_columns(pl.lit(dealt["index"][0]).alias("index")).head(1)
    assert "which the table partition names too" in str(reserve.fault(mixed, dealt))
    assert "twice" in str(reserve.fault(pl.concat([kept.head(1)] * 2), dealt))
    assert reserve.fault(kept, dealt) is None


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file  # noqa: PLC0415  (one test needs it)

    return load_file(folder / "model.safetensors")


def test_a_part_is_scored_as_the_validation_part_is(tmp_path: Path) -> None:
    """On the very samples of the validation part, scores by part are those of the evaluation, bit by bit; an empty part has none."""
    built = build(load(write(tmp_path, BLOBS), [KEPT]))
    task = built.task
    assert task is not None
    assert built.validation is not None
    expected = next(score for score in task.evaluate(built.world.model) if score.split == "validation")
    first, second = task.score_parts(built.world.model, [built.validation, built.validation[:0]])  # type: ignore[attr-defined]
    assert first == Score("held out", *expected[1:])
    assert second is None
    built.world.executor.close()


def test_without_the_key_nothing_is_kept_back(tmp_path: Path) -> None:
    """No table, no draw, the whole partition; a scenario's hash does not know the key."""
    scenario = load(write(tmp_path, BLOBS))
    assert "client_test_share" not in scenario.to_toml()
    found = allotted(scenario)
    assert found.held == ()
    assert sum(found.people.sizes) == 540
    more = allotted(load(write(tmp_path, BLOBS), [KEPT]))
    assert sum(more.people.sizes) + sum(map(len, more.held)) == 540
