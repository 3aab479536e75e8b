"""Small problems of known posterior, for the sampler's steps one at a time."""

import anndata as ad
import jax.numpy as jnp
import numpy as np

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.data.counts import Counts
from nbln.inference.overdispersion import Pooling, of_channel
from nbln.inference.sampler import cells as cell_steps
from nbln.inference.sampler import columns
from nbln.inference.sampler.cells import CellState, Genes, Move
from nbln.inference.sampler.sweep import State, Target
from nbln.inference.stream import CHUNK_BYTES, CellStream
from nbln.posterior.mode import Augmentation, Columns
from nbln.priors.activity import FittedActivity
from nbln.priors.columnwise import Gaussian
from nbln.priors.effects import FittedEffects
from nbln.priors.univariate import Normal

W, MU, D, R = np.array([[0.9], [-0.7]]), np.array([0.8, 0.2]), np.array([0.15, 0.3]), 4.0
NO_COLUMNS, PRIOR = Columns(), Gaussian(0.8)


class Problem:
    """Two genes, one factor; everything known but what a test draws."""

    def __init__(self, n_cells=60, seed=0, columns_=NO_COLUMNS, scale=None, prior=PRIOR):
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(n_cells, 1))
        x = MU + z @ W.T + rng.normal(size=(n_cells, 2)) * np.sqrt(D)
        counts = rng.poisson(np.exp(x) * rng.gamma(R, 1 / R, x.shape)).astype(np.float32)
        counts[0] += 1  # no cell and no gene without a count
        counts[:, 0] = np.where(counts.sum(axis=1) == 0, 1, counts[:, 0])
        self.counts, self.z = counts, z
        scale = np.zeros((n_cells, len(columns_.value)), np.float32) if scale is None else scale
        added = Augmentation(np.zeros(n_cells, np.float32), scale, columns_)
        data = Counts.from_anndata(ad.AnnData(counts))
        self.stream = CellStream(data, added, 2**30, CHUNK_BYTES)
        self.channel = NegativeBinomial(jnp.full(2, np.log(R), jnp.float32))
        self.coordinates = of_channel(self.channel, held=False)
        psi = self.coordinates.of(jnp.float32(D), self.channel)
        none = FittedEffects.none(2)
        same = FittedActivity.none(1)
        nothing = jnp.zeros((2, 0)), jnp.float32(W), psi, same.log_activity
        self.genes = Genes(jnp.float32(MU), *nothing)
        given = none.prior, same.prior, prior, self.coordinates, Pooling(), self.stream.tails()
        self.target = Target(Normal(0.0, 2.0), *given)
        self.state = State(
            self.genes,
            jnp.full((2, 1), 1 / 0.8**2),
            jnp.zeros(1),
            {},
            columns.first_steps(prior, 1),
            Pooling().start(psi),
            none.scales,
            same.activity,
            Move(jnp.eye(1), jnp.zeros((1, 0))),
        )

    def cells(self, z=None):
        """States of all cells, which are one group, at known factors or at the modes."""
        n = 1 + len(self.stream.columns.value)
        start = self.stream.zeros(n)
        if z is None:
            parameters = self.genes.parameters(self.coordinates)
            _, start = self.stream.scan(cell_steps.begin, start, parameters, self.stream.columns)
        else:
            start = [start[0].at[0, :, : len(z)].set(z.T)]
        nothing, (of_cells,) = (
            jnp.zeros_like(start[0]),
            self.stream.split(np.zeros(self.stream.n_cells)),
        )
        return [CellState(*start, *start, of_cells, of_cells, nothing, nothing, jnp.arange(1))]

    def visit(self, genes, cells):
        """Sums over all cells."""
        return self.stream.scan(
            cell_steps.visit, cells, genes, self.coordinates, self.stream.columns
        )[0]
