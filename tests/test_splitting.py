"""A fit of each group of cells from the command line."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import nbln
from nbln import cli, splitting

N_CELLS, N_GENES = 160, 30
pytestmark = pytest.mark.usefixtures("undrawn")
QUICK = ("--no-progress", "--latent-dim", 2, "--n-steps", 3, "--model", "pln")


def run(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture(scope="module")
def adata():
    made = nbln.datasets.simulate(N_CELLS, N_GENES, 2, mean_log_dispersion=2.0, seed=1)
    counts = np.asarray(made.X.todense()) + 1
    made = ad.AnnData(counts, made.obs, made.var)
    made.obs["dose"] = np.where(np.arange(N_CELLS) % 2, "0.2 uM", "none/DMSO")
    made.obs["uneven"] = ["alone", *["many"] * (N_CELLS - 1)]
    made.obs["each"] = np.arange(N_CELLS)
    made.obs["same"] = "x"
    return made


@pytest.fixture(scope="module")
def h5ad(adata, tmp_path_factory):
    path = tmp_path_factory.mktemp("input") / "counts.h5ad"
    adata.write_h5ad(path)
    return path


BACKED, DRAWN = (
    pytest.param(more, marks=pytest.mark.slow) for more in (("--backed",), ("--draws", 6))
)


@pytest.mark.parametrize("more", [(), BACKED, DRAWN])
def test_each_group_has_a_fit(h5ad, adata, tmp_path, more):
    out = tmp_path / "new" / "out"
    code, text = run("fit", h5ad, "--split-by", "dose", "--out", out, *QUICK, *more)
    assert code == 0, text
    table = pd.read_csv(out / "groups.csv", keep_default_na=False)
    assert table["group"].tolist() == ["0.2 uM", "none/DMSO"]
    assert table["directory"].tolist() == ["0.2_uM", "none_DMSO"]
    assert table["cells"].tolist() == [80, 80]
    assert table["genes"].tolist() == [N_GENES, N_GENES]
    assert table["error"].tolist() == ["", ""]
    for group, folder in zip(table["group"], table["directory"], strict=True):
        names = adata.obs_names[adata.obs["dose"] == group]
        result = nbln.load(out / folder / "fit.nc")
        assert result.fitted.cell_names.tolist() == names.tolist()
        assert ad.read_h5ad(out / folder / "fitted.h5ad").n_obs == 80
        assert (out / folder / "report.html").exists()
    assert not list(out.rglob("*.checkpoint"))
    compared = out / "compared_correlations.csv"
    assert compared.exists() == ("--draws" in more)
    if compared.exists():
        columns = pd.read_csv(compared).columns.tolist()
        assert columns[:5] == ["first", "second", "gene_a", "gene_b", "mean"]


def test_a_group_that_fails_takes_no_other_along(h5ad, tmp_path):
    code, text = run("fit", h5ad, "--split-by", "uneven", "--out", tmp_path, *QUICK)
    assert code == 1
    assert "Group alone was not fitted" in text
    assert "NOT written" in text
    table = pd.read_csv(tmp_path / "groups.csv", keep_default_na=False).set_index("group")
    assert "1 cell" in table.loc["alone", "error"]
    assert table.loc["many", "error"] == ""
    assert table.loc["many", "programs"] <= 2
    assert nbln.load(tmp_path / "many" / "fit.nc").fitted.n_cells == N_CELLS - 1
    assert not (tmp_path / "alone" / "fit.nc").exists()


@pytest.mark.slow
def test_a_group_that_was_fitted_is_not_fitted_again(h5ad, tmp_path, monkeypatch):
    """Where a second group fails, the same command takes the first from its checkpoint."""
    command = ["fit", h5ad, "--split-by", "dose", "--out", tmp_path, *QUICK]
    fit, calls = nbln.fit, []

    def fails_at_second(cells, **keywords):
        calls.append(cells.n_obs)
        if len(calls) == 2:
            raise FloatingPointError("step 3 gave a value that is not finite")
        return fit(cells, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(nbln, "fit", fails_at_second)
        code, text = run(*command)
    assert code == 1
    assert "step 3 gave a value" in text
    assert (tmp_path / "0.2_uM" / "fit.checkpoint").exists()
    code, text = run(*command)
    assert code == 0, text
    assert not list(tmp_path.rglob("*.checkpoint"))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("doze", "adata.obs has no column 'doze'"),
        ("each", "--split-by each: has 160 values, and each would have a fit"),
        ("same", "--split-by same: is 'x' in every cell; leave it out"),
    ],
)
def test_columns_that_cannot_be(h5ad, tmp_path, column, words):
    code, text = run("fit", h5ad, "--split-by", column, "--out", tmp_path / "out", *QUICK)
    assert code == 1
    assert words in text
    assert not (tmp_path / "out").exists()


def test_out_is_a_file(h5ad):
    code, text = run("fit", h5ad, "--split-by", "dose", "--out", h5ad, *QUICK)
    assert code == 1
    assert "is a file; give a directory" in text


def test_names_of_directories():
    names = [
        "a/b",
        "a b",
        "A B",
        "../..",
        "",
        ".hidden",
        "CON",
        "nul.txt",
        "ä",
        "x" * 300,
        "groups.csv",
    ]
    safe = splitting.safe_names(names, taken=(splitting.GROUPS,))
    assert safe[:3] == ["a_b", "a_b_2", "A_B_3"]
    assert len({name.lower() for name in safe}) == len(names)
    assert "groups.csv" not in safe
    for name in safe:
        assert name.isascii()
        assert not set(name) & set('/\\:*?"<>| ')
        assert name.strip(".") == name
        assert 0 < len(name) < 70
