"""All string keys in one place: sites and their aliases, AnnData keys, dimensions."""

from typing import NamedTuple

# Sites of the models (MATH symbols that users see).
MU = "mu"
LOADINGS = "W"
RESIDUAL = "d"
DISPERSION = "r"
ETA = "eta"
MEAN = "mean"
ODDS = "phi"
PROBABILITY = "p"
GATE = "gate"
LOG_RATE = "x"
EFFECTS = "beta"
EFFECTS_VARIANCE = "beta_variance"
EFFECTS_TYPICAL = "beta_typical"
ACTIVITY_EFFECTS = "activity_effect"
ACTIVITY_VARIANCE = "activity_variance"
COUNTS = "counts"
TOTAL = "total"
TOTAL_MEAN = "total_mean"
TOTAL_DISPERSION = "total_r"

# Names that users know -> names of sites.
ALIASES = {
    "dispersion": DISPERSION,
    "expression": MU,
    "mean_expression": MU,
    "capture_efficiency": ETA,
    "loadings": LOADINGS,
    "residual_variance": RESIDUAL,
    "dropout": GATE,
}

# Dimensions of labelled results.
CHAIN, DRAW, CELL, GENE, GENE_, FACTOR = "chain", "draw", "cell", "gene", "gene_", "factor"
COVARIATE, TERM = "covariate", "term"
DATASET, LEVEL, KEY = "dataset", "level", "key"


class Site(NamedTuple):
    """One random variable of a model: its name, the dims of its shape, what it means."""

    name: str
    dims: tuple[str, ...]
    meaning: str


ETA_SITE = Site(ETA, (CELL,), "capture loss, capture efficiency exp(-eta)")

# The column that pools the genes outside `gene_coverage`.
OTHER_GENE = "_other"

# Keys written by `write_to`, with `key_added` in place of {key}.
OBSM_LATENT = "X_{key}"
VARM_LOADINGS = "{key}_loadings"
VAR_PARAMETER = "{key}_{site}"
OBS_ETA = "{key}_eta"
LAYER_RATE = "{key}_rate"
