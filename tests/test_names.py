"""Names from data never act: not on a terminal, in a page, a figure or a spreadsheet."""

import io
import logging
import re
import unicodedata
import warnings
from html.parser import HTMLParser
from types import SimpleNamespace

import anndata
import jinja2
import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from typer.testing import CliRunner

import nbln
from nbln import cli, outputs, session, text, webpage
from nbln.data.datasets import Datasets
from nbln.data.design import Categories
from nbln.questions import activity

N_CELLS, N_GENES = 150, 80
LONG = "L" * 299 + "x"
HOSTILE = [
    "<script>alert(1)</script>",
    "=cmd|'/c calc'!A1",
    "\x1b[31mred",
    "$\\frac{x",
    "A$B$C",
    "$\\frac{$",
    "a\u202eb",
    "A&B",
    "'quoted",
    "-1",
    "line\nError: forged",
    "back\rError: forged",
    "\x07bell\x9b31m",
    LONG,
]


def hostile_counts():
    """Counts of strongly correlated genes, of which the first have hostile names."""
    adata = nbln.datasets.simulate(N_CELLS, N_GENES, 2, seed=1)
    values = adata.X.toarray()
    values[0] = 1  # every gene is seen
    strength = np.square(adata.varm["W"]).sum(axis=1) * values.sum(axis=0)
    names = np.array(adata.var_names, object)
    names[np.argsort(-strength)[: len(HOSTILE)]] = HOSTILE
    adata = anndata.AnnData(values)
    adata.var_names = names
    adata.obs_names = [f"\x1b]0;owned\x07{i}" for i in range(N_CELLS)]
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def printed(folder):
    """What `nbln fit` printed; its files are in `folder`."""
    path = folder / "counts\x1b[5m.h5ad"
    hostile_counts().write_h5ad(path)
    arguments = ["fit", str(path), "--out", str(folder / "out"), "--latent-dim", "3"]
    arguments += ["--pairs", "3160", "--draws", "10"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def fitted(folder, printed):
    result = nbln.load(folder / "out" / outputs.FIT)
    return result, nbln.load(folder / "out" / outputs.DRAWS)


def harmless(output):
    """Whether a terminal shows this and no more; the lines of a command aside."""
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf") for c in output)


def test_a_terminal_gets_printable_characters(printed):
    assert harmless(printed)
    assert not re.search(r"^ *Error:", printed, re.M)
    assert "counts\\x1b[5m.h5ad" in "".join(printed.split())


def test_the_table_of_pairs_on_a_terminal(fitted, capsys):
    pairs = pd.DataFrame({"gene_a": HOSTILE, "gene_b": HOSTILE[::-1], "correlation": -0.5})
    cli.rich.get_console().print(cli.terminal.pairs_table(pairs, None))
    output = capsys.readouterr().out
    assert harmless(output)
    assert output.count("-0.500") == len(HOSTILE)
    for name in HOSTILE[:4]:
        assert text.visible(name) in output


@pytest.mark.parametrize("name", ["\x1b[31mred", "a\u202eb", "a\nError: b"])
def test_errors_and_notes_are_one_line(name, capsys):
    @session.session(debug=False)
    def command():
        logging.getLogger("nbln").warning("a note of %s", name)
        raise ValueError(f"gene {name} is at fault")

    with pytest.raises(cli.typer.Exit):
        command()
    captured = capsys.readouterr()
    assert harmless(captured.out + captured.err)
    assert text.visible(name) in captured.out
    assert text.visible(name) in captured.err
    assert captured.err.count("\n") == 1


def test_messages_of_the_library_quote_names():
    adata = hostile_counts()
    adata.X[0] = 0
    with pytest.raises(ValueError, match="has no counts") as caught:
        nbln.fit(adata)
    assert harmless(str(caught.value))
    adata.var_names = ["\x1b[31m"] * N_GENES
    with pytest.raises(ValueError, match="occurs more than once") as caught:
        nbln.fit(adata)
    assert harmless(str(caught.value))
    adata.layers["\x1b[31m"] = adata.X
    with pytest.raises(KeyError) as caught:
        nbln.fit(adata, layer="a\u202eb")
    assert harmless(str(caught.value))


class Page(HTMLParser):
    """Tags and texts of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.texts = set(), [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_data(self, data):
        self.texts.append(data)


def test_the_page_shows_names_as_text(folder, printed):
    source = (folder / "out" / outputs.REPORT).read_text()
    page = Page(source)
    assert "script" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    links = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in links)
    policies = [value for _, name, value in page.attributes if name == "content"]
    assert any("default-src 'none'" in value for value in policies)
    for name in ("<script>alert(1)</script>", "A&B", "\\x1b[31mred", "a\\u202eb"):
        assert any(name in shown for shown in page.texts), name
    assert harmless(source)
    assert "&amp;amp;" not in source


def test_tables_for_spreadsheets(folder, printed, fitted):
    result, posterior = fitted
    tables = {outputs.PAIRS: result.top_pairs(3160), outputs.CALLS: posterior.pairs()}
    for name, table in tables.items():
        back = pd.read_csv(folder / "out" / name, keep_default_na=False).drop(columns="note")
        assert back.shape == table.shape
        assert len(table)
        for column in back:
            if not column.startswith("gene"):
                np.testing.assert_allclose(back[column], table[column], rtol=1e-6)
                continue
            assert not back[column].str.startswith(("=", "+", "-", "@", "\t", "\r")).any()
            undone = back[column].str.removeprefix("'")
            assert undone.tolist() == table[column].tolist()
    pairs = pd.read_csv(folder / "out" / outputs.PAIRS)
    assert (pairs["correlation"] < 0).any()
    assert "'=cmd|'/c calc'!A1" in {*pairs["gene_a"], *pairs["gene_b"]}


def test_a_table_comes_back_whatever_its_names():
    names = [*HOSTILE, "+1", "@x", "\tq", "\rq", 'q"x', "a,b", "''", "", "NA", "\u2028", "naïve"]
    table = pd.DataFrame({"gene_a": names, "gene_b": names[::-1], "mean": -0.25, "n": -1})
    back = pd.read_csv(io.BytesIO(text.to_csv(table)), keep_default_na=False)
    for column in ("gene_a", "gene_b"):
        back[column] = back[column].str.removeprefix("'")
    pd.testing.assert_frame_equal(back, table)
    plain = pd.DataFrame({"gene_a": ["a"], "gene_b": ["b"], "mean": [-0.25]})
    assert text.to_csv(plain) == b"gene_a,gene_b,mean\na,b,-0.25\n"
    assert text.to_csv(plain[:0]) == b"gene_a,gene_b,mean\n"
    assert b"\\udc80" in text.to_csv(pd.DataFrame({"gene_a": ["\udc80"]}))


def labels_of(figure):
    """All texts of a figure that has been drawn."""
    return [artist for artist in figure.findobj(matplotlib.text.Text) if artist.get_text()]


FIGURES = {
    "plot_correlation": dict(genes=HOSTILE),
    "plot_gene_programs": dict(n_top=80, n_programs=1),
    "plot_compositional_corner_ppc": dict(genes=HOSTILE[:8]),
    "plot_gene_ppc": dict(genes=HOSTILE, n_samples=3),
}


OF_CODES = ("plot_latent_mean_variance", "plot_prior_samples", "plot_reconstructions")


@pytest.mark.parametrize("name", sorted({*nbln.pl.__all__} - {*OF_CODES}))
def test_figures_show_names_and_parse_none(fitted, folder, name):
    result, posterior = fitted
    counts = result.fitted.data(anndata.read_h5ad(next(folder.glob("*.h5ad"))))
    plot, arguments = getattr(nbln.pl, name), FIGURES.get(name, {})
    first = np.resize(HOSTILE, 2 * len(HOSTILE))
    pairs = pd.DataFrame({"gene_a": first, "gene_b": np.roll(first, 1)})
    pairs = pairs.assign(mean=-0.5, low=-0.7, high=-0.3)
    of_draws = name in ("plot_calls", "plot_network", "plot_pair_intervals")
    # Names can hold a NUL where they do not come from a file.
    pairs = pairs.replace("-1", "nul\0")
    given = posterior if of_draws else result
    if name == "plot_effects":
        n = len(HOSTILE)
        given = pd.DataFrame({"lfc_mean": np.linspace(-2, 2, n), "q": 0.01}, index=HOSTILE)
        given, arguments = given.assign(is_de_fdr=True), dict(n_labels=n)
    if name == "plot_program_activity":
        datasets = Datasets(
            (Categories("A$B$C", tuple(HOSTILE)),), tuple((one,) for one in HOSTILE)
        )
        values = activity.table(datasets, np.linspace(-1, 1, len(HOSTILE))[:, None])
        given = SimpleNamespace(has_activities=True, datasets=datasets)
        given.get_program_activity = lambda: values
    if name in ("plot_network", "plot_pair_intervals"):
        arguments = dict(pairs=pairs, n_pairs=2 * len(HOSTILE))
    if name in ("plot_ppc", "plot_gene_ppc", "plot_mean_variance", "plot_compositional_corner_ppc"):
        arguments = arguments | dict(counts=counts)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph")
        figure = plot(given, **arguments)
        size = figure.get_size_inches()
        figure.canvas.draw()
    assert (figure.get_size_inches() == size).all()
    shown = {}
    for artist in labels_of(figure):
        drawn, mathematical = artist._preprocess_math(artist.get_text())
        shown[drawn] = mathematical
        assert harmless(drawn)
        assert len(drawn) <= 100
        assert "L" * 24 not in drawn
    of_names = "plot_effects", "plot_network", "plot_pair_intervals", "plot_program_activity"
    if name in (*FIGURES, *of_names):
        for wanted in ("$\\frac{x", "A$B$C", "\\x1b[31mred", "=cmd|'/c calc'!A1"):
            assert any(wanted in one and not shown[one] for one in shown), wanted
    plt.close("all")


def test_labels_where_tex_sets_the_text():
    with matplotlib.rc_context({"text.usetex": True}):
        (label,) = nbln.pl.style.labels([r"\input{a_b} $x$"])
    assert label == r"\textbackslash{}input\{a\_b\} \$x\$"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("CD3D", "CD3D"),
        ("x" * 24, "x" * 24),
        ("a" * 150 + "b" * 150, "a" * 12 + "…" + "b" * 11),
        ("\x1b[31m", "\\x1b[31m"),
        (3, "3"),
    ],
)
def test_short_names(given, wanted):
    assert text.short(given) == wanted
    assert len(text.short(given)) <= 24


def test_a_template_that_lacks_a_value_fails():
    with pytest.raises(jinja2.UndefinedError):
        webpage._environment().get_template(webpage.TEMPLATE).render()
