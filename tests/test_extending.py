"""A channel and models that only this file has, through all that the package offers.

What is written here is what `docs/architecture.md` says that a channel and a model take: a file of
their own and one row of the registry.
"""

from dataclasses import replace
from typing import ClassVar

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jaxtyping import Array, Float
from numpyro.infer.util import log_density

import nbln
from nbln import registry, report, webpage
from nbln.channels.base import Channel
from nbln.channels.negative_binomial import NegativeBinomial, digamma_sums
from nbln.distributions.negative_binomial import NegativeBinomialLogMean, nb_log_prob
from nbln.models.log_normal import LogNormalModel
from nbln.priors.capture import KnownCapture
from nbln.priors.columnwise import Flat
from nbln.priors.univariate import LogNormal
from nbln.vocabulary import Site


class SharedDispersion(Channel):
    """Negative binomial with one dispersion for all genes."""

    sites: ClassVar = (Site("theta", (), "dispersion that all genes share"),)
    log_theta: Float[Array, ""]

    @classmethod
    def start(cls, log_r):
        return cls(jnp.median(log_r))

    @classmethod
    def of(cls, values):
        return cls(jnp.log(jnp.asarray(values["theta"])))

    @classmethod
    def default_priors(cls):
        return {"theta": LogNormal(1.0, 2.0)}

    def values(self):
        return {"theta": jnp.exp(self.log_theta)}

    def log_prob(self, u, f):
        return nb_log_prob(u, f, jnp.exp(self.log_theta))

    def derivatives(self, u, f):
        return NegativeBinomial(self.log_theta).derivatives(u, f)

    def distribution(self, f):
        return NegativeBinomialLogMean(f, jnp.exp(self.log_theta))

    def statistics(self, u, f, variance, mask):
        return NegativeBinomial(self.log_theta).statistics(u, f, variance, mask)

    def _slopes(self, sums, tails):
        theta = jnp.broadcast_to(jnp.exp(self.log_theta), sums.shape[1])
        first, second = digamma_sums(tails, theta)
        gradient = jnp.sum(sums[0] + theta * first)
        return gradient, -jnp.sum(sums[1] + theta * first + theta**2 * second)

    def maximise(self, sums, tails, priors):
        gradient, curvature = self._slopes(sums, tails)
        prior_gradient, prior_curvature = priors["theta"].penalty(self.log_theta)
        step = (gradient + prior_gradient) / (jnp.maximum(curvature, 0) + prior_curvature)
        return SharedDispersion(self.log_theta + jnp.clip(step, -1, 1))

    def settling(self):
        return self.log_theta[None]

    def conditional_sd(self, sums, tails, priors):
        curvature = self._slopes(sums, tails)[1] + priors["theta"].penalty(self.log_theta)[1]
        return {"theta": 1 / jnp.sqrt(curvature)}

    def rates(self, rng, f):
        return NegativeBinomial(self.log_theta).rates(rng, f)

    def noise(self):
        return float(jnp.exp(-self.log_theta))


class SharedModel(LogNormalModel):
    """u ~ NB(mean exp(x - η), θ) with one θ, x ~ N(μ, W Wᵀ + diag(d))."""

    name = "shared"
    channel = SharedDispersion


class Twin(LogNormalModel):
    """NBLN under another name."""

    name = "twin"
    channel = NegativeBinomial


ROWS = (
    registry.Row(SharedModel, (registry.LAPLACE,), "shared, one dispersion", "try model='nbln'"),
    registry.Row(Twin, (registry.LAPLACE,), "twin, nbln again"),
)
THETA = 3.0


@pytest.fixture(scope="module", autouse=True)
def registered():
    for row in ROWS:
        registry.add(row)
    yield
    for row in ROWS:
        del registry.MODELS[row.name]


@pytest.fixture(scope="module")
def counts():
    """Cells whose genes have one dispersion, and one program."""
    adata = nbln.datasets.simulate(300, 40, 1, seed=3)
    rng = np.random.default_rng(0)
    x = adata.var["mu"].to_numpy() + adata.obsm["z"] @ adata.varm["W"].T + 1.0
    rate = np.exp(x + adata.obs["log_depth"].to_numpy()[:, None])
    adata.X = rng.poisson(rng.gamma(THETA, rate / THETA)).astype(np.float32)
    adata.X[:, 0] += 1
    return adata


@pytest.fixture(scope="module")
def shared(counts):
    return nbln.fit(counts, model="shared", latent_dim=4, progress=False)


def test_a_model_on_a_known_channel_keeps_its_dispersions(counts):
    fits = [nbln.fit(counts, model=m, latent_dim=4, progress=False) for m in ("twin", "nbln")]
    twin, known = fits
    assert np.isfinite(twin.r).all()
    for name in ("mu", "d", "r"):
        np.testing.assert_array_equal(getattr(twin, name), getattr(known, name))
    assert isinstance(twin.parameters.channel, NegativeBinomial)


def test_the_channel_is_learned(shared):
    assert shared.converged
    assert shared.w_prior_diagnostics["effective_rank"] == 1
    theta = shared.channel_parameters["theta"]
    assert theta.dims == ()
    # d takes a part of the overdispersion of each gene, so θ comes out above the truth.
    assert THETA / 1.5 < float(theta) < 3 * THETA
    assert float(shared.get_map()["theta"]) == float(theta)
    assert np.isinf(shared.r).all()


def test_the_engine_fits_the_program():
    """Log joint by the channel and by the NumPyro program, at the same values."""
    rng = np.random.default_rng(0)
    u = rng.poisson(2.0, (5, 6)).astype(np.float32)
    priors = SharedModel.default_priors(5)
    model = SharedModel(priors, Flat(), KnownCapture(jnp.zeros(5)), 2)
    values = {
        "W": rng.normal(size=(6, 2)), "d": rng.uniform(0.1, 1, 6), "mu": rng.normal(size=6),
        "x": rng.normal(size=(5, 6)), "theta": 2.5,
    }  # fmt: skip
    values = {n: jnp.asarray(v, jnp.float32) for n, v in values.items()}
    densities = []
    for theta in (2.5, 4.0):
        values["theta"] = jnp.asarray(theta)
        channel = SharedDispersion.of(values)
        ours = jnp.sum(channel.log_prob(u, values["x"])) + priors["theta"].distribution(
            ()
        ).log_prob(theta)
        densities.append((float(log_density(model, (u,), {}, values)[0]), float(ours)))
    (first, ours_first), (second, ours_second) = densities
    assert second - first == pytest.approx(ours_second - ours_first, abs=1e-3)


@pytest.mark.parametrize("level", ["marginal", "library_anchored", "per_cell"])
def test_predictive_draws(level, shared, counts):
    drawn = shared.get_ppc_samples(level, n_samples=20, seed=1)
    assert float(drawn.mean()) == pytest.approx(counts.X.mean(), rel=0.15)
    per_gene = drawn.var(("chain", "draw", "cell")).values
    ratio = per_gene / counts[:, shared.fitted.gene_names].X.var(axis=0)
    assert 0.5 < np.median(ratio) < 2


def test_moments_are_those_of_draws(shared):
    mean, variance = shared.get_count_moments()
    drawn = shared.get_ppc_samples("marginal", n_samples=100, seed=1).values
    np.testing.assert_allclose(drawn.mean(axis=(0, 1, 2)), mean, rtol=0.1)
    ratio = drawn.var(axis=(0, 1, 2)) / variance
    assert 0.9 < np.median(ratio) < 1.1


def test_new_cells(shared, counts):
    new = nbln.fit(counts[:200].copy(), model="shared", latent_dim=4, progress=False)
    held_out = counts[200:].copy()
    laplace, sampled = (new.score(held_out, n_samples=n).values for n in (1, 200))
    np.testing.assert_allclose(laplace, sampled, atol=1.5)
    again = shared.transform(counts)
    np.testing.assert_allclose(again["z"], shared.get_latent(), atol=2e-2)
    assert nbln.compare({"shared": new}, held_out).index[0] == "shared"


def test_save_and_load(shared, counts, tmp_path):
    shared.save(tmp_path / "fit.nc")
    loaded = nbln.load(tmp_path / "fit.nc")
    assert repr(loaded) == repr(shared)
    assert loaded.get_map().identical(shared.get_map())
    assert loaded.get_distributions()["theta"].loc == shared.get_distributions()["theta"].loc
    drawn = [r.get_ppc_samples("per_cell", 2, counts=counts) for r in (loaded, shared)]
    assert drawn[0].identical(drawn[1])


def test_a_model_that_is_not_there_is_named_when_loaded(shared, tmp_path):
    shared.save(tmp_path / "fit.nc")
    row = registry.MODELS.pop("shared")
    try:
        with pytest.raises(ValueError, match=r"load\(model='shared'\): unknown model; choose one"):
            nbln.load(tmp_path / "fit.nc")
    finally:
        registry.MODELS["shared"] = row


@pytest.mark.usefixtures("undrawn")
def test_summary_and_report(shared):
    summary = shared.summary()
    assert summary.loc["converged", "value"]
    lines = dict(line for line in report.lines(shared) if line[0])
    assert lines["Model"] == "shared, one dispersion"
    page = webpage.page(shared, shared.check(n_samples=10), summary)
    assert "shared, one dispersion" in page


def test_the_remedy_is_the_models_own(shared):
    checks = shared.check(n_samples=10)
    checks["residual_p_value"][:] = 0.0
    summary = shared.summary(checks=checks)
    assert "try model='nbln'" in summary.loc["misfit_residuals", "note"]


FIGURES = (
    nbln.pl.plot_loss, nbln.pl.plot_ppc, nbln.pl.plot_mean_variance, nbln.pl.plot_capture,
    nbln.pl.plot_correlation, nbln.pl.plot_gene_programs, nbln.pl.plot_w_shrinkage_spectrum,
    nbln.pl.plot_compositional_corner_ppc,
)  # fmt: skip


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.__name__)
def test_figures(figure, shared):
    plt.close(figure(shared))


def test_into_an_anndata_and_to_arviz(shared, counts):
    written = counts.copy()
    shared.write_to(written)
    assert "nbln_theta" not in written.var  # it has no gene
    assert written.uns["nbln"]["theta"] == float(shared.channel_parameters["theta"])
    tree = shared.to_datatree(n_samples=3, n_predictive=2)
    assert tree["posterior"]["theta"].dims == ("chain", "draw")
    assert tree["log_likelihood"]["counts"].shape == (1, 3, 300)


def test_a_cascade_gives_what_the_model_has(shared, counts):
    held = nbln.fit(
        counts,
        model="shared",
        informative_priors_from=shared.cascade_source,
        latent_dim=2,
        n_steps=3,
        progress=False,
    )
    assert held.frozen == ("eta",)  # there is no r to freeze
    with pytest.raises(ValueError, match=r"freeze='r'\): unknown .*choose one of mu, eta"):
        nbln.fit(
            counts,
            model="shared",
            informative_priors_from=shared.cascade_source,
            informative_priors_freeze="r",
            progress=False,
        )
    prior = {"theta": (1.0, 0.1)}
    tight = nbln.fit(counts, model="shared", latent_dim=2, priors=prior, progress=False)
    assert float(tight.channel_parameters["theta"]) < float(shared.channel_parameters["theta"])


def test_a_row_is_checked():
    class Half(Channel):
        sites = ()

    class HalfModel(LogNormalModel):
        name = "half"
        channel = Half

    with pytest.raises(TypeError, match="Half does not say derivatives, distribution, log_prob"):
        registry.add(registry.Row(HalfModel, (registry.LAPLACE,), "half"))
    with pytest.raises(ValueError, match=r"engines='laplace'\): expected a tuple"):
        registry.add(_renamed("laplace"))


def _renamed(engines):
    class Other(Twin):
        name = "other"

    return registry.Row(Other, engines, "other")


@pytest.mark.slow
def test_nuts_draws_a_new_model(counts, monkeypatch, tmp_path):
    row = replace(ROWS[0], engines=(registry.LAPLACE, registry.MCMC))
    monkeypatch.setitem(registry.MODELS, row.name, row)
    config = nbln.MCMCConfig(n_warmup=20, n_draws=10, n_chains=2, max_tree_depth=5)
    few = counts[:40, :6].copy()
    chosen = dict(latent_dim=1, inference_method="mcmc", mcmc=config, progress=False)
    drawn = nbln.fit(few, model=row.name, **chosen)
    assert drawn.sites["theta"].dims == ("chain", "draw")
    noise = 1 / drawn.sites["theta"].values[..., None]
    np.testing.assert_allclose(drawn.noise, np.broadcast_to(noise, (2, 10, 6)), rtol=1e-5)
    drawn.save(tmp_path / "draws.nc")
    loaded = nbln.load(tmp_path / "draws.nc")
    assert loaded.get_correlation("expression").equals(drawn.get_correlation("expression"))


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="'twin' is there already"):
        registry.add(ROWS[1])
