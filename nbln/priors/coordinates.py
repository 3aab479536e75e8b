"""The unconstrained coordinate of a site: a logarithm, or a logit for a probability."""

from numpyro.distributions.transforms import ExpTransform, SigmoidTransform, Transform

from nbln import vocabulary as names

LOGITS = (names.PROBABILITY, names.GATE)


def transform(site: str) -> Transform:
    """From a site's unconstrained coordinate, a log or a logit, to its value."""
    return SigmoidTransform() if site in LOGITS else ExpTransform()
