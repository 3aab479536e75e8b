"""Two cells in one droplet: how much likelier the counts of a cell are as the sum of two.

Both cells of a doublet are of the model, at depths as those of the others. So a doublet is deeper
than most cells, has the programs of two, and varies less from gene to gene than one cell of its
depth would. Some cells do so on their own, since no real data are quite those of the model: one
cell in ten is allowed half the noise.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy.special import expit, logit

from nbln.data.counts import Counts
from nbln.data.slices import slices
from nbln.distributions import nb_log_prob
from nbln.linalg import gauge, small
from nbln.linalg.products import dot
from nbln.posterior.mode import Parameters
from nbln.questions.outliers import robust_sd
from nbln.questions.predictive import CellDesign

SHARE = 0.02  # of doublets among cells, before the counts: that of a droplet run of 2,500 cells
CALM, CALMER = 0.1, 0.5  # share of single cells with less noise between genes, and how much of it
# Of the genes the most abundant are looked at; of the cells, unless more are asked for, the deepest
# with so many counts together, which takes half a minute at most.
MOST_GENES, MOST_ENTRIES = 1000, 2e6
# The modes of a pair are looked for from so many places: of 500 simulated cells and sums of two,
# eight found no more. Where it decides, that log-ratio is .3 above one by importance sampling.
N_STARTS, START_SD = 4, 0.8
N_STEPS = 15  # of Newton; 40 change the median of the evidence by less than .05
LONGEST_STEP = 1.5  # in prior standard deviations
BLOCK = 2**18  # counts looked at together
LEAST_SPREAD = 0.1  # of log-depths, where all were made the same
LEAST_NOISE, MOST_NOISE = 1e-3, 1e4  # none that counts tell from 0, and what float32 bears
SIGNAL = 0.05  # columns of a smaller share of the longest change no evidence


class Profile(eqx.Module):
    """What counts depend on: log-means of a cell at rest, columns, and noise, by gene."""

    log_mean: Float[Array, " gene"]
    columns: Float[Array, "gene column"]  # loadings, and the spread of log-depths
    noise: Float[Array, " gene"]  # squared coefficient of variation, given factors and depth


def probabilities(
    counts: Counts,
    parameters: Parameters,
    losses: Float[np.ndarray, " cell"],
    design: CellDesign,
    genes: Int[np.ndarray, " gene"],
    n_cells: int | None = None,
) -> Float[np.ndarray, " cell"]:
    """Posterior probability that each cell is a doublet; 0 of cells that are not looked at.

    Those are cells no deeper than the median, and all but the deepest where these are more than
    `n_cells`; see `LaplaceResult.get_doublet_probability`.

    Parameters
    ----------
    losses
        What log-rates of counts in each cell are less than those of the model.
    genes
        Of which the most abundant are looked at.
    """
    genes = np.sort(genes[np.argsort(-counts.gene_totals[genes], kind="stable")[:MOST_GENES]])
    depth = -np.asarray(losses, np.float64)
    middle = float(np.median(depth))
    norms = np.sqrt(np.asarray(gauge.squared_norms(parameters.W)))
    used = norms > SIGNAL * norms.max()
    spread = max(LEAST_SPREAD, robust_sd(depth - middle))
    profile = _profile(parameters, used, middle, spread, genes)
    if n_cells is None:
        n_cells = int(MOST_ENTRIES / len(genes))
    deepest = np.argsort(-depth, kind="stable")[:n_cells]
    cells = np.sort(deepest[depth[deepest] > middle])
    effects, found = np.asarray(parameters.effects)[genes], np.zeros(counts.n_cells)
    size = max(1, min(len(cells), BLOCK // len(genes)))
    for block in slices(len(cells), size):
        these = cells[block]
        sd = np.ones((len(these), 1 + used.sum()))
        if design.factor_sd.shape[1]:
            sd[:, :-1] = design.factor_sd[these][:, used]
        parts = counts.rows(these)[:, genes], design.covariates[these] @ effects.T, sd
        padding = (0, size - len(these)), (0, 0)
        ratio = _log_ratio(profile, *(np.pad(x, padding).astype(np.float32) for x in parts))
        found[these] = expit(ratio[: len(these)] + logit(SHARE))
    return found


def _profile(parameters: Parameters, used, middle: float, spread: float, genes) -> Profile:
    """The columns `used`, some genes; `middle` and `spread` are those of log-depths."""
    at_rest = (np.asarray(x, np.float64) for x in (parameters.mu, parameters.d))
    mean, variance = parameters.channel.moments(*at_rest)
    W = np.asarray(parameters.W)[:, used]
    columns = np.column_stack([W, np.full(len(W), spread)])
    noise = np.clip((variance - mean) / mean**2, LEAST_NOISE, MOST_NOISE)
    parts = np.log(mean) + middle, columns, noise
    return Profile(*(jnp.asarray(x[genes], jnp.float32) for x in parts))


def _log_ratio(profile: Profile, counts, known, sd) -> Float[np.ndarray, " cell"]:
    """Log-evidence of the sum of two cells less that of one."""
    calm = eqx.tree_at(lambda p: p.noise, profile, CALMER * profile.noise)
    rest = np.zeros((2, sd.shape[1]), np.float32)
    one, less = (
        np.asarray(_evidence(p, counts, known, sd, np.float32(0), rest)) for p in (profile, calm)
    )
    single = np.logaddexp(one + np.log(1 - CALM), less + np.log(CALM))
    first = START_SD * np.random.default_rng(0).normal(size=(N_STARTS, sd.shape[1]))
    both = np.stack([first, -first], axis=1).astype(np.float32)
    both[:, :, -1] -= np.log(2) / float(profile.columns[0, -1])
    two = [_evidence(profile, counts, known, sd, np.float32(1), x) for x in both]
    return np.max(two, axis=0) + np.log(2) - single  # either may be called the first


class _At(NamedTuple):
    """The log-posterior of the coordinates of both cells, at a point."""

    log: Float[Array, " cell"]
    gradient: Float[Array, "coordinate cell"]
    precision: Float[Array, "coordinate coordinate cell"]


def _visit(profile: Profile, counts, known, sd, second, p: Float[Array, "2 column cell"]) -> _At:
    """Counts are taken for negative binomial, with mean and variance of the sum."""

    def log_prob(f):
        first, other = jnp.exp(f[0]), second * jnp.exp(f[1])
        mean, extra = first + other, profile.noise * (first**2 + other**2)
        log = nb_log_prob(counts, jnp.log(mean), mean**2 / extra)
        return jnp.sum(log, axis=1), (first, other, mean + extra)

    f = profile.log_mean + known + dot(jnp.swapaxes(p, 1, 2) * sd, profile.columns.T)
    log, pull, (first, other, variance) = jax.vjp(log_prob, f, has_aux=True)
    (slope,) = pull(jnp.ones_like(log))
    products = small.row_products(profile.columns)
    scale = sd.T[:, None] * sd.T

    def block(a, b):
        return scale * small.unpack(dot(a * b / variance, products).T)

    cross = block(first, other)
    rows = [[block(first, first), cross], [cross, block(other, other)]]
    precision = jnp.concatenate([jnp.concatenate(row, axis=1) for row in rows])
    precision = precision + jnp.eye(len(precision), dtype=p.dtype)[..., None]
    gradient = jnp.swapaxes(dot(slope, profile.columns) * sd, 1, 2) - p
    n = len(precision)
    return _At(log - 0.5 * jnp.sum(p**2, axis=(0, 1)), gradient.reshape(n, -1), precision)


@eqx.filter_jit
def _evidence(profile: Profile, counts, known, sd, second, start) -> Float[Array, " cell"]:
    """Laplace evidence of each cell, without constants; `second` is 1 with another cell, or 0."""

    def again(_, state):
        p, at, share = state
        step = small.multiply(small.inverse_and_log_det(at.precision)[0], at.gradient)
        norm = jnp.linalg.norm(step, axis=0)
        step = (share * jnp.minimum(1, LONGEST_STEP / norm) * step).reshape(p.shape)
        new = _visit(profile, counts, known, sd, second, p + step)
        rises = new.log >= at.log
        at = jax.tree.map(lambda a, b: jnp.where(rises, a, b), new, at)
        share = jnp.where(rises, jnp.minimum(1, 2 * share), share / 4)
        return jnp.where(rises, p + step, p), at, share

    p = jnp.broadcast_to(start[..., None], (*start.shape, len(counts)))
    at = _visit(profile, counts, known, sd, second, p)
    _, at, _ = jax.lax.fori_loop(0, N_STEPS, again, (p, at, jnp.ones_like(at.log)))
    return at.log - 0.5 * small.inverse_and_log_det(at.precision)[1]
