"""Laws of durations by quantile, and the elementary functions under them."""

from __future__ import annotations

import math
import statistics
from itertools import pairwise

import numpy as np
import pytest

from desim_fl import draws, durations, elementary
from desim_fl.errors import ScenarioError

POINTS = 100_000
GRID = (np.arange(1 << 20) + 0.5) / (1 << 20)  # midpoints: integrating a quantile over them gives the law's moments
LAWS = [
    durations.Constant(3.0),
    durations.Uniform(1.0, 5.0),
    durations.Exponential(2.0),
    durations.Lognormal(2.0, 0.6),
    durations.HalfNormal(1.5, 0.25),
    durations.Pareto(2.5, 1.0),
    durations.Lomax(2.5, 3.0),
    durations.Zipf(1.7, 60),
    durations.LognormalMoments(100.0, 10.0),
    durations.Gaussian(1.0, 0.7),
    durations.Erlang(5, 2.0),
    durations.Weibull(1.5, 2.0),
    durations.Frechet(2.5, 1.0),
    durations.LogCauchy(1.0, 1.0, 1e6),
    durations.Quantiles((0.5, 1.0, 1.0, 8.0)),
    durations.Discrete((1.0, 1.8125, 11.625)),
]
CAPPED = [
    durations.Uniform(1.0, 5.0, cap=2.0),
    durations.Exponential(2.0, cap=2.0),
    durations.Lognormal(2.0, 0.6, cap=2.0),
    durations.HalfNormal(1.5, 0.25, cap=2.0),
    durations.Pareto(1.0, 1.0, cap=2.0),
    durations.Lomax(1.0, 1.0, cap=2.0),
    durations.Zipf(1.7, 2),
    durations.LognormalMoments(2.0, 1.0, cap=2.0),
    durations.Gaussian(1.0, 0.7, cap=2.0),
    durations.Erlang(3, 2.0, cap=2.0),
    durations.Weibull(1.5, 2.0, cap=2.0),
    durations.Frechet(1.0, 1.0, cap=2.0),
    durations.Quantiles((0.0, 0.0, 100.0), (0.0, 0.9, 1.0), cap=2.0),
    durations.Discrete((1.0, 3.0), (2.0, 1.0), cap=2.0),
]


def _drawn(low: float, high: float) -> np.ndarray:
    """Fixed points that cover an interval."""
    words = draws.words(1, draws.Purpose.DATA, 0, np.arange(POINTS), 0)
    return low + (high - low) * draws.uniforms(words)


FUNCTIONS = [
    (elementary.exp, math.exp, _drawn(-690.0, 690.0)),
    (elementary.exp, math.exp, _drawn(-1.0, 1.0)),
    (elementary.log, math.log, _drawn(1e-12, 3.0)),
    (elementary.log, math.log, 2.0 ** _drawn(-900.0, 900.0)),
    (elementary.normal_quantile, statistics.NormalDist().inv_cdf, _drawn(0.0, 1.0)),
    (elementary.normal_quantile, statistics.NormalDist().inv_cdf, 2.0 ** _drawn(-40.0, -1.0)),
    (elementary.cauchy_quantile, lambda u: -1 / math.tan(math.pi * u), _drawn(0.0, 0.25)),
    (elementary.cauchy_quantile, lambda u: math.tan(math.pi * (u - 0.5)), _drawn(0.25, 0.75)),
    (elementary.cauchy_quantile, lambda u: -1 / math.tan(math.pi * u), 2.0 ** _drawn(-33.0, -2.0)),
]


@pytest.mark.parametrize(("function", "truth", "points"), FUNCTIONS)
def test_scalar_and_array_forms_agree_bit_for_bit(function, truth, points):
    """At 100,000 points the float form and the array form give the same bits."""
    del truth
    array = function(points)
    assert array.tobytes() == np.array([function(x) for x in points.tolist()]).tobytes()


@pytest.mark.parametrize(("function", "truth", "points"), FUNCTIONS)
def test_elementary_functions_are_right_to_the_last_digits(function, truth, points):
    """Against the standard library the relative error stays within 1.5e-15 (as much of 0.01 beside a zero)."""
    expected = np.array([truth(x) for x in points.tolist()])
    assert np.max(np.abs(function(points) - expected) / (np.abs(expected) + 0.01)) < 1.5e-15


def test_golden_bits_of_the_elementary_functions():
    """These bits must come out on every machine; CASES RP-05."""
    golden = {
        (elementary.exp, 0.0): "0x1.0000000000000p+0",
        (elementary.exp, 1.0): "0x1.5bf0a8b14576ap+1",
        (elementary.exp, -0.6): "0x1.18fdd6b9604e4p-1",
        (elementary.log, 1.0): "0x0.0p+0",
        (elementary.log, 2.0): "0x1.62e42fefa39efp-1",
        (elementary.log, 10.0): "0x1.26bb1bbb55516p+1",
        (elementary.normal_quantile, 0.5): "0x0.0p+0",
        (elementary.normal_quantile, 0.975): "0x1.f5c0331eeff82p+0",
        (elementary.normal_quantile, 2.0**-33): "-0x1.95a1198fcf3d5p+2",
    }
    assert {place: place[0](place[1]).hex() for place in golden} == golden


def test_symmetry_of_the_normal_quantile():
    """The quantile of 1 - u is minus that of u, exactly where 1 - u is exact."""
    u = (np.arange(1, 1 << 16) + 0.0) / (1 << 17)
    assert (elementary.normal_quantile(1.0 - u) == -elementary.normal_quantile(u)).all()


@pytest.mark.parametrize("law", [*LAWS, *CAPPED], ids=repr)
def test_laws_agree_bit_for_bit_and_grow_with_u(law):
    """A law gives the same bits for a float and an array, and never falls as u grows, up to the ends of (0, 1)."""
    u = np.sort(np.concatenate([_drawn(0.0, 1.0)[:5_000], [2.0**-33, 1 - 2.0**-33]]))
    values = law.at(u)
    assert values.tobytes() == np.array([law.at(x) for x in u.tolist()]).tobytes()
    assert all(left <= right for left, right in pairwise(values.tolist()))
    assert np.isfinite(values).all()
    assert values[0] >= 0


@pytest.mark.parametrize("law", CAPPED, ids=repr)
def test_caps_bound_a_law_and_change_nothing_below(law):
    """No value exceeds the cap 2, the cap is reached, and smaller values are those of the law without a cap."""
    grid = GRID[:: 1 << 6]
    values = law.at(grid)
    assert values.max() == 2.0
    if not isinstance(law, durations.Zipf):
        name = next(name for name, kind in durations.LAWS.items() if kind is type(law))
        fields = {key: getattr(law, key) for key in law.__dataclass_fields__ if key not in {"cap", "places", "upto"}}
        free = durations.build(name, **fields).at(grid)
        assert (values == np.minimum(free, 2.0)).all()


MOMENTS = [
    (durations.Uniform(0.0, 3.0), 1.5, 9 / 12),
    (durations.Uniform(2.0, 5.0), 3.5, 9 / 12),
    (durations.Exponential(2.0), 2.0, 4.0),
    (durations.HalfNormal(1.0), 0.7979, 0.3634),
    (durations.HalfNormal(2.0, min=1.0), 1 + 2 * math.sqrt(2 / math.pi), 4 * (1 - 2 / math.pi)),
    (durations.Lognormal(math.e, 0.6), 3.254, (math.exp(0.36) - 1) * 3.254**2),
    (durations.Lomax(4.0, 1.0), 1 / 3, 4 / (9 * 2)),
    (durations.Pareto(4.0, 3.0), 4.0, 9 * 4 / (9 * 2)),
    (durations.Constant(2.5), 2.5, 0.0),
    (durations.LognormalMoments(100.0, 10.0), 100.0, 100.0),
    (durations.Gaussian(10.0, 2.0), 10.0, 4.0),
    (durations.Gaussian(0.0, 1.0), 1 / math.sqrt(2 * math.pi), 0.5 - 1 / (2 * math.pi)),
    (durations.Erlang(5, 10.0), 10.0, 20.0),
    (durations.Erlang(1, 2.0), 2.0, 4.0),
    (durations.Erlang(256, 1.0), 1.0, 1 / 256),
    (durations.Weibull(2.0, 3.0), 3 * math.gamma(1.5), 9 * (1 - math.gamma(1.5) ** 2)),
    (durations.Frechet(4.0, 1.0), math.gamma(0.75), math.gamma(0.5) - math.gamma(0.75) ** 2),
    (durations.Frechet(1.0, 1.0, cap=10.0), 10 * (1 - math.exp(-0.1)) + 1.82292, None),
    (durations.LogCauchy(2.0, 0.0, 9.0), 2.0, 0.0),
    (durations.Quantiles((0.0, 0.0, 100.0), (0.0, 0.9, 1.0)), 5.0, 0.1 * 100**2 / 3 - 25),
    (durations.Discrete((1.0, 1.8125, 11.625)), 14.4375 / 3, None),
    (durations.Discrete((2.0, 8.0), (3.0, 1.0)), 3.5, 6.75),
]


@pytest.mark.parametrize(("law", "mean", "variance"), MOMENTS, ids=[repr(law) for law, *_ in MOMENTS])
def test_moments_by_integrating_the_quantile(law, mean, variance):
    """Mean and variance over the midpoint grid are those of the law, without sampling noise."""
    searched = isinstance(law, durations.Erlang)  # by halving: dear, and of light tail
    values = law.at((np.arange(1 << 13) + 0.5) / (1 << 13) if searched else GRID)
    assert values.mean() == pytest.approx(mean, rel=2e-4)
    assert variance is None or values.var() == pytest.approx(variance, rel=0.01, abs=1e-12)


def test_expected_largest_of_m():
    """E max of m is d m / (m + 1) for U(0, d), and H_m times the mean for the exponential law."""
    m = 5
    density = m * GRID ** (m - 1)
    assert (durations.Uniform(0.0, 3.0).at(GRID) * density).mean() == pytest.approx(3 * m / (m + 1), rel=1e-4)
    harmonic = sum(1 / k for k in range(1, m + 1))
    assert (durations.Exponential(2.0).at(GRID) * density).mean() == pytest.approx(2 * harmonic, rel=1e-4)


def test_zipf_as_in_port():
    """Zipf(1.7) capped at 60: P(1) = .487, P(>= 60) = .040, mean 6.56; scale multiplies."""
    values = durations.Zipf(1.7, 60).at(GRID)
    assert (values == 1).mean() == pytest.approx(0.487, abs=5e-4)
    assert (values == 60).mean() == pytest.approx(0.040, abs=5e-4)
    assert values.mean() == pytest.approx(6.56, abs=5e-3)
    assert (durations.Zipf(1.7, 60, scale=0.5).at(GRID) == values / 2).all()
    assert set(durations.Zipf(1.7, 1).at(GRID).tolist()) == {1.0}
    assert durations.zeta(2.0) == pytest.approx(math.pi**2 / 6, rel=1e-14)


def test_infinite_means_are_finite_under_a_cap():
    """Lomax with alpha 1 capped at T has mean ln(1 + T), Pareto 1 + ln T: 4.11 for T = 60, 3.43 for T = 30."""
    assert durations.Lomax(1.0, 1.0, cap=60.0).at(GRID).mean() == pytest.approx(4.11, abs=2e-3)
    assert durations.Lomax(1.0, 1.0, cap=60.0).at(GRID).mean() == pytest.approx(math.log(61), rel=1e-5)
    assert durations.Lomax(1.0, 1.0, cap=30.0).at(GRID).mean() == pytest.approx(3.43, abs=5e-3)
    assert durations.Pareto(1.0, 1.0, cap=60.0).at(GRID).mean() == pytest.approx(1 + math.log(60), rel=1e-5)


def test_quantiles_of_laws_without_moments():
    """Log-Cauchy: half below its median, a quarter above median e^sigma, the cap takes the rest; Erlang(1) is exponential."""
    values = durations.LogCauchy(2.0, 1.5, 1e9).at(GRID)
    assert (values < 2.0).mean() == pytest.approx(0.5, abs=1e-6)
    assert (values > 2.0 * math.exp(1.5)).mean() == pytest.approx(0.25, abs=1e-6)
    reached = 0.5 - math.atan(math.log(1e9 / 2) / 1.5) / math.pi
    assert (values == 1e9).mean() == pytest.approx(reached, abs=1e-6)
    u = _drawn(0.0, 1.0)[:5_000]
    assert durations.Erlang(1, 2.0).at(u) == pytest.approx(durations.Exponential(2.0).at(u), abs=1e-12)
    halves = [durations.Quantiles((1.0, 3.0, 11.0)).at(x) for x in (0.25, 0.5, 0.75)]
    assert halves == [2.0, 3.0, 7.0]


def test_a_changed_parameter_moves_the_same_draw():
    """Scale parameters multiply the value of each single u, they do not draw another one."""
    u = _drawn(0.0, 1.0)[:1000]
    assert (durations.Exponential(4.0).at(u) == 2 * durations.Exponential(2.0).at(u)).all()
    assert (durations.Lognormal(4.0, 0.6).at(u) == 2 * durations.Lognormal(2.0, 0.6).at(u)).all()
    assert (durations.Pareto(2.0, 4.0).at(u) == 2 * durations.Pareto(2.0, 2.0).at(u)).all()


def test_laws_are_built_by_name_and_unknown_ones_refused():
    """A law comes from its name and parameters; an unknown name lists the known ones."""
    assert durations.build("pareto", alpha=2.0, scale=1.0) == durations.Pareto(2.0, 1.0)
    with pytest.raises(ScenarioError, match=r"no law \"gamma\".*constant, uniform, exponential"):
        durations.build("gamma", shape=2.0)
