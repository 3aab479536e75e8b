"""scVI of nbln beside scvi-tools: time, held-out evidence, mixing of batches, a million cells.

usage: python benchmarks/vae.py COUNTS.h5ad [--parts time quality mixing scale] [--peer PYTHON]

COUNTS.h5ad holds raw counts of one batch of cells; of its genes the 2,000 of largest Poisson
deviance are taken, of its cells a fifth is held out (three splits). Both packages have one hidden
layer of 128 units, 10 factors, batches of 128. Held-out evidence of both is estimated alike, by
`nbln.vae.marginal` (importance sampling about refined modes) on their weights. Runs of the peer
and of nbln alternate, and only ratios are to be believed on a machine that does other work. The
peer is run by the Python of an environment that has scvi-tools and scib-metrics, by default
.venv-scvi (``make peers-scvi``), and left out where there is none.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import anndata as ad
import equinox as eqx
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from rich.console import Console
from rich.table import Table

import nbln
from nbln.vae import marginal
from nbln.vae.cells import Cells
from nbln.vae.scvi import SCVI, Architecture, Gaussian

HERE = Path(__file__).parent
N_GENES, SPLITS, DRAWS = 2000, (0, 1, 2), 100
TIMED_EPOCHS = 40
SCALE_CELLS, SCALE_BLOCK = 1_000_000, 20_000


def peer_weights(path: Path) -> tuple[SCVI, np.lib.npyio.NpzFile]:
    """The weights that `peer_scvi.py` saved, in a model of ours (one batch, one hidden layer)."""
    saved = np.load(path)
    likelihood = str(saved["likelihood"])
    n_factors, n_hidden = saved["z_mean.weight"].shape
    of = Architecture(
        len(saved["px_r"]), 0, 1, 1, n_factors, n_hidden, 1, 0.1, likelihood, "gene",
        linear=False, skip=False, latent_library=False,
    )  # fmt: skip
    model = SCVI.start(jax.random.key(0), of, Gaussian(jnp.zeros(1), jnp.ones(1)))
    layers = ["encoder.0", "decoder.0", "z_mean", "z_log_var", "px_scale"]
    layers += ["px_dropout"] if likelihood == "zinb" else []
    norms = ["encoder.0.norm", "decoder.0.norm"]

    def places(m):
        linear = [m.encoder.stack.linear[0], m.decoder.stack.linear[0], m.encoder.mean]
        linear += [m.encoder.log_variance, m.decoder.share]
        linear += [m.likelihood.dropout] if likelihood == "zinb" else []
        found = [x for layer in linear for x in (layer.weight, layer.bias)]
        for stack in (m.encoder.stack, m.decoder.stack):
            norm = stack.norm[0]
            found += [norm.scale, norm.shift, *norm.running]
        return [*found, m.likelihood.dispersion.level]

    names = [f"{n}.{x}" for n in layers for x in ("weight", "bias")]
    names += [f"{n}.{x}" for n in norms for x in ("weight", "bias", "mean", "var")]
    values = [jnp.asarray(saved[n]) for n in [*names, "px_r"]]
    return eqx.tree_at(places, model, values), saved


def run_peer(python: str, source: Path, target: Path, *options: str) -> None:
    """Train scvi-tools, unless an earlier run left this very file."""
    if not target.exists():
        script = str(HERE / "peer_scvi.py")
        command = [python, script, str(source), str(target), *map(str, options)]
        subprocess.run(command, check=True, capture_output=True)


def fit(adata, **arguments):
    """scVI as it is compared, with its time: wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = nbln.fit(adata, model="scvi", latent_dim=10, progress=False, **arguments)
    return result, time.perf_counter() - wall, time.process_time() - cpu


def evidence(network: SCVI, result, held_out) -> np.ndarray:
    """Evidence of held-out cells (nats), by a network of the same genes as the result's."""
    cells = Cells.of(result.fitted.matched(held_out, None, "score"), result.design, "score")
    return marginal.log_evidence(network, cells, DRAWS, 0)


def measure_time(console, adata, source: Path, peer: str, folder: Path, likelihood: str) -> None:
    """CPU time of an epoch a cell, of what an epoch trains on."""
    ours, theirs = [], []
    for i in range(3):
        target = folder / f"time_{likelihood}_{i}.npz"
        target.unlink(missing_ok=True)
        options = ("--likelihood", likelihood, "--epochs", TIMED_EPOCHS, "--seed", 0)
        run_peer(peer, source, target, *options)
        saved = np.load(target)
        theirs.append(float(saved["cpu_seconds_per_epoch"]) / (0.9 * len(saved["train"])))
        train = adata[saved["train"]][:, saved["genes"]].copy()
        configs = [nbln.VAEConfig(n_epochs=n) for n in (TIMED_EPOCHS, 3 * TIMED_EPOCHS)]
        for config in configs if i == 0 else ():  # each length is compiled by itself
            fit(train, gene_likelihood=likelihood, vae=config)
        # The difference of two lengths leaves the start out.
        cpu = [fit(train, gene_likelihood=likelihood, vae=config)[2] for config in configs]
        ours.append((cpu[1] - cpu[0]) / (2 * TIMED_EPOCHS) / train.n_obs)
    ratio = np.median(theirs) / np.median(ours)
    console.print(
        f"{likelihood}: CPU time of an epoch, us a cell: scvi-tools {1e6 * np.median(theirs):.0f}, "
        f"nbln {1e6 * np.median(ours):.0f}; 1/{ratio:.2f}"
    )


def measure_quality(console, adata, source: Path, peer: str, folder: Path) -> None:
    """Held-out evidence beside scvi-tools (default and early stopping) and NBLN."""
    table = Table(title="held-out evidence, nats a cell above scvi-tools' default (SE)")
    for column in ("split", "early stop", "nbln scvi", "zinb", "NBLN", "NBLN start", "seconds"):
        table.add_column(column)
    for split in SPLITS:
        default, stopped = (folder / f"{name}_{split}.npz" for name in ("default", "early"))
        run_peer(peer, source, default, "--seed", split)
        run_peer(peer, source, stopped, "--seed", split, "--early-stop")
        base_model, saved = peer_weights(default)
        # The genes that no training cell shows would be left out of a fit.
        train = adata[saved["train"]][:, saved["genes"]].copy()
        seen = np.asarray(train.X.sum(axis=0)).ravel() > 0
        assert seen.all(), "the comparison needs all genes in the training cells"
        test = adata[saved["test"]][:, saved["genes"]].copy()
        result, wall, _ = fit(train)
        log_normal = nbln.fit(train, priors={"capture_efficiency": None}, progress=False)
        base = evidence(base_model, result, test)
        zinb = fit(train, gene_likelihood="zinb")[0]
        started = fit(train, start=log_normal)[0]
        columns = [
            evidence(peer_weights(stopped)[0], result, test),
            evidence(result.network, result, test),
            evidence(zinb.network, result, test),
            log_normal.score(test, n_samples=DRAWS).values,
            evidence(started.network, result, test),
        ]
        cells = [f"{(x - base).mean():+.1f} ({_se(x - base):.1f})" for x in columns]
        table.add_row(str(split), *cells, f"{wall:.1f} / {float(saved['seconds']):.0f}")
    console.print(table)


def _se(x: np.ndarray) -> float:
    return float(x.std() / len(x) ** 0.5)


def technologies(seed: int = 0, n_genes: int = 1000) -> ad.AnnData:
    """Six cell types in three batches of other depth, dispersion and gene-wise capture."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1.5, n_genes)
    types = np.where(rng.random((6, n_genes)) < 0.1, rng.normal(0, 1.2, (6, n_genes)), 0)
    theta = np.exp(rng.normal(1.0, 0.5, n_genes))
    parts, labels, batches = [], [], []
    for i, (n, depth) in enumerate(((1200, 6000), (900, 2500), (760, 1200))):
        effect = rng.normal(0, 0.4, n_genes)
        kind = rng.choice(6, n, p=rng.dirichlet(np.full(6, 3.0)))
        log_share = base + effect + types[kind] + rng.normal(0, 0.15, (n, 1))
        share = np.exp(log_share - log_share.max(axis=1, keepdims=True))
        mean = share / share.sum(axis=1, keepdims=True) * depth * np.exp(rng.normal(0, 0.3, (n, 1)))
        parts.append(rng.poisson(rng.gamma(theta, mean / theta)))
        labels += [f"type{k}" for k in kind]
        batches += [f"technology{i}"] * n
    counts = np.concatenate(parts).astype(np.float32)
    made = ad.AnnData(sp.csr_matrix(counts))
    made.obs_names = [f"cell{i}" for i in range(len(counts))]
    made.var_names = [f"gene{g}" for g in range(n_genes)]
    made.obs["batch"], made.obs["label"] = batches, labels
    return made[:, counts.sum(axis=0) > 0].copy()


def measure_mixing(console, peer: str, folder: Path) -> None:
    """Scores of both embeddings of simulated batches by scib-metrics."""
    adata, source = technologies(), folder / "technologies.h5ad"
    adata.write_h5ad(source)
    everything = folder / "all_cells.npz"
    np.savez(everything, train=np.arange(adata.n_obs), test=np.arange(adata.n_obs))
    target = folder / "technologies.npz"
    options = ("--n-genes", adata.n_vars, "--cells", everything, "--batch-key", "batch")
    run_peer(peer, source, target, *options)
    result, wall, _ = fit(adata, batch_key="batch")
    saved = np.load(target)
    embeddings, scores = folder / "embeddings.npz", folder / "scores.json"
    np.savez(
        embeddings,
        batch=adata.obs["batch"].to_numpy(str),
        label=adata.obs["label"].to_numpy(str),
        scvi_tools=saved["test_z_mean"],
        nbln=result.get_latent_representation(),
    )
    script = str(HERE / "peer_scib.py")
    subprocess.run([peer, script, str(embeddings), str(scores)], check=True, capture_output=True)
    table = Table(title=f"three technologies ({wall:.0f} s / {float(saved['seconds']):.0f} s)")
    found = json.loads(scores.read_text())
    table.add_column("")
    for name in found["nbln"]:
        table.add_column(name)
    for name, values in found.items():
        table.add_row(name, *(f"{x:.3f}" for x in values.values()))
    console.print(table)


def million(path: Path) -> None:
    """A CSR file of a million cells, the same 20,000 again and again."""
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(N_GENES, 0.3))
    types = rng.gamma(2.0, 0.5, (8, N_GENES))
    mean = 1500 * share * types[rng.integers(8, size=SCALE_BLOCK)]
    block = sp.csr_matrix(rng.poisson(mean).astype(np.float32))
    n = SCALE_CELLS // SCALE_BLOCK
    small = ad.AnnData(block)
    small.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        X = file["X"]
        data, indices, indptr = (X[k][:] for k in ("data", "indices", "indptr"))
        for name, values in (("data", data), ("indices", indices)):
            del X[name]
            made = X.create_dataset(name, (n * len(values),), values.dtype, chunks=(2**18,))
            for i in range(n):
                made[i * len(values) : (i + 1) * len(values)] = values
        del X["indptr"]
        starts = [indptr[:-1].astype(np.int64) + i * int(indptr[-1]) for i in range(n)]
        X["indptr"] = np.concatenate([*starts, [n * int(indptr[-1])]])
        X.attrs["shape"] = (n * SCALE_BLOCK, N_GENES)
        attributes = dict(file["obs/_index"].attrs)
        del file["obs/_index"]
        file["obs/_index"] = np.array([f"{i}" for i in range(n * SCALE_BLOCK)], object)
        file["obs/_index"].attrs.update(attributes)


def measure_scale(console, folder: Path) -> None:
    """Time and memory of epochs of a million cells on disk."""
    path = folder / "million.h5ad"
    if not path.exists():
        million(path)
    adata = ad.read_h5ad(path, backed="r")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result, wall, _ = fit(adata, vae=nbln.VAEConfig(n_epochs=1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = result.fitted.seconds
    console.print(
        f"{adata.n_obs:,} x {adata.n_vars:,} on disk: {seconds['epochs']:.0f} s an epoch, "
        f"{wall:.0f} s in all, {(peak - before) / 2**20:.2f} GiB more memory"
    )


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("counts", type=Path)
    parts = ("time", "quality", "mixing", "scale")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--peer", default=str(HERE.parent / ".venv-scvi" / "bin" / "python"))
    parser.add_argument("--keep", type=Path, help="folder that keeps the peer's runs")
    arguments = parser.parse_args()
    console, has_peer = Console(), Path(arguments.peer).exists()
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.keep or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        if "scale" in arguments.parts:
            measure_scale(console, folder)
        if not has_peer:
            console.print(f"no {arguments.peer}: the peer is left out (make peers-scvi)")
            return
        adata = ad.read_h5ad(arguments.counts)
        if "time" in arguments.parts:
            for likelihood in ("nb", "zinb"):
                measure_time(console, adata, arguments.counts, arguments.peer, folder, likelihood)
        if "quality" in arguments.parts:
            measure_quality(console, adata, arguments.counts, arguments.peer, folder)
        if "mixing" in arguments.parts:
            measure_mixing(console, arguments.peer, folder)


if __name__ == "__main__":
    main()
