"""Loadings priors: their updates are the conditional modes of their own densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of
from scipy import stats

from nbln.priors.loadings import (
    FLOOR,
    LOADINGS_PRIORS,
    Flat,
    Gaussian,
    HorseshoeColumnwise,
    NegColumnwise,
)

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


def joint(prior, scales, norms):
    return float(prior.log_density(norms, scales, N_GENES)) + hyper_density(prior, scales)


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
    assert np.isfinite(np.asarray(prior.log_density(norms, scales, N_GENES)))


def test_log_density_is_the_formula():
    scales = {"lambda": jnp.array([0.5, 2.0]), "tau": jnp.array(1.0)}
    norms = jnp.array([3.0, 7.0])
    ours = HorseshoeColumnwise().log_density(norms, scales, N_GENES)
    sd = np.asarray(scales["lambda"])
    expected = np.sum(-np.asarray(norms) / (2 * sd**2) - (N_GENES - 1) * np.log(sd))
    assert float(ours) == pytest.approx(expected, rel=1e-5)


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
    assert float(Flat().log_density(jnp.asarray(NORMS), {}, N_GENES)) == 0


@pytest.mark.parametrize("name", LOADINGS_PRIORS)
def test_sites_have_the_shapes_of_the_scales(name):
    prior = LOADINGS_PRIORS[name]()
    scales = prior.start(jnp.asarray(NORMS), N_GENES)
    drawn = {}
    for site, distribution in prior.sites(4):
        drawn[site] = distribution(drawn).sample(jax.random.key(0))
    assert {n: x.shape for n, x in drawn.items()} == {n: x.shape for n, x in scales.items()}
