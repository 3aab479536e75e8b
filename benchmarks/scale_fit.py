"""One fit in a process of its own: seconds, memory, and how well the true correlations come back.

usage: python scale_fit.py COUNTS.h5ad OUT.json [--latent-dim 16] [--on-disk] [--runs 0]

COUNTS.npz beside the counts holds the true ``W`` and ``d``. With --runs the fit is made again as
often: the first one compiles, which hardly matters for many cells and is most of it for few.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
from recovery import correlation, score

import nbln
from nbln.data import files

GENES = 500  # at random, over whose pairs recovery is scored: the error of r is far below 0.01


def peak_bytes() -> int:
    """Peak resident memory of this process.

    On Linux VmHWM, since ru_maxrss begins at what the process that started this one had.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS, in bytes
    lines = status.read_text().splitlines()
    return 1024 * next(int(x.split()[1]) for x in lines if x.startswith("VmHWM"))


def recovered(result, genes, truth) -> dict[str, float]:
    """Scores over the pairs of some genes, those left out of the fit aside."""
    fitted, rng = result.fitted.gene_names, np.random.default_rng(0)
    some = rng.choice(fitted, min(GENES, len(fitted)), replace=False)
    found = result.get_correlation(genes=list(some)).values
    return score(found, correlation(truth["W"], truth["d"], genes.get_indexer(some)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--latent-dim", type=int, default=16)
    parser.add_argument("--on-disk", action="store_true", help="read the counts as they are needed")
    parser.add_argument(
        "--runs", type=int, default=0, help="further fits, of which nothing compiles"
    )
    options = parser.parse_args()
    before = peak_bytes()
    began = time.perf_counter()
    adata = files.read([options.counts], options.on_disk)
    read = time.perf_counter() - began
    seconds, stages = [], []
    for _ in range(1 + options.runs):
        began = time.perf_counter()
        result = nbln.fit(adata, latent_dim=options.latent_dim, progress=False)
        seconds.append(time.perf_counter() - began)
        stages.append(result.stages)
    peak = peak_bytes()
    steps, iterating = len(result.trace), stages[-1]["Laplace"]["iterations"]
    found = {
        "cells": adata.n_obs,
        "genes": adata.n_vars,
        "latent_dim": options.latent_dim,
        "read": read,
        "first": seconds[0],
        "warm": float(np.median(seconds[1:])) if options.runs else None,
        "laplace": float(np.median([s["Laplace"]["total"] for s in stages[1:] or stages])),
        "stages": stages[-1],
        "iterations": steps,
        "ns": 1e9 * iterating / (steps * adata.n_obs * adata.n_vars),
        "peak": peak,
        "before": before,
        "converged": bool(result.converged),
        "rank": int(result.w_prior_diagnostics["effective_rank"]),
        **recovered(result, adata.var_names, np.load(options.counts.with_suffix(".npz"))),
    }
    options.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
