"""Centres, scales and memberships of the columns of the loadings, drawn given the loadings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import biject_to

from nbln.inference.sampler import langevin
from nbln.inference.sampler.langevin import Local
from nbln.linalg import small
from nbln.linalg.products import dot
from nbln.priors.activity import Activity, ActivityPrior, Spreads
from nbln.priors.loadings import FACTORS, Loadings, LoadingsPrior, Norms, Scales

REPEATS = 4  # random walks of the scales, each time that they are drawn
# A random walk in one coordinate accepts 44 % where it moves fastest (Roberts & Rosenthal 2001): in
# warm-up its step grows by the first factor where it goes, and shrinks by the second where not.
GROW, SHRINK = 1.1, 0.927
FIRST_STEP = 0.3


def first_steps(prior: LoadingsPrior, n_factors: int) -> Scales:
    """Lengths of the random walks before they are adapted."""
    return {
        s.name: jnp.full((n_factors,) * len(s.dims), FIRST_STEP) for s in _sites(prior, n_factors)
    }


class Basis(NamedTuple):
    """Loadings in another basis, at the same log-rates: W became W A, z is to be A⁻¹ z."""

    W: Loadings
    centre: Norms
    products: Float[Array, "dataset factor factor"]  # Σ z zᵀ over the cells of each data set
    inverse: Float[Array, "factor factor"]  # A⁻¹


def mix(
    key: Array,
    basis: Basis,
    precision: Loadings,
    of_factors: Float[Array, "dataset factor"],
    n_cells: Float[Array, ""],
) -> Basis:
    """Stretch and shear the columns of W against the factors.

    Alternating W given z and z given W moves along these directions by next to nothing, while the
    counts do not resist them at all: only the priors of z and of W do, which are Gaussian given
    the memberships. So they are drawn at no cost, and the posterior is left invariant (a
    generalised Gibbs step, Liu & Sabatti 2000). `of_factors` is the prior precision of z.
    """
    n_genes, k = basis.W.shape

    def entry(n, carry: Basis) -> Basis:
        i, j = n // k, n % k
        keys = jax.random.split(jax.random.fold_in(key, n))
        away = carry.W - carry.centre
        squares = precision[:, j] * away[:, i]
        # As the prior of factor i has them, which takes on a part of factor j.
        seen = jnp.tensordot(of_factors[:, i], carry.products, 1)
        sheared = _shear(keys[0], seen, i, j, squares @ away[:, i], squares @ away[:, j])
        grown = _stretch(keys, seen[j, j], squares @ away[:, i], n_genes + 1 - n_cells)
        # Column j becomes e^t times itself, or takes on t times column i.
        t = jnp.where(i == j, grown, sheared)
        forth = jnp.where(i == j, jnp.expm1(t), t)
        back = jnp.eye(k).at[i, j].add(jnp.where(i == j, jnp.expm1(-t), -t))
        return Basis(
            carry.W.at[:, j].add(forth * carry.W[:, i]),
            carry.centre.at[j].add(forth * carry.centre[i]),
            back @ carry.products @ back.T,
            back @ carry.inverse,
        )

    return jax.lax.fori_loop(0, k * k, entry, basis)


def _shear(key, products, i, j, square, product):
    """t from its Gaussian: -½ Σ (z_i - t z_j)² - ½ Σ precision (w_j + t w_i)²."""
    curvature = products[j, j] + square
    mean = (products[i, j] - product) / curvature
    return mean + jax.random.normal(key) / jnp.sqrt(curvature)


def _stretch(keys, of_z, of_w, volume):
    """t under -½ e^{-2t} Σ z² - ½ e^{2t} Σ precision w² + volume t, from the Gaussian at its mode.

    Volumes: the loadings and the centre grow, the factors of the cells shrink.
    """

    def density(t):
        return -0.5 * (of_z * jnp.exp(-2 * t) + of_w * jnp.exp(2 * t)) + volume * t

    root = jnp.sqrt(volume**2 + 4 * of_w * of_z)
    # The positive root of of_w y² - volume y - of_z = 0, y = e^{2t}, without cancellation.
    y = jnp.where(volume > 0, (volume + root) / (2 * of_w), 2 * of_z / (root - volume))
    mode, sd = 0.5 * jnp.log(y), 1 / jnp.sqrt(2 * (of_z / y + of_w * y))
    t = mode + sd * jax.random.normal(keys[0])
    ratio = density(t) - density(0.0) + 0.5 * ((t - mode) ** 2 - mode**2) / sd**2
    return jnp.where(jnp.log(jax.random.uniform(keys[1])) < ratio, t, 0.0)


class Exchange(NamedTuple):
    """Effects that took over from the factors, at the same log-rates."""

    effects: Float[Array, "gene covariate"]
    shift: Float[Array, "factor covariate"]  # z is to be z - shift x
    cross: Float[Array, "dataset factor covariate"]  # Σ z xᵀ after it


def exchange(
    key: Array,
    effects,
    precision,
    W: Loadings,
    of_factors: Float[Array, "dataset factor"],
    cross,
    known: Float[Array, "dataset covariate covariate"],
) -> Exchange:
    """Move what factors have of the covariates between them and the effects.

    As in `mix` the counts do not resist: β_j + W a and z - a x_j give the same log-rates. Under the
    priors of z, whose precision is `of_factors`, and of β, whose `precision` is that of each
    effect, a is Gaussian; it is drawn for one covariate after the other.
    """
    k = W.shape[1]

    def covariate(j, at: Exchange) -> Exchange:
        weighted = precision[:, j, None] * W
        curvature = jnp.diag(known[:, j, j] @ of_factors) + dot(W.T, weighted)
        covariance, _ = small.inverse_and_log_det(curvature[:, :, None])
        slope = jnp.sum(of_factors * at.cross[:, :, j], axis=0)
        slope = slope - dot(weighted.T, at.effects[:, j])
        noise = jax.random.normal(jax.random.fold_in(key, j), (k, 1))
        a = small.multiply(covariance, slope[:, None])
        a = (a + small.multiply(small.cholesky(covariance), noise))[:, 0]
        return Exchange(
            at.effects.at[:, j].add(dot(W, a)),
            at.shift.at[:, j].add(a),
            at.cross - a[:, None] * known[:, j, None],
        )

    first = Exchange(effects, jnp.zeros_like(cross[0]), cross)
    n = cross.shape[2]
    if n == 0:  # a body that is never run is compiled all the same
        return first
    return jax.lax.fori_loop(0, n, covariate, first)


def draw_activity(
    key: Array, prior: ActivityPrior, activity: Activity, spreads: Spreads
) -> Activity:
    """Effects of levels on log-activities given the factors, then their variances."""
    if not len(prior):
        return activity
    keys = jax.random.split(key, 3)
    proposal = langevin.propose(keys[0], Local.of(*prior.local(activity, spreads)))
    to = activity._replace(effects=activity.effects + proposal.move)
    rise = prior.log_density(to, spreads) - prior.log_density(activity, spreads)
    taken = langevin.accept(keys[1], proposal, Local.of(*prior.local(to, spreads)), rise)
    effects = jnp.where(taken, to.effects, activity.effects)
    return Activity(effects, prior.draw_variance(keys[2], effects))


def draw_centre(key: Array, W: Loadings, precision: Loadings) -> Norms:
    """b, the mean of each column's entries, under a flat prior."""
    total = jnp.maximum(jnp.sum(precision, axis=0), 1e-12)
    noise = jax.random.normal(key, total.shape) / jnp.sqrt(total)
    centre = jnp.sum(precision * W, axis=0) / total
    return jnp.where(total > 1e-12, centre + noise, jnp.mean(W, axis=0))


def draw_scales(
    key: Array, prior: LoadingsPrior, scales: Scales, steps: Scales, away: Loadings, warm: Array
) -> tuple[Scales, Scales]:
    """The scales given the loadings, by random walks in unconstrained coordinates; their steps."""
    sites = _sites(prior, away.shape[1])

    def density(scales):
        """Log-density that each column has a part in, and that of the scales all share."""
        columns, shared = prior.column_log_density(away, scales), jnp.zeros(())
        for site in sites:
            value = site.distribution(scales).log_prob(scales[site.name])
            if site.dims == FACTORS:
                columns = columns + value
            else:
                shared = shared + value
        return columns, shared

    def walk(i, carry):
        scales, steps, present = carry
        for j, site in enumerate(sites):
            for_move, for_choice = jax.random.split(jax.random.fold_in(key, len(sites) * i + j))
            old = scales[site.name]
            transform = biject_to(site.distribution(scales).support)
            y = transform.inv(old)
            moved = y + steps[site.name] * jax.random.normal(for_move, y.shape)
            new = transform(moved)
            proposed = density(scales | {site.name: new})
            by_column, shared = (b - a for a, b in zip(present, proposed, strict=True))
            rise = by_column if site.dims == FACTORS else jnp.sum(by_column) + shared
            rise = rise + transform.log_abs_det_jacobian(moved, new)
            rise = rise - transform.log_abs_det_jacobian(y, old)
            taken = jnp.log(jax.random.uniform(for_choice, y.shape)) < rise
            scales = scales | {site.name: jnp.where(taken, new, old)}
            # A scale of columns is no part of the density of what they share.
            present = (
                jnp.where(taken, proposed[0], present[0]),
                present[1] if site.dims == FACTORS else jnp.where(taken, proposed[1], present[1]),
            )
            factor = jnp.where(warm, jnp.where(taken, GROW, SHRINK), 1.0)
            steps = steps | {site.name: steps[site.name] * factor}
        return scales, steps, present

    return jax.lax.fori_loop(0, REPEATS, walk, (scales, steps, density(scales)))[:2]


def _sites(prior: LoadingsPrior, n_factors: int):
    return [site for site in prior.sites(n_factors) if site.name != prior.centre]
