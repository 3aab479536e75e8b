"""Count log-pmfs and their derivatives in 50-digit arithmetic, and how to compare with them."""

from dataclasses import dataclass

import mpmath as mp
import numpy as np

DIGITS = 50


@dataclass
class Reference:
    """Exact quantities at n points, rounded to float64, with what one ulp of the input moves.

    ``value`` and the columns of ``score`` and ``hessian`` follow the order of the parameters;
    positive parameters enter by their logarithm (``in_logs``).
    """

    value: np.ndarray  # (n,)
    score: np.ndarray  # (n, parameter)
    hessian: np.ndarray  # (n, parameter, parameter)

    def allowance(self, ulps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Movement of the value and of the score by one ulp of every parameter."""
        value = (np.abs(self.score) * ulps).sum(1)
        return value, (np.abs(self.hessian) * ulps[:, None, :]).sum(2)


def nb(x, log_mean, theta):
    """Value, (∂logμ, ∂logθ) and second derivatives of the NB log-pmf."""
    mu = mp.exp(log_mean)
    t, n = theta + mu, theta + x
    log_w = -mp.log1p(mu / theta)
    value = theta * log_w
    if x > 0:
        value += x * (log_mean - mp.log(t)) + mp.loggamma(n) - mp.loggamma(theta)
        value -= mp.loggamma(x + 1)
    delta = (x - mu) / t
    psi = mp.digamma(n) - mp.digamma(theta) if x > 0 else mp.mpf(0)
    tri = mp.psi(1, n) - mp.psi(1, theta) if x > 0 else mp.mpf(0)
    d_theta = log_w - delta + psi
    dd_theta = 1 / theta - 2 / t + n / t**2 + tri
    a, b = theta * delta, theta * d_theta
    aa = -theta * mu * n / t**2
    ab = theta * mu * delta / t
    bb = b + theta**2 * dd_theta
    return value, (a, b), ((aa, ab), (ab, bb))


def _log_gap(theta, log_mean):
    """a = θ log1p(μ/θ) and its derivatives in (log μ, log θ)."""
    value, first, second = nb(0, log_mean, theta)
    return -value, [-f for f in first], [[-s for s in row] for row in second]


def _minus_log1mexp(a, first, second):
    """−log(1 − e^−a) with derivatives, a given with its derivatives."""
    slope = 1 / mp.expm1(a)
    bend = mp.exp(a) / mp.expm1(a) ** 2
    k = len(first)
    gradient = [-slope * f for f in first]
    hessian = [
        [bend * first[i] * first[j] - slope * second[i][j] for j in range(k)] for i in range(k)
    ]
    return -mp.log(-mp.expm1(-a)), gradient, hessian


def _add(left, right):
    value, first, second = left
    k = len(first)
    return (
        value + right[0],
        [first[i] + right[1][i] for i in range(k)],
        [[second[i][j] + right[2][i][j] for j in range(k)] for i in range(k)],
    )


def zt_nb(x, log_mean, theta):
    """Zero-truncated NB, in (log μ, log θ)."""
    return _add(nb(x, log_mean, theta), _minus_log1mexp(*_log_gap(theta, log_mean)))


def zt_poisson(x, log_rate):
    """Zero-truncated Poisson, in log λ."""
    rate = mp.exp(log_rate)
    base = x * log_rate - rate - mp.loggamma(x + 1), [x - rate], [[-rate]]
    return _add(base, _minus_log1mexp(rate, [rate], [[rate]]))


def zinb(x, log_mean, theta, gate):
    """Zero-inflated NB, in (log μ, log θ, ζ)."""
    value, first, second = nb(x, log_mean, theta)
    pi = 1 / (1 + mp.exp(-gate))
    curve = pi * (1 - pi)
    zero = mp.mpf(0)
    pad = [[*second[0], zero], [*second[1], zero], [zero, zero, zero]]
    if x > 0:
        pad[2][2] = -curve
        return value - mp.log1p(mp.exp(gate)), [*first, -pi], pad
    keep = mp.exp(value) / (mp.exp(gate) + mp.exp(value))  # 1 − P(structural | zero)
    total = mp.log(mp.exp(gate) + mp.exp(value)) - mp.log1p(mp.exp(gate))
    gradient = [keep * first[0], keep * first[1], (1 - keep) - pi]
    bend = keep * (1 - keep)
    direction = [first[0], first[1], -mp.mpf(1)]
    hessian = [
        [keep * pad[i][j] + bend * direction[i] * direction[j] for j in range(3)] for i in range(3)
    ]
    hessian[2][2] -= curve
    return total, gradient, hessian


def evaluate(function, *columns) -> Reference:
    """Evaluate a reference at the exact values of the given float arrays."""
    with mp.workdps(DIGITS):
        points = zip(*(np.asarray(column, np.float64).tolist() for column in columns), strict=True)
        rows = [function(int(x), *map(mp.mpf, rest)) for x, *rest in points]
        value = np.array([float(r[0]) for r in rows])
        score = np.array([[float(s) for s in r[1]] for r in rows])
        hessian = np.array([[[float(h) for h in row] for row in r[2]] for r in rows])
    return Reference(value, score, hessian)


def excess_error(computed, exact, allowance) -> np.ndarray:
    """Error beyond the allowance, relative to max(1, |exact|)."""
    error = np.abs(np.asarray(computed, np.float64) - exact) - allowance
    return np.maximum(error, 0) / np.maximum(1, np.abs(exact))
