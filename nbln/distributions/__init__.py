"""Count distributions that stay exact in float32, and the functions that they are made of."""

from nbln.distributions.divergence import kl_negative_binomial
from nbln.distributions.log_normal import (
    NegativeBinomialLogNormal,
    PoissonLogNormal,
    log_normal_moments,
    nb_log_normal_log_prob,
    poisson_log_normal_log_prob,
)
from nbln.distributions.negative_binomial import NegativeBinomialLogMean, nb_log_prob, nb_tails
from nbln.distributions.poisson import poisson_log_prob
from nbln.distributions.zero_inflated import ZeroInflatedNegativeBinomial, zinb_log_prob
from nbln.distributions.zero_truncated import (
    ZeroTruncatedNegativeBinomial,
    ZeroTruncatedPoisson,
    zt_nb_log_prob,
    zt_poisson_log_prob,
)

__all__ = [
    "NegativeBinomialLogMean",
    "NegativeBinomialLogNormal",
    "PoissonLogNormal",
    "ZeroInflatedNegativeBinomial",
    "ZeroTruncatedNegativeBinomial",
    "ZeroTruncatedPoisson",
    "kl_negative_binomial",
    "log_normal_moments",
    "nb_log_normal_log_prob",
    "nb_log_prob",
    "nb_tails",
    "poisson_log_normal_log_prob",
    "poisson_log_prob",
    "zinb_log_prob",
    "zt_nb_log_prob",
    "zt_poisson_log_prob",
]
