"""Models of totals and shares: gauge, totals, log-ratios, draws, new cells, what is refused."""

import anndata
import jax.numpy as jnp
import numpy as np
import pytest

import nbln
from nbln.models.depth import CapturedTotals
from nbln.priors.capture import KnownCapture

QUIET = dict(progress=False, latent_dim=3)
every_model = pytest.mark.parametrize("kind", ["lnm", "lnmvcp"])


@every_model
def test_the_gauge_is_fixed(kind, results):
    result = results[kind]
    assert abs(float(result.mu.mean())) < 1e-6
    assert np.abs(result.W.mean("gene")).max() < 1e-6
    norms = result.get_gauge_diagnostics()
    assert norms["W_all_ones_component_norm"] < 1e-5
    assert norms["gauge_contamination_ratio"] < 1e-5
    drawn = result.draw_parameters(3, seed=1)
    assert np.abs(drawn["mu"].mean("gene")).max() < 1e-5
    assert np.abs(drawn["W"].mean("gene")).max() < 1e-5


def test_what_a_cell_takes_on_leaves_its_log_rates_as_they_were():
    rng = np.random.default_rng(0)
    mu, W, z = rng.normal(size=6), rng.normal(size=(6, 2)), rng.normal(size=(2, 5))
    fixed = CapturedTotals().fix(jnp.asarray(mu), jnp.asarray(W))
    new_mu, new_W, level = map(np.asarray, fixed)
    shared = level[0] + level[1:] @ z
    np.testing.assert_allclose(new_mu + (new_W @ z).T + shared[:, None], mu + (W @ z).T, atol=1e-5)


def test_depths_are_those_of_the_counts(results, adata):
    """Poisson rates at the mode add up to the cell's total."""
    result = results["lnm"]
    assert not result.has_capture
    at_mode = result.get_denoised("log_rate", counts=adata)["mean"].values
    depth = -result.eta.values
    # The posterior mean of a log-rate is not its mode: rates are near, not equal.
    totals = np.exp(at_mode + depth[:, None]).sum(axis=1)
    np.testing.assert_allclose(totals, result.fitted.library_size, rtol=0.1)


def test_totals_are_part_of_the_evidence(results, adata):
    """Summed over the totals a cell might have, they are probabilities."""
    result = results["lnm"]
    assert result.predicts_depth
    np.testing.assert_allclose(result.score(adata), result.log_evidence, atol=1e-2)
    totals = np.arange(1, 20_000).astype(float)
    known = KnownCapture(jnp.zeros(len(totals)))
    mass = np.exp(result.totals.log_prob(totals, known)).sum()
    assert mass == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["pln-latent", "lnmvcp", "mean_disp-mean_field"])
def test_scores_on_one_footing(kind, results, adata):
    """Depths like the population's: no prior that the cell's own total has a say in."""
    if kind == "pln-latent":
        result = nbln.fit(adata, model="pln", informative_priors_from=False, **QUIET)
    else:
        result = results[kind]
    own, population = (result.score(adata, depth=x).values for x in ("own", "population"))
    eta = result.eta.values
    away = (eta - eta.mean()) / eta.std()
    # A prior that is not centred by the cell itself says less of cells far from the mean.
    assert np.corrcoef(own - population, away**2)[0, 1] > 0.5


def test_comparison_says_when_footings_differ(results, adata, caplog):
    pair = {"lnmvcp": results["lnmvcp"], "nbvcp": results["mean_disp-mean_field"]}
    alone = nbln.fit(adata, model="lnm", **QUIET)
    with caplog.at_level("WARNING", "nbln"):
        caplog.clear()  # of what the fits said
        nbln.compare(pair, adata)
        assert not caplog.records
        nbln.compare(pair | {"lnm": alone}, adata, depth="population")
        assert not caplog.records
        nbln.compare(pair | {"lnm": alone}, adata)
    assert "on one footing" in caplog.text


@pytest.mark.parametrize(("kind", "message"), [("pln", "fixed offsets"), ("scvi", "of its own")])
def test_no_population_without_capture_losses(kind, message, results, adata):
    with pytest.raises(ValueError, match=rf"score\(depth='population'\).*{message}"):
        results[kind].score(adata, depth="population")
    with pytest.raises(ValueError, match=r"depth='all'\): .*own, population"):
        results[kind].score(adata, depth="all")


@every_model
def test_moments_are_those_of_draws(kind, results):
    result = results[kind]
    mean, variance = result.get_count_moments()
    drawn = result.get_ppc_samples("marginal", n_samples=200, seed=1).values[0]
    found = drawn.reshape(-1, drawn.shape[-1])
    np.testing.assert_allclose(np.median(found.mean(axis=0) / mean), 1, rtol=0.05)
    np.testing.assert_allclose(np.median(found.var(axis=0) / variance), 1, rtol=0.15)


@every_model
def test_own_totals_in_draws_of_a_cell(kind, results, adata):
    drawn = results[kind].get_ppc_samples("per_cell", n_samples=2, counts=adata)
    library = results[kind].fitted.library_size
    np.testing.assert_array_equal(drawn.sum("gene").values[0, 1], library)


def test_new_cells_have_the_losses_of_the_totals(results, adata):
    result = results["lnmvcp"]
    again = result.transform(adata)
    np.testing.assert_allclose(again["eta"], result.eta, atol=1e-4)
    np.testing.assert_allclose(again["z"], result.get_latent(), atol=2e-2)
    halved = anndata.AnnData(np.floor(adata.X / 2))
    halved.obs_names, halved.var_names = [f"n{i}" for i in range(90)], adata.var_names
    halved = halved[np.asarray(halved.X).sum(axis=1) > 0].copy()
    lost = result.transform(halved)["eta"]
    assert float(lost.mean() - result.eta.mean()) == pytest.approx(np.log(2), abs=0.3)


# Log-ratios


@pytest.mark.parametrize("kind", ["lnm", "nbln-latent-coverage"])
def test_log_ratios(kind, results):
    result = results[kind]
    real = result.fitted.real_genes
    found = result.get_alr()
    others = found["gene"].values
    assert found.attrs["reference"] not in others
    assert len(others) == real.sum() - 1  # the pool of the rarest is no gene
    W, d = result.W.values[real].astype(float), result.d.values[real].astype(float)
    labels = list(result.fitted.gene_names[real])
    base = labels.index(found.attrs["reference"])
    contrast = np.delete(np.eye(len(labels)), base, axis=0)
    contrast[:, base] = -1
    dense = contrast @ (W @ W.T + np.diag(d)) @ contrast.T
    np.testing.assert_allclose(found["Sigma"], dense, atol=1e-6)
    np.testing.assert_allclose(found["mu"], contrast @ result.mu.values[real], atol=1e-5)
    W, d = found["W"].values, found["d"].values
    factors = W @ W.T + np.diag(d) + float(found["d_reference"])
    np.testing.assert_allclose(found["Sigma"], factors, atol=1e-9)
    named = result.get_alr(labels[3], genes=[labels[5], labels[1]])
    assert list(named["gene"].values) == [labels[5], labels[1]]
    assert named.attrs["reference"] == labels[3]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reference": "ACTB"}, KeyError, "ACTB"),
        ({"reference": 3}, TypeError, r"get_alr\(reference=3\).*name of one gene"),
        ({"reference": "gene0", "genes": ["gene2", "gene0"]}, ValueError, "is the reference"),
        ({"reference": "_other"}, KeyError, "_other"),
    ],
)
def test_wrong_log_ratios(arguments, error, message, results):
    with pytest.raises(error, match=message):
        results["lnm"].get_alr(**arguments)


# What is refused


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("lnm", {"priors": {"capture_efficiency": (11.0, 0.5)}}, "'capture_efficiency'.*unknown"),
        ("lnm", {"priors": {"r": (1.0, 1.0)}}, r"choose one of mu, d, total_mean, total_r"),
        ("lnm", {"informative_priors_freeze": "eta"}, "nothing to take over"),
        ("lnm", {"informative_priors_tau": 2.0}, "nothing to take over"),
        ("lnm", {"svi": nbln.SVIConfig()}, "model lnm is fitted on its own; leave svi= out"),
        ("lnm", {"parameterization": "mean_odds"}, "does not use it"),
        ("lnmvcp", {"priors": {"capture_efficiency": None}}, "model='lnm', which has none"),
        ("lnmvcp", {"svi": nbln.SVIConfig()}, "fitted on its own"),
    ],
)
def test_refused(model, arguments, message, adata):
    with pytest.raises(ValueError, match=message):
        nbln.fit(adata, model=model, **arguments, **QUIET)


def test_sources_that_are_refused(adata, nbvcp):
    with pytest.raises(ValueError, match=r"informative_priors_from=.*nothing to take over"):
        nbln.fit(adata, model="lnm", informative_priors_from=nbvcp, **QUIET)
    given = {"informative_priors_from": nbvcp, "informative_priors_freeze": "mu"}
    with pytest.raises(ValueError, match=r"freeze='mu'\): unknown key; choose one of eta"):
        nbln.fit(adata, model="lnmvcp", **given, **QUIET)


def test_sources_with_fixed_offsets_are_refused(adata, results):
    fixed = results["mean_odds-low_rank"]
    with pytest.raises(ValueError, match="fixed offsets, and model lnmvcp needs capture losses"):
        nbln.fit(adata, model="lnmvcp", informative_priors_from=fixed, **QUIET)


def test_losses_of_a_source(adata, nbvcp, results):
    held = nbln.fit(adata, model="lnmvcp", informative_priors_from=nbvcp, n_steps=3, **QUIET)
    assert held.frozen == ("eta",)
    np.testing.assert_allclose(held.eta, nbvcp.eta, rtol=1e-2)
    soft = results["lnmvcp"]
    assert soft.frozen == ()
    assert soft.cascade_source is not None
    assert np.corrcoef(soft.eta, nbvcp.eta)[0, 1] > 0.95


@pytest.mark.slow
def test_draws_of_the_posterior():
    """The flat column is sampled with the factors; draws keep the gauge."""
    adata = nbln.datasets.simulate(300, 30, 2, mean_log_dispersion=20.0, seed=3)
    fit = nbln.fit(adata, model="lnm", progress=False, latent_dim=3)
    posterior = fit.sample_posterior(150, 2, n_warmup=40, progress=False)
    assert np.abs(posterior.draws.mu.mean(axis=-1)).max() < 1e-5
    assert np.abs(posterior.draws.W.mean(axis=-2)).max() < 1e-5
    upper = np.triu_indices(30, 1)
    found, fitted = posterior.get_correlation(), fit.get_correlation().values[upper]
    assert np.corrcoef(found["mean"].values[upper], fitted)[0, 1] > 0.9
    W, d = adata.varm["W"], adata.var["d"].to_numpy()
    truth = W @ W.T + np.diag(d)
    truth = (truth / np.sqrt(np.outer(np.diag(truth), np.diag(truth))))[upper]
    low, high = (found[end].values[upper] for end in ("low", "high"))
    assert ((low <= truth) & (truth <= high)).mean() > 0.7
    table = posterior.get_diagnostics()
    assert table.loc["correlations", "ess"] > 50, table
