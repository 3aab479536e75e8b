"""The loadings prior whose columns are spike and slab, so that programs are identified."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from nbln.linalg import gauge
from nbln.linalg.products import dot
from nbln.priors.columnwise import HorseshoeColumnwise
from nbln.priors.loadings import (
    FACTORS,
    Entries,
    Loadings,
    LoadingsPrior,
    Norms,
    Scales,
    ScaleSite,
    Turn,
    principal_turn,
)

# Least variance of a spike that is told from 0, as a share of its column's: an sd of a hundredth.
SMALLEST_SPIKE = 1e-4


class HorseshoeSparse(LoadingsPrior):
    """Columns as under `HorseshoeColumnwise`, whose entries are spike and slab.

    An entry of W_⊥ is π_j N(b_j, s_j²) + (1 - π_j) N(b_j, ρ_j λ_j²) around a free ``centre`` b_j:
    the share π_j (``inclusion``) of genes belongs to program j, and the others differ by the share
    ρ_j (``spike``) of the column's variance λ_j², so that s_j² = λ_j² (1 - (1 - π_j) ρ_j)/π_j.
    Unlike a prior on columns alone it is not the same in each rotation: the programs are
    identified up to order and sign.

    Where the counts leave entries as Gaussian as they were, π_j and ρ_j grow until spike and slab
    are alike. Both start at the middle of what simulated programs have; π_j is uniform
    up to the limit of `Shrinkage` (and a fit, which takes its most probable value, keeps it above
    another), √ρ_j from 0 to 1, and b_j is free but for a N(0, 10²) that makes it proper.
    Its parameters are those of `HorseshoeColumnwise`.
    """

    centre: ClassVar[str | None] = "centre"
    floor: ClassVar = HorseshoeColumnwise.floor
    tau_scale: float = 1.0
    tau_min: float = 0.0
    init_scale: float = 1.0

    @property
    def _columns(self) -> HorseshoeColumnwise:
        given = self.tau_scale, self.tau_min, self.init_scale
        return HorseshoeColumnwise(*given, shrinkage=self.shrinkage)

    def start(self, norms, n_genes):
        shape = {"inclusion": jnp.full_like(norms, 0.3), "spike": jnp.full_like(norms, 0.1)}
        shape["centre"] = jnp.zeros_like(norms)
        return self._columns.start(norms, n_genes) | shape

    def update(self, scales, norms, n_genes):
        return scales | self._columns.update(scales, norms, n_genes)

    def column_sd(self, scales, n_factors):
        return self._columns.column_sd(scales, n_factors)

    def named(self, scales):
        return self._columns.named(scales)

    def turn(self, W, phase):
        return lax.cond(phase.settled, self._sparse_turn, principal_turn, W)

    def _sparse_turn(self, W):
        """To sparse axes of the columns that carry signal, largest first.

        The first such turn mixes columns, so that a new one is expected to be as large and as
        strong as the old ones that it is made of.
        """
        norms = gauge.squared_norms(W)
        axes = gauge.sparse_axes(W, norms > self.shrinkage.signal_share**2 * jnp.max(norms))
        order = jnp.argsort(-gauge.squared_norms(dot(W, axes)))
        axes = axes[:, order]
        return Turn(axes, order, axes**2)

    def reweigh(self, scales, rows, norms, order, phase):
        shape, entries, expected = self.sharpen(scales, rows)
        by_entry = phase.entry_by_entry
        norms = jnp.where(by_entry, expected[order], norms)
        updated = self.update(scales, norms, len(rows.mean))
        updated |= {n: jnp.where(by_entry, x[order], updated[n]) for n, x in shape.items()}
        columns = self.column_precision(updated, rows.mean.shape)
        return updated, jnp.where(by_entry, entries[:, order], columns)

    def may_stop(self, phase):
        return phase.entries_settled(self.shrinkage)

    def variances(self, scales: Scales) -> tuple[Norms, Norms]:
        """Of slab and spike, by column."""
        share, spike = scales["inclusion"], jnp.maximum(scales["spike"], SMALLEST_SPIKE)
        square = scales["lambda"] ** 2
        return square * (1 - (1 - share) * spike) / share, square * spike

    def sharpen(self, scales: Scales, rows: Entries) -> tuple[Scales, Loadings, Norms]:
        """One step of expectation propagation (Minka 2001) for the entries, of EM for the shape.

        Returns
        -------
        shape
            ``inclusion``, ``spike`` and ``centre``.
        precision
            Of the Gaussian prior under which each entry has the posterior mean that spike and
            slab give it.
        norms
            Expected squared norms of the columns; 0 of those that are to vanish.
        """
        limits = self.shrinkage
        seen, precision, member, kept = self._mixture(scales, rows)
        shares = jnp.stack([member, 1 - member])
        size = jnp.sum(shares, axis=1)
        squares = jnp.sum(shares * ((kept * seen) ** 2 + kept / precision), axis=1)
        norms = jnp.sum(squares, axis=0)
        n_genes = seen.shape[0]
        spike = squares[1] / jnp.maximum(size[1], 1e-6) / (norms / n_genes)
        shape = {
            "inclusion": jnp.clip(size[0] / n_genes, limits.least_inclusion, limits.most_inclusion),
            "spike": jnp.clip(spike, limits.smallest_spike, 1.0),
            "centre": rows.centre - jnp.mean(rows.mean, axis=0),
        }
        signal = scales["lambda"] > limits.smallest_signal
        stays = (rows.strength() > limits.noise_ratio) & signal
        prior = precision * (1 / jnp.sum(shares * kept, axis=0) - 1)
        return shape, prior, jnp.where(stays, norms, 0.0)

    def membership(self, scales, rows):
        return self._mixture(scales, rows)[2]

    def _mixture(self, scales, rows):
        """What the counts alone say of each entry, as mean and precision; slab or spike.

        The last are the probability of the slab, and the share of the mean that slab and spike
        keep.
        """
        seen, precision = rows.likelihood()
        slab, spike = self.variances(scales)
        log_odds = _log_normal(seen, slab + 1 / precision)
        log_odds = log_odds - _log_normal(seen, spike + 1 / precision)
        member = jax.nn.sigmoid(jax.scipy.special.logit(scales["inclusion"]) + log_odds)
        kept = [precision / (precision + 1 / variance) for variance in (slab, spike)]
        return seen, precision, member, jnp.stack(kept)

    def sites(self, n_factors):
        columns = (n_factors,)
        distributions = {
            "inclusion": dist.Uniform(0.0, self.shrinkage.most_inclusion),
            "spike": dist.Beta(0.5, 1.0),
            "centre": dist.Normal(0.0, 10.0),
        }
        return self._columns.sites(n_factors) + tuple(
            ScaleSite(name, FACTORS, lambda scales, d=d: d.expand(columns))
            for name, d in distributions.items()
        )

    def log_density(self, W, scales):
        away = gauge.compositional(W) - scales["centre"]
        return jnp.sum(self.column_log_density(away, scales))

    def column_log_density(self, away, scales):
        return jnp.sum(jnp.logaddexp(*self._parts(away, scales)), axis=0)

    def draw_precision(self, key, away, scales):
        slab, spike = self.variances(scales)
        member = jax.random.bernoulli(key, self.member_probability(away, scales))
        return jnp.where(member, 1 / slab, 1 / spike)

    def switched(self, scales, precision):
        slab, spike = self.variances(scales)
        return jnp.where(self._in_slab(scales, precision), 1 / spike, 1 / slab)

    def log_choice(self, scales, precision):
        share = scales["inclusion"]
        chosen = jnp.where(self._in_slab(scales, precision), jnp.log(share), jnp.log1p(-share))
        return chosen + 0.5 * jnp.log(precision)

    def _in_slab(self, scales, precision):
        slab, spike = self.variances(scales)
        return precision**2 * slab * spike < 1

    def member_probability(self, away, scales):
        in_slab, in_spike = self._parts(away, scales)
        return jax.nn.sigmoid(in_slab - in_spike)

    def _parts(self, away, scales):
        """Log-densities of slab and spike, their shares included."""
        slab, spike = self.variances(scales)
        share = scales["inclusion"]
        return (
            jnp.log(share) + _log_normal(away, slab),
            jnp.log1p(-share) + _log_normal(away, spike),
        )


def _log_normal(x, variance):
    """Log-density of N(0, variance), without the constant."""
    return -0.5 * (x**2 / variance + jnp.log(variance))
