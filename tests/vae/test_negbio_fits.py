"""Fits of auto-encoders with a code: what goes in, what comes out, what is refused."""

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from negbio_data import EVERY_CODE, FEATURES, N, data, fit

import nbln
from nbln.data.samples import REAL, Samples
from nbln.vae.negbio import classify


@pytest.fixture(scope="module")
def images():
    return data("gaussian").reshape(N, 3, 4)


@pytest.fixture(scope="module")
def result(images):
    return fit(images)


@pytest.fixture(scope="module")
def counted():
    return fit(data("nb"), likelihood="nb")


def slow(*words):
    """A parameter that takes long."""
    return pytest.param(*words, marks=pytest.mark.slow)


@pytest.mark.parametrize("code", ["nb", *map(slow, EVERY_CODE[1:])])
def test_every_code_answers(code, images, tmp_path):
    made = fit(images, code=code)
    k = made.network.code.n_values * 3
    assert made.get_latent().shape == (N, k)
    assert made.reconstruct().shape == made.reconstruct(n_samples=0).shape == (N, FEATURES)
    assert made.sample_prior(5, noise=True).shape == (5, FEATURES)
    assert np.isfinite(made.score(images)).all()
    assert np.isfinite(made.get_map()["z_sd"]).all()
    assert code in repr(made)
    made.save(tmp_path / "fit.nc")
    loaded = nbln.load(tmp_path / "fit.nc")
    np.testing.assert_array_equal(loaded.score(images, 3), made.score(images, 3))
    np.testing.assert_array_equal(loaded.get_latent(), made.get_latent())
    assert loaded.shape == (3, 4)
    assert dict(made.story())["Training"] == "3 epochs with all samples; the last is kept"


@pytest.mark.parametrize("likelihood", ["gaussian", "nb", slow("bernoulli"), slow("poisson")])
@pytest.mark.parametrize("sparse", [False, True])
def test_an_anndata_is_as_good_as_an_array(likelihood, sparse):
    x = data(likelihood)
    adata = anndata.AnnData(sp.csr_matrix(x) if sparse else x)
    one, two = fit(adata, likelihood=likelihood), fit(x, likelihood=likelihood)
    np.testing.assert_array_equal(one.get_latent().values, two.get_latent().values)
    np.testing.assert_array_equal(one.score(adata).values, two.score(x).values)
    assert one.fitted.counted == (likelihood in ("poisson", "nb"))


def test_what_is_taken_for_which_data():
    assert fit(anndata.AnnData(data("nb"))).architecture.likelihood == "nb"
    assert fit(data("nb")).architecture.likelihood == "gaussian"


def test_features_without_counts_stay_in_an_image():
    x = data("nb")
    x[:, 3] = 0
    made = fit(x.reshape(N, 3, 4), likelihood="poisson")
    assert made.shape == (3, 4)
    assert made.reconstruct(x).shape == x.shape


def test_a_seed_decides_the_numbers(images, result):
    again, other = fit(images), fit(images, seed=1)
    np.testing.assert_array_equal(again.history, result.history)
    np.testing.assert_array_equal(again.get_latent_counts(), result.get_latent_counts())
    assert not np.array_equal(other.get_latent(), result.get_latent())


@pytest.mark.parametrize(
    ("elbo", "word"),
    [
        ("dispersion_sharing", "continuous_time"),
        ("exact", "gumbel"),
        slow("monte_carlo", "gumbel"),
        slow("exact", "continuous_time"),
    ],
)
def test_dispersions(images, elbo, word):
    made = fit(images, elbo=elbo, reparameterization=word)
    found = made.get_dispersion()
    r, mean = found["prior_r"], found["prior_mean"]
    np.testing.assert_allclose(found["prior_variance"], mean + mean**2 / r, rtol=1e-5)
    np.testing.assert_allclose(found["prior_index"], 1 + mean / r, rtol=1e-5)
    shared = np.allclose(found["posterior_r"], r)
    assert shared == (elbo == "dispersion_sharing")
    drawn = np.stack([made.get_latent_counts(seed=s) for s in range(200)]).astype(float)
    assert np.issubdtype(made.get_latent_counts().dtype, np.integer)
    total = drawn.reshape(-1, drawn.shape[-1])
    np.testing.assert_allclose(total.mean(axis=0), found["aggregated_mean"], rtol=0.1)
    np.testing.assert_allclose(total.var(axis=0), found["aggregated_variance"], rtol=0.2)


def test_poisson_codes_are_not_overdispersed(images):
    found = fit(images, code="poisson").get_dispersion()
    np.testing.assert_allclose(found["prior_index"], 1, rtol=1e-6)
    assert np.isinf(found["prior_r"]).all()


def test_more_draws_are_a_tighter_bound(images, result):
    one = float(np.mean([result.score(images, seed=s) for s in range(20)]))
    many = result.score(images, n_samples=50)
    assert many.name == "importance_weighted_bound"
    assert result.score(images).name == "elbo"
    assert float(many.mean()) > one
    assert result.get_elbo(n_samples=20)["elbo"] == pytest.approx(one, abs=0.3)


def groups():
    """Samples of two groups that are far apart."""
    x = np.random.default_rng(0).normal(size=(80, 6)) * 0.1
    labels = np.arange(80) % 2
    x[labels == 1] += 2
    return x, labels


def test_few_shots_tell_groups(images, result):
    x, labels = groups()
    assert classify.accuracy(x, labels, 10, seed=0) > 0.9
    own = np.arange(N) % 2
    assert 0 <= result.few_shot_accuracy(own, n_shots=5) <= 1
    assert 0 <= result.few_shot_accuracy(own[:20], n_shots=5, adata=images[:20]) <= 1
    for wrong, shots, message in (
        (own[:3], 2, "one label for each of 40"),
        (np.zeros(N), 2, "single label"),
        (own, 20, "label '0' has 20 samples"),
    ):
        with pytest.raises(ValueError, match=message):
            result.few_shot_accuracy(wrong, n_shots=shots)


def test_a_code_learns_to_tell_groups():
    x, labels = groups()
    config = nbln.NegBioConfig(n_epochs=60, n_hidden=16, batch_size=20, learning_rate=5e-3)
    made = fit(x, negbio=config)
    assert made.few_shot_accuracy(labels, n_shots=10) > 0.9
    history = made.history["elbo_train"]
    assert history.iloc[-5:].mean() > history.iloc[:5].mean() + 5


def test_the_objective_is_remembered(images):
    config = nbln.NegBioConfig(n_epochs=2, n_hidden=8, objective="published", beta=0.5)
    settings = fit(images, negbio=config).fitted.settings
    assert (settings["objective"], settings["beta"]) == ("published", 0.5)


def test_checks_are_of_counts(result, counted):
    assert counted.check(n_samples=3).sizes["gene"] == FEATURES
    assert "misfit_mean" in counted.summary().index
    assert counted.to_datatree(3, 2)["log_likelihood"]["counts"].shape == (1, 3, N)
    mean, variance = counted.get_count_moments()
    assert (variance > mean).all()
    for asked in (result.check, result.get_ppc_samples, result.to_datatree):
        with pytest.raises(ValueError, match="this fit is of other numbers"):
            asked()
    assert "misfit_mean" not in result.summary().index
    with pytest.raises(ValueError, match="this figure is of counts"):
        nbln.pl.plot_mean_variance(result)


def test_codes_that_are_no_counts_have_none(images):
    made = fit(images, code="gaussian")
    for asked in (made.get_latent_counts, made.get_dispersion):
        with pytest.raises(ValueError, match=r"code of this fit is gaussian, which is no count"):
            asked()


def test_other_data_are_refused(result, images):
    assert result.fitted.data(images) is not None
    with pytest.raises(ValueError, match="not the data of this fit: the same names, other"):
        result.fitted.data(images + 1)
    with pytest.raises(ValueError, match=r"score\(x\): 8 of the 12 features .* first \"4\""):
        result.score(images[:, 0])
    with pytest.raises(ValueError, match=r"transform\(x\): 13 features, but the fit had 12"):
        result.transform(np.zeros((3, 13)))
    assert result.transform(images[:1])["z"].shape == (1, 3)


NONSENSE = {
    "a list": ({"x": [[1.0, 2.0]]}, TypeError, r"fit\(x\): got a list; pass an array"),
    "words": ({"x": np.array([["a", "b"]])}, TypeError, r"has dtype <U1"),
    "one axis": ({"x": np.ones(4)}, ValueError, r"shape \(4,\)"),
    "one sample": ({"x": np.ones((1, 4))}, ValueError, "a single sample"),
    "not a number": (
        {"x": np.array([[1, 2], [3, np.nan]])}, ValueError, r'sample "1", feature "1" is nan',
    ),
    "too large": ({"x": np.array([[1, 2], [3, 1e60]])}, ValueError, r"is 1e\+60; must hold finite"),
    "above one": ({"x": 2 * np.ones((3, 4)), "likelihood": "bernoulli"}, ValueError, "from 0 to 1"),
    "no counts": ({"x": np.full((3, 4), 0.5), "likelihood": "nb"}, ValueError, "counts are whole"),
    "a layer": ({"x": np.ones((3, 4)), "layer": "raw"}, ValueError, "an array has no layers"),
    "a layer of counts": (
        {"x": np.ones((3, 4)), "layer": "raw", "likelihood": "nb"}, ValueError, "no layers",
    ),
    "coverage": ({"x": np.ones((3, 4)), "gene_coverage": 0.9}, ValueError, "only counts in an"),
    "code": ({"code": "binary"}, ValueError, r"code='binary'\).*nb, poisson, gaussian"),
    "elbo": ({"elbo": "mc"}, ValueError, r"elbo='mc'\).*dispersion_sharing, monte_carlo, exact"),
    "way": ({"reparameterization": "st"}, ValueError, r"'st'\).*gumbel, continuous_time"),
    "likelihood": ({"likelihood": "zinb"}, ValueError, r"'zinb'\).*gaussian, poisson, nb, bern"),
    "elbo of others": ({"code": "gaussian", "elbo": "monte_carlo"}, ValueError, "has one form"),
    "priors": ({"priors": {"r": (0, 1)}}, ValueError, r"negbio_vae has none to set"),
    "config": ({"negbio": nbln.VAEConfig()}, TypeError, r"NegBioConfig.*got VAEConfig"),
    "of scvi": ({"gene_likelihood": "poisson"}, ValueError, "negbio_vae does not use it"),
    "latents": ({"latent_dim": 0}, ValueError, r"latent_dim=0\): must be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("what", NONSENSE)
def test_nonsense_is_named(what):
    keywords, error, message = NONSENSE[what]
    with pytest.raises(error, match=message):
        fit(**{"x": np.ones((3, 4)), **keywords})


def test_an_array_is_for_this_model_alone():
    with pytest.raises(TypeError, match=r"fit\(adata\): got a ndarray"):
        nbln.fit(np.ones((3, 4)), model="scvi")


def test_samples_are_a_copy():
    x = np.ones((3, 4), np.float32)
    made = Samples.of(x, REAL)
    x[:] = 7
    np.testing.assert_array_equal(made.rows(slice(None)), 1)
    assert repr(made) == "Samples(3 samples × 4 features)"
    assert made.fingerprint != Samples.of(x, REAL).fingerprint


def test_a_fit_goes_on_from_its_checkpoint(images, tmp_path):
    whole = fit(images)
    again = fit(images, checkpoint=tmp_path / "run.ckpt")
    np.testing.assert_array_equal(whole.history, again.history)
