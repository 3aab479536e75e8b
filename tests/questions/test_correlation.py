"""Correlation of expression: against formed matrices and draws, and what it does not depend on."""

import numpy as np
import pytest

import nbln
from nbln.questions.correlation import KINDS, ExpressionCovariance, of_kind, top_pairs

G, K = 6, 2


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    W = rng.normal(0, 0.5, (G, K))
    return W, rng.uniform(0.05, 0.3, G), rng.normal(0, 1, G), 1 / rng.uniform(1, 10, G)


def sigma(W, d):
    W = W - W.mean(axis=0)
    return W @ W.T + np.diag(d)


def test_against_the_formed_matrix(parts):
    W, d, mu, noise = parts
    S = sigma(W, d)
    m = np.exp(mu + np.diag(S) / 2)
    expected = np.outer(m, m) * np.expm1(S)
    np.fill_diagonal(expected, m**2 * ((1 + noise) * np.exp(np.diag(S)) - 1))
    covariance, rows = ExpressionCovariance(*parts), np.arange(G)
    np.testing.assert_allclose(covariance.block(rows, rows), expected, rtol=1e-12)
    np.testing.assert_allclose(covariance.variance, np.diag(expected), rtol=1e-12)
    sd = np.sqrt(np.diag(expected))
    correlation = covariance.correlation_block(rows, rows)
    np.testing.assert_allclose(correlation, expected / np.outer(sd, sd), rtol=1e-12)
    part = covariance.correlation_block(rows[2:4], rows)
    np.testing.assert_allclose(part, correlation[2:4], rtol=1e-12)


def test_against_draws(parts):
    W, d, mu, noise = parts
    rng = np.random.default_rng(1)
    n = 400_000
    centred = W - W.mean(axis=0)
    x = mu + rng.normal(size=(n, K)) @ centred.T + rng.normal(size=(n, G)) * np.sqrt(d)
    drawn = np.exp(x) * rng.gamma(np.broadcast_to(1 / noise, x.shape), noise)
    ours = ExpressionCovariance(*parts)
    rows = np.arange(G)
    np.testing.assert_allclose(ours.correlation_block(rows, rows), np.corrcoef(drawn.T), atol=0.02)


def test_it_does_not_depend_on_the_split_of_the_overdispersion(parts):
    """Total d + log(1 + 1/r) held, its parts exchanged: log-rates change, expression does not."""
    W, d, mu, noise = parts
    total = d + np.log1p(noise)
    splits = [(0.2 * total, np.expm1(0.8 * total)), (0.8 * total, np.expm1(0.2 * total))]
    rows = np.arange(G)
    correlations = {
        kind: [of_kind(kind, W, d, mu, c).correlation_block(rows, rows) for d, c in splits]
        for kind in ("expression", "compositional")
    }
    np.testing.assert_allclose(*correlations["expression"], rtol=1e-10)
    first, second = correlations["compositional"]
    assert np.abs(first - second).max() > 0.05


def test_every_kind_is_offered_wherever_a_kind_is():
    adata = nbln.datasets.simulate(300, 60, 2, seed=4)
    result = nbln.fit(adata, latent_dim=4, progress=False)
    genes = list(result.fitted.gene_names[:5])
    for kind in KINDS:
        correlation = result.get_correlation(kind, genes)
        np.testing.assert_allclose(np.diag(correlation), 1)
        covariance = result.get_covariance(kind, genes).values
        sd = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(covariance / np.outer(sd, sd), correlation, rtol=1e-6)
        pairs = result.top_pairs(5, kind)
        assert len(pairs) == 5
        nbln.pl.plot_correlation(result, genes=genes, kind=kind)
    expression = result.get_correlation("expression").values
    assert np.abs(np.triu(expression, 1)).max() < 1
    with pytest.raises(ValueError, match=r"kind='rate': unknown kind; .*clr, expression"):
        result.get_correlation("rate")


def test_strongest_pairs_are_those_of_the_matrix(parts):
    covariance, rows = ExpressionCovariance(*parts), np.arange(G)
    names = np.array([f"g{i}" for i in range(G)])
    values = np.abs(np.triu(covariance.correlation_block(rows, rows), 1))
    best = np.unravel_index(values.argmax(), values.shape)
    first = top_pairs(covariance, names, 3).iloc[0]
    assert (first["gene_a"], first["gene_b"]) == tuple(names[list(best)])
