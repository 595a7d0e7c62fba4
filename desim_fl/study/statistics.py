"""What can be said of a few paired replications: intervals of means, differences and ratios, and times to a target.

Student intervals (Student 1908) and bias-corrected accelerated bootstrap intervals (Efron 1987) stand side by side:
they agree where the data are near normal, and where they do not, neither should be trusted far. Times to a target are
right-censored where a run ended without it: Kaplan and Meier (1958), restricted means (Royston and Parmar 2013).
"""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESAMPLES = 2000
_TOGETHER = 256  # samples that are resampled in one go: bounds the memory
_LARGEST = math.log(1.7e308)
_BOOTSTRAP_SEED = 20_250_101  # the same data give the same interval


class Interval(NamedTuple):
    """An estimate and its interval; ``low`` and ``high`` are ``None`` where there is only one value."""

    estimate: float
    low: float | None = None
    high: float | None = None


class Summary(NamedTuple):
    """Mean, standard deviation (n - 1) and Student interval of n values."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


class Difference(NamedTuple):
    """A paired comparison: b minus a over n pairs.

    ``gain`` is how many times as large the variance of the difference would be without pairing:
    (var a + var b) / var(b - a); ``None`` where the differences do not vary.
    """

    n: int
    mean: float
    student: Interval
    bootstrap: Interval
    ratio: Interval | None
    gain: float | None
    p: float | None


class Reach(NamedTuple):
    """Times to a target of n runs, of which ``reached`` got there: median (Kaplan-Meier) and mean up to ``horizon``."""

    n: int
    reached: int
    median: Interval | None
    restricted: float
    horizon: float


def summary(values: Sequence[float], confidence: float) -> Summary:
    """Summarise values; raises ValueError for none."""
    sample = _sample(values)
    if len(sample) == 1:
        return Summary(1, float(sample[0]), None, None, None)
    mean, sd = float(sample.mean()), float(sample.std(ddof=1))
    half = _student(len(sample), confidence) * sd / math.sqrt(len(sample))
    return Summary(len(sample), mean, sd, mean - half, mean + half)


def difference(a: Sequence[float], b: Sequence[float], confidence: float) -> Difference:
    """Compare b with a, pair by pair; raises ValueError where they are not pairs."""
    return differences([(a, b)], confidence)[0]


def differences(pairs: Sequence[tuple[Sequence[float], Sequence[float]]], confidence: float) -> list[Difference]:
    """Compare many pairs of samples, b with a each; raises ValueError where they are not pairs.

    Runs that diverge end at losses whose squares are no numbers any more: there, intervals are infinite or left out.
    """
    if all(len(a) == 1 == len(b) for a, b in pairs):
        return _points(pairs)
    apart = [_apart(a, b) for a, b in pairs]
    with np.errstate(over="ignore", invalid="ignore"):
        resampled = bootstraps(apart, confidence)
        return [
            _difference(a, b, by_seed, interval, confidence)
            for (a, b), by_seed, interval in zip(pairs, apart, resampled, strict=True)
        ]


def _points(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[Difference]:
    """Compare single values, all at once: a study of thousands of variants with one seed has tens of thousands."""
    first, second = (np.array([pair[side][0] for pair in pairs], np.float64) for side in (0, 1))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        apart, logs = (second - first).tolist(), (np.log(second) - np.log(first)).tolist()
    positive = ((first > 0) & (second > 0)).tolist()
    ratios = [_exp(log) if there else None for log, there in zip(logs, positive, strict=True)]
    return [
        Difference(1, mean, Interval(mean), Interval(mean), None if times is None else Interval(times), None, None)
        for mean, times in zip(apart, ratios, strict=True)
    ]


def _apart(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values are no pairs")
    return _sample(b) - _sample(a)


def _difference(
    a: Sequence[float], b: Sequence[float], apart: np.ndarray, resampled: Interval, confidence: float
) -> Difference:
    found = summary(apart.tolist(), confidence)
    spread = float(np.var(apart, ddof=1)) if len(apart) > 1 else 0.0
    alone = float(np.var(_sample(a), ddof=1) + np.var(_sample(b), ddof=1)) if len(apart) > 1 else 0.0
    score = abs(found.mean) / math.sqrt(spread / len(apart)) if spread > 0 else None
    return Difference(
        n=len(apart),
        mean=found.mean,
        student=Interval(found.mean, found.low, found.high),
        bootstrap=resampled,
        ratio=ratio(a, b, confidence),
        gain=alone / spread if spread > 0 else None,
        p=None if score is None else 2 * float(special.stdtr(len(apart) - 1, -score)),
    )


def ratio(a: Sequence[float], b: Sequence[float], confidence: float) -> Interval | None:
    """Geometric mean of b / a with its interval, from the paired logarithms; ``None`` unless all values are positive.

    A bound beyond the range of a float is left out.
    """
    first, second = _sample(a), _sample(b)
    if (first <= 0).any() or (second <= 0).any():
        return None
    logs = summary((np.log(second) - np.log(first)).tolist(), confidence)
    mean, low, high = (_exp(value) for value in (logs.mean, logs.low, logs.high))
    return None if mean is None else Interval(mean, low, high)


def _exp(value: float | None) -> float | None:
    return None if value is None or value > _LARGEST else math.exp(value)


def bootstrap(values: Sequence[float], confidence: float) -> Interval:
    """Mean with its BCa bootstrap interval; a point where the values do not vary."""
    return bootstraps([_sample(values)], confidence)[0]


def bootstraps(samples: Sequence[np.ndarray], confidence: float) -> list[Interval]:
    """Bootstrap many samples: those of one length share their resamples, so that thousands take seconds."""
    found = [_unvaried(sample) for sample in samples]
    by_length: dict[int, list[int]] = {}
    for place, interval in enumerate(found):
        if interval is None:
            by_length.setdefault(len(samples[place]), []).append(place)
    for places in by_length.values():
        for first in range(0, len(places), _TOGETHER):
            chunk = places[first : first + _TOGETHER]
            for place, interval in zip(
                chunk, _resampled(np.stack([samples[p] for p in chunk]), confidence), strict=True
            ):
                found[place] = interval
    return [interval for interval in found if interval is not None]


def _unvaried(sample: np.ndarray) -> Interval | None:
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean)
    return Interval(mean, mean, mean) if np.ptp(sample) == 0 else None


def _resampled(samples: np.ndarray, confidence: float) -> list[Interval]:
    """Bias-corrected accelerated intervals of the means of the rows of (rows, n) samples that vary (Efron 1987)."""
    rows, n = samples.shape
    rng = np.random.Generator(np.random.Philox(_BOOTSTRAP_SEED))
    drawn = rng.integers(0, n, (_RESAMPLES, n))
    means = np.sort(samples[:, drawn].mean(axis=2), axis=1)  # (rows, resamples)
    centre = samples.mean(axis=1)
    below = ((means < centre[:, None]).sum(axis=1) + (means <= centre[:, None]).sum(axis=1)) / (2 * _RESAMPLES)
    bias = special.ndtri(below)
    left_out = (samples.sum(axis=1, keepdims=True) - samples) / (n - 1)
    pull = left_out.mean(axis=1, keepdims=True) - left_out
    acceleration = (pull**3).sum(axis=1) / (6 * (pull**2).sum(axis=1) ** 1.5)
    bounds = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + special.ndtri(tail)
        share = special.ndtr(bias + z / (1 - acceleration * z))
        bounds.append(
            [float(np.quantile(means[row], share[row])) if np.isfinite(share[row]) else None for row in range(rows)]
        )
    return [
        Interval(mean, low, high) if low is not None and high is not None else Interval(mean)
        for mean, low, high in zip(centre.tolist(), *bounds, strict=True)
    ]


def reach(times: Sequence[float], reached: Sequence[bool], horizon: float, confidence: float) -> Reach:
    """Summarise times to a target. ``times`` of runs that did not reach it are when they ended (right-censored).

    ``horizon`` bounds the restricted mean, the mean of min(time, horizon); it must not exceed the time of any run
    that did not reach the target, or the mean would not be known (ValueError).
    """
    when, there = _sample(times), np.asarray(reached, bool)
    if (when[~there] < horizon).any():
        raise ValueError("the horizon lies beyond the end of a run that did not reach the target")
    restricted = float(np.minimum(when, horizon).mean())
    return Reach(len(when), int(there.sum()), _median(when, there, confidence), restricted, horizon)


def survival(times: Sequence[float], reached: Sequence[bool]) -> list[tuple[float, float]]:
    """Return the share of runs that have not reached the target yet, as steps (time, share after it), from (0, 1)."""
    curve = _not_yet(_sample(times), np.asarray(reached, bool))
    return [(0.0, 1.0), *zip(curve.quantiles.tolist(), curve.probabilities.tolist(), strict=True)]


def _median(times: np.ndarray, reached: np.ndarray, confidence: float) -> Interval | None:
    """Median by Kaplan-Meier with its interval from log-log bounds; ``None`` where fewer than half got there."""
    curve = _not_yet(times, reached)
    middle = _first_below(curve.quantiles, curve.probabilities)
    if middle is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where nothing is left the bound is not a number
        bounds = curve.confidence_interval(confidence_level=confidence, method="log-log")
    low = _first_below(curve.quantiles, bounds.low.probabilities)
    high = _first_below(curve.quantiles, bounds.high.probabilities)
    return Interval(middle, low, high)


def _not_yet(times: np.ndarray, reached: np.ndarray) -> Any:
    from scipy import stats  # noqa: PLC0415  (slow to import, and studies without a target need none of it)

    data = stats.CensoredData.right_censored(times, ~reached)
    return stats.ecdf(data).sf


def _first_below(times: np.ndarray, shares: np.ndarray) -> float | None:
    """First time at which at most half are left."""
    below = np.flatnonzero(np.nan_to_num(shares, nan=1.0) <= 0.5)  # noqa: PLR2004
    return float(times[below[0]]) if len(below) else None


@cache
def _student(n: int, confidence: float) -> float:
    return float(special.stdtrit(n - 1, (1 + confidence) / 2))


def _sample(values: Sequence[float]) -> np.ndarray:
    if len(values) == 0:
        raise ValueError("there are no values")
    return np.asarray(values, np.float64)
