"""Makes scvi_weights.npz: weights of a small SCVI, and what it gives for twenty cells.

usage: python make_scvi_weights.py, in an environment with scvi-tools

Weights have the names of benchmarks/peer_scvi.py. Arrays ``cells.*`` are of scvi-tools in eval
mode for z the mean: ``cells.z_var`` is the variance of q(z), ``cells.kl`` its divergence from
N(0, 1), ``cells.px_r`` theta itself where the weight ``px_r`` is its logarithm, ``cells.nll`` under
the model's zero-inflated likelihood and ``cells.nll_nb`` without the extra zeros. They are computed
in double precision from weights in single precision.
"""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import scvi
import torch
from scvi.distributions import NegativeBinomial

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "benchmarks"))
from peer_scvi import decode, encode, weights  # noqa: E402


def simulate(rng, n_cells: int = 200, n_genes: int = 12):
    """Negative-binomial counts of three cell types in two batches."""
    types, batch = rng.integers(3, size=n_cells), rng.integers(2, size=n_cells)
    level = rng.normal(1, 1, n_genes) + rng.normal(size=(3, n_genes))[types]
    rate = np.exp(level + 0.5 * rng.normal(size=(2, n_genes))[batch])
    return rng.poisson(rate * rng.gamma(2, 1 / 2, rate.shape)).astype(np.float32), batch


@torch.inference_mode()
def outputs(module, counts, batch) -> dict[str, torch.Tensor]:
    """What scvi-tools gives for these cells."""
    x, codes = torch.tensor(counts, dtype=torch.double), torch.tensor(batch)[:, None]
    module.double().eval()
    q = module.inference(x, codes)["qz"]
    px = module.generative(q.loc, x.sum(1, keepdim=True).log(), codes)["px"]
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0))
    return {
        "z_mean": q.loc,
        "z_var": q.variance,
        "kl": kl.sum(-1),
        "px_scale": px.scale,
        "px_rate": px.mu,
        "px_r": px.theta[0] if px.theta.ndim > 1 else px.theta,
        "px_dropout": px.zi_logits,
        "nll": -px.log_prob(x).sum(-1),
        "nll_nb": -NegativeBinomial(mu=px.mu, theta=px.theta).log_prob(x).sum(-1),
    }


def main() -> None:
    scvi.settings.seed = 0
    torch.set_num_threads(1)
    counts, batch = simulate(np.random.default_rng(0))
    adata = ad.AnnData(counts)
    adata.obs["batch"] = batch.astype(str)
    scvi.model.SCVI.setup_anndata(adata, batch_key="batch")
    model = scvi.model.SCVI(adata, n_latent=5, n_hidden=16, n_layers=1, gene_likelihood="zinb")
    model.train(max_epochs=20, accelerator="cpu", enable_progress_bar=False)

    arrays, counts, batch = weights(model.module), counts[:20], batch[:20]
    cells = {name: value.numpy() for name, value in outputs(model.module, counts, batch).items()}
    mean, var = encode(arrays, counts.astype(float))
    log_mean, log_theta, zero = decode(arrays, mean, counts.sum(1, dtype=float), batch, 2)
    np.testing.assert_allclose(mean, cells["z_mean"], atol=1e-6)
    np.testing.assert_allclose(var, cells["z_var"], atol=1e-6)
    np.testing.assert_allclose(log_mean, np.log(cells["px_rate"]), atol=1e-6)
    np.testing.assert_allclose(log_theta, np.log(cells["px_r"]), atol=1e-6)
    np.testing.assert_allclose(zero, cells["px_dropout"], atol=1e-6)

    cells = {f"cells.{name}": value.astype(np.float32) for name, value in cells.items()}
    target = HERE / "scvi_weights.npz"
    np.savez_compressed(target, counts=counts, batch=batch.astype(np.int32), **arrays, **cells)


if __name__ == "__main__":
    main()
