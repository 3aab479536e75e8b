"""Where SVI starts: the joint mode of independent negative-binomial regressions.

Genes are regressed on the cells' capture losses, and capture losses are estimated from the genes,
by Newton steps that alternate. Curvatures at the end are the guides' first scales.

Effects of covariates are learned here, and held in the steps of SVI. With X the covariates of the
cells, log mean and effects β of a gene take a joint Newton step; the Student prior of β and the
width τ of each covariate are those of log-normal models (`priors/effects`), learned by the same
expectation and maximisation. The sd of β is by the curvature at the end, with the log mean
integrated out and capture losses, dispersions and τ held.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln import vocabulary as names
from nbln.channels.negative_binomial import LOG_R_MAX, LOG_R_MIN, TYPICAL_R, NegativeBinomial
from nbln.compiled import once_jit, quick_jit
from nbln.data.histogram import CountTails
from nbln.inference import inflation
from nbln.inference.stream import CellStream
from nbln.linalg import small
from nbln.linalg.dtypes import strong
from nbln.linalg.products import dot
from nbln.models.independent import IndependentGenes
from nbln.posterior.mode import Cells, Columns
from nbln.priors.effects import EffectScales, EffectsPrior
from nbln.priors.univariate import Beta

# Alternations: ten were enough on simulated counts of 500 x 200 to 5,000 x 2,000.
N_STEPS = 12
# With effects, whose scales take longer and are learned several times a step. On simulated counts
# of 500 x 300 and 1,500 x 300, one gene in ten with an effect, τ was then within 0.1 % of that
# after eighty steps, and effects within 0.3 sd, by a shift that all genes share: it exchanges
# effects for capture losses, of which only priors know.
N_STEPS_WITH_EFFECTS, N_LEARNED = 40, 5
LARGEST_STEP = 1.0  # of a log or logit: a Newton step beyond is an extrapolation
FIRST_LOG_R = math.log(TYPICAL_R)
# Standard deviation of a prior that keeps the start of genes with a handful of counts in range.
WEAK_SD = 1.0


class Genes(NamedTuple):
    """Log mean, effects and dispersion of each gene."""

    log_mean: Float[Array, " gene"]
    channel: NegativeBinomial
    effects: Float[Array, "gene covariate"]


class Sums(NamedTuple):
    """Sums over cells: score and information in the log mean, the channel's own, of effects."""

    score: Float[Array, " gene"]
    information: Float[Array, " gene"]
    channel: Float[Array, "sums gene"]
    effects_score: Float[Array, "gene covariate"]
    across: Float[Array, "gene covariate"]  # information in effect and log mean
    within: Float[Array, "gene covariate covariate"]


class FoundEffects(NamedTuple):
    """Effects of covariates: mode and standard deviation, and what is believed of their size."""

    mean: Float[Array, "gene covariate"]
    sd: Float[Array, "gene covariate"]
    scales: EffectScales


class Joint(NamedTuple):
    """Effects solved for, given the step of the log mean: base - slope · step."""

    base: Float[Array, "gene covariate"]
    slope: Float[Array, "gene covariate"]
    variance: Float[Array, "gene covariate"]  # posterior, with the log mean integrated out

    @classmethod
    def of(cls, sums: Sums, effects, precision: Float[Array, "gene covariate"], h_mean) -> "Joint":
        """From sums, with the effects' prior precisions; `h_mean` is the log mean's curvature."""
        within = sums.within + precision[:, :, None] * jnp.eye(precision.shape[1])
        right = sums.effects_score - precision * effects
        inverse, _ = small.inverse_and_log_det(jnp.moveaxis(within, 0, 2))
        base, slope = (small.multiply(inverse, x.T).T for x in (right, sums.across))
        # Of within - across acrossᵀ / h_mean, by Sherman and Morrison.
        left = h_mean - jnp.sum(sums.across * slope, axis=1)
        variance = jnp.einsum("iig->gi", inverse) + slope**2 / left[:, None]
        return cls(base, slope, variance)


def visit(genes: Genes, columns: Columns, cells: Cells, z: Float[Array, "2 cell"]):
    """Sums of a chunk, and a Newton step of its cells' standardised losses z[0].

    z[1] is their posterior precision. Where η is known there is no column, and z stays as it is.
    """
    x, n = cells.covariates, cells.covariates.shape[1]
    squares = (x[:, :, None] * x[:, None, :]).reshape(len(x), n * n)
    f = cells.mean(genes.log_mean)
    if n:
        f = f + dot(x, genes.effects.T)
    if columns.value:
        effect = columns.value[0] * cells.scale[:, 0]
        f = f + (effect * z[0])[:, None]
    s, a, _ = (y * cells.mask[:, None] for y in genes.channel.derivatives(cells.counts, f))
    sums = Sums(
        s.sum(axis=0),
        a.sum(axis=0),
        genes.channel.statistics(cells.counts, f, jnp.zeros_like(f), cells.mask),
        dot(s.T, x),
        dot(a.T, x),
        dot(a.T, squares).reshape(a.shape[1], n, n),
    )
    if columns.value:
        precision = effect**2 * a.sum(axis=1) + columns.precision[0]
        gradient = effect * s.sum(axis=1) - columns.precision[0] * z[0]
        bound = LARGEST_STEP / jnp.abs(effect)
        z = jnp.stack([z[0] + jnp.clip(gradient / precision, -bound, bound), precision])
    return sums, z


@quick_jit
def newton(
    genes: Genes,
    sums: Sums,
    tails: CountTails,
    shared: bool,
    precision: Float[Array, "gene covariate"],
) -> tuple[Genes, Genes]:
    """One Newton step of each gene, and the curvatures it was taken with, in a `Genes`.

    With `shared`, r/mean is one number φ for all genes: the step solves for all log means and
    log φ together, whose Hessian is diagonal but for one row. In place of the curvatures of the
    effects there are their posterior variances; `precision` is that of their prior.
    """
    gradient, curvature = genes.channel.slopes(sums.channel, tails)
    weak = 1 / WEAK_SD**2
    own_mean, h_r = sums.information + weak, jnp.maximum(curvature, 0) + weak
    score, h_mean, effects, variance = sums.score, own_mean, genes.effects, genes.effects
    log_mean, log_r = genes.log_mean, genes.channel.log_r
    if effects.shape[1]:
        # Effects leave the equations of the log mean, which are then as they are without them.
        joint = Joint.of(sums, effects, precision, own_mean)
        score = score - jnp.sum(sums.across * joint.base, axis=1)
        h_mean, variance = own_mean - jnp.sum(sums.across * joint.slope, axis=1), joint.variance
    if shared:
        own = h_mean + h_r
        both = score + gradient
        phi = jnp.sum(gradient - h_r * both / own) / jnp.sum(h_r - h_r**2 / own)
        log_phi = jnp.mean(log_r - log_mean) + jnp.clip(phi, -LARGEST_STEP, LARGEST_STEP)
        move = jnp.clip((both - h_r * phi) / own, -LARGEST_STEP, LARGEST_STEP)
        log_r = log_mean + move + log_phi
    else:
        gradient = gradient - weak * (log_r - FIRST_LOG_R)
        move = jnp.clip(score / h_mean, -LARGEST_STEP, LARGEST_STEP)
        log_r = log_r + jnp.clip(gradient / h_r, -LARGEST_STEP, LARGEST_STEP)
        log_r = jnp.clip(log_r, LOG_R_MIN, LOG_R_MAX)
    if effects.shape[1]:
        step = joint.base - joint.slope * move[:, None]
        effects = effects + jnp.clip(step, -LARGEST_STEP, LARGEST_STEP)
    new = Genes(log_mean + move, NegativeBinomial(log_r), effects)
    return strong((new, Genes(own_mean, NegativeBinomial(h_r), variance)))


def fit(
    model: IndependentGenes,
    stream: CellStream,
    tails: CountTails,
    gene_totals: Float[Array, " gene"],
):
    """Coordinates of the sites, their sds by curvature, (2, cell) of all cells, and effects."""
    log_mean = np.log(gene_totals / np.exp(stream.offset, dtype=np.float64).sum())
    shared = any(not site.dims for site in model.parameterization.sites)
    log_r = FIRST_LOG_R + (log_mean if shared else np.zeros_like(log_mean))
    first = (jnp.asarray(x, jnp.float32) for x in (log_mean, log_r))
    prior = EffectsPrior(stream.n_covariates)
    scales, none = prior.start(stream.n_genes), jnp.zeros((stream.n_genes, stream.n_covariates))
    genes = Genes(next(first), NegativeBinomial(next(first)), none)
    z = stream.zeros(2)
    for _ in range(N_STEPS_WITH_EFFECTS if stream.n_covariates else N_STEPS):
        sums, z = stream.scan(visit, z, genes, stream.columns)
        genes, curvatures = newton(genes, sums, tails, shared, prior.precision(scales))
        scales = _learned(prior, scales, genes.effects, curvatures.effects)
    losses = stream.whole(z)
    gates = {}
    if names.GATE in model.priors:
        genes, curvatures, gates = _gates(model.priors[names.GATE], stream, tails, genes, losses[0])
    coordinates, sd = _coordinates(model.parameterization, genes, curvatures)
    found = FoundEffects(genes.effects, jnp.sqrt(curvatures.effects), scales)
    found = found if stream.n_covariates else None
    return coordinates | gates.get("loc", {}), sd | gates.get("sd", {}), losses, found


@quick_jit
def _learned(prior: EffectsPrior, scales: EffectScales, effects, variance) -> EffectScales:
    if not prior.n_covariates:
        return scales
    for _ in range(N_LEARNED):
        scales = prior.learned(scales, effects, variance)
    return strong(scales)


def _gates(prior: Beta, stream: CellStream, tails: CountTails, genes: Genes, z):
    """Genes, curvatures, and the gates' logits with their standard deviations.

    Steps begin where a dispersion that is typical leaves zeros to a gate: from the regression's
    own end, whose dispersions have taken up all zeros, they stop at many a gene without a gate.
    """
    losses = z * stream.scale[:, 0] if stream.columns.value else np.zeros(stream.n_cells)
    ungated = jnp.full_like(genes.log_mean, inflation.NO_GATE)
    begin = inflation.Genes(genes.log_mean, genes.channel.log_r, ungated)
    begin = inflation.excess_zeros(begin, tails, stream.n_cells, losses - stream.offset)
    belief = inflation.Belief(FIRST_LOG_R, 1 / WEAK_SD**2, float(prior.a), float(prior.b))
    found = inflation.maximise(stream, losses, begin, belief)
    h_mean, h_r, h_gate = jnp.einsum("iig->ig", found.information)
    log_mean, log_r, logit = found.genes
    gates = {"loc": {names.GATE: logit}, "sd": {names.GATE: 1 / jnp.sqrt(h_gate)}}
    at = (
        Genes(log_mean, NegativeBinomial(log_r), genes.effects),
        Genes(h_mean, NegativeBinomial(h_r), genes.effects),
    )
    return *strong(at), strong(gates)


@once_jit
def _coordinates(parameterization, genes: Genes, curvatures: Genes):
    coordinates = parameterization.contract(genes.log_mean, genes.channel.log_r)
    # Log mean and log dispersion are sums of coordinates, so their curvatures add up.
    _, pull_back = jax.vjp(parameterization.expand_log, coordinates)
    (curvatures,) = pull_back((curvatures.log_mean, curvatures.channel.log_r))
    return strong((coordinates, jax.tree.map(lambda h: 1 / jnp.sqrt(h), curvatures)))
