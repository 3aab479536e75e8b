"""Families of latent codes, their divergences, and relaxations of their draws."""

from nbln.vae.codes.categorical import CategoricalCode
from nbln.vae.codes.code import Code, Posterior
from nbln.vae.codes.continuous import GaussianCode, LaplaceCode
from nbln.vae.codes.divergences import DispersionSharing, Divergence, ExactSum, MonteCarlo
from nbln.vae.codes.relaxed import ContinuousTime, Gumbel, Relaxation, annealed
from nbln.vae.codes.spikes import NegativeBinomialCode, PoissonCode

RELAXATIONS: dict[str, type[Relaxation]] = {"gumbel": Gumbel, "continuous_time": ContinuousTime}

__all__ = [
    "RELAXATIONS",
    "CategoricalCode",
    "Code",
    "ContinuousTime",
    "DispersionSharing",
    "Divergence",
    "ExactSum",
    "GaussianCode",
    "Gumbel",
    "LaplaceCode",
    "MonteCarlo",
    "NegativeBinomialCode",
    "PoissonCode",
    "Posterior",
    "Relaxation",
    "annealed",
]
