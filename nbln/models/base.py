"""What an engine may ask of a model."""

from typing import NamedTuple, Protocol

import numpyro
from jaxtyping import Array, Float
from numpyro.distributions.transforms import ExpTransform, SigmoidTransform, Transform

from nbln import vocabulary as names
from nbln.channels.base import Channel
from nbln.posterior.mode import Augmentation
from nbln.priors.capture import Capture, LatentCapture
from nbln.priors.loadings import LoadingsPrior
from nbln.priors.univariate import Prior


class Site(NamedTuple):
    """One random variable of a model."""

    name: str
    dims: tuple[str, ...]
    meaning: str


class Model(Protocol):
    """A NumPyro program over a block of cells, and what is known of it without running it."""

    name: str
    priors: dict[str, Prior]
    capture: Capture

    def __call__(self, counts: Float[Array, "cell gene"]) -> None:
        """The program: samples every site and observes `counts`."""
        ...

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every site that the program samples, the counts aside."""
        ...


class LogNormalModel(Model, Protocol):
    """A model whose log-rates are low-rank Gaussian, as the Laplace engine fits them."""

    loadings: LoadingsPrior
    latent_dim: int

    @property
    def augmentation(self) -> Augmentation:
        """How the capture loss enters the log-rates."""
        ...

    def start_channel(self, log_r: Float[Array, " gene"]) -> Channel:
        """The count channel before the first iteration, from a first log dispersion."""
        ...


def transform(site: str) -> Transform:
    """From a site's unconstrained coordinate, a log or a logit, to its value."""
    return SigmoidTransform() if site == names.PROBABILITY else ExpTransform()


def sample_site(name: str, prior: Prior, shape: tuple[int, ...]):
    """Sample a site from its prior, or state its value where it is frozen."""
    distribution = prior.distribution(shape)
    if prior.frozen:
        return numpyro.deterministic(name, distribution.mean)
    return numpyro.sample(name, distribution.to_event(len(shape)))


def sample_capture(name: str, capture: Capture):
    """The capture loss of every cell."""
    if isinstance(capture, LatentCapture):
        return numpyro.sample(name, capture.distribution().to_event(1))
    return numpyro.deterministic(name, capture.start())
