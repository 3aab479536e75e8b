"""When a column of the loadings dies: the constants that decide it, and the phases of a fit."""

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nbln.arguments import check_settings, number, whole

RULES = {
    "forming_iterations": whole(0),
    "settled_change": number(open_=True),
    "entry_iterations": whole(1),
    "noise_edge": number(),
    "largest_share": number(most=1.0),
    "small_column": number(most=1.0),
    "noise_steps": whole(0),
    "noise_ratio": number(),
    "smallest_scale": number(open_=True),
    "smallest_signal": number(open_=True),
    "signal_share": number(most=1.0),
    "smallest_spike": number(most=1.0, open_=True),
    "least_inclusion": number(most=1.0, open_=True),
    "most_inclusion": number(most=1.0, open_=True),
}


@dataclass(frozen=True)
class Shrinkage:
    """What decides how many columns of the loadings a fit keeps.

    The defaults marked *simulated* were chosen by recovery of known programs, and by how few
    columns independent genes keep, on counts simulated from NBLN with 200 to 20,000 cells and 50
    to 2,000 genes.

    Attributes
    ----------
    forming_iterations
        Iterations in which no column may fall behind the longest, while the factors take shape.
        Simulated: programs with a signal-to-noise ratio below 3 are lost with fewer.
    settled_change
        Change of W_⊥W_⊥ᵀ in one iteration, relative, below which columns count as settled and a
        sparse prior may turn to its own axes. Just above the default tolerance of a fit (0.003).
    entry_iterations
        Iterations, that in which columns settle included, that a sparse fit needs before it may
        stop: the second turns to sparse axes, the third gives entries their precisions, and the
        fourth is the first whose loadings, and so whose change, those precisions have moved.
    noise_edge
        γ = noise_edge · genes/cells in the edge (1 + √γ)² of the spectrum of noise below which
        columns fall. With 1 it is the largest eigenvalue of pure noise in Gaussian data (Marchenko
        & Pastur 1967). Counts inform less than Gaussian data, so that programs would be lost; the
        value is simulated.
    largest_share
        Upper bound on the share 1 - γ of the loadings' posterior variance that counts as size of a
        column. If all of it counted, a column of noise would keep its size for ever. Simulated.
    small_column
        A falling column shorter than this share of the longest takes its step twice, to save
        iterations. Simulated.
    noise_steps
        Further steps at once of a falling column that is no more than noise. Simulated, as before.
    noise_ratio
        Mean squared ratio of a column's entries to their standard errors up to which it is noise:
        2², entries that average two standard errors.
    smallest_scale
        Scale below which no column falls, natural log: a thousandth is no effect at all.
    smallest_signal
        Scale at or below which a column carries no signal: one per cent of a rate in every gene.
    signal_share
        Share of the longest column's norm below which a column carries no signal and keeps its axis
        when the others turn: the convention of effective ranks in the field, 5 %.
    smallest_spike
        Least variance of a spike, as a share of its column's: below it entries would be frozen at
        0. Simulated.
    least_inclusion, most_inclusion
        Bounds on the share of genes in a program. Below 1 in 20 a program is a handful of genes,
        above 1 in 2 it is dense and needs no slab. Simulated.
    """

    forming_iterations: int = 5
    settled_change: float = 0.005
    entry_iterations: int = 4
    noise_edge: float = 0.7
    largest_share: float = 0.75
    small_column: float = 0.3
    noise_steps: int = 5
    noise_ratio: float = 4.0
    smallest_scale: float = 1e-3
    smallest_signal: float = 1e-2
    signal_share: float = 0.05
    smallest_spike: float = 0.02
    least_inclusion: float = 0.05
    most_inclusion: float = 0.5

    def __post_init__(self):
        check_settings(self, RULES)
        for low, high in (
            ("least_inclusion", "most_inclusion"),
            ("smallest_scale", "smallest_signal"),
        ):
            lower, upper = getattr(self, low), getattr(self, high)
            if lower > upper:
                raise ValueError(f"Shrinkage({low}={lower!r}): must not exceed {high}={upper!r}")

    def posterior_share(self, n_cells: Float[Array, ""], n_genes: int) -> Float[Array, ""]:
        """The part of the loadings' posterior variance that counts as size of a column.

        If all of it counted, a column of noise would keep its size for ever; if none did, programs
        would vanish whose loadings have a signal-to-noise ratio below 3. A share 1 - γ puts the
        limit at (1 + √γ)².
        """
        return jnp.clip(1 - self.noise_edge * n_genes / n_cells, 0, self.largest_share)

    def carries_signal(
        self, norms: Float[Array, " factor"], n_genes: int
    ) -> Bool[Array, " factor"]:
        """Which columns carry signal, by their squared norms."""
        least = self.smallest_signal**2 * n_genes
        return norms > jnp.maximum(self.signal_share**2 * jnp.max(norms), least)

    def further_steps(
        self,
        norms: Float[Array, " factor"],
        scales: Float[Array, " factor"],
        weak: Bool[Array, " factor"],
        n_genes: int,
    ) -> tuple[Float[Array, " factor"], Int[Array, " factor"]]:
        """Squared norms after the further steps that falling columns take at once, and how many.

        A column falls where its squared norm is below what its scale leads one to expect; where it
        is not, further steps change nothing, so fixed points stay where they are.
        """
        small = norms < self.small_column**2 * jnp.max(norms)
        steps = jnp.where(weak, self.noise_steps, jnp.where(small, 1, 0))
        ratio = jnp.minimum(1, norms / (n_genes * scales**2))
        return norms * ratio**steps, jnp.where(ratio < 1, steps, 0)


class Phase(NamedTuple):
    """How far a fit has come: its columns form, settle, turn to sparse axes, and sharpen."""

    iteration: Int[Array, ""]
    since_settled: Int[Array, ""]  # iterations since the columns settled; 0 while they have not

    @classmethod
    def start(cls) -> "Phase":
        """Before the first iteration."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def forming(self, shrinkage: Shrinkage) -> Bool[Array, ""]:
        """Whether factors still take shape, so that columns have one scale."""
        return self.iteration < shrinkage.forming_iterations

    @property
    def settled(self) -> Bool[Array, ""]:
        """Whether columns have settled, so that a sparse prior turns them to sparse axes."""
        return self.since_settled > 0

    @property
    def entry_by_entry(self) -> Bool[Array, ""]:
        """Whether loadings have been on sparse axes, so that entries may differ in scale."""
        return self.since_settled > 1

    def entries_settled(self, shrinkage: Shrinkage) -> Bool[Array, ""]:
        """Whether the last change was one of loadings under precisions by entry."""
        return self.since_settled >= shrinkage.entry_iterations

    def after(self, change: Float[Array, ""], shrinkage: Shrinkage) -> "Phase":
        """The phase of the next iteration, given this one's relative change of the loadings."""
        small = ~self.forming(shrinkage) & (change < shrinkage.settled_change)
        settled = self.settled | small
        return Phase(self.iteration + 1, jnp.where(settled, self.since_settled + 1, 0))
