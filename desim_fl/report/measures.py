"""The numbers that a run of a study gives, by name: titles with units, and which way is better."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A number that a run gives: its name in tables, a title with its unit, and which way is better (0 = neither)."""

    name: str
    title: str
    better: int = 0


METRICS = (
    Metric("accuracy", "Test accuracy at the end", 1),
    Metric("best_accuracy", "Best test accuracy", 1),
    Metric("loss", "Test loss at the end", -1),
    Metric("virtual_time_s", "Virtual time (s)", -1),
    Metric("versions", "Versions published"),
    Metric("updates", "Updates received"),
    Metric("updates_a_second", "Updates a virtual second", 1),
    Metric("staleness_mean", "Mean staleness (versions)", -1),
    Metric("staleness_p99", "99th percentile of staleness (versions)", -1),
    Metric("staleness_max", "Largest staleness (versions)", -1),
    Metric("utilisation", "Utilisation of clients", 1),
    Metric("fairness", "Fairness of participation (Jain)", 1),
    Metric("bytes", "Bytes down and up", -1),
    Metric("energy_j", "Energy (J)", -1),
    Metric("lost", "Jobs lost", -1),
    Metric("rejected", "Updates rejected", -1),
)
TIME, UPDATES = "time_to_target_s", "updates_to_target"
TARGETED = (
    Metric(TIME, "Virtual time to the target (s)", -1),
    Metric(UPDATES, "Updates received to the target", -1),
)
TITLES = {metric.name: metric for metric in (*METRICS, *TARGETED)}
