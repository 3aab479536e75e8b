"""New cells: their factors, their evidence against slow references, and models compared by it."""

import dataclasses

import equinox as eqx
import numpy as np
import pytest
from scipy import integrate, stats

import nbln
from nbln.distributions import NegativeBinomialLogNormal

QUIET = dict(progress=False)


@pytest.fixture(scope="module")
def split():
    """NBLN cells with dispersions around 1, to fit and to hold out."""
    return halves(0.0, 11)


def halves(mean_log_dispersion, seed):
    adata = nbln.datasets.simulate(600, 120, 3, mean_log_dispersion=mean_log_dispersion, seed=seed)
    return adata[:400].copy(), adata[400:].copy()


@pytest.fixture(scope="module")
def fits(split):
    full = nbln.fit(split[0], **QUIET)
    pln = nbln.fit(split[0], model="pln", **QUIET)
    return {"nbln": full, "pln": pln, "nbvcp": full.cascade_source}


def test_the_model_of_the_data_wins(fits, split):
    table = nbln.compare(fits, split[1])
    assert table.index[0] == "nbln"
    others = table.iloc[1:]
    assert (others["difference"] < -2 * others["standard_error"]).all(), table
    assert table.index[table["chosen"]].tolist() == ["nbln"]
    # μ, d and r of each gene, and no more loadings than columns that carry signal have.
    rank = fits["nbln"].w_prior_diagnostics["effective_rank"]
    assert 120 * 3 < table.loc["nbln", "n_parameters"] < 120 * (3 + rank)
    assert table.loc["nbvcp", "n_parameters"] == 120 * 2


def test_of_models_that_score_alike_the_smallest_is_chosen(fits, split):
    """The same fit twice, one with a covariate that means nothing."""
    adata = split[0].copy()
    adata.obs["batch"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    held_out = split[1].copy()
    held_out.obs["batch"] = np.where(np.arange(held_out.n_obs) % 2, "a", "b")
    larger = nbln.fit(adata, formula="~ batch", **QUIET)
    table = nbln.compare({"larger": larger, "smaller": fits["nbln"]}, held_out)
    assert table.index[table["chosen"]].tolist() == ["smaller"], table


@pytest.mark.slow
def test_nbln_is_not_worse_where_counts_are_poisson():
    train, held_out = halves(20.0, 31)
    fits = {model: nbln.fit(train, model=model, **QUIET) for model in ("nbln", "pln")}
    difference = np.asarray(fits["nbln"].score(held_out)) - np.asarray(fits["pln"].score(held_out))
    error = difference.std() * np.sqrt(len(difference))
    assert difference.sum() > -2 * error


def test_importance_sampling_agrees_with_laplace(fits, split):
    for result in fits.values():
        laplace = np.asarray(result.score(split[1][:20]))
        sampled = np.asarray(result.score(split[1][:20], n_samples=400))
        # The Laplace evidence errs by a few tenths of a nat a cell.
        np.testing.assert_allclose(laplace, sampled, atol=1.0)


def test_evidence_of_independent_genes_is_an_integral(fits, split):
    """η alone is integrated out, which quadrature does exactly."""
    source, cells = fits["nbvcp"], split[1][:3].copy()
    found = np.asarray(source.score(cells, n_samples=4000))
    mean, r = np.asarray(source.mean, np.float64), np.asarray(source.r, np.float64)
    rule = source.capture_rule
    X = np.asarray(cells[:, source.fitted.gene_names].X.todense())
    for u, ours in zip(X, found, strict=True):
        loc = rule.log_m0 - np.log(u.sum())
        prior = stats.truncnorm(-loc / rule.sigma_m, np.inf, loc, rule.sigma_m)

        def log_joint(eta, u=u, prior=prior):
            m = mean * np.exp(-eta)
            return stats.nbinom.logpmf(u, r, r / (r + m)).sum() + prior.logpdf(eta)

        grid = np.linspace(max(loc - 4, 0), loc + 4, 4001)
        values = np.array([log_joint(eta) for eta in grid])
        top = values.max()
        exact = top + np.log(integrate.trapezoid(np.exp(values - top), grid))
        assert ours == pytest.approx(exact, abs=0.02)


def test_evidence_of_a_gene_is_its_marginal(fits, split):
    """Without factors and with known offsets the genes are independent: quadrature of each."""
    train, test = split
    result = nbln.fit(
        train,
        informative_priors_from=False,
        priors={"capture_efficiency": None},
        latent_dim=1,
        n_steps=2,
        **QUIET,
    )
    parameters = eqx.tree_at(lambda p: p.W, result.parameters, replace_fn=np.zeros_like)
    result = dataclasses.replace(result, parameters=parameters)
    cells = test[:4].copy()
    scores = np.asarray(result.score(cells, n_samples=50))
    X = np.asarray(cells.X.todense())[:, np.isin(cells.var_names, result.fitted.gene_names)]
    rule = result.capture_rule
    mu, d, r = parameters.mu, parameters.d, result.r.values
    for u, ours in zip(X, scores, strict=True):
        offset = np.log(u.sum()) - rule.log_library
        one = NegativeBinomialLogNormal(mu + offset, np.sqrt(d), r)
        assert ours == pytest.approx(float(one.log_prob(u).sum()), abs=0.05)


def test_cells_of_the_fit_get_what_they_have(fits, split):
    for name in ("nbln", "pln"):
        found = fits[name].transform(split[0])
        np.testing.assert_allclose(found["z"], fits[name].get_latent(), atol=2e-3)
        np.testing.assert_allclose(found["eta"], fits[name].eta, atol=1e-4)


def test_the_same_cells_under_other_names_nearly_so(fits, split):
    other = split[0].copy()
    other.obs_names = [f"new{i}" for i in range(other.n_obs)]
    found = fits["nbln"].transform(other)
    # Their capture losses are found anew, well within their posterior standard deviation.
    assert np.abs(found["eta"].values - fits["nbln"].eta.values).max() < 0.1
    assert np.abs(found["z"].values - fits["nbln"].get_latent().values).max() < 0.1


def test_genes_are_matched_by_name(fits, split):
    test = split[1]
    shuffled = test[:, np.random.default_rng(0).permutation(test.n_vars)].copy()
    result = fits["nbln"]
    np.testing.assert_allclose(result.score(test), result.score(shuffled), rtol=1e-5)
    with pytest.raises(ValueError, match="gene7"):
        result.score(test[:, test.var_names != "gene7"].copy())


def test_extra_genes_are_left_out(fits, split):
    train, test = split
    kept = train[:, :100].copy()
    result = nbln.fit(kept, model="nbvcp", n_steps=50, **QUIET)
    np.testing.assert_allclose(result.score(test[:, :100].copy()), result.score(test), rtol=1e-5)


def test_pooled_genes_are_pooled_again(split):
    train, test = split
    result = nbln.fit(train, model="nbvcp", gene_coverage=0.8, n_steps=50, **QUIET)
    assert result.fitted.has_other
    assert np.isfinite(result.score(test)).all()


def test_models_of_other_genes_are_not_compared(fits, split):
    other = nbln.fit(split[0][:, :100].copy(), model="nbvcp", n_steps=50, **QUIET)
    with pytest.raises(ValueError, match="different genes"):
        nbln.compare({"a": fits["nbln"], "b": other}, split[1])
    with pytest.raises(ValueError, match="give a dict"):
        nbln.compare({}, split[1])


def test_missing_genes_are_named_before_cells_that_are_empty_in_the_others(fits, split):
    few = split[1][:, :3].copy()
    few.X = few.X.toarray()
    few.X[0] = 0
    with pytest.raises(ValueError, match=r"score\(adata\): .* genes of the fit are not in it"):
        fits["nbln"].score(few)


def test_depths_of_the_population_are_integrated_over(fits, split):
    """A new cell's loss is like those of the fit: a truncated normal with their moments."""
    result, some = fits["nbvcp"], split[1][:3].copy()
    found = result.score(some, depth="population").values
    located, eta = result.parameters, result.eta.values.astype(np.float64)
    log_mean = np.asarray(located.mu, np.float64)
    r = np.exp(np.asarray(located.channel.log_r, np.float64))
    prior = stats.truncnorm(-eta.mean() / eta.std(), np.inf, eta.mean(), eta.std())
    for counts, ours in zip(np.asarray(some.X.todense()), found, strict=True):

        def density(loss, counts=counts, ours=ours):
            mean = np.exp(log_mean - loss)
            nats = stats.nbinom.logpmf(counts, r, r / (r + mean)).sum()
            return np.exp(nats - ours + prior.logpdf(loss))

        range_ = eta.mean() - 8 * eta.std(), eta.mean() + 8 * eta.std()
        mass = integrate.quad(density, max(range_[0], 0), range_[1], limit=200)[0]
        np.testing.assert_allclose(mass, 1, atol=2e-3)
