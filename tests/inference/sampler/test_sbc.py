"""Simulation-based calibration (Talts et al. 2018): truths from the prior have uniform ranks.

Of a whole sweep on three genes and one factor. The centre of the loadings has a flat prior, where
nothing can be drawn from: it is held at 0, and so is the basis, which moves with it.
"""

import itertools
from typing import ClassVar

import anndata as ad
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.data.counts import Counts
from nbln.inference.overdispersion import Pooling, of_channel
from nbln.inference.sampler import cells as cell_steps
from nbln.inference.sampler import columns, sweep
from nbln.inference.sampler.cells import CellState, Genes, Move
from nbln.inference.sampler.sweep import State, Target
from nbln.inference.stream import CHUNK_BYTES, CellStream
from nbln.linalg.dtypes import strong
from nbln.posterior.mode import Augmentation, Cells, Columns
from nbln.priors.activity import FittedActivity
from nbln.priors.columnwise import Gaussian
from nbln.priors.effects import FittedEffects
from nbln.priors.univariate import Normal

N_SIMULATIONS, N_CELLS, N_GENES, SD = 1000, 40, 3, 0.8
N_WARMUP, N_KEPT, THIN = 40, 19, 12
POOLING = Pooling()
QUANTITIES = ("mu", "log d", "log r", "W_⊥W_⊥ᵀ, off the diagonal", "W_⊥W_⊥ᵀ, diagonal", "z², mean")


def draw_truth(rng):
    """All parameters from their prior."""
    while True:
        mean = rng.normal(POOLING.middle, POOLING.width)
        sd = np.sqrt(POOLING.freedom * POOLING.sd_squared / rng.chisquare(POOLING.freedom))
        if mean > np.log(POOLING.least) and sd < POOLING.largest_sd:
            break
    share = rng.normal(0, POOLING.share_width)
    psi = np.stack([rng.normal(mean, sd, N_GENES), rng.normal(share, POOLING.deviation, N_GENES)])
    return rng.normal(1.5, 0.5, N_GENES), rng.normal(0, SD, (N_GENES, 1)), psi


def quantities(mu, W, d, log_r, z):
    centred = W - W.mean(axis=0)
    covariance = centred @ centred.T
    return [mu[0], np.log(d[0]), log_r[0], covariance[0, 1], covariance[2, 2], np.mean(z**2)]


class OneChunk(eqx.Module):
    """What a sweep asks of a stream, of cells that a compiled program takes as its argument."""

    cells: Cells
    n_cells: int = eqx.field(static=True)
    n_genes: int = eqx.field(static=True)
    columns: ClassVar = Columns()

    def scan(self, visit, of_cells, *arguments):
        sums, new = visit(*arguments, self.cells, of_cells[0])
        return sums, [new]


def known_cells(cells, z):
    return jnp.zeros(()), cells


@eqx.filter_jit
def chain(key, target, stream, state, cells):
    """What is recorded of every sweep; compiled once for all simulations."""

    def another(at, i):
        one = jax.random.fold_in(key, i)
        given = *at, i < N_WARMUP, jnp.zeros(())
        state, cells, _ = sweep.sweep(one, target, stream, *given)
        d, channel = target.overdispersion.parameters(state.genes.psi)
        return (state, cells), (state.genes.mu, state.genes.W, d, channel.log_r, cells[0].z[0])

    sweeps = jnp.arange(N_WARMUP + N_KEPT * THIN)
    return jax.lax.scan(another, (state, cells), sweeps)[1]


def rank(seed):
    """Ranks of a truth among draws given counts from it."""
    rng = np.random.default_rng(seed)
    mu, W, psi = draw_truth(rng)
    coordinates = of_channel(NegativeBinomial(jnp.zeros(N_GENES)), held=False)
    none, same = FittedEffects.none(N_GENES), FittedActivity.none(1)
    parts = mu, np.zeros((N_GENES, 0)), W, psi, same.log_activity
    genes = Genes(*(jnp.float32(x) for x in parts))
    d, channel = coordinates.parameters(genes.psi)
    d, r = np.asarray(d, float), np.asarray(channel.r, float)
    z = rng.normal(size=(N_CELLS, 1))
    x = mu + z @ W.T + rng.normal(size=(N_CELLS, N_GENES)) * np.sqrt(d)
    counts = rng.poisson(np.exp(np.minimum(x, 12)) * rng.gamma(r, 1 / r, x.shape))
    counts = counts.astype(np.float32)
    if (counts.sum(axis=0) == 0).any() or (counts.sum(axis=1) == 0).any():
        return None  # one in twenty: no package is asked about genes that were never counted
    truth = quantities(mu, W, d, np.log(r), z)
    added = Augmentation.of_offset(jnp.zeros(N_CELLS))
    stream = CellStream(Counts.from_anndata(ad.AnnData(counts)), added, 2**30, CHUNK_BYTES)
    given = none.prior, same.prior, Gaussian(SD), coordinates, POOLING, stream.tails()
    target = Target(Normal(1.5, 0.5), *given)
    state = State(
        genes,
        jnp.full((N_GENES, 1), 1 / SD**2),
        jnp.zeros(1),
        {},
        columns.first_steps(target.loadings, 1),
        POOLING.start(genes.psi),
        none.scales,
        same.activity,
        Move(jnp.eye(1), jnp.zeros((1, 0))),
    )
    parameters = genes.parameters(coordinates)
    _, start = stream.scan(cell_steps.begin, stream.zeros(1), parameters, stream.columns)
    (of_cells,), nothing = stream.split(np.zeros(N_CELLS)), jnp.zeros_like(start[0])
    cells = CellState(*start, *start, of_cells, of_cells, nothing, nothing, jnp.arange(1))
    cells = jax.tree.map(lambda leaf: leaf[0], cells)
    (known,) = stream.scan(known_cells, stream.zeros(1))[1]
    chunk = OneChunk(jax.tree.map(lambda leaf: leaf[0], known), N_CELLS, N_GENES)
    drawn = chain(jax.random.key(seed), target, chunk, strong(state), strong([cells]))
    drawn = [np.asarray(x, float)[N_WARMUP + THIN - 1 :: THIN] for x in drawn]
    kept = [
        quantities(mu, W, d, log_r, z[:N_CELLS]) for mu, W, d, log_r, z in zip(*drawn, strict=True)
    ]
    return (np.array(kept) < truth).sum(axis=0)


@pytest.mark.slow
def test_ranks_are_uniform(monkeypatch):
    monkeypatch.setattr(columns, "mix", lambda key, basis, *given: basis)
    monkeypatch.setattr(columns, "draw_centre", lambda key, W, precision: jnp.zeros(1))
    for name in ("propose_genes", "accept_genes", "propose_shift", "accept_shift", "finish"):
        # What is compiled with options of its own is no part of another program.
        monkeypatch.setattr(sweep, name, getattr(sweep, name).__wrapped__)
    # What is asked of the counts, not of the truth, leaves ranks uniform.
    seen = (r for r in map(rank, itertools.count()) if r is not None)
    ranks = np.array(list(itertools.islice(seen, N_SIMULATIONS)))
    for name, values in zip(QUANTITIES, ranks.T, strict=True):
        numbers = np.bincount(values // 4, minlength=5)  # twenty ranks in five bins
        p = stats.chisquare(numbers).pvalue
        assert p > 0.002, (name, numbers, p)
