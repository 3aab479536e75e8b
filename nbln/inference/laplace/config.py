"""Settings of the Laplace engine."""

from dataclasses import dataclass

from nbln.arguments import check_settings, number, whole
from nbln.inference.stream import CHUNK_BYTES
from nbln.posterior.mode import Search

RULES = {
    "n_steps": whole(1),
    "tol": number(0.0),
    "newton_tol": number(0.0, open_=True),
    "newton_steps": whole(1),
    "resident_bytes": whole(0),
    "chunk_bytes": whole(1),
}


@dataclass(frozen=True)
class LaplaceConfig:
    """Settings of the Laplace engine.

    Attributes
    ----------
    n_steps
        Upper bound on iterations; a fit stops earlier when it has converged. It holds once more for
        the iterations after overdispersion has been learned over all genes.
    tol
        Largest change of the parameters in one iteration at which a fit has converged: relative
        for W_⊥W_⊥ᵀ, root mean square over genes for μ, log d and log r.
    newton_tol
        A cell's mode is reached when no log-rate moves by more than this (natural log).
    newton_steps
        Upper bound on the final Newton steps of a cell.
    resident_bytes
        Largest dense float32 matrix of counts that is kept in memory; larger ones, and counts on
        disk, are streamed in each iteration. Of those on disk as much is kept sparse in memory.
    chunk_bytes
        Size of one chunk of counts.

    Raises
    ------
    ValueError
        A value out of its range; names it.
    """

    n_steps: int = 200
    tol: float = 3e-3
    newton_tol: float = 1e-3
    newton_steps: int = 50
    resident_bytes: int = 2**31
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self):
        check_settings(self, RULES)

    @property
    def search(self) -> Search:
        """When the search for a cell's mode ends."""
        return Search(float(self.newton_tol), int(self.newton_steps))
