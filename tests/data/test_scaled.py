"""Counts that were scaled and rounded are named; raw counts, however odd, are not."""

import logging

import numpy as np
import pytest
import scipy.sparse as sp
from count_matrices import FORMS, backed, named, small

import nbln
from nbln.data.counts import Counts


def raw(n_cells=200, n_genes=400, depth=2_000, seed=0):
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0, 2, n_genes)
    library = rng.lognormal(np.log(depth), 0.4, n_cells)
    rate = library[:, None] * share / share.sum() * rng.gamma(2, 0.5, (n_cells, n_genes))
    return rng.poisson(rate).astype(np.float64) + (np.arange(n_genes) == share.argmax())


def scaled(total):
    def change(x):
        return np.round(x / x.sum(axis=1, keepdims=True) * total)

    return change


def downsampled(x):
    rng, depth = np.random.default_rng(0), int(x.sum(axis=1).min())
    return np.stack([rng.multivariate_hypergeometric(c.astype(int), depth) for c in x])


SCALED = {
    "cpm": (scaled(1e6), "most cells have no count of 1, as if counts had been scaled and rounded"),
    "cp10k": (scaled(1e4), "most cells have no count of 1"),
    "ten": (lambda x: x * 10, "all counts are multiples of 10, as if"),
    "two": (lambda x: x * 2, "multiples of 2, .* or every molecule counted 2 times"),
    "downsampled": (downsampled, "almost the same total .* or downsampled to the same depth"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", SCALED)
def test_scaled_counts_are_a_warning_and_strictly_an_error(form, case, caplog):
    change, message = SCALED[case]
    adata = named(FORMS[form](change(raw())))
    with caplog.at_level(logging.WARNING, logger="nbln"):
        Counts.from_anndata(adata)
    assert len(caplog.records) == 1
    assert caplog.records[0].name == "nbln"
    with pytest.raises(ValueError, match=rf"fit\(adata\): .*{message}.*raw counts.* by layer="):
        Counts.from_anndata(adata, strict=True)
    with pytest.raises(ValueError, match=message):
        nbln.fit(adata, strict=True)


def test_strict_is_true_or_false():
    with pytest.raises(TypeError, match=r"fit\(strict='yes'\): must be True or False"):
        nbln.fit(named(small()), strict="yes")


def poisson(mean, shape, seed=0):
    return np.random.default_rng(seed).poisson(mean, shape) + 1.0


NOT_SCALED = {
    "raw": raw(),
    "raw, deep": raw(depth=100_000),
    "raw, its largest genes": raw()[:, np.argsort(-raw().sum(axis=0))[:30]],
    "few cells": scaled(1e4)(raw())[:10],
    "few genes": raw()[:, np.argsort(-raw().sum(axis=0))[:4]],
    "few genes, large": poisson(50, (100, 5)),
    "ones": np.ones((300, 400)),
    "seen or not": np.minimum(raw(), 1),
    "poisson": poisson(2, (300, 200)),
    "small": small(),
    "one large gene": np.hstack([raw(), poisson(1e4, (200, 1))]),
}


@pytest.mark.parametrize("case", NOT_SCALED)
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_raw_counts_are_no_warning(case, form, caplog):
    with caplog.at_level(logging.WARNING, logger="nbln"):
        Counts.from_anndata(named(FORMS[form](NOT_SCALED[case])), strict=True)
    assert not caplog.records


# Counts that change after they were checked


@pytest.mark.parametrize("gene_coverage", [None, 0.7])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_a_change_in_place_is_seen_or_has_no_effect(form, gene_coverage, dtype):
    adata = named(FORMS[form](small().astype(dtype)))
    counts = Counts.from_anndata(adata, gene_coverage=gene_coverage)
    before = counts.rows(slice(None))
    counts.check_unchanged()
    values = adata.X if form == "dense" else adata.X.data
    values[0] = 3 - values[0] % 2
    if np.array_equal(counts.rows(slice(None)), before) and form != "dense":
        counts.check_unchanged()
    else:
        with pytest.raises(ValueError, match=r"^adata\.X was changed since the fit, in place"):
            counts.check_unchanged()


def test_an_exchange_is_seen():
    x = small()
    x[1], x[2] = [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]
    adata = named(x)
    counts = Counts.from_anndata(adata)
    adata.X[[1, 2]] = adata.X[[2, 1]]
    with pytest.raises(ValueError, match="changed since the fit"):
        counts.check_unchanged()


def test_a_change_in_a_file_is_seen(tmp_path):
    adata = backed(named(sp.csr_matrix(small())), tmp_path / "counts.h5ad")
    counts = Counts.from_anndata(adata)
    counts.check_unchanged()
    adata.file.close()
    with pytest.raises(OSError, match=r"counts\.h5ad cannot be read"):
        counts.check_unchanged()
