"""NegBio-VAE: overdispersed counts as the latent code of an auto-encoder."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from nbln import registry
from nbln import vocabulary as names
from nbln.vae.codes import Code, Posterior
from nbln.vae.layers import Moments, Stack, Training, apply
from nbln.vae.negbio.observed import OBSERVED, Observed
from nbln.vae.negbio.words import CodeKind
from nbln.vae.network import Network
from nbln.vocabulary import Site


@dataclass(frozen=True)
class CodedArchitecture:
    """All that decides the shapes of a model with a code; plain values, which a file can hold."""

    n_features: int
    latent_dim: int
    n_hidden: int
    n_layers: int
    dropout: float
    likelihood: str
    kind: CodeKind


class Alone(NamedTuple):
    """Nothing is known of cells beside their data."""

    def take(self, index: Any) -> Self:
        """Of some cells."""
        del index
        return self

    def batch(self, counts: Array, weight: Array) -> "Data":
        """With their data."""
        return Data(counts, weight)


class Data(NamedTuple):
    """Cells as the model sees them."""

    x: Float[Array, "cell feature"]
    weight: Float[Array, " cell"]  # 1 for a cell, 0 for padding


class NegBio(Network):
    """A code of each cell by an encoder, and its data from that code by a decoder.

        z_ck ~ NB(r_k, p_k), mean r_k (1 - p_k)/p_k, or another code
        x_cg ~ N(decoder(z_c)_g, σ²), or Poisson, negative-binomial or Bernoulli of decoder(z_c)_g

    The guide is z_ck ~ NB by encoder(x_c).

    | site | shape | meaning |
    |---|---|---|
    | z | (cell, factor) | the code |
    | counts | (cell, gene) | observed, counts or other numbers |

    References: NegBio-VAE, arXiv 2508.05423; Poisson codes: Vafaii, Galor & Yates (2024),
    NeurIPS 37.
    """

    name: ClassVar[str] = "negbio_vae"

    encoder: Stack
    heads: eqx.nn.Linear
    code: Code
    decoder: Stack
    output: eqx.nn.Linear
    observed: Observed

    @classmethod
    def start(cls, key: Array, of: CodedArchitecture, observed: Observed) -> "NegBio":
        """A model with random weights."""
        keys = jax.random.split(key, 4)
        code = of.kind.start(of.latent_dim)
        hidden = of.n_hidden, of.n_layers
        return cls(
            Stack.start(keys[0], of.n_features, 0, *hidden, of.dropout),
            eqx.nn.Linear(of.n_hidden, code.n_heads * of.latent_dim, key=keys[1]),
            code,
            Stack.start(keys[2], of.latent_dim * code.n_values, 0, *hidden, 0.0),
            eqx.nn.Linear(of.n_hidden, of.n_features, key=keys[3]),
            observed,
        )

    @classmethod
    def default_priors(cls, n_cells: int) -> dict:
        """None that a user could set."""
        del n_cells
        return {}

    def levels(self):
        return [self.output.bias, *self.observed.levels(), *jax.tree.leaves(self.code)]

    def stacks(self):
        return [self.encoder, self.decoder]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.output.weight.shape[0]

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites that the program samples, the data aside."""
        return (Site("z", (names.CELL, names.FACTOR), "the code"),)

    def encode(
        self, x: Float[Array, "cell feature"], training: Training | None = None
    ) -> tuple[Float[Array, "cell head latent"], tuple[Moments, ...]]:
        """What the encoder says of each cell's code, and the moments of the layers."""
        none = jnp.zeros((x.shape[0], 0))
        h, moments = self.encoder(self.observed.seen(x), none, training)
        heads = apply(self.heads, h)
        return heads.reshape(len(x), self.code.n_heads, self.code.latent_dim), moments

    def decode(
        self, z: Float[Array, "cell latent ..."], training: Training | None = None
    ) -> tuple[Float[Array, "cell feature"], tuple[Moments, ...]]:
        """The decoder's number for each feature, and the moments of the layers."""
        flat = z.reshape(len(z), -1)
        h, moments = self.decoder(flat, jnp.zeros((len(z), 0)), training)
        return apply(self.output, h), moments

    def posterior(self, x: Float[Array, "cell feature"]) -> Posterior:
        """The code of cells."""
        return self.code.posterior(self.encode(x)[0])

    def __call__(self, batch: Data) -> None:
        """The program: samples z, and observes the data."""
        z = numpyro.sample("z", CodePrior(self.code.prior(), len(batch.x)))
        f, _ = self.decode(z)
        numpyro.sample(names.COUNTS, self.observed.distribution(f).to_event(2), obs=batch.x)


class CodePrior(dist.Distribution):
    """The prior of the codes of some cells, as NumPyro sees it."""

    support: Any = dist.constraints.real_vector  # NumPyro asks, and never transforms a code

    def __init__(self, prior: Posterior, n_cells: int):
        self.prior, self.n_cells = prior, n_cells
        super().__init__(batch_shape=(), event_shape=(n_cells, *jnp.shape(prior.mean)))

    def sample(self, key, sample_shape=()):
        """Exact draws."""
        assert sample_shape == (), "one draw of the program at a time"
        return prior_draws(self.prior, key, self.n_cells)

    def log_prob(self, value):
        """Natural log probability, or density, of the codes of all cells."""
        return jnp.sum(self.prior.log_prob(value))


def prior_draws(prior: Posterior, key: Array, n: int) -> Float[Array, "cell latent ..."]:
    """Exact draws of a prior."""
    return eqx.filter_vmap(lambda key: prior.draw(key, None))(jax.random.split(key, n))


def skeleton(of: CodedArchitecture) -> NegBio:
    """The shapes of a network, without numbers."""
    one = np.ones(of.n_features)
    observed = OBSERVED[of.likelihood].start(one, one)
    return eqx.filter_eval_shape(NegBio.start, jax.random.key(0), of, observed)


registry.add(
    registry.Row(
        NegBio,
        (registry.CODE_VAE,),
        "negbio_vae, counts as the code of an auto-encoder",
        "offer more latents (latent_dim) or train for longer (NegBioConfig(n_epochs=...))",
    )
)
