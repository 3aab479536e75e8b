"""Which genes need a gate; evidence and capture losses of cells where genes have gates."""

import anndata
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

import nbln
from nbln import registry
from nbln.channels.zero_inflated import ZeroInflated
from nbln.models.zinb import ZINB
from nbln.posterior import losses
from nbln.posterior.mode import Cells
from nbln.priors.capture import CaptureRule, LatentCapture

N_CELLS, N_GENES, N_GATED = 400, 80, 20
QUIET = dict(progress=False)


def simulated(seed, n_gated):
    """Counts of independent genes, the first of which have gates."""
    rng = np.random.default_rng(seed)
    mean, r = np.exp(rng.normal(1.0, 1.0, N_GENES)), np.exp(rng.normal(1.0, 0.7, N_GENES))
    gate = np.where(np.arange(N_GENES) < n_gated, 0.4, 0.0)
    depth = np.exp(rng.normal(0, 0.3, N_CELLS))
    counts = rng.poisson(rng.gamma(r, mean / r * depth[:, None], (N_CELLS, N_GENES)))
    counts = counts * (rng.random(counts.shape) >= gate)
    counts[:, -1] += 1  # no empty cell
    return anndata.AnnData(counts.astype(np.float32))


@pytest.fixture(scope="module")
def gated():
    return simulated(0, N_GATED)


@pytest.fixture(scope="module")
def fits(gated):
    return {m: nbln.fit(gated[:300].copy(), model=m, **QUIET) for m in ("nbvcp", "zinbvcp")}


@pytest.fixture(scope="module")
def found(fits):
    return fits["zinbvcp"].get_gate()


def test_gates_are_found(found):
    assert set(found) == {"mean", "sd", "log_ratio", "p_value", "q_value", "needed"}
    needed = found["needed"].values
    assert needed[:N_GATED].mean() >= 0.6
    assert needed[N_GATED:].mean() <= 0.05
    seen = found["mean"].values[:N_GATED][needed[:N_GATED]]
    assert abs(seen.mean() - 0.4) < 0.06
    assert found["mean"].values[N_GATED:].mean() < 0.1
    assert (found["sd"] > 0).all()


def test_held_out_cells_prefer_the_model_of_the_data(fits, gated):
    table = nbln.compare(fits, gated[300:].copy())
    assert table.index[0] == "zinbvcp"
    assert table.loc["nbvcp", "difference"] < -2 * table.loc["nbvcp", "standard_error"]


@pytest.mark.slow
def test_p_values_hold_where_there_are_no_gates():
    """At most 5 % of them are below .05, chance allowed for, and none is called."""
    p = []
    for seed in (1, 2):
        fit = nbln.fit(simulated(seed, 0), model="zinb", **QUIET)
        tested = fit.get_gate()
        assert tested["needed"].sum() <= 1
        p.append(tested["p_value"].values)
    p = np.concatenate(p)
    # 2.6 standard deviations of a binomial above 5 %.
    assert (p < 0.05).mean() < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / len(p))
    assert 0.4 < (p == 1).mean() < 0.85


def log_likelihood(x, u, depth):
    log_mean, log_r, logit = x
    r, gate = np.exp(log_r), special.expit(logit)
    counted = stats.nbinom.pmf(u, r, r / (r + np.exp(log_mean) * depth))
    return np.log(np.where(u == 0, gate, 0) + (1 - gate) * counted).sum()


def test_ratios_are_those_of_a_general_optimiser(fits, found):
    fit = fits["zinbvcp"]
    depth = np.exp(-fit.eta.values.astype(float))
    rows = fit.fitted.data().rows(slice(None))
    for gene in (0, 3, 30, 50):
        u = rows[:, gene]

        def best(starts, u=u, **fixed):
            values = []
            for start in starts:
                search = optimize.minimize(
                    lambda x: -log_likelihood([*x, *fixed.get("logit", ())], u, depth),
                    start,
                    method="Nelder-Mead",
                    options={"maxiter": 4000, "xatol": 1e-6, "fatol": 1e-8},
                )
                values.append(-search.fun)
            return max(values)

        level = np.log(u.sum() / depth.sum())
        without = best([(level, 0.0), (level, 2.0)], logit=(-40.0,))
        with_gate = best([(level, 0.0, -4.0), (level + 0.5, 2.0, -0.5)])
        exact = max(with_gate - without, 0)
        assert float(found["log_ratio"][gene]) == pytest.approx(exact, abs=0.1), gene


def test_evidence_with_gates_is_an_integral():
    """Few genes with large gates, so that the posterior of η may have two modes."""
    log_mean, r, gate = np.log([30.0, 80.0, 5.0]), np.array([2.0, 20.0, 1.0]), [0.3, 0.6, 0.01]
    counts = np.array([[0, 40, 1], [25, 0, 0], [0, 0, 2], [400, 900, 90], [1, 0, 0]], float)
    loc = np.array([1.0, 0.8, 1.2, 0.05, 2.0])
    capture = LatentCapture(jnp.asarray(loc, jnp.float32), jnp.full(len(loc), 0.5))
    channel = ZeroInflated.of({"r": jnp.asarray(r), "gate": jnp.asarray(gate)})
    offset, scale, columns, *_ = ZINB.augment(capture)
    cells = Cells(
        jnp.asarray(counts, jnp.float32),
        jnp.ones(len(loc)),
        offset,
        scale,
        jnp.zeros((len(loc), 0)),
    )
    ours = losses.integrate(jnp.asarray(log_mean, jnp.float32), channel, cells, columns)
    for i, u in enumerate(counts):
        grid = np.linspace(0, loc[i] + 5, 40_001)
        m = np.exp(log_mean - grid[:, None])
        counted = stats.nbinom.pmf(u, r, r / (r + m))
        pmf = (u == 0) * gate + (1 - np.array(gate)) * counted
        log = np.log(np.maximum(pmf, 1e-300)).sum(axis=1)
        log = log + stats.truncnorm.logpdf(grid, -loc[i] / 0.5, np.inf, loc[i], 0.5)
        mass = np.exp(log - log.max())
        exact = np.log(integrate.trapezoid(mass, grid)) + log.max()
        mean = integrate.trapezoid(mass * grid, grid) / integrate.trapezoid(mass, grid)
        assert float(ours.log[i]) == pytest.approx(exact, abs=2e-3), i
        assert float(ours.mean[i]) == pytest.approx(mean, abs=2e-3), i


def test_moments_and_the_channel_that_has_them():
    channel = ZeroInflated.of({"r": jnp.array([2.0, 5.0]), "gate": jnp.array([0.3, 0.01])})
    loc, variance = np.log([[4.0, 0.5]]), np.array([0.2, 0.0])
    rng = np.random.default_rng(0)
    f = loc + np.sqrt(variance) * rng.standard_normal((400_000, 2))
    drawn = channel.sample(rng, f)
    mean, spread = channel.moments(loc, variance)
    np.testing.assert_allclose(drawn.mean(axis=0), mean[0], rtol=0.02)
    np.testing.assert_allclose(drawn.var(axis=0), spread[0], rtol=0.04)
    log_mean, counted = channel.matched(jnp.asarray(loc[0], jnp.float32))
    still, exact = channel.moments(loc, np.zeros(2)), counted.moments(np.asarray(log_mean), 0.0)
    np.testing.assert_allclose(exact[0], still[0][0], rtol=1e-5)
    np.testing.assert_allclose(exact[1], still[1][0], rtol=1e-5)


def test_what_a_model_does_not_have_is_refused_in_words(fits, gated):
    with pytest.raises(ValueError, match=r"get_gate: model nbvcp has no gates"):
        fits["nbvcp"].get_gate()
    with pytest.raises(ValueError, match=r"get_gate\(fdr=0"):
        fits["zinbvcp"].get_gate(fdr=0)
    plain = nbln.fit(gated, model="nbdm", n_steps=50, **QUIET)
    assert not plain.has_capture
    assert not np.any(plain.eta)
    with pytest.raises(ValueError, match=r"transform: model nbdm has neither"):
        plain.transform(gated)
    with pytest.raises(ValueError, match=r"'capture_efficiency'.*model zinb: unknown prior"):
        nbln.fit(gated, model="zinb", priors={"capture_efficiency": (12, 0.5)}, **QUIET)
    with pytest.raises(ValueError, match=r"parameterization='mean_odds'.*canonical"):
        nbln.fit(gated, model="nbdm", parameterization="mean_odds", **QUIET)
    with pytest.raises(TypeError, match="not log-concave"):
        registry.add(registry.Row(Sham, (registry.LAPLACE,), "sham"))


class Sham(ZINB):
    """Not for this engine."""

    name = "sham"


def test_without_capture_nothing_is_lost():
    rule = CaptureRule()
    assert rule.predicts_depth
    assert not np.any(rule.of(np.array([3.0, 500.0])).start())
