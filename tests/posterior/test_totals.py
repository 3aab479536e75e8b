"""Totals of cells, and what turns Poisson counts with a flat offset into multinomial shares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of
from scipy import integrate, optimize, stats
from scipy.special import gammaln

from nbln.channels.poisson import Poisson
from nbln.inference.totals import fit_totals
from nbln.models.depth import UncapturedTotals
from nbln.models.lnm import LNM
from nbln.posterior import evidence, mode
from nbln.posterior.mode import Cells, Parameters
from nbln.posterior.totals import Totals, log_shares_constant
from nbln.priors.capture import KnownCapture, LatentCapture
from nbln.priors.univariate import LogNormal

TOTALS = Totals(5_000.0, 8.0)
LATENT = [
    (40.0, 4.8, 0.5),  # as expected
    (3.0, 4.0, 0.5),  # a cell with next to nothing
    (9_000.0, 0.1, 0.5),  # deeper than a cell should be: cut off at a loss of 0
    (2_000.0, 1.0, 2.0),  # a prior that says little
]


def nb(total, eta, totals=TOTALS):
    mean = totals.mean * np.exp(-eta)
    return stats.nbinom.logpmf(total, totals.r, totals.r / (totals.r + mean))


@pytest.mark.parametrize(("total", "loc", "sd"), LATENT)
def test_capture_losses_are_integrated_out(total, loc, sd):
    capture = LatentCapture(jnp.asarray([loc]), jnp.asarray([sd]))
    found = TOTALS.log_prob(np.array([total]), capture)[0]
    losses = TOTALS.capture_losses(np.array([total]), capture)
    width = float(losses.sd[0])
    prior = stats.truncnorm(-loc / sd, np.inf, loc, sd)
    low = max(float(losses.loc[0]) - 12 * width, 0.0)

    def moment(n):
        return integrate.quad(
            lambda eta: eta**n * np.exp(nb(total, eta) - found) * prior.pdf(eta),
            low, low + 24 * width, limit=400, epsabs=1e-12,
        )[0]  # fmt: skip

    assert np.log(moment(0)) == pytest.approx(0.0, abs=1e-5)
    assert losses.mean[0] == pytest.approx(moment(1) / moment(0), abs=0.15 * width)


def test_known_losses():
    eta = np.array([0.5, -0.2])
    found = TOTALS.log_prob(np.array([3_000.0, 10.0]), KnownCapture(jnp.asarray(eta)))
    np.testing.assert_allclose(found, nb(np.array([3_000, 10]), eta), rtol=1e-5)


def priors(scale=10.0):
    return {"total_mean": LogNormal(0.0, scale), "total_r": LogNormal(0.0, scale)}


@pytest.mark.parametrize("n_cells", [300, 6_000])
def test_totals_are_found(n_cells):
    rng = np.random.default_rng(0)
    totals = TOTALS.draw(rng, 0.0, n_cells).astype(float)
    capture = UncapturedTotals().of_totals(KnownCapture(jnp.zeros(n_cells)))
    found = fit_totals(totals, capture, priors())
    # Without capture and with flat priors the mean is the sample's.
    assert found.mean == pytest.approx(totals.mean(), rel=2e-3)
    assert np.log(found.r / TOTALS.r) == pytest.approx(0, abs=4 * found.r_sd)
    # Asymptotics of the mean: variance m + m²/r; of log r: Fisher information by simulation.
    expected = np.sqrt((1 / TOTALS.mean + 1 / found.r) / n_cells)
    assert found.mean_sd == pytest.approx(expected, rel=0.05)
    assert 0.8 < found.r_sd / np.sqrt(2 / n_cells) < 1.3


def test_a_prior_counts_for_few_cells():
    totals, capture = np.array([100.0, 110.0, 95.0]), KnownCapture(jnp.zeros(3))
    tight = {"total_mean": LogNormal(np.log(500.0), 1e-3), "total_r": LogNormal(0.0, 1e-3)}
    found = fit_totals(totals, capture, tight)
    assert found.mean == pytest.approx(500, rel=1e-2)
    assert found.r == pytest.approx(1, rel=1e-2)


def test_losses_centred_by_the_totals_say_that_totals_are_as_they_are():
    """Not identified: the mean is the prior's, the dispersion as large as its prior lets it."""
    totals = TOTALS.draw(np.random.default_rng(0), 0.0, 500).astype(float)
    capture = LatentCapture(jnp.asarray(np.log(1e5 / totals)), jnp.full(500, 0.5))
    found = fit_totals(totals, capture, priors(2.0) | {"total_mean": LogNormal(0.0, 10.0)})
    assert np.log(found.mean / 1e5) == pytest.approx(0, abs=0.1)
    assert found.r > 10 * TOTALS.r


# Shares

MU, W = np.array([0.5, -0.8, 0.3]), np.array([[0.6], [-0.5], [-0.1]])
D = np.array([0.2, 0.1, 0.3])


def joint_evidence(counts, dtype="float64"):
    with precision_of(dtype):
        offset, scale, columns, *_ = LNM.augment(KnownCapture(jnp.zeros(len(counts))))
        cells = Cells(
            jnp.asarray(counts), jnp.ones(len(counts)), offset, scale, jnp.zeros((len(counts), 0))
        )
        parameters = Parameters(*map(jnp.asarray, (MU, W, D)), Poisson())
        start = jnp.log(cells.counts + 0.5)
        at = mode.find(parameters, cells, columns, start)
        assert bool(jnp.all(at.converged))
        return np.asarray(evidence.evidence(parameters, cells, columns, at.f)), np.asarray(at.f)


COUNTS = np.array([[700.0, 150.0, 400.0], [3.0, 0.0, 1.0], [0.0, 1.0, 0.0], [40.0, 60.0, 0.0]])


def test_evidence_of_shares_is_laplaces_of_the_multinomial():
    """The same by Newton steps on the multinomial itself, in all log-rates, with dense algebra."""
    found = joint_evidence(COUNTS)[0] + log_shares_constant(COUNTS.sum(axis=1))
    covariance = W @ W.T + np.diag(D)
    precision = np.linalg.inv(covariance)
    with precision_of("float64"):
        for counts, value in zip(COUNTS, found, strict=True):
            constant = gammaln(counts.sum() + 1) - gammaln(counts + 1).sum()

            def loss(x, counts=counts, constant=constant):
                shares = counts @ jax.nn.log_softmax(x) + constant
                away = x - MU
                return 0.5 * away @ precision @ away - shares

            best = optimize.minimize(loss, MU, jac=jax.grad(loss), method="BFGS", tol=1e-10).x
            _, log_det = np.linalg.slogdet(np.asarray(jax.hessian(loss)(best)) @ covariance)
            assert value == pytest.approx(-float(loss(best)) - 0.5 * log_det, abs=1e-6)


def test_evidence_of_shares_is_near_their_integral():
    counts = COUNTS[[0, 3]]
    found = joint_evidence(counts)[0] + log_shares_constant(counts.sum(axis=1))
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(400_000, 4))
    x = MU + noise[:, :1] @ W.T + noise[:, 1:] * np.sqrt(D)
    log_shares = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    for one, value in zip(counts, found, strict=True):
        constant = gammaln(one.sum() + 1) - gammaln(one + 1).sum()
        exact = np.log(np.exp(log_shares @ one + constant).mean())
        # Laplace's own error over three log-rates and κ; that of the mean is below 0.02.
        assert value == pytest.approx(exact, abs=0.15)


def test_rates_at_the_mode_add_up_to_the_total():
    _, f = joint_evidence(COUNTS)
    np.testing.assert_allclose(np.exp(f).sum(axis=1), COUNTS.sum(axis=1), rtol=1e-4)


def test_float32_is_as_good_in_cells_of_tiny_and_of_large_totals():
    counts = np.vstack([COUNTS, [[2e4, 1.0, 3e3]]])
    exact, single = joint_evidence(counts)[0], joint_evidence(counts, "float32")[0]
    np.testing.assert_allclose(single, exact, rtol=1e-5, atol=2e-2)
