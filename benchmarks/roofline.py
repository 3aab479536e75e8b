"""How near an iteration comes to what the device can do: operations and bytes against its peaks.

usage: python benchmarks/roofline.py [--cells 5000] [--genes 2000] [--programs 16 6]

One pass of all cells (a Newton step of each, and the sums over them) is timed on counts that lie on
the device. Its operations and bytes are those that XLA counts (`cost_analysis`); the peaks are
measured: a product of two matrices of 4,096, and a copy of 256 MB. Bytes are those of all arrays
between operations, most of which a cache holds, so that their rate may exceed that of memory.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.data.chunks import chunk_cells
from nbln.inference.laplace import statistics
from nbln.inference.stream import CHUNK_BYTES
from nbln.posterior.mode import Cells, Columns, Parameters

RUNS = 5


def best(function, *arguments) -> float:
    """Seconds of the fastest of some calls, after one that compiles."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def peaks() -> tuple[float, float]:
    """Operations a second of a matrix product in float32, bytes a second of a copy."""
    square = jnp.ones((4096, 4096))
    product = jax.jit(lambda a: jnp.dot(a, a, precision="highest"))
    copied = jnp.ones(2**26)
    copy = jax.jit(lambda a: a + 1.0)
    return 2 * 4096**3 / best(product, square), 2 * copied.nbytes / best(copy, copied)


def problem(n_cells: int, n_genes: int, n_programs: int):
    """Parameters, cells in chunks, and coordinates, of simulated counts."""
    rng = np.random.default_rng(0)
    size = chunk_cells(n_cells, n_genes, CHUNK_BYTES)
    shape = -(-n_cells // size), size
    W = rng.normal(0, 0.3, (n_genes, n_programs)).astype(np.float32)
    mu = rng.normal(-1, 1, n_genes).astype(np.float32)
    z = rng.standard_normal((shape[0], n_programs, size), np.float32)
    counts = rng.poisson(np.exp(mu + np.einsum("nkc,gk->ncg", z, W))).astype(np.float32)
    channel = NegativeBinomial(jnp.full(n_genes, np.log(5.0), jnp.float32))
    parameters = Parameters(jnp.asarray(mu), jnp.asarray(W), jnp.full(n_genes, 0.1), channel)
    nothing = jnp.zeros((*shape, 0))
    cells = Cells(jnp.asarray(counts), jnp.ones(shape), jnp.zeros(shape), nothing, nothing)
    return parameters, cells, jnp.asarray(z)


@jax.jit
def one_pass(parameters, cells, z):
    """Sums and new coordinates of all chunks."""

    def body(total, chunk):
        sums, moved = statistics.advance(parameters, chunk[0], Columns(), chunk[1])
        return jax.tree.map(jnp.add, total, sums), moved

    first = jax.tree.map(lambda leaf: leaf[0], (cells, z))
    like = jax.eval_shape(lambda c: statistics.advance(parameters, c[0], Columns(), c[1])[0], first)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    return jax.lax.scan(body, nothing, (cells, z))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--programs", type=int, nargs="+", default=[16, 6])
    options = parser.parse_args()
    operations, bandwidth = peaks()
    device = jax.devices()[0]
    table = Table(
        title=f"{device.device_kind}: {operations / 1e9:,.0f} GFLOP/s in products, "
        f"{bandwidth / 1e9:,.0f} GB/s in a copy"
    )
    for column in ("programs", "ns an entry", "operations", "of peak", "bytes", "of a copy's rate"):
        table.add_column(column, justify="right")
    for n_programs in options.programs:
        given = problem(options.cells, options.genes, n_programs)
        # XLA counts the body of a loop once: one chunk of cells.
        cost = one_pass.lower(*given).compile().cost_analysis()
        chunks, size = given[1].mask.shape
        entries = chunks * size * options.genes
        seconds = best(one_pass, *given)
        flops, moved = (cost[name] / (size * options.genes) for name in ("flops", "bytes accessed"))
        table.add_row(
            str(n_programs),
            f"{1e9 * seconds / entries:.2f}",
            f"{flops:,.0f}",
            f"{flops * entries / seconds / operations:.0%}",
            f"{moved:,.0f}",
            f"{moved * entries / seconds / bandwidth:.0%}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
