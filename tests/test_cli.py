"""The command line as a user meets it: what is printed, what is left, how it fails."""

import logging
import os
import runpy
import shutil
from pathlib import Path

import anndata as ad
import h5py
import networkx as nx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

import nbln
from nbln.cli import app

N_CELLS, N_GENES = 150, 80  # one shape, so that what one test compiles serves the others
undrawn = pytest.mark.usefixtures("undrawn")
REPOSITORY = Path(__file__).parents[1]


def run(*arguments) -> tuple[int, str]:
    """Exit code, and what was printed with its line breaks undone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def counts():
    adata = nbln.datasets.simulate(N_CELLS, N_GENES, seed=1)
    values = adata.X.toarray()
    values[0] = 1  # every gene is seen
    adata.X = sp.csr_matrix(values)
    adata.layers["scaled"] = adata.X * 0.5
    return adata


@pytest.fixture(scope="module")
def h5ad(counts, tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "counts.h5ad"
    counts.write_h5ad(path)
    return path


def test_version():
    assert run("--version") == (0, f"nbln {nbln.__version__}")


def test_help_names_the_commands():
    code, text = run("--help")
    assert code == 0
    assert "demo" in text
    assert "fit" in text


def test_demo_reports_and_leaves_three_files(tmp_path):
    out = tmp_path / "demo"
    code, text = run("demo", "--out", out, "--cells", N_CELLS, "--genes", N_GENES, "--seed", 1)
    assert code == 0, text
    for words in (
        f"{N_CELLS} cells x",
        "first stage: independent genes, at the mode of their regressions",
        "Laplace stage: converged after",
        "Effective rank",
        "Truth 4 programs",
        "Gauge ratio",
        "Pearson r",
        "Strongest gene pairs",
        "M0 = 100,000",  # the library's notes are shown
        "The command took",
    ):
        assert words in text
    result = nbln.load(out / "fit.nc")
    assert result.fitted.n_cells == N_CELLS
    fitted = ad.read_h5ad(out / "fitted.h5ad")
    np.testing.assert_allclose(fitted.obsm["X_nbln"], result.get_embedding(), rtol=1e-6)
    assert "W" in fitted.varm  # the truth stays
    pairs = pd.read_csv(out / "top_pairs.csv")
    assert list(pairs.columns) == ["gene_a", "gene_b", "correlation", "note"]
    assert (out / "gene_programs.csv").exists()


def test_the_log_is_left_as_it_was(h5ad, tmp_path):
    log = logging.getLogger("nbln")
    before = log.level, list(log.handlers)
    run("fit", h5ad, "--model", "unknown", "--out", tmp_path)
    assert (log.level, list(log.handlers)) == before


@undrawn
@pytest.mark.parametrize("storage", [(), ("--backed",)])
def test_fit_of_a_file(h5ad, counts, tmp_path, storage):
    before = h5ad.read_bytes()
    out = tmp_path / "new" / "fit"
    code, text = run("fit", h5ad, "--out", out, "--no-progress", "--pairs", 7, *storage)
    assert code == 0, text
    assert "Laplace stage: converged" in text
    assert "Recovery" not in text
    assert h5ad.read_bytes() == before
    assert len(pd.read_csv(out / "top_pairs.csv")) == 7
    assert nbln.load(out / "fit.nc").converged
    fitted = ad.read_h5ad(out / "fitted.h5ad")
    assert (fitted.X != counts.X).nnz == 0
    assert fitted.uns["nbln"]["converged"]


@undrawn
@pytest.mark.parametrize("storage", [(), pytest.param(("--backed",), marks=pytest.mark.slow)])
def test_fit_of_several_files(counts, tmp_path, storage):
    paths = [tmp_path / "early.h5ad", tmp_path / "late.h5ad"]
    counts[:70].write_h5ad(paths[0])
    counts[70:, ::-1].write_h5ad(paths[1])
    out = tmp_path / "out"
    model = ("--model", "nbvcp", "--n-steps", 100, "--no-progress")
    code, text = run("fit", *paths, "--out", out, *model, *storage)
    assert code == 0, text
    assert f"Read {N_CELLS} cells x {N_GENES} genes from" in text
    fitted = ad.read_h5ad(out / "fitted.h5ad")
    assert (fitted.X != counts.X).nnz == 0
    assert fitted.obs["file"].value_counts().to_dict() == {"early": 70, "late": 80}
    if storage:
        assert nbln.load(out / "fit.nc").fitted.settings["files"] == list(map(str, paths))


@undrawn
@pytest.mark.slow
@pytest.mark.parametrize("storage", [(), ("--backed",)])
def test_a_fit_of_each_of_several_files(counts, tmp_path, storage):
    paths = [tmp_path / "early.h5ad", tmp_path / "late.h5ad"]
    counts[:70].write_h5ad(paths[0])
    counts[70:, ::-1].write_h5ad(paths[1])
    model = ("--model", "nbvcp", "--n-steps", 100, "--no-progress")
    parts = tmp_path / "parts"
    code, text = run("fit", *paths, "--split-by", "file", "--out", parts, *model, *storage)
    assert code == 0, text
    part = ad.read_h5ad(parts / "late" / "fitted.h5ad")
    assert (counts.X[70:] != part.X).nnz == 0


def test_no_input_is_overwritten(h5ad, tmp_path):
    shutil.copy(h5ad, tmp_path / "fitted.h5ad")
    code, text = run("fit", h5ad, tmp_path / "fitted.h5ad", "--out", tmp_path)
    assert code == 1
    assert "is the input file, which would be overwritten" in text


@undrawn
@pytest.mark.parametrize("storage", [(), ("--backed",)])
def test_fit_of_a_zarr_store(counts, tmp_path, storage):
    pytest.importorskip("zarr")
    adata = counts.copy()
    adata.obsm["X_map"] = np.ones((N_CELLS, 2))
    adata.write_zarr(tmp_path / "counts.zarr")
    model = ("--model", "nbvcp", "--n-steps", 100, "--no-progress")
    code, text = run("fit", tmp_path / "counts.zarr", "--out", tmp_path / "out", *model, *storage)
    assert code == 0, text
    fitted = ad.read_h5ad(tmp_path / "out" / "fitted.h5ad")
    assert (fitted.X != counts.X).nnz == 0
    assert (fitted.layers["scaled"] != counts.layers["scaled"]).nnz == 0
    assert (fitted.obsm["X_map"] == 1).all()


@undrawn
def test_a_fit_without_programs_says_so_in_place_of_pairs(tmp_path):
    nbln.datasets.simulate(N_CELLS, N_GENES, 0, seed=1).write_h5ad(tmp_path / "counts.h5ad")
    code, text = run("fit", tmp_path / "counts.h5ad", "--out", tmp_path / "fit")
    assert code == 0, text
    assert "Strongest gene pairs" not in text
    assert "correlations of all pairs of genes are 0" in text


@undrawn
def test_fit_of_independent_genes_has_no_pairs(h5ad, tmp_path):
    code, text = run("fit", h5ad, "--out", tmp_path, "--model", "nbvcp")
    assert code == 0, text
    assert "no correlations between genes" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fit.nc", "fitted.h5ad", "report.html"]


def test_options_of_an_auto_encoder(h5ad, tmp_path, monkeypatch):
    """They come to `fit` as its own keywords."""
    given = {}

    def record(adata, **keywords):
        given.update(keywords)
        raise ValueError("no fit here")

    monkeypatch.setattr(nbln, "fit", record)
    words = {
        "gene_likelihood": "zinb", "dispersion": "gene-label", "labels_key": "kind",
        "decoder": "linear", "library": "latent",
    }  # fmt: skip
    options = [x for name, word in words.items() for x in (f"--{name.replace('_', '-')}", word)]
    where = "--out", tmp_path
    run("fit", h5ad, *where, "--model", "scvi", "--epochs", 2, *options)
    assert given.items() >= words.items()
    assert given["vae"] == nbln.VAEConfig(n_epochs=2)
    run("fit", h5ad, *where)
    assert given["vae"] is None
    code, text = run("fit", h5ad, *where, "--model", "scvi", "--epochs", 0)
    assert code == 1
    assert "n_epochs=0): must be a whole number, at least 1" in text


@undrawn
def test_a_fit_that_stops_too_early_says_so(h5ad, tmp_path):
    code, text = run("fit", h5ad, "--out", tmp_path, "--n-steps", 2)
    assert code == 0, text
    assert "NOT converged in 2 iterations" in text


@undrawn
def test_pooled_genes_are_no_genes(h5ad, tmp_path):
    code, text = run(
        "fit", h5ad, "--out", tmp_path, "--gene-coverage", 0.8, "--latent-dim", 3, "--model", "pln"
    )
    assert code == 0, text
    result = nbln.load(tmp_path / "fit.nc")
    assert f"x {result.fitted.n_genes - 1} genes and _other" in text
    assert "3 programs offered" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "nbl"), "unknown model; choose one of"),
        (("--layer", "spliced"), "no such layer; adata has layers scaled"),
        (("--layer", "scaled"), "whole numbers"),
        (("--latent-dim", N_GENES), "must be a whole number from 1 to"),
        (("--gene-coverage", 2), "must lie in (0, 1]"),
        (("--n-steps", 0), "must be a whole number, at least 1"),
        (("--dispersion", "gene-cell"), "model nbln does not use it"),
        (("--epochs", 3), "model nbln does not use it"),
        (("--model", "scvi", "--gene-likelihood", "normal"), "choose one of nb, zinb, poisson"),
        (("--model", "scvi", "--decoder", "deep"), "choose one of mlp, linear"),
        (("--model", "scvi", "--library", "known"), "choose one of observed, latent"),
        (("--model", "scvi", "--dispersion", "gene-label"), "with labels_key="),
    ],
)
def test_arguments_that_cannot_be(h5ad, tmp_path, arguments, words):
    code, text = run("fit", h5ad, "--out", tmp_path, *arguments)
    assert code == 1
    assert "Error: fit(" in text
    assert words in text
    assert not any(tmp_path.iterdir())


def _empty_cell(adata):
    adata.X = sp.csr_matrix(adata.X.toarray() * (np.arange(N_CELLS) != 5)[:, None])


def _same_names(adata):
    adata.obs_names = ["cell"] * adata.n_obs


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_empty_cell, 'cell "cell5" has no counts'), (_same_names, "occurs more than once")],
)
def test_counts_that_cannot_be_fitted(counts, tmp_path, spoil, words):
    adata = counts.copy()
    spoil(adata)
    adata.write_h5ad(tmp_path / "bad.h5ad")
    code, text = run("fit", tmp_path / "bad.h5ad", "--out", tmp_path / "out")
    assert code == 1
    assert words in text


def _text(path):
    path.write_text("gene,cell\n")


def _other_hdf5(path):
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file"),
        (Path.mkdir, "not a file"),
        (_text, "not a readable h5ad file"),
        (_other_hdf5, "not a readable h5ad file"),
    ],
)
@pytest.mark.parametrize("storage", [(), ("--backed",)])
def test_files_that_cannot_be_read(tmp_path, make, words, storage):
    path = tmp_path / "input.h5ad"
    make(path)
    code, text = run("fit", path, "--out", tmp_path / "out", *storage)
    assert code == 1
    assert words in text
    assert not (tmp_path / "out").exists()


def test_the_input_is_never_overwritten(h5ad, tmp_path):
    own = tmp_path / "fitted.h5ad"
    shutil.copy(h5ad, own)
    linked = tmp_path / "elsewhere.h5ad"
    os.link(own, linked)
    for path in (own, linked):
        code, text = run("fit", path, "--out", tmp_path)
        assert code == 1
        assert "would be overwritten" in text
    assert own.read_bytes() == h5ad.read_bytes()


def test_out_is_a_file(h5ad):
    code, text = run("fit", h5ad, "--out", h5ad)
    assert code == 1
    assert "give a directory" in text


def test_a_fit_that_diverges_is_one_line(h5ad, tmp_path, monkeypatch):
    def diverge(*arguments, **keywords):
        raise FloatingPointError("step 3 gave a value that is not finite in r")

    monkeypatch.setattr(nbln, "fit", diverge)
    code, text = run("fit", h5ad, "--out", tmp_path)
    assert code == 1
    assert text.endswith("Error: step 3 gave a value that is not finite in r")


def test_debug_shows_the_traceback(h5ad, tmp_path):
    result = CliRunner().invoke(
        app, ["fit", str(h5ad), "--out", str(tmp_path), "--model", "nbl", "--debug"]
    )
    assert isinstance(result.exception, ValueError)


def test_quickstart(tmp_path, monkeypatch, capsys):
    simulate = nbln.datasets.simulate
    monkeypatch.setattr(
        nbln.datasets, "simulate", lambda **size: simulate(N_CELLS, N_GENES, seed=1)
    )
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(REPOSITORY / "examples" / "quickstart.py"))
    assert capsys.readouterr().out.count("LaplaceResult(nbln") == 2
    assert nbln.load("fit.nc").fitted.n_cells == N_CELLS


@undrawn
def test_effects_of_a_formula_are_a_table(h5ad, tmp_path):
    adata = ad.read_h5ad(h5ad)
    adata.obs["side"] = np.array(["left", "right"])[np.arange(adata.n_obs) % 2]
    adata.obs["donor"] = [f"d{i % 4}" for i in range(adata.n_obs)]
    adata.write_h5ad(tmp_path / "with_columns.h5ad")
    given = ("--formula", "~ side", "--random", "donor", "--latent-dim", 2, "--no-progress")
    given = (*given, "--dataset-key", "side")
    code, text = run("fit", tmp_path / "with_columns.h5ad", "--out", tmp_path, *given)
    assert code == 0, text
    table = pd.read_csv(tmp_path / "covariate_effects.csv")
    assert list(table.columns) == ["gene", "covariate", "mean", "sd"]
    assert set(table["covariate"]) == {"side[T.right]"}
    assert "4 levels of donor" in text
    page = (tmp_path / "report.html").read_text()
    for words in (
        "What do covariates change?",
        "side: 2 categories, compared with left",
        "donor: random, 4 levels",
        "<td>side[T.right]</td>",
        "say which genes are called",
        "Programs that are more or less active",
    ):
        assert words in page
    activity = pd.read_csv(tmp_path / "program_activity.csv")
    assert list(activity.columns) == ["dataset", "factor", "activity"]
    assert set(activity["dataset"]) == {"left", "right"}


@undrawn
def test_symbols_gene_sets_colours_and_a_network(counts, tmp_path):
    """Genes are called by a column of var everywhere; each option leaves what it promises."""
    named = counts.copy()
    named.var["symbol"] = [None, "TWICE", "TWICE", *[f"S{i}" for i in range(3, N_GENES)]]
    named.obs["kind"] = ["a", "b"] * (N_CELLS // 2)
    named.write_h5ad(tmp_path / "named.h5ad")
    (tmp_path / "sets.gmt").write_text("all\tx\t" + "\t".join(f"S{i}" for i in range(3, 30)))
    options = ["--symbols", "symbol", "--gene-sets", tmp_path / "sets.gmt", "--color", "kind"]
    network = tmp_path / "net.graphml"
    command = ["fit", tmp_path / "named.h5ad", "--out", tmp_path / "out", "--latent-dim", 3]
    options += ["--network", network, "--min-abs", 0.1, "--halves", 1]
    code, text = run(*command, *options, "--no-progress")
    assert code == 0, text
    assert "gene programs were found" in text
    genes = set(nx.read_graphml(network))
    assert genes <= {"gene0", "TWICE", "TWICE (gene2)", *[f"S{i}" for i in range(3, N_GENES)]}
    assert len(genes) > N_GENES / 2
    programs = pd.read_csv(tmp_path / "out" / "gene_programs.csv")
    assert programs["program"].tolist() == [1, 2, 3][: len(programs)]
    assert set(programs["found_again"]) <= {"0 of 1", "1 of 1"}
    assert set(pd.read_csv(tmp_path / "out" / "gene_sets.csv")["term"]) <= {"all"}
    assert {"note"} <= set(pd.read_csv(tmp_path / "out" / "top_pairs.csv"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("Map of cells, by program") < page.index('id="programs"')
    assert page.index('id="pairs"') < page.index('id="checks"') < page.index('id="settings"')
    assert "Map of cells, by column" in page
    fitted = ad.read_h5ad(tmp_path / "out" / "fitted.h5ad")
    assert fitted.var["nbln_gene_id"].tolist() == counts.var_names.tolist()


@undrawn
def test_symbols_of_a_file_left_on_disk(counts, tmp_path):
    named = counts.copy()
    named.var["symbol"] = [f"S{i}" for i in range(N_GENES)]
    named.write_h5ad(tmp_path / "named.h5ad")
    command = ["fit", tmp_path / "named.h5ad", "--out", tmp_path / "out", "--latent-dim", 3]
    code, text = run(*command, "--symbols", "symbol", "--backed", "--no-progress")
    assert code == 0, text
    fitted = ad.read_h5ad(tmp_path / "out" / "fitted.h5ad")
    assert fitted.var_names[0] == "S0"
    assert fitted.obsm["X_nbln"].shape[0] == N_CELLS


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--symbols", "nothing"], "--symbols nothing: no such column of var"),
        (["--color", "nothing"], "--color nothing: no such column of obs"),
        (["--gene-sets", "nothing.gmt"], "no such file"),
        (["--network", "net.txt"], "must end with .graphml or .gml"),
        (["--network", "nowhere/net.gml"], "no directory nowhere"),
    ],
)
def test_what_is_not_there_is_told_before_the_fit(h5ad, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nbln, "fit", None)
    code, text = run("fit", h5ad, *options)
    assert code == 1
    assert words in text


def test_identifiers_with_symbols_beside_them_are_told(counts, tmp_path, monkeypatch):
    named = counts.copy()
    named.var_names = [f"ENSG{i:011d}" for i in range(N_GENES)]
    named.var["feature_name"] = "x"
    named.write_h5ad(tmp_path / "named.h5ad")

    def stop(*args, **kwargs):
        raise ValueError("enough")

    monkeypatch.setattr(nbln, "fit", stop)
    _, text = run("fit", tmp_path / "named.h5ad", "--out", tmp_path / "out")
    assert "--symbols feature_name shows symbols" in text
