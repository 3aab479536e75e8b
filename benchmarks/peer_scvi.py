"""SCVI of scvi-tools on counts from an h5ad file; runs in an environment of its own.

usage: python peer_scvi.py DATA.h5ad OUT.npz [--genes FILE | --n-genes 2000]
       [--cells FILE.npz | --seed 0] [--likelihood nb|zinb] [--early-stop] [--batch-key KEY] ...

`X` holds the counts. Genes are those of FILE (text, or .npz with ``genes``), or the N of largest
Poisson deviance in all cells. Cells are ``train`` and ``test`` of FILE.npz, or a fifth drawn by the
seed is held out; an earlier OUT.npz serves as either FILE. scvi-tools trains on nine tenths of the
training cells. ``seconds`` (wall) and ``cpu_seconds`` are those of `train`, imports and
construction left out.

OUT.npz is enough to evaluate both networks: `encode` and `decode` below do it in NumPy, and are
held against torch before the file is written. ``test_elbo``, ``test_nll`` and ``test_kl`` are per
held-out cell; the reconstruction is a mean over draws of z, the divergence exact.
"""

import argparse
import json
import time

import anndata as ad
import numpy as np
import scipy.sparse as sp
import scvi
import torch

NORM_EPS, VARIANCE_EPS = 1e-3, 1e-4  # of scvi-tools' batch norm and of its encoder's variance
DRAWS = 25


def poisson_deviance(counts) -> np.ndarray:
    """Deviance of each gene from a constant share of each cell's total; zeros add nothing."""
    counts = sp.coo_array(counts, dtype=float)
    total = counts.sum(axis=1)
    share = counts.sum(axis=0) / total.sum()
    row, column = counts.coords
    terms = counts.data * np.log(counts.data / (share[column] * total[row]))
    return 2 * np.bincount(column, terms, minlength=counts.shape[1])


def weights(module) -> dict[str, np.ndarray]:
    """Every array that evaluation needs, under the names that `encode` and `decode` read."""
    arrays = {}

    def save(name, layer):
        arrays[f"{name}.weight"], arrays[f"{name}.bias"] = layer.weight, layer.bias

    for network, layers in {
        "encoder": module.z_encoder.encoder.fc_layers,
        "decoder": module.decoder.px_decoder.fc_layers,
    }.items():
        for i, (linear, norm, *_) in enumerate(layers):
            save(f"{network}.{i}", linear)
            save(f"{network}.{i}.norm", norm)
            arrays[f"{network}.{i}.norm.mean"] = norm.running_mean
            arrays[f"{network}.{i}.norm.var"] = norm.running_var
    save("z_mean", module.z_encoder.mean_encoder)
    save("z_log_var", module.z_encoder.var_encoder)
    save("px_scale", module.decoder.px_scale_decoder[0])
    save("px_dropout", module.decoder.px_dropout_decoder)
    arrays["px_r"] = module.px_r  # The logarithm of theta.
    return {name: array.detach().numpy() for name, array in arrays.items()}


def _layers(w, network: str, h, covariates):
    """Hidden layers in eval mode: linear, batch norm by running moments, ReLU."""
    i = 0
    while f"{network}.{i}.weight" in w:
        name = f"{network}.{i}"
        h = np.hstack([h, covariates]) @ w[f"{name}.weight"].T + w[f"{name}.bias"]
        h = (h - w[f"{name}.norm.mean"]) / np.sqrt(w[f"{name}.norm.var"] + NORM_EPS)
        h = np.maximum(h * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"], 0)
        i += 1
    return h


def encode(w, counts):
    """Mean and variance of q(z); the encoder sees log1p of counts and no batch."""
    h = _layers(w, "encoder", np.log1p(counts), np.zeros((len(counts), 0)))
    mean = h @ w["z_mean.weight"].T + w["z_mean.bias"]
    return mean, np.exp(h @ w["z_log_var.weight"].T + w["z_log_var.bias"]) + VARIANCE_EPS


def decode(w, z, library, batch, n_batch: int):
    """Log-mean of counts, log theta and logit of an extra zero, for totals ``library``."""
    one_hot = np.eye(n_batch)[batch] if n_batch > 1 else np.zeros((len(z), 0))
    h = _layers(w, "decoder", z, one_hot)
    scale = h @ w["px_scale.weight"].T + w["px_scale.bias"]
    scale = scale - np.logaddexp.reduce(scale, axis=1, keepdims=True)
    zero = h @ w["px_dropout.weight"].T + w["px_dropout.bias"]
    return scale + np.log(library)[:, None], w["px_r"], zero


@torch.inference_mode()
def evaluate(model, adata) -> dict[str, np.ndarray]:
    """Latent means and variances, and the terms of the ELBO, of each cell in eval mode."""
    model.module.eval()
    adata = model._validate_anndata(adata)
    parts = []
    for tensors in model._make_data_loader(adata=adata, batch_size=128):
        inferred, generated = model.module(
            tensors, inference_kwargs={"n_samples": DRAWS}, compute_loss=False
        )
        q, px = inferred["qz"], generated["px"]
        nll = -px.log_prob(tensors["X"]).sum(-1).mean(0)
        kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(-1)
        parts.append((q.loc, q.variance, nll, kl, tensors["batch"].squeeze(-1)))
    mean, var, nll, kl, batch = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return {"z_mean": mean, "z_var": var, "nll": nll, "kl": kl, "elbo": -nll - kl, "batch": batch}


@torch.inference_mode()
def rebuilt_error(model, counts, batch, n_batch: int) -> float:
    """Largest distance of `encode` and `decode` from torch, for z the mean."""
    module, w = model.module.double().eval(), weights(model.module)
    x, codes = torch.tensor(counts, dtype=torch.double), torch.tensor(batch)[:, None]
    q = module.inference(x, codes)["qz"]
    px = module.generative(q.loc, x.sum(1, keepdim=True).log(), codes)["px"]
    mean, var = encode(w, counts)
    log_mean, log_theta, zero = decode(w, mean, counts.sum(1), batch, n_batch)
    pairs = [(mean, q.loc), (var, q.variance), (log_mean, px.mu.log()), (log_theta, px.theta.log())]
    if hasattr(px, "zi_logits"):
        pairs.append((zero, px.zi_logits))
    module.float()
    return float(max(np.abs(ours - theirs.numpy()).max() for ours, theirs in pairs))


def read(path: str, name: str) -> np.ndarray:
    """Indices from a .npz file, or from a text file."""
    return np.load(path)[name] if path.endswith(".npz") else np.loadtxt(path, dtype=int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--genes")
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument("--cells")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of scvi-tools")
    parser.add_argument("--likelihood", choices=["nb", "zinb"], default="nb")
    parser.add_argument("--latent", type=int, default=10)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--epochs", type=int, help="by default scvi-tools decides, 400 at most")
    parser.add_argument("--early-stop", action="store_true", help="2000 epochs at most")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batch-key")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scvi.settings.seed = args.seed

    adata = ad.read_h5ad(args.source)
    if args.genes:
        genes = read(args.genes, "genes")
    else:
        genes = np.sort(np.argsort(-poisson_deviance(adata.X))[: args.n_genes])
    if args.cells:
        train, test = read(args.cells, "train"), read(args.cells, "test")
    else:
        order = np.random.default_rng(args.seed).permutation(adata.n_obs)
        test, train = (np.sort(part) for part in np.split(order, [round(0.2 * len(order))]))
    adata = adata[:, genes].copy()
    adata.X = sp.csr_matrix(adata.X, dtype=np.float32)
    training, held_out = adata[train].copy(), adata[test].copy()

    scvi.model.SCVI.setup_anndata(training, batch_key=args.batch_key)
    model = scvi.model.SCVI(
        training,
        n_latent=args.latent,
        n_hidden=args.hidden,
        n_layers=args.layers,
        gene_likelihood=args.likelihood,
    )
    stopping = {}
    if args.early_stop:
        stopping = dict(early_stopping_monitor="elbo_validation", early_stopping_patience=45)
    began, cpu_began = time.perf_counter(), time.process_time()
    model.train(
        max_epochs=args.epochs or (2000 if args.early_stop else None),
        batch_size=args.batch_size,
        accelerator="cpu",
        early_stopping=args.early_stop,
        enable_progress_bar=False,
        **stopping,
    )
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began

    epochs = len(model.history["elbo_train"])
    n_batch = int(model.summary_stats.n_batch)
    scores = evaluate(model, held_out)
    few = held_out.X[:8].toarray().astype(float)
    arrays = weights(model.module)
    error = rebuilt_error(model, few, scores["batch"][:8], n_batch)
    if not error < 1e-5:
        raise SystemExit(f"the networks rebuilt from the file are {error:.1e} from torch's")
    facts = {
        "likelihood": args.likelihood,
        "n_batch": n_batch,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "epochs": epochs,
        "seconds_per_epoch": seconds / epochs,
        "cpu_seconds_per_epoch": cpu_seconds / epochs,
        "threads": args.threads,
        "seed": args.seed,
        "rebuilt_error": error,
        "scvi_version": scvi.__version__,
        "torch_version": torch.__version__,
    }
    history = {f"history.{k}": v.to_numpy(float).ravel() for k, v in model.history.items()}
    cells = {f"test_{name}": value for name, value in scores.items()}
    split = {"genes": genes, "train": train, "test": test}
    if args.batch_key:
        names = model.adata_manager.get_state_registry("batch").categorical_mapping
        split["batch_names"] = np.asarray(names, dtype=str)  # In the order of the codes.
    np.savez(args.target, **split, **arrays, **cells, **history, **facts)
    print(json.dumps(facts | {"test_elbo": float(scores["elbo"].mean())}))


if __name__ == "__main__":
    main()
