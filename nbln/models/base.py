"""What engines and questions may ask of a model."""

from typing import Protocol

import numpyro
from jaxtyping import Array, Float

from nbln.posterior.mode import Augmentation, Columns
from nbln.priors.capture import Capture, LatentCapture
from nbln.priors.univariate import Prior
from nbln.vocabulary import Site


class Model(Protocol):
    """A NumPyro program over a block of cells, and what is known of it without running it."""

    name: str
    captured: bool  # whether cells have capture losses
    priors: dict[str, Prior]
    capture: Capture

    def __call__(self, counts: Float[Array, "cell gene"]) -> None:
        """The program: samples all sites and observes `counts`."""
        ...

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites that the program samples, the counts aside."""
        ...

    @classmethod
    def default_priors(cls, n_cells: int) -> dict[str, Prior]:
        """The sites that take priors, with what is believed of each unless a user says else."""
        ...

    @classmethod
    def augment(cls, capture: Capture) -> Augmentation:
        """What the model adds to the log-rates of cells with these losses, new ones included."""
        ...


def sample_site(name: str, prior: Prior, shape: tuple[int, ...]):
    """Sample a site from its prior, or state its value where it is frozen."""
    distribution = prior.distribution(shape)
    if prior.frozen:
        return numpyro.deterministic(name, distribution.mean)
    return numpyro.sample(name, distribution.to_event(len(shape)))


def sample_capture(name: str, capture: Capture):
    """The capture loss of each cell."""
    if isinstance(capture, LatentCapture):
        return numpyro.sample(name, capture.distribution().to_event(1))
    return numpyro.deterministic(name, capture.start())


def capture_column(capture: Capture) -> Augmentation:
    """A latent capture loss is a column of -1 with a standardised coordinate; a known one, none."""
    if isinstance(capture, LatentCapture):
        column = Columns(value=(-1.0,), precision=(1.0,), truncated=(True,))
        return Augmentation(-capture.loc, capture.scale[:, None], column)
    return Augmentation.of_offset(-capture.start())
