"""Which family held-out cells say that counts come from, and how well lnm finds correlations.

usage: python benchmarks/families.py [--seeds 10] [--cells 1000] [--genes 60] [--held-out 500]
       python benchmarks/families.py --recovery [--seeds 1]

Counts are simulated from each of pln, nbln, lnm and nbvcp, all four are fitted to one part of the
cells, and scored by the others, ``nbln.compare(..., depth="population")``. Totals of lnm are
negative binomial, depths of the other three log-normal, with the same mean and variance.
Dispersions of nbln and nbvcp have a median of e^0.5. The table counts which model was ``chosen``:
of those whose score is within 2.5 standard errors of the best, the one of fewest parameters, since
nbln contains pln (large r) and independent genes (no programs), and its held-out score is then
theirs, give or take.

With --recovery: correlations of log-rates fitted by lnm to counts of lnm (depths log-uniform
between 300 and 3,000) beside those of nbln fitted to counts of nbln, 2,000 x 500, four programs.
"""

import argparse
import time
from collections import Counter

import anndata as ad
import numpy as np
from recovery import correlation, score
from rich.console import Console
from rich.table import Table

import nbln

MODELS = "pln", "nbln", "lnm", "nbvcp"
TOTAL_R = 6.0  # of simulated totals of lnm: standard deviation of their log about 0.4


def simulate(family: str, n_cells: int, n_genes: int, n_programs: int, seed: int, depths=None):
    """AnnData of one family; `depths` (cell,) replaces the totals of lnm."""
    rng = np.random.default_rng([seed, 7])
    strong = rng.random((n_genes, n_programs)) < 0.3
    W = rng.normal(0, np.where(strong, 0.6, 0.05))
    W -= W.mean(axis=0)
    d = rng.uniform(0.05, 0.2, n_genes)
    independent = family == "nbvcp"
    if independent:
        W, d = np.zeros_like(W), np.zeros_like(d)
    mu = np.clip(rng.normal(-0.5, 1.2, n_genes), -3, 3)
    x = mu + rng.normal(size=(n_cells, n_programs)) @ W.T
    x = x + rng.normal(size=x.shape) * np.sqrt(d)
    mean_total = np.exp(mu + 0.5 * (np.sum(W**2, axis=1) + d)).sum()
    if family == "lnm":
        totals = rng.poisson(rng.gamma(TOTAL_R, mean_total / TOTAL_R, n_cells))
        totals = np.maximum(totals if depths is None else depths, 1)
        shares = np.exp(x)
        shares /= shares.sum(axis=1, keepdims=True)
        counts = np.stack([rng.multinomial(*pair) for pair in zip(totals, shares, strict=True)])
    else:
        variance = np.log1p(1 / TOTAL_R)
        log_depth = rng.normal(-variance / 2, np.sqrt(variance), n_cells)
        rate = np.exp(x + log_depth[:, None])
        if family != "pln":
            r = rng.lognormal(0.5, 0.5, n_genes)
            rate = rng.gamma(r, rate / r)
        counts = rng.poisson(rate)
    counts[np.arange(n_cells), rng.integers(0, n_genes, n_cells)] += counts.sum(axis=1) == 0
    adata = ad.AnnData(counts.astype(np.float32))
    adata.obs_names = [f"cell{i}" for i in range(n_cells)]
    adata.var_names = [f"gene{i}" for i in range(n_genes)]
    adata = adata[:, counts.sum(axis=0) > 0].copy()
    adata.uns["correlation"] = correlation(W, d) if not independent else np.eye(n_genes)
    return adata


def choices(arguments, console: Console) -> None:
    """The table of families and the models chosen."""
    table = Table(title="Model chosen by held-out score, by family of the counts")
    columns = ("counts of", *MODELS, "true one best", "least margin, nats", "standard errors")
    for column in columns:
        table.add_column(column)
    for family in arguments.families:
        chosen, margins, n_best = Counter(), [], 0
        for seed in range(arguments.first, arguments.first + arguments.seeds):
            n_all = arguments.cells + arguments.held_out
            adata = simulate(family, n_all, arguments.genes, 3, seed)
            train = adata[: arguments.cells]
            train = train[:, np.asarray(train.X).sum(axis=0) > 0].copy()
            began = time.perf_counter()
            quiet = {"progress": False, "latent_dim": 8}
            fits = {m: nbln.fit(train, model=m, **quiet) for m in ("nbln", "pln", "lnm")}
            fits["nbvcp"] = fits["nbln"].cascade_source
            held_out = adata[arguments.cells :].copy()
            held_out = held_out[np.asarray(held_out[:, train.var_names].X).sum(axis=1) > 0].copy()
            scores = nbln.compare(fits, held_out, depth="population")
            chosen[scores.index[scores["chosen"]][0]] += 1
            n_best += scores.index[0] == family
            best_other = scores.drop(index=family).iloc[0]
            margin = scores.loc[family, "log_evidence"] - best_other["log_evidence"]
            error = max(scores["standard_error"].iloc[:2])
            margins.append((margin, margin / error if error else np.nan))
            seconds = time.perf_counter() - began
            table_of = scores["per_cell"].round(3).to_dict()
            console.print(f"{family} {seed}: {table_of}, margin {margin:.1f}, {seconds:.0f} s")
        margin, errors = min(margins)
        counts = [str(chosen[m]) for m in MODELS]
        table.add_row(family, *counts, str(n_best), f"{margin:.1f}", f"{errors:.1f}")
    console.print(table)


def recovery(arguments, console: Console) -> None:
    """Correlations found by lnm on its own counts, and by nbln on its own."""
    table = Table(title="Correlations, 2,000 cells x 500 genes")
    for column in ("model and counts", "seed", "r", "slope", "AUPRC", "rank"):
        table.add_column(column)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        depths = np.random.default_rng(seed).uniform(np.log(300), np.log(3000), 2000)
        own = simulate("lnm", 2000, 500, 4, seed, np.exp(depths).astype(int))
        other = nbln.datasets.simulate(2000, 500, 4, seed=seed)
        truth = correlation(other.varm["W"], other.var["d"].to_numpy())
        for model, adata, true in (("lnm", own, own.uns["correlation"]), ("nbln", other, truth)):
            result = nbln.fit(adata, model=model, progress=False)
            found = score(result.get_correlation().values, true)
            rank = result.w_prior_diagnostics["effective_rank"]
            table.add_row(model, str(seed), *(f"{x:.4f}" for x in found.values()), str(rank))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--genes", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=500)
    parser.add_argument("--families", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--recovery", action="store_true")
    arguments = parser.parse_args()
    (recovery if arguments.recovery else choices)(arguments, Console(width=150))


if __name__ == "__main__":
    main()
