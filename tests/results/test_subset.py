"""Some genes of a result answer as the whole does, and say what they cannot answer."""

import copy

import numpy as np
import pytest
import xarray as xr

import nbln
from nbln.results import subset
from nbln.results.posterior import PosteriorDraws

FEW = ["gene7", "gene2", "gene10"]


@pytest.fixture(scope="module")
def part(nbln_latent):
    return nbln_latent[FEW]


@pytest.mark.parametrize(
    "name", ["mu", "W", "d", "r", "get_W_compositional", "get_membership", "get_variance_shares"]
)
def test_what_is_labelled_by_gene(nbln_latent, part, name):
    ours, whole = getattr(part, name), getattr(nbln_latent, name)
    if callable(whole):
        ours, whole = ours(), whole()
    xr.testing.assert_identical(ours, whole.sel(gene=FEW))
    assert ours["gene"].values.tolist() == FEW


@pytest.mark.parametrize("kind", ["compositional", "expression"])
def test_correlations_are_those_of_the_whole_fit(nbln_fit, kind):
    part, whole = nbln_fit[FEW], nbln_fit.get_correlation(kind)
    ours = part.get_correlation(kind)
    xr.testing.assert_identical(ours, whole.sel(gene=FEW, gene_=FEW))
    xr.testing.assert_identical(part.get_correlation(kind, genes=FEW[1:]), ours[1:, 1:])
    pairs = part.top_pairs(10, kind)
    assert len(pairs) == 3
    for pair in pairs.itertuples():
        assert pair.correlation == ours.sel(gene=pair.gene_a, gene_=pair.gene_b)
    assert (np.diff(pairs["correlation"].abs()) <= 0).all()


def test_cells_and_draws_are_those_of_the_whole_fit(nbln_latent, part):
    xr.testing.assert_identical(part.get_latent(), nbln_latent.get_latent())
    xr.testing.assert_identical(part.eta, nbln_latent.eta)
    denoised = nbln_latent.get_denoised("composition")
    xr.testing.assert_identical(part.get_denoised("composition"), denoised.sel(gene=FEW))
    drawn = nbln_latent.get_ppc_samples(n_samples=2)
    xr.testing.assert_identical(part.get_ppc_samples(n_samples=2), drawn.sel(gene=FEW))


def test_ways_to_name_genes(nbln_latent):
    names = nbln_latent.fitted.gene_names
    real = names[:-1].tolist()
    assert names[-1] == "_other"
    for genes, wanted in (
        ("gene2", ["gene2"]),
        (slice(None), real),
        (slice(0, 4, 2), real[:4:2]),
        (nbln_latent.mu > -np.inf, real),
        (names == "gene2", ["gene2"]),
        ([3, 1], [real[3], real[1]]),
        (2, [real[2]]),
    ):
        assert nbln_latent[genes].gene_names.tolist() == wanted


@pytest.mark.parametrize(
    ("genes", "error", "message"),
    [
        (["gene2", "gene_2"], KeyError, "'gene_2': not in this fit"),
        (999, IndexError, "out of bounds"),
        ([True, False], ValueError, r"a mask has one value for each of the .*adata\.var_names"),
        (["gene2", "gene2"], ValueError, "named twice"),
        ("_other", ValueError, "no gene"),
        (slice(0, 0), ValueError, "no gene"),
    ],
)
def test_errors(nbln_latent, genes, error, message):
    with pytest.raises(error, match=message):
        nbln_latent[genes]


@pytest.mark.parametrize("name", ["score", "save", "check", "w_prior_diagnostics", "write_to"])
def test_what_needs_all_genes_is_refused(part, name):
    with pytest.raises(AttributeError, match=rf"{name}: is of the whole fit.* 3 genes.*\.whole\."):
        getattr(part, name)
    with pytest.raises(KeyError, match="gene0"):
        part.get_correlation(genes=["gene0"])


def test_what_nobody_and_others_answer(part, nbvcp):
    with pytest.raises(AttributeError, match="did you mean get_latent"):
        part.get_latents  # noqa: B018
    with pytest.raises(AttributeError, match=r"get_correlation: a SVIResult .* has no such answer"):
        nbvcp[FEW].get_correlation  # noqa: B018


def test_other_results(nbvcp, results, adata):
    np.testing.assert_array_equal(nbvcp[FEW].mean, nbvcp.mean.sel(gene=FEW))
    assert nbvcp[FEW].get_map()["r"].size == 3
    gate = results["zinbvcp"][FEW].get_gate()
    assert gate.sizes["gene"] == 3
    assert results["scvi"][FEW].get_denoised().sizes["gene"] == 3


def test_a_subset_is_looked_at_and_copied(part):
    assert repr(part).startswith("GeneSubset(3 genes of LaplaceResult(nbln")
    assert copy.copy(part).gene_names.tolist() == FEW
    assert {"mu", "get_correlation", "eta"} <= {*dir(part)}
    assert "mean" not in dir(part)


def test_every_answer_that_is_listed_is_there():
    kinds = (nbln.LaplaceResult, nbln.SVIResult, nbln.VAEResult, PosteriorDraws)
    there = {name for kind in kinds for name in (*dir(kind), *kind.__dataclass_fields__)}
    assert {*subset.LABELLED, *subset.ASKED, *subset.AS_FITTED} <= there
