"""Errors and times of negative-binomial log-probabilities in float32, beside other formulas.

usage: python benchmarks/likelihoods.py [--points 3000]

Errors are relative to max(1, |exact|) against 50-digit arithmetic, after allowing what one ulp of
every parameter moves. Times are of value and gradient (in log mean and log concentration) on 128 x
4,000 counts, alternating in one run; only their ratios are to be believed. ``scvi-tools`` stands
for the formula that its documentation gives (differences of log-gamma functions, 1e-8 added to the
arguments of logarithms), written in JAX.
"""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln
from rich.console import Console
from rich.table import Table

from nbln.distributions import nb_log_prob

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "distributions"))

import count_reference as reference
from test_accuracy import grid, random_points

SHAPE = 128, 4000
RUNS = 7


def scvi_tools(x, log_mean, log_theta):
    """Differences of log-gamma functions."""
    mean, theta, eps = jnp.exp(log_mean), jnp.exp(log_theta), 1e-8
    log_sum = jnp.log(theta + mean + eps)
    return (
        theta * (jnp.log(theta + eps) - log_sum)
        + x * (jnp.log(mean + eps) - log_sum)
        + gammaln(x + theta)
        - gammaln(theta)
        - gammaln(x + 1)
    )


FORMULAS = {
    "nbln": lambda x, m, t: nb_log_prob(x, m, jnp.exp(t)),
    "NumPyro NegativeBinomial2": lambda x, m, t: dist.NegativeBinomial2(
        jnp.exp(m), jnp.exp(t)
    ).log_prob(x),
    "scvi-tools": scvi_tools,
}
ZONES = {
    "everywhere": lambda x, m, t: np.ones(x.shape, bool),
    "θ ≥ 1e4, x ≤ 1e3": lambda x, m, t: (t >= 1e4) & (x <= 1e3),
    "θ ≤ 0.01": lambda x, m, t: t <= 0.01,
    "mean ≤ 1e-4": lambda x, m, t: m <= np.log(1e-4),
    "x ≥ 1e4": lambda x, m, t: x >= 1e4,
    "x ≤ 1e3, .01 ≤ mean ≤ 3e3, .1 ≤ θ ≤ 300": lambda x, m, t: (
        (x <= 1e3) & (m >= np.log(0.01)) & (m <= np.log(3e3)) & (t >= 0.1) & (t <= 300)
    ),
}


def errors(n_points: int):
    """Largest error of the value and of the two gradients, by formula and zone."""
    points = np.vstack([grid(), random_points(n_points)])[:, :3]
    x, log_mean = points[:, 0].astype(np.float32), points[:, 1].astype(np.float32)
    log_theta = np.log(points[:, 2]).astype(np.float32)
    theta = np.exp(log_theta.astype(np.float64))
    truth = reference.evaluate(reference.nb, x, log_mean, theta)
    ulps = np.stack([np.spacing(np.abs(log_mean)), np.spacing(np.abs(log_theta))], axis=1)
    allowed, score_allowed = truth.allowance(ulps.astype(np.float64))
    for name, formula in FORMULAS.items():
        value = formula(x, log_mean, log_theta)
        score = jax.jit(jax.grad(lambda *a, f=formula: f(*a).sum(), (1, 2)))(x, log_mean, log_theta)
        found = [reference.excess_error(np.asarray(value), truth.value, allowed)]
        found += [
            reference.excess_error(np.asarray(score[j]), truth.score[:, j], score_allowed[:, j])
            for j in range(2)
        ]
        for zone, chosen in ZONES.items():
            inside = chosen(x, log_mean, theta)
            yield name, zone, [np.nan_to_num(error[inside], nan=np.inf).max() for error in found]


def times() -> dict[str, float]:
    """Median seconds of value and gradient."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.poisson(3.0, SHAPE), jnp.float32)
    log_mean = jnp.asarray(rng.normal(1, 1, SHAPE), jnp.float32)
    log_theta = jnp.asarray(rng.normal(1, 1, SHAPE[1]), jnp.float32)
    programs = {
        name: jax.jit(jax.value_and_grad(lambda m, t, f=f: f(x, m, t).sum(), (0, 1)))
        for name, f in FORMULAS.items()
    }
    taken = {name: [] for name in programs}
    for _ in range(RUNS + 1):  # the first compiles
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(log_mean, log_theta))
            taken[name].append(time.perf_counter() - began)
    return {name: float(np.median(seconds[1:])) for name, seconds in taken.items()}


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=3000, help="random points beside the grid")
    arguments = parser.parse_args()
    console = Console(width=120)
    table = Table(title="Largest error in float32")
    for column in ("formula", "zone", "value", "∂ log mean", "∂ log concentration"):
        table.add_column(column)
    for name, zone, found in errors(arguments.points):
        table.add_row(name, zone, *(f"{error:.1e}" for error in found))
    console.print(table)
    seconds = times()
    table = Table(title=f"Value and gradient on {SHAPE[0]} x {SHAPE[1]}")
    for column in ("formula", "ms", "ratio to NumPyro"):
        table.add_column(column)
    for name, value in seconds.items():
        ratio = value / seconds["NumPyro NegativeBinomial2"]
        table.add_row(name, f"{1e3 * value:.1f}", f"{ratio:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
