"""What a sweep does with a chunk of cells: draw their factors, and sum what genes need of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nbln.inference.overdispersion import Coordinates, Overdispersion, slopes_of
from nbln.linalg import small
from nbln.linalg.products import dot
from nbln.posterior import mode, quadrature
from nbln.posterior.evidence import loss_at
from nbln.posterior.mode import Cells, Columns, Parameters

# Share of a way from the mode's Gaussian; see `langevin`, of which this is the case without
# a gradient: cells that reject whole draws still move.
WHOLE_DRAWS, SHORT_DRAW = 0.8, 0.3


class CellState(NamedTuple):
    """The cells of a chunk between sweeps."""

    z: Float[Array, "all_columns cell"]
    # Where the search for the mode starts: of the mode in warm-up, and then for ever the same, so
    # that a proposal depends on the parameters alone.
    start: Float[Array, "all_columns cell"]
    offset_sd: Float[Array, " cell"]  # of capture losses that a source draws
    offset: Float[Array, " cell"]  # their draw, less the mean
    total: Float[Array, "all_columns cell"]  # Σ of z over the draws kept
    square: Float[Array, "all_columns cell"]
    chunk: Array  # its number


class Genes(NamedTuple):
    """Means, effects of covariates, loadings and overdispersion of all genes."""

    mu: Float[Array, " gene"]
    effects: Float[Array, "gene covariate"]
    W: Float[Array, "gene factor"]
    psi: Coordinates
    log_activity: Float[Array, "dataset factor"]  # of the factors in these loadings

    def parameters(self, overdispersion: Overdispersion) -> Parameters:
        """As the kernel takes them."""
        d, channel = overdispersion.parameters(self.psi)
        return Parameters(self.mu, self.W, d, channel, self.effects, self.log_activity)

    def where(self, taken: Array, other: "Genes") -> "Genes":
        """These where `taken`, the others elsewhere."""
        return Genes(
            jnp.where(taken, self.mu, other.mu),
            jnp.where(taken[:, None], self.effects, other.effects),
            jnp.where(taken[:, None], self.W, other.W),
            jnp.where(taken, self.psi, other.psi),
            self.log_activity,
        )


class Move(NamedTuple):
    """What becomes of factors when loadings and effects have changed: basis (z - shift x)."""

    basis: Float[Array, "factor factor"]
    shift: Float[Array, "factor covariate"]

    def __call__(self, z: Float[Array, "factor cell"], covariates: Float[Array, "cell covariate"]):
        """Factors after it."""
        return dot(self.basis, z - dot(self.shift, covariates.T))


class RowSums(NamedTuple):
    """Derivatives of the log-likelihood in [μ, β, w], genes last."""

    slope: Float[Array, "row gene"]
    normal: Float[Array, "moments gene"]  # information, packed and bordered


class Sums(NamedTuple):
    """Sums over cells at some parameters: log-likelihood and its derivatives, genes last."""

    log: Float[Array, " gene"]  # without the channel's constants
    rows: RowSums
    psi: Coordinates  # slope in the overdispersion, at fixed μ + d/2
    psi_products: Float[Array, "moments gene"]  # products of the cells' slopes, packed

    def where(self, taken: Array, other: "Sums") -> "Sums":
        """These where `taken`, the others elsewhere."""
        return jax.tree.map(lambda a, b: jnp.where(taken, a, b), self, other)


class Drawn(NamedTuple):
    """How many of the cells took their proposal, and where they are, by data set.

    Where there is one, so it is here.
    """

    taken: Float[Array, ""]
    n_cells: Float[Array, " dataset"]
    products: Float[Array, "dataset factor factor"]  # Σ z zᵀ
    cross: Float[Array, "dataset factor covariate"]  # Σ z xᵀ
    known: Float[Array, "dataset covariate covariate"]  # Σ x xᵀ


def begin(parameters: Parameters, columns: Columns, cells: Cells, z):
    """Modes of a chunk, from which the chain starts."""
    f = mode.conditional_rates(parameters, cells, columns, z)
    return (), mode.find(parameters, cells, columns, f).z


def draw(
    key: Array,
    genes: Genes,
    overdispersion: Overdispersion,
    move: Move,
    warm: Array,
    kept: Array,
    columns: Columns,
    cells: Cells,
    state: CellState,
):
    """Draw the coordinates of a chunk given all parameters; sum at the new ones.

    Factors take their `move` first, since the loadings have changed their basis.
    """
    k = genes.W.shape[1]
    state = state._replace(z=state.z.at[:k].set(move(state.z[:k], cells.covariates)))
    keys = jax.random.split(jax.random.fold_in(key, state.chunk), 4)
    parameters = genes.parameters(overdispersion)
    shift = state.offset_sd * jax.random.normal(keys[3], state.offset.shape)
    cells = cells._replace(offset=cells.offset + shift)
    f = mode.conditional_rates(parameters, cells, columns, state.start)
    step = mode.newton_step(parameters, cells, columns, f)
    centre = mode.corrected(step, parameters, cells, columns).step.z
    root = small.cholesky(step.covariance)
    noise = jax.random.normal(keys[0], state.z.shape)
    whole = jax.random.uniform(keys[1], state.offset.shape) < WHOLE_DRAWS
    a = jnp.where(whole, 1.0, SHORT_DRAW)
    z = centre + (1 - a) * (state.z - centre) + jnp.sqrt(a * (2 - a)) * small.multiply(root, noise)
    inverse = small.inverse_lower(root)

    def weighed(z):
        """Integrals, and the log-density of the posterior over the Gaussian of the proposal."""
        given = quadrature.at_factors(parameters, cells, columns, z)
        away = small.multiply(inverse, z - centre)
        prior = mode.precision(parameters, cells, columns, z.dtype)
        within = jnp.where(_allowed(columns, cells, z), 0.0, -jnp.inf)
        log = jnp.sum(given.log, axis=1) + 0.5 * jnp.sum(away**2 - prior * z**2, axis=0)
        return given, log + within

    # Whichever is taken, its derivatives are at hand: they cost less than another pass.
    proposed, log = weighed(z)
    present, before = weighed(state.z)
    ratio = log - before
    taken = (jnp.log(jax.random.uniform(keys[2], ratio.shape)) < ratio) & (cells.mask > 0)
    z = jnp.where(taken, z, state.z)
    given = jax.tree.map(lambda a, b: jnp.where(taken[:, None], a, b), proposed, present)
    new = state._replace(
        z=z,
        start=jnp.where(warm, step.z, state.start),
        offset=shift,
        total=state.total + kept * z,
        square=state.square + kept * z**2,
    )
    drawn = _drawn(cells, taken, z[:k])
    sums = _sums(given, genes.psi, overdispersion, cells, z[:k])
    return (sums, drawn), new


def _drawn(cells: Cells, taken, factors: Float[Array, "factor cell"]) -> Drawn:
    """The sums of a chunk whose cells are there."""
    inside = cells.mask[:, None]
    if cells.datasets is not None and cells.datasets.shape[1]:
        inside = cells.datasets * inside
    v = jnp.concatenate([factors.T, cells.covariates], axis=1)
    weighted = inside.T[:, :, None] * v
    k = len(factors)
    second = jnp.einsum("hci,cj->hij", weighted, v, precision="highest")
    parts = second[:, :k, :k], second[:, :k, k:], second[:, k:, k:]
    return Drawn(jnp.sum(taken), jnp.sum(inside, axis=0), *parts)


def visit(
    genes: Genes,
    overdispersion: Overdispersion,
    columns: Columns,
    cells: Cells,
    state: CellState,
):
    """Sums of a chunk at other parameters; its cells stay as they are."""
    cells = cells._replace(offset=cells.offset + state.offset)
    parameters = genes.parameters(overdispersion)
    given = quadrature.at_factors(parameters, cells, columns, state.z)
    factors = state.z[: genes.W.shape[1]]
    return _sums(given, genes.psi, overdispersion, cells, factors), state


def _allowed(columns: Columns, cells: Cells, z):
    if not any(columns.truncated):
        return jnp.ones(cells.mask.shape, bool)
    return loss_at(cells, columns, z) >= 0


def _sums(given: quadrature.Integral, psi, overdispersion, cells: Cells, factors) -> Sums:
    mask = cells.mask
    slopes = slopes_of(overdispersion, psi, given, mask)
    of_rows = _row_sums(given, cells.covariates, factors, mask)
    return Sums(dot(mask, given.log), of_rows, slopes.gradient, slopes.products)


def _row_sums(given: quadrature.Integral, covariates, factors, mask) -> RowSums:
    v = jnp.concatenate([covariates.T, factors])
    row = jnp.concatenate([jnp.ones_like(v[:1]), v]) * mask
    products = small.pack(v[:, None] * v[None, :]) * mask
    return RowSums(dot(row, given.slope), dot(jnp.concatenate([row, products]), given.information))
