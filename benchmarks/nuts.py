"""Do NUTS, the sampler that starts at a fit, and the fit itself say the same of small data?

usage: python benchmarks/nuts.py [--model nbln] [--cells 200] [--genes 30] [--programs 2]
                                 [--loadings horseshoe_sparse gaussian] [--draws 500] [--chains 4]

Counts are simulated from NBLN. For each loadings prior, priors of d and r given, so that they are
the same everywhere: a line a kind of correlation and a pair of methods, with differences over pairs
of genes, their size in Monte Carlo standard errors, and correlation with the truth. Then the same
with the sampler's own prior, which pools overdispersion over genes.
"""

import argparse
import logging
import time

import numpy as np
from numpyro.diagnostics import effective_sample_size
from rich.console import Console

import nbln
from nbln import registry
from nbln.questions.correlation import of_kind

KINDS = ("compositional", "expression")


def explicit(model: str, n_cells: int) -> dict[str, tuple[float, float]]:
    """The default priors of d and of the channel, as a user gives them."""
    program = registry.find(model).program
    defaults = program.default_priors(n_cells)
    own = {site.name for site in program.channel.sites}
    given = {"d": (float(defaults["d"].shape), float(defaults["d"].rate))}
    return given | {n: (float(defaults[n].loc), float(defaults[n].scale)) for n in own}


def of_draws(result, kind: str, pairs: np.ndarray):
    """Mean, sd and Monte Carlo standard error of the correlations of pairs."""
    values = result.correlation_draws(kind).of_pairs(*pairs)
    chains = values.reshape(result.n_chains, result.n_draws, -1).astype(float)
    sd = values.std(axis=0)
    return values.mean(axis=0), sd, sd / np.sqrt(effective_sample_size(chains))


def line(console, what: str, ours, theirs, truth) -> None:
    """Differences of two methods; the second may be a point estimate."""
    mean, sd, error = ours
    other, other_sd, other_error = theirs
    apart = mean - other
    words = (
        f"{what:32s} means differ by {np.sqrt(np.mean(apart**2)):.3f} rms, "
        f"{np.abs(apart).max():.3f} at most, correlation {np.corrcoef(mean, other)[0, 1]:.3f}"
    )
    if other_sd is not None:
        ratio = np.exp(np.mean(np.log(other_sd / sd)))
        z = apart / np.hypot(error, other_error)
        words += f"; sd {sd.mean():.3f} and {other_sd.mean():.3f}, ratio {ratio:.3f}"
        words += f"; {np.sqrt(np.mean(z**2)):.2f} rms in standard errors, {np.abs(z).max():.1f}"
    words += (
        f"; with the truth {np.corrcoef(mean, truth)[0, 1]:.3f} and "
        f"{np.corrcoef(other, truth)[0, 1]:.3f}"
    )
    console.print(words, soft_wrap=True, highlight=False)


def compare(console, adata, args, loadings: str) -> None:
    """All methods under one loadings prior."""
    pairs = np.array(np.triu_indices(adata.n_vars, 1))
    genes = adata.varm["W"], *adata.var[["d", "mu"]].values.T, 1 / adata.var["r"].values
    truth = {kind: of_kind(kind, *genes) for kind in KINDS}
    same = explicit(args.model, adata.n_obs) | {"loadings": loadings}
    common = {"model": args.model, "latent_dim": args.programs, "progress": args.progress}
    began = time.perf_counter()
    config = nbln.MCMCConfig(args.draws, args.draws, args.chains)
    nuts = nbln.fit(adata, priors=same, inference_method="mcmc", mcmc=config, **common)
    console.print(f"{loadings}: NUTS {time.perf_counter() - began:.0f} s, {nuts!r}")
    console.print(nuts.get_diagnostics().round(3).to_string())
    steps = nuts.chains.steps["n_steps"].mean().item()
    console.print(f"steps a draw {steps:.0f}")
    own = not registry.find(args.model).program.depth.takes
    source = {} if own else {"informative_priors_from": False}
    for name, priors in {"same priors": same, "pooled": {"loadings": loadings}}.items():
        began = time.perf_counter()
        fit = nbln.fit(adata, priors=priors, **source, **common)
        fitted = time.perf_counter()
        post = fit.sample_posterior(args.sampled, args.chains, progress=args.progress)
        done = time.perf_counter()
        console.print(f"{name}: fit {fitted - began:.0f} s, draws {done - fitted:.0f} s, {post!r}")
        console.print(post.get_diagnostics().round(3).to_string())
        for kind in KINDS:
            ours = of_draws(nuts, kind, pairs)
            point = fit.get_correlation(kind).values[tuple(pairs)]
            true = truth[kind].correlation_pairs(*pairs)
            line(console, f"{kind}, sampler", ours, of_draws(post, kind, pairs), true)
            line(console, f"{kind}, fit", ours, (point, None, None), true)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="nbln")
    for name, default in {"cells": 200, "genes": 30, "programs": 2, "seed": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--loadings", nargs="+", default=["horseshoe_sparse", "gaussian"])
    parser.add_argument("--draws", type=int, default=500, help="of NUTS; as many to warm up")
    parser.add_argument("--sampled", type=int, default=1000, help="of the sampler")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--progress", action="store_true")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    console = Console()
    adata = nbln.datasets.simulate(args.cells, args.genes, args.programs, seed=args.seed)
    adata = adata[
        np.asarray(adata.X.sum(axis=1)).ravel() > 0
    ].copy()  # of three genes a cell may have none
    for loadings in args.loadings:
        compare(console, adata, args, loadings)


if __name__ == "__main__":
    main()
