"""Settings of NegBio-VAE and its training."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nbln.arguments import Rule, check_flag, check_settings, number, one_of, whole
from nbln.vae.config import RULES as TRAINING_RULES
from nbln.vae.config import TrainingConfig
from nbln.vae.cycle import Steady
from nbln.vae.negbio.objective import CodedBound, PublishedObjective
from nbln.vae.negbio.words import Relaxing

ELBO, PUBLISHED = "elbo", "published"
OBJECTIVES: dict[str, Callable[[Relaxing, float, int], CodedBound]] = {
    ELBO: lambda relaxing, beta, latent_dim: CodedBound(relaxing, beta),
    PUBLISHED: PublishedObjective,
}

RULES: dict[str, Rule] = {
    **TRAINING_RULES,
    "objective": one_of(OBJECTIVES),
    "beta": number(),
    "dispersion": number(open_=True, most=140.0),  # no prior has more than e⁵ = 148
    "n_draws": whole(1),
    "n_terms": whole(2),
    "n_counts": whole(2),
    "first_temperature": number(open_=True),
    "last_temperature": number(open_=True),
    "straight_through": check_flag,
}


# A code is learned at a rate that does not rise, and at temperatures that must fall slowly.
EPOCH_CELLS, EPOCHS = 1_000_000, (20, 200)


@dataclass(frozen=True)
class NegBioConfig(TrainingConfig):
    """Settings of NegBio-VAE and its training; those that are not here are as in `VAEConfig`.

    Attributes
    ----------
    objective
        ``"elbo"``: the evidence lower bound. ``"published"``: what the published code minimises,
        squared error (of counts and shares, minus the log probability) summed over features, and
        `beta` times the divergence *averaged* over latents, which is no bound.
    beta
        Weight of the divergence when the warm-up is over; 1 for the bound.
    dispersion
        r of a negative-binomial prior where training starts (published: 1).
    n_draws
        Draws of the Monte Carlo divergence (published: 5).
    n_terms
        Terms of the exact divergence in training: 12 are right to 0.2 % of what is above 0.01,
        24 to 1e-4; scores have 64, right to 1e-6.
    n_counts
        Places of a relaxed count: the largest count of Gumbel's relaxation and one more, or the
        events of continuous time.
    first_temperature, last_temperature
        Of relaxed draws, falling in a line over the training (published: from 1, down to 0.05 at
        epoch 250).
    straight_through
        Whether the decoder sees whole counts in training, with gradients of the relaxed ones.
    n_hidden, n_layers, dropout
        Of multi-layer perceptrons; the published ones are convolutions.
    n_epochs
        By default 200 (the most of the published), and from 5,000 samples on a million by their
        number, at least 20.
    learning_rate
        Of Adam, the same all along, by default 0.001 (published); gradients are clipped at a norm
        of 1 (published).
    weight_decay
        By default none (published).

    Raises
    ------
    ValueError
        A value out of its range; names it.
    """

    n_hidden: int = 256
    n_layers: int = 2
    dropout: float = 0.0
    learning_rate: float | None = 1e-3
    weight_decay: float | None = 0.0
    objective: str = ELBO
    beta: float = 1.0
    dispersion: float = 1.0
    n_draws: int = 1
    n_terms: int = 12
    n_counts: int = 16
    first_temperature: float = 1.0
    last_temperature: float = 0.05
    straight_through: bool = False

    def __post_init__(self):
        check_settings(self, RULES)

    def of(self, n_cells, **own):
        n_epochs = int(np.clip(round(EPOCH_CELLS / n_cells), *EPOCHS))
        return super().of(n_cells, **{"n_epochs": n_epochs, **own})

    def bound(self, reparameterization: str, latent_dim: int) -> CodedBound:
        """What training climbs."""
        relaxing = Relaxing(
            reparameterization,
            int(self.n_counts),
            bool(self.straight_through),
            float(self.first_temperature),
            float(self.last_temperature),
        )
        return OBJECTIVES[self.objective](relaxing, float(self.beta), latent_dim)

    def cycle(self, steps_an_epoch):
        return Steady.of(*self._steps(steps_an_epoch))
