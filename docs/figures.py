"""Make the figures of likelihoods.md: python docs/figures.py"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nbln.distributions import nb_log_prob, zt_nb_log_prob
from nbln.pl.style import BLUE, GREEN, GREY, ORANGE, RED, new_grid, to_png

OUT = Path(__file__).parent / "figures"


def losses():
    """Squared error and NB loss of one count, and their gradients in the mean."""
    figure, (value, gradient) = new_grid(None, 2, 2, size=(4.4, 3.4))
    mean = np.geomspace(0.05, 200, 400)
    for x, colour in ((0, GREY), (2, ORANGE), (20, BLUE)):

        def nb(m, x=x):
            return -nb_log_prob(float(x), jnp.log(m), 2.0)

        def squared(m, x=x):
            return 0.5 * (x - m) ** 2

        value.plot(mean, jax.vmap(nb)(mean), color=colour, label=f"NB, x = {x}")
        value.plot(mean, squared(mean), color=colour, ls="--")
        gradient.plot(mean, jax.vmap(jax.grad(nb))(mean), color=colour)
        gradient.plot(mean, mean - x, color=colour, ls="--")
    value.plot([], [], color="black", ls="--", label="squared error")
    value.set(xscale="log", ylim=(-1, 30), xlabel="mean", ylabel="loss (nats; ½ squared error)")
    gradient.set(xscale="log", yscale="symlog", xlabel="mean", ylabel="gradient in the mean")
    gradient.axhline(0, color="black", lw=0.6)
    value.legend(frameon=False, fontsize="small")
    return figure


def zeros():
    """Share of zeros by mean under Poisson, NB and a Gaussian of the same two moments."""
    from scipy import stats

    figure, (left, right) = new_grid(None, 2, 2, size=(4.4, 3.4))
    mean = np.geomspace(0.05, 100, 200)
    left.plot(mean, np.exp(-mean), color=GREY, label="Poisson")
    for theta, colour in ((0.3, RED), (2.0, BLUE)):
        left.plot(mean, (1 + mean / theta) ** -theta, color=colour, label=f"NB, θ = {theta:g}")
    left.set(xscale="log", xlabel="mean", ylabel="share of zeros")
    left.legend(frameon=False, fontsize="small")
    counts, theta, m = np.arange(0, 16), 0.7, 3.0
    right.bar(counts, stats.nbinom.pmf(counts, theta, theta / (theta + m)), color=BLUE, label="NB")
    grid = np.linspace(-8, 15, 300)
    sd = np.sqrt(m + m**2 / theta)
    right.plot(grid, stats.norm.pdf(grid, m, sd), color=ORANGE, label="Gaussian, same moments")
    right.axvspan(-8, -0.5, color=GREY, alpha=0.15, lw=0)
    right.set(xlabel="count", ylabel="probability", title=f"mean {m:g}, θ = {theta:g}")
    right.legend(frameon=False, fontsize="small")
    return figure


def limits():
    """The NB on its way to the Poisson, and zero truncation."""
    from scipy import stats

    figure, (left, right) = new_grid(None, 2, 2, size=(4.4, 3.4))
    counts = np.arange(0, 21)
    left.bar(counts, stats.poisson.pmf(counts, 5), color=GREY, alpha=0.4, label="Poisson")
    for theta, colour in ((1.0, RED), (5.0, ORANGE), (100.0, BLUE)):
        pmf = np.exp(nb_log_prob(counts.astype(np.float32), jnp.log(5.0), theta))
        left.plot(counts, pmf, color=colour, marker=".", label=f"NB, θ = {theta:g}")
    left.set(xlabel="count", ylabel="probability", title="mean 5")
    left.legend(frameon=False, fontsize="small")
    counts = np.arange(1, 9)
    plain = np.exp(nb_log_prob(counts.astype(np.float32), jnp.log(0.5), 2.0))
    cut = np.exp(zt_nb_log_prob(counts.astype(np.float32), jnp.log(0.5), 2.0))
    right.bar(counts - 0.2, plain, 0.4, color=GREY, label="NB")
    right.bar(counts + 0.2, cut, 0.4, color=GREEN, label="zero-truncated NB")
    right.set(xlabel="count", ylabel="probability", title="mean 0.5, θ = 2")
    right.legend(frameon=False, fontsize="small")
    return figure


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for make in (losses, zeros, limits):
        (OUT / f"{make.__name__}.png").write_bytes(to_png(make(), dpi=80))
