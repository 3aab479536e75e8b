"""Whether cells vary together beyond the programs of a fit: what a sample was too small to show.

At a fit the score s of each log-rate, which is its expected residual over d, is as good as
independent between genes. A program that is missing makes scores of its genes vary together, by
the largest eigenvalue of their correlations. Of N cells and G genes without one it is about
(1 + √(G/N))² (Marchenko & Pastur 1967).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nbln.inference.laplace import start
from nbln.inference.laplace.run import Run
from nbln.inference.laplace.start import Sketch
from nbln.inference.laplace.update import State
from nbln.inference.stream import CellStream
from nbln.posterior import mode
from nbln.posterior.mode import Cells, Columns

# Scores beyond so many standard deviations count as that: two genes with one huge count each, in
# one cell, are no program.
LARGEST = 5.0
# Passes that turn random probes toward the leading axis, and the last, which measures it.
PASSES = 4


def programs(stream: CellStream, run: Run, seed: int) -> bool:
    """Whether there are more programs than those of a run that has ended."""
    found, of_noise = largest_eigenvalue(stream, run, seed)
    return found > of_noise


def largest_eigenvalue(stream: CellStream, run: Run, seed: int) -> tuple[float, float]:
    """The largest eigenvalue of the scores' correlations, from below, and that of noise."""
    probes, weight = start.first_probes(stream.n_genes, 0, seed), jnp.ones(stream.n_genes)
    for _ in range(PASSES - 1):
        (sums, squares), _ = stream.scan(visit, run.z, run.state, weight, probes, stream.columns)
        probes = start.orthonormal(sums, probes)
        weight = jnp.sqrt(sums.n_cells / jnp.maximum(squares, 1e-12))
    (sums, _), _ = stream.scan(visit, run.z, run.state, weight, probes, stream.columns)
    value = jnp.linalg.eigvalsh(sums.inner / sums.n_cells)[-1]
    edge = (1 + np.sqrt(stream.n_genes / stream.n_cells)) ** 2
    return float(value), float(edge)


def visit(
    state: State,
    weight: Float[Array, " gene"],
    probes: Float[Array, "gene probe"],
    columns: Columns,
    cells: Cells,
    z,
):
    """A chunk's part of a pass: of standardised scores, and the squares that standardise them."""
    turned, parameters = state.rotation(z, cells.covariates), state.parameters
    f = mode.conditional_rates(parameters, cells, columns, turned)
    s = parameters.channel.derivatives(cells.counts, f)[0] * cells.mask[:, None]
    e = jnp.clip(weight * s, -LARGEST, LARGEST)
    return (Sketch.of(e, probes, cells.mask), jnp.sum(s**2, axis=0)), z
