"""Recovery of known gene-gene correlations, and time, beside the peers that are installed.

usage: python benchmarks/recovery.py [--sizes S M L] [--seeds 0] [--runs 3] [--peer PYTHON]

Data come from the negative-binomial log-normal model with four programs; sizes are S 500 x 200,
M 2000 x 1000, L 5000 x 2000 cells x genes. Scores over all pairs of genes against the true
correlations: Pearson r, slope of the regression through the origin, area under the precision-recall
curve of |true| > 0.3. Times of nbln and of the peer alternate in one run, and only their ratio is
to be believed on a machine that does other work. The peer is pyPLNmodels (PlnPCA, rank 8, its own
stopping rule), run by the Python of an environment that has it, by default .venv-peers
(``make peers``), and left out where there is none; beside it stand the moments of
``peer_moments.py``.
"""

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import nbln

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared" / "bench"
SIZES = {"S": (500, 200, 101), "M": (2000, 1000, 102), "L": (5000, 2000, 103)}


def simulate(size: str, seed: int):
    """AnnData, counts, true loadings and variances; of the shared simulator where there is one."""
    n_cells, n_genes, first_seed = SIZES[size]
    seed += first_seed
    if (SHARED / "simulate.py").exists():
        import anndata as ad

        counts, truth = _module(SHARED / "simulate.py").simulate(n_cells, n_genes, seed)
        return ad.AnnData(counts.astype(np.float32)), counts, (truth["W"], truth["d"])
    adata = nbln.datasets.simulate(n_cells, n_genes, 4, seed=seed)
    return adata, adata.X.toarray(), (adata.varm["W"], adata.var["d"].to_numpy())


def correlation(W, d, genes=slice(None)):
    """Correlation of log-rates of some genes, W_⊥W_⊥ᵀ + diag(d)."""
    W, d = (W - W.mean(axis=0))[genes], d[genes]
    covariance = W @ W.T + np.diag(d)
    sd = np.sqrt(np.diag(covariance))
    return covariance / np.outer(sd, sd)


def score(estimate, truth) -> dict[str, float]:
    """Pearson r, slope and area under the precision-recall curve over all pairs."""
    from sklearn.metrics import average_precision_score

    upper = np.triu_indices_from(truth, 1)
    e, t = np.nan_to_num(estimate[upper]), truth[upper]
    return {
        "r": float(np.corrcoef(e, t)[0, 1]),
        "slope": float(e @ t / (t @ t)),
        "AUPRC": float(average_precision_score(np.abs(t) > 0.3, np.abs(e))),
    }


def run_peer(python: Path, counts) -> tuple[float, np.ndarray]:
    """Seconds and correlation of PlnPCA."""
    library = counts.sum(axis=1)
    offset = np.log(library / np.median(library))
    out = run_script([python, HERE / "peer_pyplnmodels.py"], counts=counts, offset=offset)
    sd = np.sqrt(np.diag(out["covariance"]))
    return float(out["seconds"]), out["covariance"] / np.outer(sd, sd)


def run_moments(counts, *arguments: str) -> tuple[float, np.ndarray]:
    """Seconds and correlation of the moment estimator; a precision and a number of runs."""
    script = [sys.executable, HERE / "peer_moments.py"]
    out = run_script(script, *arguments, counts=counts)
    return float(out["seconds"]), out["correlation"]


def run_script(script, *arguments: str, **arrays) -> dict[str, np.ndarray]:
    """Run a script on a file of arrays in a process of its own; the arrays that it leaves."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, **arrays)
        command = [str(x) for x in (*script, source, target, *arguments)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        with np.load(target) as out:
            return {name: out[name] for name in out.files}


def bench(size: str, seed: int, runs: int, peer: Path | None, table: Table) -> None:
    """Rows of one data set: the pipeline, the published recipe, marginal matching, the peer."""
    adata, counts, parameters = simulate(size, seed)
    truth = correlation(*parameters)
    name = f"{size} +{seed}"
    began = time.perf_counter()
    result = nbln.fit(adata, progress=False)
    cold = time.perf_counter() - began
    stages, peers, estimate = [], [], None
    for _ in range(runs):
        stages.append(nbln.fit(adata, progress=False).fitted.seconds["total"])
        if peer is not None:
            seconds, estimate = run_peer(peer, counts)
            peers.append(seconds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    reference = np.median(peers) if peers else np.nan
    ratios = [a / b for a, b in zip(stages, peers, strict=False)]
    _row(table, name, "nbln.fit(adata)", result, truth, [
        f"{np.median(stages):.2f}", f"{cold:.1f}",
        f"{np.median(ratios):.3f}" if ratios else "-",
        f"{cold / reference:.2f}" if peers else "-", f"{peak:.1f}",
    ])  # fmt: skip
    source = result.cascade_source
    for match in ("verbatim", "marginal"):
        began = time.perf_counter()
        other = nbln.fit(
            adata,
            informative_priors_from=source,
            informative_priors_match=match,
            priors={"loadings": "horseshoe_columnwise"},
            progress=False,
        )
        seconds = f"{time.perf_counter() - began:.1f}"
        _row(table, name, f"r, eta frozen, {match}", other, truth, ["-", seconds, "-", "-", "-"])
    if estimate is not None:
        _peer_row(table, name, "pyPLNmodels PlnPCA 8", reference, estimate, truth, ["1", "1"])
    seconds, estimate = run_moments(counts)
    _peer_row(table, name, "moments (CS-CORE)", seconds, estimate, truth, ["-", "-"])


def _row(table, name, program, result, truth, times):
    scores = [f"{value:.4f}" for value in score(result.get_correlation().values, truth).values()]
    rank = str(result.w_prior_diagnostics["effective_rank"])
    steps = f"{len(result.trace)}{'' if result.converged else ' (not converged)'}"
    table.add_row(name, program, *scores, rank, steps, *times)


def _peer_row(table, name, program, seconds, estimate, truth, ratios):
    scores = [f"{value:.4f}" for value in score(estimate, truth).values()]
    table.add_row(name, program, *scores, "-", "-", f"{seconds:.2f}", "-", *ratios, "-")


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["S", "M"], choices=list(SIZES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=int, default=3)
    default = HERE.parent / ".venv-peers" / "bin" / "python"
    parser.add_argument("--peer", type=Path, default=default)
    options = parser.parse_args()
    peer = options.peer if options.peer.exists() else None
    console = Console(width=150)
    if peer is None:
        console.print(f"no pyPLNmodels at {options.peer}: peers are left out (make peers)")
    table = Table(title="Recovery of correlations; ratios of times to the peer's")
    for column in (
        "data", "program", "r", "slope", "AUPRC", "rank", "steps",
        "Laplace s", "cold s", "ratio", "cold ratio", "peak GB",
    ):  # fmt: skip
        table.add_column(column)
    for size in options.sizes:
        for seed in options.seeds:
            bench(size, seed, options.runs, peer, table)
    console.print(table)


if __name__ == "__main__":
    main()
