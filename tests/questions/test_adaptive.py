"""Effects under a prior learned from all genes: against the posterior in closed form."""

import numpy as np
import pytest
from scipy.stats import norm

from nbln.questions import adaptive, intervals

N_GENES, N_DRAWS, SE = 400, 3000, 0.2


def drawn(null_share, seed):
    """Effects of which a share is none, their estimates, and draws under a Student prior."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(N_GENES) < null_share, 0.0, rng.normal(0, 1.0, N_GENES))
    seen = truth + SE * rng.normal(size=N_GENES)
    # Draws of the posterior under t with 2 degrees and scale 0.3, by resampling.
    wide = seen + 2 * SE * rng.normal(size=(4 * N_DRAWS, N_GENES))
    log = norm.logpdf(wide, seen, SE) - norm.logpdf(wide, seen, 2 * SE)
    log = log - 1.5 * np.log1p((wide / 0.3) ** 2 / 2)
    weight = np.exp(log - log.max(axis=0))
    draws = np.stack(
        [
            rng.choice(wide[:, g], N_DRAWS, p=weight[:, g] / weight[:, g].sum())
            for g in range(N_GENES)
        ],
        axis=1,
    )
    return truth, seen, draws


@pytest.mark.parametrize("null_share", [0.9, 0.0])
def test_the_posterior_is_that_of_the_mixture(null_share):
    truth, seen, draws = drawn(null_share, 0)
    share, (weight, _) = adaptive.learned(draws, np.full(N_DRAWS, 0.3**2))
    size, sd = adaptive.PARTS.T
    small = share[(size < 0.3) & (sd < 0.3)].sum()
    assert small > 0.75 if null_share else small < 0.4
    # Of each part on each side: the posterior of a Gaussian estimate under a Gaussian prior.
    size, sd, share = (
        np.concatenate([x, y])[:, None] for x, y in ((size, -size), (sd, sd), (share, share))
    )
    own = share * norm.pdf(seen, size, np.hypot(sd, SE))
    own /= own.sum(axis=0)
    kept = sd**2 / (sd**2 + SE**2)
    mean = (own * (size + kept * (seen - size))).sum(axis=0)
    spread = 4 * SE / np.sqrt(N_DRAWS * 0.1)
    assert np.quantile(np.abs((weight * draws).sum(axis=0) - mean), 0.95) < spread


def test_calls_are_as_often_wrong_as_they_say():
    truth, _, draws = drawn(0.9, 1)
    weights = adaptive.learned(draws, np.full(N_DRAWS, 0.3**2)).weights
    index = np.arange(N_GENES)
    for delta, most in ((0.0, 0.1), (0.25, 0.1)):
        table = intervals.changes(draws, weights, delta, 0.05, 0.9, index)
        called = table[table["q"] <= 0.05]
        true = truth[called.index]
        wrong = (np.abs(true) <= delta) | (np.sign(true) != np.sign(called["lfc_mean"]))
        assert len(called) > 15
        assert wrong.mean() <= most


def test_weighted_summaries_are_those_of_repeated_draws():
    rng = np.random.default_rng(0)
    draws, times = rng.normal(size=(500, 3)), rng.integers(0, 4, (500, 3))
    shares = times / times.sum(axis=0)
    summary = intervals.summarise_weighted(draws, intervals.Weights(shares, shares), 0.9)
    for j in range(3):
        plain = intervals.summarise(np.repeat(draws[:, j], times[:, j]), 0.9)
        for name, value in plain._asdict().items():
            assert getattr(summary, name)[j] == pytest.approx(value, abs=0.06), name
