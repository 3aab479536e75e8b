"""Are posterior intervals and calls what they say? Coverage and false discoveries on known truths.

usage: python benchmarks/calibration.py [--regimes default deep ...] [--seeds 0] [--model nbln]
                                        [--draws 200] [--warmup 100] [--chains 2]

Each regime is a way to simulate counts from the model: depth, d, r, programs, more or fewer cells
than genes. For each one a line a kind of correlation: coverage of 90 % intervals by size of the
posterior mean; the share of false calls at nominal rates .05, .1, .2 for |correlation| beyond .1
and .3; recovery by the fit and by the means of the draws; time of a sweep over that of a warm fit,
effective draws a draw.
"""

import argparse
import itertools
import logging
import time
import warnings
from typing import NamedTuple

import anndata as ad
import numpy as np
from rich.console import Console

import nbln
from nbln.questions.correlation import of_kind

KINDS = ("compositional", "expression")
BINS = (0.0, 0.05, 0.1, 0.3, 0.6, 1.01)
FEWEST = 200  # pairs of a bin whose coverage is told
RATES = (0.05, 0.1, 0.2)


class Regime(NamedTuple):
    """How counts are simulated."""

    n_cells: int = 1000
    n_genes: int = 300
    d: tuple[float, float] = (0.05, 0.2)
    r: float = 5.0
    depth: float = 1.0
    n_programs: int = 4
    members: float = 0.3  # share of genes in a program
    size: float = 0.6  # sd of a member's loading
    floor: float = 0.05  # sd of the others'


REGIMES = {
    "default": Regime(),
    "few cells": Regime(n_cells=500, n_genes=600),
    "many cells": Regime(n_cells=2000, n_genes=150),
    "shallow": Regime(depth=0.3),
    "deep": Regime(depth=4.0),
    "small d": Regime(d=(0.01, 0.03)),
    "large d": Regime(d=(0.3, 0.9), r=6.0),
    "bursty": Regime(r=0.7),
    "near Poisson": Regime(r=50.0),
    "dense": Regime(members=1.0, size=0.3),
    "few strong genes": Regime(members=0.05, size=1.2, floor=0.0),
    "zero floor": Regime(floor=0.0),
    "eight programs": Regime(n_programs=8),
    "independent": Regime(n_programs=0),
}


def simulate(regime: Regime, seed: int, poisson: bool):
    """Counts, and W, d, mu, 1/r of what they were drawn from."""
    rng = np.random.default_rng([seed, 20])
    C, G, k = regime.n_cells, regime.n_genes, regime.n_programs
    member = rng.random((G, k)) < regime.members
    W = np.where(
        member, rng.normal(0, regime.size, (G, k)), rng.normal(0, 1, (G, k)) * regime.floor
    )
    W -= W.mean(axis=0, keepdims=True)
    d = rng.uniform(*regime.d, G)
    r = regime.r * np.exp(0.7 * rng.normal(size=G))
    log_mean = np.clip(rng.normal(0, 1.2, G), np.log(0.05), np.log(20)) + np.log(regime.depth)
    mu = log_mean - ((W**2).sum(axis=1) + d) / 2
    offset = rng.normal(0, 0.4, C)
    x = mu + rng.normal(size=(C, k)) @ W.T + rng.normal(size=(C, G)) * np.sqrt(d)
    rate = np.exp(x + offset[:, None])
    if not poisson:
        rate = rate * rng.gamma(r, 1 / r, rate.shape)
    seen = rng.poisson(rate).astype(np.float32)
    kept = seen.sum(axis=0) > 0
    noise = np.zeros(G) if poisson else 1 / r
    return seen[:, kept], (W[kept], d[kept], mu[kept], noise[kept])


def judge(draws, truth, first, second):
    """Coverage by bins of the mean, false discoveries, mean of the draws."""
    values = draws.of_pairs(first, second)
    mean = values.mean(axis=0)
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    covered = (low <= truth) & (truth <= high)
    size = np.abs(mean)
    coverage = []
    for a, b in itertools.pairwise(BINS):
        inside = (size >= a) & (size < b)
        coverage.append(covered[inside].mean() if inside.sum() >= FEWEST else np.nan)
    return mean, np.array(coverage)


def false_discoveries(post, kind, truth, min_abs):
    """Shares of false calls and numbers of calls at the nominal rates."""
    called = post.pairs(min_abs=min_abs, fdr=max(RATES), kind=kind)
    names = {name: i for i, name in enumerate(post.fitted.gene_names)}
    a, b = (called[c].map(names).to_numpy(int) for c in ("gene_a", "gene_b"))
    value = truth[a, b] * np.sign(called["mean"].to_numpy())
    wrong = value <= min_abs
    found = []
    for rate in RATES:
        n = int((called["q"] <= rate).sum())
        found.append((wrong[:n].mean() if n else np.nan, n))
    return found


def run(name: str, seed: int, arguments, console: Console) -> None:
    """One data set."""
    regime = REGIMES[name]
    counts, parts = simulate(regime, seed, arguments.model == "pln")
    adata = ad.AnnData(counts)
    adata.var_names = [f"g{i}" for i in range(counts.shape[1])]
    nbln.fit(adata, model=arguments.model, progress=False)
    began = time.perf_counter()
    fit = nbln.fit(adata, model=arguments.model, progress=False)
    fit_seconds = time.perf_counter() - began
    fit.sample_posterior(1, 1, n_warmup=1, progress=False)
    post = fit.sample_posterior(
        arguments.draws, arguments.chains, n_warmup=arguments.warmup, seed=seed, progress=False
    )
    sweeps = arguments.chains * (arguments.draws + arguments.warmup)
    share = post.fitted.seconds["sampling"] / sweeps / fit_seconds
    quality = post.get_diagnostics()
    ess = quality.loc["strong_correlations", "ess_per_draw"]
    rows = np.arange(counts.shape[1])
    first, second = np.triu_indices(len(rows), 1)
    for kind in KINDS:
        truth = of_kind(kind, *parts).correlation_block(rows, rows)
        t = truth[first, second]
        mean, coverage = judge(post.correlation_draws(kind), t, first, second)
        fitted = fit.get_correlation(kind).values[first, second]
        rates = [false_discoveries(post, kind, truth, limit) for limit in (0.1, 0.3)]
        console.print(
            f"{name:16} {seed:3d} {kind[:5]} "
            + " ".join("  . " if np.isnan(c) else f"{c:4.2f}" for c in coverage)
            + " | "
            + " | ".join(" ".join(f"{f:4.2f}({n})" for f, n in rate) for rate in rates)
            + f" | {_slopes(fitted, t)} -> {_slopes(mean, t)}"
            + f" | {share:.2f} {ess:.2f} {quality['r_hat'].max():.2f}"
            + f" rank {fit.w_prior_diagnostics['effective_rank']}/{regime.n_programs}",
            highlight=False,
            soft_wrap=True,
        )


def _slopes(estimate, truth):
    if not np.any(truth):
        return f"largest {np.abs(estimate).max():.2f}"
    return f"{np.corrcoef(estimate, truth)[0, 1]:.3f} {estimate @ truth / (truth @ truth):.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", default="nbln", choices=("nbln", "pln"))
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--chains", type=int, default=2)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("nbln").setLevel(logging.ERROR)
    console = Console(width=220)
    console.print(
        f"{'regime':16} seed kind  coverage of 90 % by |mean| 0 .05 .1 .3 .6 | false (calls) at "
        f"{RATES}, > .1 | the same, > .3 | Pearson, slope of fit -> mean | sweep/fit, ESS, R-hat"
    )
    for name in arguments.regimes:
        for seed in arguments.seeds:
            run(name, seed, arguments, console)


if __name__ == "__main__":
    main()
