"""Loadings priors: their updates are the conditional modes of their own densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of
from scipy import stats

from nbln.options import Priors
from nbln.priors.columnwise import Flat, Gaussian, HorseshoeColumnwise, NegColumnwise
from nbln.priors.loadings import Entries
from nbln.priors.shrinkage import Shrinkage
from nbln.priors.sparse import HorseshoeSparse
from nbln.registry import LOADINGS_PRIORS, find

FLOOR = Shrinkage().smallest_scale

N_GENES = 80
NORMS = np.array([300.0, 60.0, 4.0, 0.3])
LEARNED = {
    "horseshoe": HorseshoeColumnwise(tau_scale=0.7),
    "neg": NegColumnwise(alpha=2.0, beta=1.5),
}


def hyper_density(prior, scales):
    """Log-density of the scales, by SciPy."""
    if isinstance(prior, HorseshoeColumnwise):
        return stats.halfcauchy.logpdf(
            scales["lambda"], scale=scales["tau"]
        ).sum() + stats.halfcauchy.logpdf(scales["tau"], scale=prior.tau_scale)
    return stats.expon.logpdf(scales["psi"], scale=1 / scales["gamma"]).sum() + stats.gamma.logpdf(
        scales["gamma"], prior.alpha, scale=1 / prior.beta
    )


def entries(norms):
    """Loadings whose centred columns have these squared norms."""
    sign = jnp.where(jnp.arange(N_GENES) % 2 == 0, 1.0, -1.0)
    return sign[:, None] * jnp.sqrt(jnp.asarray(norms) / N_GENES)


def joint(prior, scales, norms):
    return float(prior.log_density(entries(norms), scales)) + hyper_density(prior, scales)


@pytest.mark.parametrize("name", LEARNED)
def test_the_fixed_point_of_updates_is_a_stationary_maximum(name):
    prior = LEARNED[name]
    with precision_of("float64"):
        norms = jnp.asarray(NORMS)
        scales = prior.start(norms, N_GENES)
        update = jax.jit(lambda scales: prior.update(scales, norms, N_GENES))
        for _ in range(500):
            scales = update(scales)
        scales = {site: np.asarray(value) for site, value in scales.items()}
        here = joint(prior, scales, norms)
        h = 1e-4
        for site, value in scales.items():
            for i in np.ndindex(value.shape):
                values = []
                for sign in (1, -1):
                    moved = dict(scales)
                    moved[site] = np.array(value)
                    moved[site][i] *= np.exp(sign * h)
                    values.append(joint(prior, moved, norms))
                up, down = values
                curvature = -(up - 2 * here + down) / h**2
                assert curvature > 0, site
                # In units of the density's own width: how far from the maximum.
                assert abs(up - down) / (2 * h) < 1e-3 * curvature, (site, i)


@pytest.mark.parametrize("name", LEARNED)
def test_an_update_never_lowers_the_joint_density(name):
    prior = LEARNED[name]
    with precision_of("float64"):
        norms = jnp.asarray(NORMS)
        scales = jax.tree.map(lambda x: 5 * x, prior.start(norms, N_GENES))
        before = joint(prior, scales, norms)
        for _ in range(5):
            scales = prior.update(scales, norms, N_GENES)
            now = joint(prior, scales, norms)
            assert now >= before - 1e-9
            before = now


@pytest.mark.parametrize("name", LEARNED)
def test_an_empty_column_falls_to_the_floor_and_no_further(name):
    prior = LEARNED[name]
    norms = jnp.array([100.0, 0.0])
    scales = prior.update(prior.start(norms, N_GENES), norms, N_GENES)
    sd = prior.column_sd(scales, 2)
    assert float(sd[1]) == pytest.approx(FLOOR, rel=1e-4)
    assert np.isfinite(np.asarray(prior.log_density(entries(norms), scales)))


def given(**parameters):
    """The loadings prior of `nbln.fit`."""
    return Priors.of(find("nbln"), {"loadings": parameters}).loadings


@pytest.mark.parametrize(
    ("kind", "floor", "value", "other", "shared"),
    [
        ("horseshoe_columnwise", "lambda_min", 5e-3, "tau_min", "tau"),
        ("horseshoe_sparse", "lambda_min", 5e-3, "tau_min", "tau"),
        ("neg_columnwise", "psi_min", 2.5e-5, "gamma_min", "gamma"),
    ],
)
def test_arguments_of_scales_are_kept(kind, floor, value, other, shared):
    norms = jnp.array([100.0, 0.0])
    plain = given(type=kind)
    scales = plain.update(plain.start(norms, N_GENES), norms, N_GENES)
    least = 5 * plain.named(scales)[shared]
    prior = given(type=kind, init_scale=3.0, **{floor: value, other: least})
    assert prior.shrinkage.smallest_scale == pytest.approx(5e-3)
    start = prior.start(norms, N_GENES)
    np.testing.assert_allclose(
        prior.column_sd(start, 2), 3 * plain.column_sd(plain.start(norms, N_GENES), 2), rtol=1e-6
    )
    scales = prior.update(start, norms, N_GENES)
    assert float(prior.column_sd(scales, 2)[1]) == pytest.approx(5e-3, rel=1e-4)
    assert prior.named(scales)[shared] == pytest.approx(least, rel=1e-6)


def test_log_density_is_the_formula():
    scales = {"lambda": jnp.array([0.5, 2.0]), "tau": jnp.array(1.0)}
    norms = jnp.array([3.0, 7.0])
    ours = HorseshoeColumnwise().log_density(entries(norms), scales)
    sd = np.asarray(scales["lambda"])
    expected = np.sum(-np.asarray(norms) / (2 * sd**2) - (N_GENES - 1) * np.log(sd))
    assert float(ours) == pytest.approx(expected, rel=1e-5)


def test_scales_have_the_names_of_the_field():
    assert Flat().named({}) == {}
    assert Gaussian(0.5).named({}) == {"scale": 0.5}
    scales = {"psi": jnp.array([4.0, 9.0]), "gamma": jnp.array(2.0)}
    named = LEARNED["neg"].named(scales)
    assert named["gamma"] == 2.0
    np.testing.assert_array_equal(named["psi_k"], [4.0, 9.0])


def test_the_variance_of_neg_is_what_its_sites_say():
    prior = LEARNED["neg"]
    scales = {"psi": jnp.array([4.0, 9.0]), "gamma": jnp.array(1.0)}
    np.testing.assert_allclose(prior.column_sd(scales, 2), [2.0, 3.0])


@pytest.mark.parametrize("prior", [Flat(), Gaussian(0.5)], ids=["flat", "gaussian"])
def test_priors_without_unknowns(prior):
    norms = jnp.asarray(NORMS)
    assert prior.start(norms, N_GENES) == {}
    assert prior.update({}, norms, N_GENES) == {}
    assert prior.sites(4) == ()


def test_flat_does_not_shrink():
    assert np.all(np.isinf(Flat().column_sd({}, 3)))
    assert float(Flat().log_density(entries(NORMS), {})) == 0


@pytest.mark.parametrize("name", LOADINGS_PRIORS)
def test_sites_have_the_shapes_of_the_scales(name):
    prior = LOADINGS_PRIORS[name]()
    scales = prior.start(jnp.asarray(NORMS), N_GENES)
    drawn = {}
    for site in prior.sites(4):
        drawn[site.name] = site.distribution(drawn).sample(jax.random.key(0))
        assert drawn[site.name].shape == (4,) * len(site.dims)
    assert {n: x.shape for n, x in drawn.items()} == {n: x.shape for n, x in scales.items()}


SHAPE = {
    "lambda": jnp.array([0.5, 0.3]),
    "tau": jnp.array(1.0),
    "inclusion": jnp.array([0.2, 0.4]),
    "spike": jnp.array([0.05, 0.3]),
    "centre": jnp.zeros(2),
}


def test_spike_and_slab_have_the_variance_of_the_column():
    slab, spike = HorseshoeSparse().variances(SHAPE)
    total = SHAPE["inclusion"] * slab + (1 - SHAPE["inclusion"]) * spike
    np.testing.assert_allclose(total, SHAPE["lambda"] ** 2, rtol=1e-6)


def under_gaussian_prior(seen, error, precision, centre):
    """The posterior that the engine finds from an estimate, under a Gaussian prior."""
    variance = 1 / (1 / error**2 + precision)
    mean = variance * (seen / error**2 + precision * centre)
    return Entries(*(jnp.asarray(x) for x in (mean, variance, centre, precision)))


def test_entries_have_the_mean_of_spike_and_slab():
    """Against quadrature of the exact posterior of each entry."""
    rng = np.random.default_rng(0)
    shape = (40, 2)
    seen, error = rng.normal(0, 0.6, shape), rng.uniform(0.05, 0.4, shape)
    centre = np.array([0.1, -0.2])
    with precision_of("float64"):
        rows = under_gaussian_prior(seen, error, rng.uniform(1, 30, shape), centre)
        prior = HorseshoeSparse()
        _, precision, _ = prior.sharpen(SHAPE, rows)
        member = prior.membership(SHAPE, rows)
        again = under_gaussian_prior(seen, error, np.asarray(precision), centre)
        slab, spike = (np.asarray(v) for v in prior.variances(SHAPE))
    share = np.asarray(SHAPE["inclusion"])
    w = np.linspace(-6, 6, 60_001)[:, None, None]
    parts = [
        p * stats.norm.pdf(w, centre, np.sqrt(v)) * stats.norm.pdf(seen, w, error)
        for p, v in ((share, slab), (1 - share, spike))
    ]
    both = parts[0] + parts[1]
    np.testing.assert_allclose(again.mean, (w * both).sum(axis=0) / both.sum(axis=0), atol=1e-7)
    np.testing.assert_allclose(member, parts[0].sum(axis=0) / both.sum(axis=0), atol=1e-7)


def drawn(share, spike_sd, n_genes=20_000, error=0.1, seed=1):
    rng = np.random.default_rng(seed)
    member = rng.random((n_genes, 1)) < share
    w = np.where(member, rng.normal(0, 0.6, (n_genes, 1)), rng.normal(0, spike_sd, (n_genes, 1)))
    return w + rng.normal(0, error, w.shape), np.full_like(w, error)


@pytest.mark.parametrize(
    ("share", "spike_sd"), [pytest.param(0.3, 0.05, marks=pytest.mark.slow), (0.1, 0.1)]
)
def test_the_shape_of_a_column_is_learned(share, spike_sd):
    prior = HorseshoeSparse()
    seen, error = drawn(share, spike_sd)
    norms = jnp.sum(jnp.asarray(seen) ** 2, axis=0)
    scales, precision = prior.start(norms, len(seen)), np.ones_like(seen)
    for _ in range(200):
        rows = under_gaussian_prior(seen, error, precision, np.zeros(1))
        shape, precision, norms = prior.sharpen(scales, rows)
        scales = prior.update(scales, norms, len(seen)) | shape
    slab, spike = prior.variances(scales)
    assert float(scales["inclusion"][0]) == pytest.approx(share, abs=0.04)
    assert float(jnp.sqrt(slab[0])) == pytest.approx(0.6, abs=0.05)
    assert float(jnp.sqrt(spike[0])) == pytest.approx(spike_sd, abs=0.03)


def test_a_column_of_noise_vanishes_and_does_not_come_back():
    prior = HorseshoeSparse()
    rng = np.random.default_rng(2)
    seen, error = rng.normal(0, 0.1, (300, 1)), np.full((300, 1), 0.1)
    scales = prior.start(jnp.sum(jnp.asarray(seen) ** 2, axis=0), 300)
    rows = under_gaussian_prior(seen, error, np.full_like(seen, 50.0), np.zeros(1))
    shape, _, norms = prior.sharpen(scales, rows)
    assert float(norms[0]) == 0
    scales = prior.update(scales, norms, 300) | shape
    assert float(scales["lambda"][0]) == pytest.approx(FLOOR, rel=1e-4)
    strong, error = drawn(0.3, 0.05, 300)
    rows = under_gaussian_prior(strong, error, np.full_like(strong, 50.0), np.zeros(1))
    assert float(prior.sharpen(scales, rows)[2][0]) == 0
