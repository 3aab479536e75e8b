"""Every figure returns itself, draws where it is told to, and shows nothing."""

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt

import nbln

PANELS = {"plot_ppc": 5, "plot_compositional_corner_ppc": 4, "plot_gene_programs": 2}
LAPLACE_ONLY = {
    "plot_compositional_corner_ppc",
    "plot_correlation",
    "plot_gene_programs",
    "plot_latent",
    "plot_w_shrinkage_spectrum",
}
OF_DRAWS = ("plot_calls", "plot_network", "plot_pair_intervals")
OF_CODES = ("plot_latent_mean_variance", "plot_prior_samples", "plot_reconstructions")
OF_FITS = [name for name in nbln.pl.__all__ if name not in (*OF_DRAWS, *OF_CODES)]
ARGUMENTS = {
    "plot_compositional_corner_ppc": {"genes": ["gene1", "gene4"]},
    "plot_gene_programs": {"n_programs": 2},
    "plot_ppc": {"n_samples": 3},
}


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
    ],
)
def test_errors(nbln_fit, call, message):
    with pytest.raises(ValueError, match=message):
        call(nbln_fit)
