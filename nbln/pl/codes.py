"""Figures of auto-encoders with a code: reconstructions, draws of the prior, codes that vary."""

from collections.abc import Sequence

import numpy as np

from nbln.pl import style

GREYS = "Greys"


def plot_reconstructions(
    res, n: int = 8, adata=None, shape: Sequence[int] | None = None, seed: int = 0, counts=None,
    ax=None,
):  # fmt: skip
    """Samples above what the model makes of them, from one draw of their code each.

    Samples of two axes are shown as images, others as a line over their features.

    Parameters
    ----------
    n
        Number of samples; at equal distances among all.
    adata
        Any samples with the features of the fit; by default those of the fit.
    shape
        Of a sample, where it was flattened before the fit: rows and columns of an image.
    seed
        Of the draws.
    counts
        The data of the fit; needed after loading unless `adata` is given.
    ax
        Axes, 2 n.
    """
    _need_code(res)
    data = res.fitted.data(counts) if adata is None else res.fitted.matched(adata, None, "figure")
    own = np.linspace(0, data.n_cells - 1, min(n, data.n_cells)).astype(int)
    made = res.reconstruct(adata, seed=seed).values[own]
    figure, axes = style.new_grid(ax, 2 * len(own), len(own), size=(1.3, 1.3))
    pairs = np.concatenate([data.rows(own), made])
    _show(axes, pairs, _shape(res, shape))
    axes[0].set_ylabel("data")
    axes[len(own)].set_ylabel("model")
    return figure


def plot_prior_samples(
    res, n: int = 16, noise: bool = False, shape: Sequence[int] | None = None, seed: int = 0,
    ax=None,
):  # fmt: skip
    """What codes drawn from the prior are decoded to.

    Parameters
    ----------
    n
        Number of draws.
    noise
        Whether draws of data are shown, not their means.
    shape, seed
        As in `plot_reconstructions`.
    ax
        Axes, n.
    """
    _need_code(res)
    figure, axes = style.new_grid(ax, n, 8, size=(1.3, 1.3))
    _show(axes, res.sample_prior(n, noise, seed).values, _shape(res, shape))
    return figure


def plot_latent_mean_variance(res, ax=None):
    """Variance of each latent's counts against their mean: in all samples, and by the prior.

    On the line they would be Poisson; above it they are overdispersed.
    """
    _need_code(res)
    found = res.get_dispersion()
    figure, ax = style.new_axes(ax)
    for name, colour, label in (
        ("aggregated", style.BLUE, "counts of all samples"),
        ("prior", style.ORANGE, "prior"),
    ):
        mean, variance = found[f"{name}_mean"], found[f"{name}_variance"]
        ax.scatter(mean, variance, color=colour, label=label, s=16, zorder=2)
    parts = [found[f"{n}_{x}"] for n in ("aggregated", "prior") for x in ("mean", "variance")]
    style.identity(ax, *parts, log=True)
    ax.set(xlabel="mean count", ylabel="variance of counts")
    ax.legend(frameon=False)
    return figure


def _need_code(res) -> None:
    style.need_fit(res)
    if not hasattr(res, "sample_prior"):
        raise ValueError(f"model {res.model} has no code; fit model='negbio_vae'")


def _shape(res, given: Sequence[int] | None) -> tuple[int, ...]:
    """Of a sample.

    Raises
    ------
    ValueError
        Another number of features.
    """
    shape = res.shape if given is None else tuple(given)
    if int(np.prod(shape)) != res.fitted.n_genes:
        raise ValueError(f"shape={shape}: a sample has {res.fitted.n_genes} features")
    return shape


def _show(axes, values: np.ndarray, shape: tuple[int, ...]) -> None:
    low, high = float(values.min()), float(values.max())
    for one, x in zip(axes, values, strict=True):
        if len(shape) in (2, 3):
            scaled = (x - low) / max(high - low, 1e-12)
            one.imshow(scaled.reshape(shape), cmap=GREYS, vmin=0, vmax=1)
        else:
            one.plot(x, color=style.BLUE, lw=0.8)
            one.set_ylim(low, high)
        one.set(xticks=[], yticks=[])
