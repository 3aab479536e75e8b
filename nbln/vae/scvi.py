"""scVI: an amortised variational auto-encoder of counts (Lopez et al. 2018)."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float

from nbln import registry
from nbln import vocabulary as names
from nbln.channels.negative_binomial import NegativeBinomial
from nbln.vae.layers import Moments, Stack, Training, apply, beside
from nbln.vae.likelihoods import Bound, Groups, Likelihood, Sizes, likelihood
from nbln.vocabulary import Site

LEAST_VARIANCE = 1e-4  # of an encoder, as in scvi-tools


@dataclass(frozen=True)
class Architecture:
    """All that decides the shapes of an scVI model; plain values, which a file can hold."""

    n_genes: int
    n_columns: int  # of the design: batches and covariates
    n_batches: int
    n_labels: int
    latent_dim: int
    n_hidden: int
    n_layers: int
    dropout: float
    gene_likelihood: str
    dispersion: str
    linear: bool  # the decoder has no hidden layer
    skip: bool  # loadings beside the hidden layers
    latent_library: bool


class Batch(NamedTuple):
    """Cells as the model sees them."""

    counts: Float[Array, "cell gene"]
    log_library: Float[Array, " cell"]  # log of the total counts
    design: Float[Array, "cell column"]
    groups: Groups
    weight: Float[Array, " cell"]  # 1 for a cell, 0 for padding


class Gaussian(NamedTuple):
    """Independent normal distributions."""

    mean: Array
    variance: Array

    def draw(self, key: Array) -> Array:
        """One draw."""
        return self.mean + jnp.sqrt(self.variance) * jax.random.normal(key, self.mean.shape)

    def divergence(self, mean: Array | float, variance: Array | float) -> Array:
        """KL divergence to other normal distributions, element by element (nats)."""
        ratio = self.variance / variance
        return 0.5 * (ratio - 1 - jnp.log(ratio) + (self.mean - mean) ** 2 / variance)


class Encoder(eqx.Module):
    """log(1 + counts) to a normal distribution of a latent variable."""

    stack: Stack
    mean: eqx.nn.Linear
    log_variance: eqx.nn.Linear

    @classmethod
    def start(cls, key: Array, of: Architecture, n_out: int) -> "Encoder":
        """Random weights."""
        keys = jax.random.split(key, 3)
        stack = Stack.start(keys[0], of.n_genes, 0, of.n_hidden, of.n_layers, of.dropout)
        heads = (eqx.nn.Linear(of.n_hidden, n_out, key=one) for one in keys[1:])
        return cls(stack, *heads)

    def __call__(
        self, counts: Float[Array, "cell gene"], training: Training | None = None
    ) -> tuple[Gaussian, tuple[Moments, ...]]:
        """The distribution of each cell, and the moments of the layers."""
        none = jnp.zeros((counts.shape[0], 0))
        h, moments = self.stack(jnp.log1p(counts), none, training)
        variance = jnp.exp(apply(self.log_variance, h)) + LEAST_VARIANCE
        return Gaussian(apply(self.mean, h), variance), moments


class Decoder(eqx.Module):
    """z and design to each gene's log share of a cell's counts, and to features beside it."""

    stack: Stack
    share: eqx.nn.Linear
    loadings: Float[Array, "gene factor"] | None

    @classmethod
    def start(cls, key: Array, of: Architecture) -> "Decoder":
        """Random weights; loadings, where there are any, at 0."""
        first, second = jax.random.split(key)
        n_layers = 0 if of.linear else of.n_layers
        stack = Stack.start(first, of.latent_dim, of.n_columns, of.n_hidden, n_layers, 0.0)
        share = eqx.nn.Linear(n_features(of), of.n_genes, key=second)
        loadings = jnp.zeros((of.n_genes, of.latent_dim)) if of.skip else None
        return cls(stack, share, loadings)

    def __call__(
        self,
        z: Float[Array, "cell factor"],
        design: Float[Array, "cell column"],
        training: Training | None = None,
    ) -> tuple[Float[Array, "cell gene"], Float[Array, "cell unit"], tuple[Moments, ...]]:
        """Log shares, features, and the moments of the layers."""
        h, moments = self.stack(z, design, training)
        features = h if self.stack.linear else beside(z, design)
        logits = apply(self.share, features)
        if self.loadings is not None:
            logits = logits + z @ self.loadings.T
        return jax.nn.log_softmax(logits), features, moments


def n_features(of: Architecture) -> int:
    """Units that the heads of a decoder see."""
    return of.latent_dim + of.n_columns if of.linear else of.n_hidden


class SCVI(eqx.Module):
    """A cell's counts from a few latent factors, by neural networks both ways.

        z_c ~ N(0, I)
        log l_c = log of the total, or ~ N(m_b, v_b) for the cell's batch b
        u_cg ~ NB(mean l_c softmax(decoder(z_c, s_c))_g, dispersion θ_g)

    or Poisson, or with structural zeros. s_c is the design: batch and covariates. The guide is
    z_c ~ N(encoder(log(1 + u_c))).

    | site | shape | meaning |
    |---|---|---|
    | z | (cell, factor) | factors |
    | log_library | (cell,) | natural log of the library size; only where it is latent |
    | counts | (cell, gene) | observed |

    References: Lopez, Regier, Cole, Jordan & Yosef (2018), Nature Methods 15, 1053.
    """

    name: ClassVar[str] = "scvi"
    channel: ClassVar = NegativeBinomial
    captured: ClassVar[bool] = False

    encoder: Encoder
    library: Encoder | None
    decoder: Decoder
    likelihood: Likelihood
    # Of log totals by batch, (batch,) each; data, not learned.
    library_prior: Gaussian

    @classmethod
    def start(cls, key: Array, of: Architecture, library_prior: Gaussian) -> "SCVI":
        """A model with random weights."""
        keys = jax.random.split(key, 4)
        sizes = Sizes(of.n_genes, n_features(of), of.n_batches, of.n_labels)
        return cls(
            Encoder.start(keys[0], of, of.latent_dim),
            Encoder.start(keys[1], of, 1) if of.latent_library else None,
            Decoder.start(keys[2], of),
            likelihood(keys[3], of.gene_likelihood, of.dispersion, sizes),
            library_prior,
        )

    @classmethod
    def default_priors(cls, n_cells: int) -> dict:
        """None that a user could set."""
        del n_cells
        return {}

    @property
    def latent_dim(self) -> int:
        """Number of factors."""
        return self.encoder.mean.weight.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.decoder.share.weight.shape[0]

    @property
    def sites(self) -> tuple[Site, ...]:
        """All sites that the program samples, the counts aside."""
        own = (Site("z", (names.CELL, names.FACTOR), "factors"),)
        library = Site("log_library", (names.CELL,), "natural log of the library size")
        return own if self.library is None else (*own, library)

    def decode(
        self, z: Array, log_library: Array, batch: Batch, training: Training | None = None
    ) -> tuple[Array, Bound, tuple[Moments, ...]]:
        """Log-rates, the distribution of counts given them, and the moments of the layers."""
        log_share, features, moments = self.decoder(z, batch.design, training)
        bound = self.likelihood.of(features, batch.groups)
        return log_share + log_library[:, None], bound, moments

    def prior_of_library(self, groups: Groups) -> Gaussian:
        """Of these cells' log totals."""
        return Gaussian(*(x[groups.batch] for x in self.library_prior))

    def __call__(self, batch: Batch) -> None:
        """The program: samples z, and the library where it is latent, and observes the counts."""
        n_cells = batch.counts.shape[0]
        shape = (n_cells, self.latent_dim)
        z = numpyro.sample("z", dist.Normal(jnp.zeros(shape), 1).to_event(2))
        log_library = batch.log_library
        if self.library is not None:
            mean, variance = self.prior_of_library(batch.groups)
            prior = dist.Normal(mean, jnp.sqrt(variance)).to_event(1)
            log_library = numpyro.sample("log_library", prior)
        f, bound, _ = self.decode(z, log_library, batch)
        counted = bound.distribution(f).to_event(2)
        numpyro.sample(names.COUNTS, counted, obs=batch.counts)


registry.add(
    registry.Row(
        SCVI,
        ("vae", "ae"),
        "scvi, counts from latent factors by neural networks",
        "offer more factors (latent_dim) or train for longer; compare check('per_cell')",
    )
)
