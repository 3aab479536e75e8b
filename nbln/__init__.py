"""Gene-gene regulation from single-cell counts: negative-binomial log-normal models in JAX."""

from nbln import datasets, pl
from nbln.api import fit, load
from nbln.inference.laplace.engine import LaplaceConfig
from nbln.inference.svi import SVIConfig
from nbln.results.laplace import LaplaceResult
from nbln.results.scoring import compare
from nbln.results.svi import SVIResult

__version__ = "0.1.0"
__all__ = [
    "LaplaceConfig",
    "LaplaceResult",
    "SVIConfig",
    "SVIResult",
    "compare",
    "datasets",
    "fit",
    "load",
    "pl",
]
