"""Every figure returns itself, draws where it is told to, and shows nothing."""

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import nbln
from nbln.pl.corner import DENSITIES, highest_density
from nbln.pl.genes import genes_in_turn, strongest_genes

PANELS = {
    "plot_ppc": 5,
    "plot_compositional_corner_ppc": 4,
    "plot_gene_ppc": 6,
    "plot_gene_programs": 2,
    "plot_cell_map": 2,
}
LAPLACE_ONLY = {
    "plot_cell_map",
    "plot_network",
    "plot_compositional_corner_ppc",
    "plot_correlation",
    "plot_gene_programs",
    "plot_latent",
    "plot_w_shrinkage_spectrum",
}
OF_DRAWS = ("plot_calls", "plot_pair_intervals")
OF_CODES = ("plot_latent_mean_variance", "plot_prior_samples", "plot_reconstructions")
OF_TABLES = ("plot_effects", "plot_program_activity")
OF_FITS = [n for n in nbln.pl.__all__ if n not in (*OF_DRAWS, *OF_CODES, *OF_TABLES)]
ARGUMENTS = {
    "plot_compositional_corner_ppc": {"genes": ["gene1", "gene4"]},
    "plot_gene_ppc": {"n_samples": 3},
    "plot_gene_programs": {"n_programs": 2},
    "plot_cell_map": {"n_programs": 2},
    "plot_ppc": {"n_samples": 3},
}


corner = nbln.pl.plot_compositional_corner_ppc
spectrum = nbln.pl.plot_w_shrinkage_spectrum


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    def shown(*args, **kwargs):
        raise AssertionError("a figure was shown")

    monkeypatch.setattr(plt, "show", shown)
    yield
    plt.close("all")


@pytest.mark.parametrize(
    "kind", ["mean_disp-mean_field", "nbln-frozen", "nbln-latent-coverage", "scvi"]
)
@pytest.mark.parametrize("name", OF_FITS)
def test_figure(results, name, kind):
    result = results[kind]
    if result.kind != "laplace" and name in LAPLACE_ONLY:
        pytest.skip("it has no gene programs")
    if not result.has_capture and name == "plot_capture":
        pytest.skip("it has no capture losses")
    arguments = ARGUMENTS.get(name, {})
    if "genes" in arguments:
        arguments = {"genes": list(result.fitted.gene_names[1:3])}
    figure = getattr(nbln.pl, name)(result, **arguments)
    assert isinstance(figure, plt.Figure)
    figure.canvas.draw()


@pytest.mark.parametrize("name", OF_FITS)
def test_draws_on_given_axes(nbln_fit, name):
    figure, axes = plt.subplots(1, PANELS.get(name, 1))
    given = getattr(nbln.pl, name)(nbln_fit, ax=axes, **ARGUMENTS.get(name, {}))
    assert given is figure
    assert all(ax.has_data() for ax in np.ravel(axes)[:1])


@pytest.mark.parametrize("name", [*OF_CODES, "plot_latent", "plot_loss", "plot_ppc"])
def test_figures_of_a_code(results, name):
    figure = getattr(nbln.pl, name)(results["negbio_vae"], **ARGUMENTS.get(name, {}))
    assert isinstance(figure, plt.Figure)
    figure.canvas.draw()


@pytest.mark.parametrize("name", OF_CODES)
def test_figures_of_codes_refuse_other_fits(nbln_fit, name):
    with pytest.raises(ValueError, match=r"model nbln has no code"):
        getattr(nbln.pl, name)(nbln_fit)


@pytest.mark.parametrize("name", OF_DRAWS)
def test_figures_of_draws_refuse_a_fit(nbln_fit, name):
    with pytest.raises(TypeError, match="sample_posterior"):
        getattr(nbln.pl, name)(nbln_fit)


@pytest.mark.parametrize("name", OF_FITS)
def test_figures_of_fits_refuse_what_is_none(name):
    with pytest.raises(TypeError, match=r"needs a fit, not a dict.*nbln\.fit"):
        getattr(nbln.pl, name)({})


def test_genes_of_a_corner_are_chosen(nbln_fit, adata):
    figure = corner(nbln_fit, n_genes=3, n_samples=50, contour_mass_levels=())
    wanted = [f"log10 share of {name}" for name in strongest_genes(nbln_fit, 3)]
    assert [ax.get_xlabel() for ax in figure.axes[-3:]] == wanted
    means = adata.to_df().mean()
    least = 0.999 * means.sort_values().iloc[-4]
    figure = corner(nbln_fit, min_mean_umi=least, n_samples=50, density_method="hist2d")
    shown = {ax.get_xlabel().removeprefix("log10 share of ") for ax in figure.axes[-4:]}
    assert shown == {*means.index[means >= least]}


def test_diverse_genes_have_correlations_of_both_signs(nbln_fit):
    correlation = nbln_fit.get_correlation()
    others = correlation.values - 2 * np.eye(len(correlation))
    figure = corner(nbln_fit, n_genes=5, n_samples=50, gene_selection="correlation_diverse")
    names = [ax.get_xlabel().removeprefix("log10 share of ") for ax in figure.axes[-5:]]
    assert len({*names}) == 5
    assert correlation.sel(gene=names[0], gene_=names[1]) == others.max()
    ends = correlation.sel(gene=names[:2])
    assert ends.sel(gene_=names[2]).min() == ends.min()


def test_contours_hold_the_mass_that_they_say():
    x, y = np.random.default_rng(0).normal(size=(2, 40_000))
    for estimate in (DENSITIES["kde"](x[:3000], y[:3000]), DENSITIES["hist2d"](x, y)):
        _, density = estimate
        levels = highest_density(density, (0.5, 0.9))
        # Of a round Gaussian, the share inside the radius where the density is so much of the peak.
        np.testing.assert_allclose(1 - levels / density.max(), [0.9, 0.5], atol=0.06)


def test_the_spectrum_counts_by_its_line(nbln_fit):
    norms = nbln_fit.w_prior_diagnostics["column_frobenius_compositional"]
    share = float(np.mean(norms[:2]) / norms[0])
    ax = spectrum(nbln_fit, threshold_fraction=share).axes[0]
    assert ax.get_title().startswith("1 of 3")
    assert any("% of the largest" in text.get_text() for text in ax.get_legend().get_texts())
    ax = spectrum(nbln_fit, show_sigma_k=False, show_threshold=False).axes[0]
    assert not ax.lines
    assert ax.get_title().startswith(f"{nbln_fit.w_prior_diagnostics['effective_rank']} of 3")


def test_bins_of_a_histogram_hold_all_counts(nbln_fit, adata):
    figure = nbln.pl.plot_gene_ppc(nbln_fit, ["gene1", "gene4"], n_samples=3)
    for ax, gene in zip(figure.axes, ["gene1", "gene4"], strict=True):
        counts = adata[:, gene].X.ravel()
        tops = [bar.get_y() + bar.get_height() for bar in ax.patches if hasattr(bar, "get_height")]
        shares = [top for top in tops if top > 0.5 / len(counts)]
        assert sum(shares) == pytest.approx(1.0)
        assert tops[0] == pytest.approx(max((counts == 0).mean(), 0.5 / len(counts)))
        labels = [label.get_text() for label in ax.get_xticklabels()]
        assert labels[0] == "0"
        assert labels[-1].startswith("≥ ")
    figure.canvas.draw()


def test_genes_of_histograms_spread_over_their_means(nbln_latent, adata):
    figure = nbln.pl.plot_gene_ppc(nbln_latent, n_genes=4, n_samples=3)
    genes = [ax.get_title().partition(",")[0] for ax in figure.axes]
    means = adata.to_df().mean()[genes].to_numpy()
    assert "_other" not in genes
    assert len({*genes}) == 4
    assert (np.diff(means) >= 0).all()
    assert means[-1] == adata.to_df().mean()[nbln_latent.fitted.gene_names[:-1]].max()
    assert len(nbln.pl.plot_gene_ppc(nbln_latent, n_genes=999, n_samples=2).axes) == 14


def test_many_genes_have_no_labels(nbln_fit):
    figure = nbln.pl.plot_correlation(nbln_fit, n_genes=5)
    assert len(figure.axes[0].get_xticks()) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: nbln.pl.plot_ppc(r, n_samples=3, ax=plt.subplots()[1]), "5 panels"),
        (lambda r: nbln.pl.plot_latent(r, color=["a", "b"]), "one value for each"),
        (lambda r: nbln.pl.plot_gene_programs(r, n_programs=9), "from 1 to 3"),
        (lambda r: nbln.pl.plot_compositional_corner_ppc(r, genes=["gene1"]), "two to eight"),
        (lambda r: corner(r, min_mean_umi=1e6), r"min_mean_umi=1e\+06: 0 genes.*largest mean"),
        (lambda r: corner(r, gene_selection="hvg"), "choose one of programs, correlation_diverse"),
        (lambda r: corner(r, density_method="kd"), "choose one of kde, hist2d"),
        (lambda r: corner(r, contour_mass_levels=(0.5, 2)), "contour_mass_levels=2"),
        (lambda r: corner(r, n_genes=1), "n_genes=1"),
        (lambda r: spectrum(r, threshold_fraction=-1), "threshold_fraction=-1"),
    ],
)
def test_errors(nbln_fit, call, message):
    with pytest.raises(ValueError, match=message):
        call(nbln_fit)


def test_effects():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"lfc_mean": rng.normal(size=40), "q": rng.uniform(1e-9, 0.3, 40)})
    table.index = [f"gene{i}" for i in range(40)]
    table["is_de_fdr"] = table["q"] < 0.05
    figure = nbln.pl.plot_effects(table.sort_values("q"), n_labels=3)
    (ax,) = figure.axes
    called = table[table["is_de_fdr"]].sort_values("q").index[:3]
    assert {text.get_text() for text in ax.texts} == set(called)
    other, own = plt.subplots()
    assert nbln.pl.plot_effects(table.assign(is_de_fdr=False), ax=own) is other
    with pytest.raises(ValueError, match="no column 'q'"):
        nbln.pl.plot_effects(table.drop(columns="q"))
    plt.close("all")


def test_maps_are_coloured_by_columns(nbln_fit, adata):
    titles = [f"{i}: a program" for i in (1, 2)]
    figure = nbln.pl.plot_cell_map(nbln_fit, n_programs=2, titles=["a program"] * 2)
    assert [ax.get_title() for ax in figure.axes[:2]] == titles
    kinds = adata.obs["batch"].astype("category").cat.add_categories("third")
    kinds = kinds.where(np.arange(len(kinds)) > 3)
    figure = nbln.pl.plot_cell_map(nbln_fit, {"batch": kinds, "age": adata.obs["age"]})
    assert [ax.get_title() for ax in figure.axes[:2]] == ["batch", "age"]
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert legend == ["missing", "one", "two"]
    with pytest.raises(ValueError, match=r"one value for each of 90 cells, given \(3,\) for 'x'"):
        nbln.pl.plot_cell_map(nbln_fit, {"x": [1, 2, 3]})


def test_many_kinds_of_cells_share_a_colour(nbln_fit):
    figure = nbln.pl.plot_cell_map(nbln_fit, [f"kind {i // 5:02d}" for i in range(90)])
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(texts) == 13
    assert texts[-1] == "others"


def test_programs_take_turns(nbln_fit):
    """Each program has a gene among the first so many as there are programs."""
    genes = nbln_fit.program_genes
    rank = genes.loading.shape[1]
    first = genes_in_turn(nbln_fit, rank)
    heaviest = genes.names[np.argmax(np.abs(genes.weight), axis=0)]
    assert set(heaviest) <= set(genes_in_turn(nbln_fit, 2 * rank))
    assert first[0] == heaviest[0]


def test_a_network_of_given_pairs(nbln_fit):
    pairs = nbln_fit.top_pairs(5)
    figure = nbln.pl.plot_network(nbln_fit, pairs)
    shown = {text.get_text() for text in figure.axes[0].texts}
    assert shown == {*pairs["gene_a"], *pairs["gene_b"]}
    figure = nbln.pl.plot_network(nbln_fit, pairs.head(0))
    assert figure.axes[0].texts[0].get_text() == "no such pair"
