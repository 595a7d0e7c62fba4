"""Closed forms that the simulator must meet, checked by playing: ``desim-fl verify --oracles``.

Each oracle plays worlds through the whole stack, from the scenario's tables to the event log, without training, at fixed
seeds. Where theory gives a number for one path, the measured one must be equal. Where it gives an expectation, a z-test is made:
the standard error comes from the spread of rounds, or of the means of consecutive batches of one long run (so that
correlation within a run counts), and a deviation beyond :data:`Z` standard errors fails. At a true expectation that happens to
one line in 10,000.

A further oracle is one more entry of :data:`ORACLES`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from desim_fl.oracles import complexities, fixed_times, queues, rounds, staleness
from desim_fl.oracles.measuring import Line, Oracle

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["ORACLES", "Line", "Oracle", "checked", "result", "table"]

ORACLES: tuple[Oracle, ...] = (
    Oracle("O1 staleness identity", "pathwise, any durations", staleness.identity),
    Oracle("O2 geometric staleness", "equal exponential workers", staleness.geometric),
    Oracle("O3 unequal workers", "exponential rates 1, 2, 4", staleness.rates),
    Oracle("O4 equal fixed times", "ties by dispatch order", staleness.equal_times),
    Oracle("O5 fixed times 1 and 3", "ties by dispatch order", staleness.one_and_three),
    Oracle("O6 open arrivals", "Little; M/G/infinity", staleness.open_system),
    Oracle("O7 bounds on delays", "Maranjyan et al., ICML 2025 and ICLR 2026", staleness.bounds),
    Oracle("queues at clients", "closed Jackson network: Leconte et al. 2024; Buzen 1973", queues.jackson),
    Oracle("no queues", "throughput c / E[S]", queues.without),
    Oracle("synchronous rounds", "order statistics", rounds.synchronous),
    Oracle("rounds with a deadline", "binomial reports; Bonawitz et al. 2019", rounds.deadline),
    Oracle("gain over rounds", "E[max of m] / E[S] at equal concurrency", rounds.gain),
    Oracle("asynchronous SGD", "fixed computation model", fixed_times.asynchronous_sgd),
    Oracle("minibatch SGD", "fixed computation model", fixed_times.minibatch),
    Oracle("Rennala SGD", "Tyurin and Richtarik, NeurIPS 2023", fixed_times.rennala),
    Oracle("Ringmaster ASGD", "Maranjyan et al., ICML 2025, lemma 4.1", fixed_times.ringmaster),
    Oracle("Malenia SGD", "Tyurin and Richtarik, NeurIPS 2023", fixed_times.malenia),
    Oracle("time complexities", "h_i = sqrt(i): Tyurin and Richtarik, NeurIPS 2024", complexities.square_roots),
)


def checked(oracles: Sequence[Oracle] = ORACLES) -> Iterator[tuple[Oracle, Line]]:
    """Play every oracle and yield its lines."""
    for oracle in oracles:
        for line in oracle.lines():
            yield oracle, line


def table(found: Sequence[tuple[Oracle, Line]]) -> str:
    """Return the lines as text: oracle, quantity, expected, measured, deviation, confidence, verdict."""
    rows: list[tuple[str, ...]] = [("oracle", "quantity", "expected", "measured", "deviation", "confidence", "")]
    for oracle, line in found:
        numbers = (f"{value:.6g}" for value in (line.expected, line.measured, line.deviation))
        rows.append((oracle.name, line.quantity, *numbers, line.confidence, "holds" if line.holds else "FAILS"))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def result(found: Sequence[tuple[Oracle, Line]]) -> list[dict[str, Any]]:
    """Return the lines as JSON objects."""
    return [
        {
            "oracle": oracle.name,
            "source": oracle.source,
            **line._asdict(),
            "deviation": line.deviation,
            "confidence": line.confidence,
            "holds": line.holds,
        }
        for oracle, line in found
    ]
