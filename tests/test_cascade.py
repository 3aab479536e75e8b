"""The cascade: what a fit of independent genes hands to a log-normal model."""

import jax.numpy as jnp
import numpy as np
import pytest

import nbln
from nbln.cascade import SMALLEST_SD, CascadeConfig, cascade
from nbln.data.counts import Counts
from nbln.priors.capture import KnownCapture, LatentCapture
from nbln.priors.marginal import R_MAX, MarginalDispersion, MarginalMean
from nbln.priors.univariate import LogNormal, Normal

QUICK = dict(latent_dim=3, progress=False, n_steps=4)


@pytest.fixture(scope="module")
def counts(adata):
    return Counts.from_anndata(adata)


@pytest.fixture(scope="module")
def moments(nbvcp):
    """Mean and sd of log r̄, log μ̄ and η under the source."""
    draws = nbvcp.get_posterior_samples(1000, 0).isel(chain=0)
    logs = {"r": np.log(draws["r"].values), "mu": np.log(draws["mean"].values)}
    found = {name: (x.mean(axis=0), x.std(axis=0)) for name, x in logs.items()}
    eta = nbvcp.get_distributions()["eta"]
    return found | {"eta": (np.asarray(eta.mean), np.sqrt(np.asarray(eta.variance)))}


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_soft_priors(tau, nbvcp, counts, moments):
    taken = cascade(nbvcp, counts, CascadeConfig(tau=tau, freeze=()), seed=0)
    assert isinstance(taken.priors["r"], LogNormal)
    assert isinstance(taken.priors["mu"], Normal)
    assert isinstance(taken.capture, LatentCapture)
    for prior, (loc, sd) in (
        (taken.priors["r"], moments["r"]),
        (taken.priors["mu"], moments["mu"]),
        (taken.capture, moments["eta"]),
    ):
        np.testing.assert_allclose(prior.loc, loc, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(prior.scale, np.maximum(tau * sd, SMALLEST_SD), rtol=1e-3)


def test_a_tiny_tau_is_floored(nbvcp, counts):
    taken = cascade(nbvcp, counts, CascadeConfig(tau=1e-9, freeze=()), seed=0)
    np.testing.assert_allclose(taken.priors["r"].scale, SMALLEST_SD, rtol=1e-5)


def test_infinite_tau_gives_starting_values_only(nbvcp, counts, moments):
    taken = cascade(nbvcp, counts, CascadeConfig(tau=np.inf, freeze=()), seed=0)
    assert taken.priors == {}
    assert taken.capture is None
    np.testing.assert_allclose(taken.log_r, moments["r"][0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.log(taken.mean), moments["mu"][0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("freeze", [("r",), ("r", "eta"), ("r", "mu", "eta"), ("eta",)])
def test_frozen_keys_hold_exactly(freeze, adata, nbvcp, moments):
    result = nbln.fit(
        adata, informative_priors_from=nbvcp, informative_priors_freeze=freeze, **QUICK
    )
    assert result.frozen == freeze
    assert result.cascade_source is nbvcp
    fitted = {"r": np.log(result.r), "mu": result.mu, "eta": result.eta}
    for key, value in fitted.items():
        held = np.allclose(value, moments[key][0], rtol=1e-4, atol=2e-4)
        assert held == (key in freeze), key


def test_aliases_freeze_the_same(adata, nbvcp):
    aliases = nbln.fit(
        adata,
        informative_priors_from=nbvcp,
        informative_priors_freeze=("dispersion", "capture_efficiency"),
        **QUICK,
    )
    assert aliases.frozen == ("r", "eta")


@pytest.mark.parametrize("model", ["nbln", "pln"])
def test_defaults(model, adata, nbvcp):
    result = nbln.fit(adata, model=model, informative_priors_from=nbvcp, **QUICK)
    assert result.frozen == (("r", "eta") if model == "nbln" else ("eta",))


def test_marginal_priors_wrap_the_source(nbvcp, counts):
    taken = cascade(nbvcp, counts, CascadeConfig(match="marginal", freeze=("r",)), seed=0)
    assert isinstance(taken.priors["r"], MarginalDispersion)
    assert taken.priors["r"].frozen
    assert isinstance(taken.priors["mu"], MarginalMean)
    assert not taken.priors["mu"].frozen


def test_marginal_formulas_hold_at_the_fit(adata, nbvcp, moments):
    """1 + 1/r = (1 + 1/r̄) exp(-Σ_gg) and μ = log μ̄ - Σ_gg/2, as far as r̄ admits."""
    result = nbln.fit(
        adata,
        informative_priors_from=nbvcp,
        informative_priors_freeze=("r", "mu", "eta"),
        informative_priors_match="marginal",
        latent_dim=3,
        progress=False,
        tol=1e-5,
        n_steps=500,
    )
    variance = np.sum(result.W.values.astype(float) ** 2, axis=1) + result.d.values
    log_r, log_mean = moments["r"][0], moments["mu"][0]
    excess = (1 + np.exp(-log_r)) * np.exp(-variance) - 1
    expected = 1 / np.maximum(excess, 1 / R_MAX)
    # As excess variances, in which a nearly Poisson gene is no matter.
    np.testing.assert_allclose(1 / result.r, 1 / expected, rtol=0.02, atol=5e-3)
    admitted = np.minimum(variance, np.log1p(np.exp(-log_r)))
    np.testing.assert_allclose(result.mu, log_mean - admitted / 2, atol=5e-3)


def test_a_source_with_known_capture_hands_it_on(results, counts):
    source = results["mean_odds-low_rank"]
    taken = cascade(source, counts, CascadeConfig(freeze=("r",)), seed=0)
    assert isinstance(taken.capture, KnownCapture)
    np.testing.assert_allclose(taken.capture.eta, source.known_eta, rtol=1e-6)


def test_order_of_cells_and_genes_does_not_matter(adata, nbvcp, counts, moments):
    turned = Counts.from_anndata(adata[::-1, ::-1].copy())
    taken = cascade(nbvcp, turned, CascadeConfig(freeze=()), seed=0)
    np.testing.assert_allclose(taken.log_r, moments["r"][0][::-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(taken.capture.loc, moments["eta"][0][::-1], rtol=1e-4)
    assert jnp.shape(taken.mean) == (counts.n_genes,)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ((slice(0, 60), slice(None)), "fitted to 90 cells, these data have 60"),
    ],
)
def test_a_source_of_other_data(part, message, adata, nbvcp):
    with pytest.raises(ValueError, match=rf"informative_priors_from=.*{message}"):
        nbln.fit(adata[part].copy(), informative_priors_from=nbvcp, **QUICK)


@pytest.mark.parametrize("axis", ["obs", "var"])
def test_a_source_of_other_names(axis, adata, nbvcp):
    renamed = adata.copy()
    setattr(renamed, f"{axis}_names", [f"x{n}" for n in getattr(adata, f"{axis}_names")])
    with pytest.raises(ValueError, match=r"informative_priors_from=: not a fit of these.*x"):
        nbln.fit(renamed, informative_priors_from=nbvcp, **QUICK)


# Sources of more genes


@pytest.fixture(scope="module")
def gated(adata):
    return nbln.fit(adata, model="zinbvcp", n_steps=100, progress=False)


def taken_by(source, adata, **arguments):
    counts = Counts.from_anndata(adata, **arguments)
    return counts, cascade(source, counts, CascadeConfig(freeze=()), seed=0).source


SOURCES = ("nbvcp", "mean_odds-mean_field", "canonical-low_rank", "mean_disp-low_rank", "zinbvcp")


@pytest.mark.parametrize("kind", SOURCES)
def test_the_pool_has_the_moments_of_its_genes(kind, results, adata, gated):
    """Where they are, and as drawn: to first order the draws of a sum are those of its parts."""
    source = (
        gated if kind == "zinbvcp" else results["mean_disp-mean_field" if kind == "nbvcp" else kind]
    )
    counts, part = taken_by(source, adata, gene_coverage=0.8)
    assert counts.has_other
    assert len(counts.pooled_names) > 2
    drawn = dict(zip(("mean", "r"), source.sample_genes(4000, 0), strict=True))
    places = np.isin(source.fitted.gene_names, counts.pooled_names)
    mean, r = (x[:, places].astype(float) for x in drawn.values())
    total, excess = mean.sum(axis=1), (mean**2 / r).sum(axis=1)
    ours = part.sample_genes(4000, 1)
    for x, exact in zip(ours, (total, total**2 / excess), strict=True):
        logs, wanted = np.log(x[:, -1]), np.log(exact)
        assert logs.mean() == pytest.approx(wanted.mean(), abs=0.05)
        assert logs.std() == pytest.approx(wanted.std(), rel=0.25)
    kept = list(counts.gene_names[:-1])
    np.testing.assert_allclose(part.mean.sel(gene=kept), source.mean.sel(gene=kept), rtol=1e-6)


def test_a_source_of_all_genes_serves_a_pooled_fit(adata, nbvcp, tmp_path):
    fit = nbln.fit(adata, gene_coverage=0.8, informative_priors_from=nbvcp, **QUICK)
    assert fit.fitted.has_other
    np.testing.assert_allclose(fit.eta, nbvcp.eta, atol=0.05)
    assert list(fit.cascade_source.fitted.gene_names) == list(fit.fitted.gene_names)
    fit.save(tmp_path / "fit.nc")
    again = nbln.load(tmp_path / "fit.nc")
    np.testing.assert_array_equal(again.cascade_source.mean, fit.cascade_source.mean)
    np.testing.assert_allclose(fit.cascade_source.score(adata).mean(), -60, atol=60)


def test_a_source_of_more_genes_without_a_pool(adata, nbvcp):
    few = adata[:, :20].copy()
    fit = nbln.fit(few, informative_priors_from=nbvcp, **QUICK)
    np.testing.assert_allclose(fit.eta, nbvcp.eta, atol=0.05)
    # The cells themselves, under other names: their library sizes are those of the few genes.
    few.obs_names = [f"new{i}" for i in range(few.n_obs)]
    found = fit.transform(few)["eta"].values
    assert abs(np.mean(found - fit.eta.values)) < 0.1


def test_pools_within_pools(adata, nbvcp):
    """A source with a pool serves a fit with a larger one; its mean, by draws, is the sum."""
    source = nbln.fit(adata, model="nbvcp", gene_coverage=0.9, n_steps=50, progress=False)
    counts, part = taken_by(source, adata, gene_coverage=0.7)
    missing = ~np.isin(source.fitted.gene_names, counts.gene_names[:-1])
    assert missing.sum() > 1
    assert float(part.mean[-1]) == pytest.approx(float(source.mean[missing].sum()), rel=0.02)
    with pytest.raises(ValueError, match=r"it lacks \d+ of 29, or has them in its pool _other"):
        nbln.fit(adata, informative_priors_from=source, **QUICK)
    with pytest.raises(ValueError, match=r"genes that these data have not"):
        nbln.fit(adata[:, 5:].copy(), gene_coverage=0.7, informative_priors_from=source, **QUICK)


def test_a_gene_that_the_source_lacks_is_named(adata):
    source = nbln.fit(adata[:, :20].copy(), model="nbvcp", n_steps=50, progress=False)
    for coverage in (None, 0.5):
        with pytest.raises(ValueError, match=r"it lacks \d+ of \d+, the first gene.* 'gene\d+'"):
            nbln.fit(adata, gene_coverage=coverage, informative_priors_from=source, **QUICK)


# Sources that lack a site


def test_what_a_source_lacks(adata, results):
    """Without capture losses there is a dispersion to hand over, and nothing else."""
    source = results["nbdm"]
    fit = nbln.fit(adata, informative_priors_from=source, **QUICK)
    assert fit.frozen == ("r",)
    np.testing.assert_allclose(np.log(fit.r), np.log(source.r), atol=0.05)
    assert float(fit.eta.min()) > 0.1  # its own capture prior
    with pytest.raises(ValueError, match=r"freeze=\('r', 'eta'\).*nbdm, has no eta.*it has r\)"):
        nbln.fit(
            adata,
            informative_priors_from=source,
            informative_priors_freeze=("r", "eta"),
            **QUICK,
        )
    with pytest.raises(ValueError, match=r"nbdm has r to hand over, of which pln has nothing"):
        nbln.fit(adata, model="pln", informative_priors_from=source, **QUICK)


def test_a_source_with_gates_hands_over_moments(adata, gated):
    fit = nbln.fit(adata, informative_priors_from=gated, **QUICK)
    drawn = gated.get_posterior_samples(1000, 0).isel(chain=0)
    gate, r = drawn["gate"].values, drawn["r"].values
    matched = np.log((1 - gate) / (1 / r + gate)).mean(axis=0)
    np.testing.assert_allclose(np.log(fit.r), matched, atol=1e-3)
    np.testing.assert_allclose(fit.eta, gated.eta, atol=0.05)


@pytest.fixture(scope="module", params=["mean_field", "low_rank"])
def turned(request, adata):
    """A source of the same cells and genes in another order, and what it says of them by name."""
    shuffled = adata[::-1, ::-1].copy()
    guide = nbln.SVIConfig(guide=request.param)
    source = nbln.fit(shuffled, model="nbvcp", svi=guide, n_steps=200, progress=False)
    return source, nbln.fit(adata, informative_priors_from=source, **QUICK)


def test_a_source_in_another_order_is_kept_in_that_of_the_fit(turned, adata):
    source, result = turned
    kept, genes = result.cascade_source, list(result.fitted.gene_names)
    assert list(kept.fitted.gene_names) == genes
    assert kept.fitted.fingerprint == result.fitted.fingerprint
    for name in ("mean", "r"):
        ours, theirs = getattr(kept, name), getattr(source, name)
        np.testing.assert_array_equal(ours, theirs.sel(gene=genes))
    np.testing.assert_array_equal(kept.eta, source.eta.sel(cell=kept.fitted.cell_names))
    posterior = result.get_distributions()
    r = np.exp(np.asarray(posterior["r"].loc))
    assert np.corrcoef(np.log(r), np.log(result.r))[0, 1] > 0.99
    spread = np.asarray(posterior["eta"].mean)
    assert np.corrcoef(spread, result.eta)[0, 1] > 0.99
    drawn = kept.draw_frozen(["r"], 200, 0)
    medians = np.median([draw["r"] for draw in drawn], axis=0)
    assert np.corrcoef(np.log(medians), np.log(result.r))[0, 1] > 0.98


def test_new_cells_have_the_capture_of_such_a_source(turned, adata):
    _, result = turned
    renamed = adata.copy()
    renamed.obs_names = [f"new{i}" for i in range(adata.n_obs)]
    again = result.transform(renamed)["eta"].values
    assert np.sqrt(np.mean((again - result.eta.values) ** 2)) < 0.05


def test_frozen_and_matched_values_are_what_is_drawn(adata, nbvcp):
    """With marginal matching r follows the log-rate variance, so its draws are not the source's."""
    result = nbln.fit(
        adata, informative_priors_from=nbvcp, informative_priors_match="marginal", **QUICK
    )
    posterior = result.get_distributions()
    np.testing.assert_allclose(posterior["r"].mean, result.r, rtol=1e-6)
    drawn = result.draw_parameters(3, seed=0)
    np.testing.assert_allclose(drawn["r"].values[0, 0], result.r, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"priors": {"r": (0.0, 0.1)}}, r"priors=\{'r': .*informative_priors_from= sets r"),
        ({"priors": {"mu": (0.0, 0.1)}}, r"informative_priors_from= sets mu"),
        ({"priors": {"capture_efficiency": None}}, r"capture losses are those of"),
        ({"priors": {"capture_efficiency": (15.0, 0.1)}}, r"fitted with another prior"),
    ],
)
def test_priors_that_the_source_would_override(arguments, message, adata, nbvcp):
    with pytest.raises(ValueError, match=message):
        nbln.fit(adata, informative_priors_from=nbvcp, **arguments, **QUICK)


def test_priors_beside_a_source_of_starting_values(adata, nbvcp):
    rule = nbvcp.capture_rule
    nbln.fit(
        adata,
        informative_priors_from=nbvcp,
        informative_priors_tau=np.inf,
        informative_priors_freeze="eta",
        priors={"r": (0.0, 0.1), "capture_efficiency": (rule.log_m0, rule.sigma_m)},
        **QUICK,
    )
