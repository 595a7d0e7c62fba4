"""exp, log and the quantiles of the normal, Cauchy and Erlang laws from + - * / and square roots alone.

Libraries disagree about the last bit of ``exp`` and ``log``: NumPy's change with the processor's features,
``math``'s with the C library, and the two differ from each other. A simulated duration must not. The operations
used here are exact or correctly rounded by IEEE 754, so every machine computes the same bits, and the scalar form
(plain floats) and the array form (NumPy float64) agree with each other.

The reductions and coefficients are the classical published ones: fdlibm's for ``exp`` and ``log`` (Sun
Microsystems, 1993; errors below 1 ulp) and algorithm AS 241, PPND16, for the normal quantile (Wichura, "The
percentage points of the normal distribution", Applied Statistics 37, 1988; relative error about 1e-16).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Real = Any  # a float, or a float64 array: what goes in comes out

_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_INVERSE_LN2 = 1.44269504088896338700
_SQRT_HALF = 0.70710678118654752440

_EXP = (
    1.66666666666666019037e-01,
    -2.77777777770155933842e-03,
    6.61375632143793436117e-05,
    -1.65339022054652515390e-06,
    4.13813679705723846039e-08,
)
_LOG = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
    1.818357216161805012e-01,
    1.531383769920937332e-01,
    1.479819860511658591e-01,
)
_COSINE = tuple((-1.0) ** k / math.factorial(2 * k) for k in range(12))

# AS 241: numerators and denominators, lowest power first, for the centre, the near tail and the far tail
_CENTRE = (
    (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
     4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3),
    (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
     2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3),
)  # fmt: skip
_NEAR = (
    (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
     1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
     1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9),
)  # fmt: skip
_FAR = (
    (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
     2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7),
    (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15),
)  # fmt: skip


def _polynomial(coefficients: Sequence[float], x: Real) -> Real:
    """Horner's rule, lowest power first."""
    total = coefficients[-1] + 0.0 * x
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def exp(x: Real) -> Real:
    """E to the x for |x| < 700; shape is kept."""
    power: Any = np.rint(x * _INVERSE_LN2) if isinstance(x, np.ndarray) else float(round(x * _INVERSE_LN2))
    high, low = x - power * _LN2_HIGH, power * _LN2_LOW
    rest = high - low
    square = rest * rest
    c = rest - square * _polynomial(_EXP, square)
    value = 1.0 - ((low - (rest * c) / (2.0 - c)) - high)
    if isinstance(x, np.ndarray):
        return np.ldexp(value, power.astype(np.int64))
    return math.ldexp(value, int(power))


def log(x: Real) -> Real:
    """Natural logarithm of a positive number; shape is kept."""
    if isinstance(x, np.ndarray):
        fraction, power = np.frexp(x)
        small = fraction < _SQRT_HALF
        fraction = np.where(small, fraction * 2.0, fraction)
        power = np.where(small, power - 1, power).astype(np.float64)
    else:
        fraction, power = math.frexp(x)
        if fraction < _SQRT_HALF:
            fraction, power = fraction * 2.0, power - 1
        power = float(power)
    f = fraction - 1.0
    s = f / (2.0 + f)
    z = s * s
    r = z * _polynomial(_LOG, z)
    half = 0.5 * f * f
    return power * _LN2_HIGH - ((half - (s * (half + r) + power * _LN2_LOW)) - f)


def power(x: Real, exponent: float) -> Real:
    """Return x to the exponent for positive x."""
    return exp(exponent * log(x))


def cosine_of_turn(x: Real) -> Real:
    """Cosine of x whole turns (of 2 pi x radians) for 0 <= x < 1, by its power series on a quarter of a turn; shape is kept."""
    away = abs(x - 0.5)  # from the half turn: the cosine is even, and that of the half turn is -1
    far = away > 0.25  # noqa: PLR2004  (a quarter)
    if isinstance(x, np.ndarray):
        y = np.where(far, 0.5 - away, away) * (2.0 * math.pi)
        value = _polynomial(_COSINE, y * y)
        return np.where(far, value, -value)
    y = (0.5 - away if far else away) * (2.0 * math.pi)
    value = _polynomial(_COSINE, y * y)
    return value if far else -value


def _ratio(pair: tuple[Sequence[float], Sequence[float]], x: Real) -> Real:
    return _polynomial(pair[0], x) / _polynomial(pair[1], x)


def _tail(p: Real) -> Real:
    """Distance from 0 of the quantile for a tail probability p below 0.075."""
    if isinstance(p, np.ndarray):
        r = np.sqrt(-log(p))
        found, beyond = _ratio(_NEAR, r - 1.6), ~(r <= 5.0)  # noqa: PLR2004  (AS 241's split)
        if beyond.any():
            found[beyond] = _ratio(_FAR, r[beyond] - 5.0)
        return found
    r = math.sqrt(-log(p))
    return _ratio(_NEAR, r - 1.6) if r <= 5.0 else _ratio(_FAR, r - 5.0)  # noqa: PLR2004


def normal_quantile(u: Real) -> Real:
    """Inverse of the standard normal distribution function, for 0 < u < 1; shape is kept."""
    q = u - 0.5
    if isinstance(u, np.ndarray):
        found = np.asarray(q * _ratio(_CENTRE, 0.180625 - q * q))
        outside = ~(np.abs(q) <= 0.425)  # noqa: PLR2004
        if outside.any():  # the tails are dear, and few values lie there
            away = _tail(np.minimum(u, 1.0 - u)[outside])
            found[outside] = np.where(q[outside] < 0.0, -away, away)
        return found
    if abs(q) <= 0.425:  # noqa: PLR2004
        return q * _ratio(_CENTRE, 0.180625 - q * q)
    return -_tail(u) if q < 0.0 else _tail(1.0 - u)


_SIN = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
_COS = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)
_PI = 3.14159265358979311600


def _tan_of_eighth(x: Real) -> Real:
    """Tangent for 0 <= x <= pi / 4, as fdlibm's sine over its cosine."""
    z = x * x
    return (x + x * z * _polynomial(_SIN, z)) / (1.0 - (0.5 * z - z * z * _polynomial(_COS, z)))


def cauchy_quantile(u: Real) -> Real:
    """Inverse of the standard Cauchy distribution function, tan(pi (u - 1/2)), for 0 < u < 1; shape is kept."""
    if isinstance(u, np.ndarray):
        tail = np.minimum(u, 1.0 - u)
        far = tail < 0.25  # noqa: PLR2004
        size = _tan_of_eighth(_PI * np.where(far, tail, 0.5 - tail))
        size = np.where(far, 1.0 / np.where(far, size, 1.0), size)
        return np.where(u < 0.5, -size, size)  # noqa: PLR2004
    tail = min(u, 1.0 - u)
    size = 1.0 / _tan_of_eighth(_PI * tail) if tail < 0.25 else _tan_of_eighth(_PI * (0.5 - tail))  # noqa: PLR2004
    return -size if u < 0.5 else size  # noqa: PLR2004


_HALVINGS = 52


def erlang_quantile(u: Real, stages: int) -> Real:
    """Inverse distribution function of the sum of ``stages`` exponentials of mean 1, for 2^-34 < 1 - u; shape is kept.

    Found by halving an interval a fixed number of times, so that it never falls as u grows. ``stages`` up to 256.
    """
    inverses = [1.0 / k for k in range(stages - 1, 0, -1)]
    low = 0.0 * u
    width = stages + 8.0 * math.sqrt(stages) + 40.0
    for _ in range(_HALVINGS):
        width *= 0.5
        middle = low + width
        series = 1.0 + 0.0 * middle
        for inverse in inverses:  # 1 + x (1 + x/2 (1 + x/3 (...)))
            series = 1.0 + middle * inverse * series
        beyond = exp(-middle) * series  # P(the sum exceeds the middle)
        if isinstance(u, np.ndarray):
            low = np.where(beyond > 1.0 - u, middle, low)
        elif beyond > 1.0 - u:
            low = middle
    return low + 0.5 * width
