"""Gene-gene regulation from single-cell counts: negative-binomial log-normal models in JAX."""

from nbln import datasets, pl, registry
from nbln.api import fit, load
from nbln.inference.checkpoint import Checkpoint
from nbln.inference.laplace.config import LaplaceConfig
from nbln.inference.mcmc.engine import MCMCConfig
from nbln.inference.svi.engine import SVIConfig
from nbln.priors.shrinkage import Shrinkage
from nbln.questions.checks import summarise_checks
from nbln.questions.donors import compare_correlations_by_donor
from nbln.results.compare import compare, compare_correlations
from nbln.results.laplace import LaplaceResult
from nbln.results.mcmc import MCMCGenes, MCMCPrograms
from nbln.results.svi import SVIResult
from nbln.vae.config import VAEConfig
from nbln.vae.negbio.config import NegBioConfig
from nbln.vae.negbio.result import NegBioResult
from nbln.vae.result import VAEResult

__version__ = "0.2.0"
__all__ = [
    "Checkpoint",
    "LaplaceConfig",
    "LaplaceResult",
    "MCMCConfig",
    "MCMCGenes",
    "MCMCPrograms",
    "NegBioConfig",
    "NegBioResult",
    "SVIConfig",
    "SVIResult",
    "Shrinkage",
    "VAEConfig",
    "VAEResult",
    "compare",
    "compare_correlations",
    "compare_correlations_by_donor",
    "datasets",
    "fit",
    "load",
    "pl",
    "registry",
    "summarise_checks",
]
