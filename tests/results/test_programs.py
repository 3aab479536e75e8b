"""What a fit says of its programs: tables, gene sets, partners, networks, marks."""

from dataclasses import replace

import anndata
import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import nbln
from nbln.questions import network
from nbln.questions.program_table import kind_of, table


@pytest.fixture(scope="module")
def fit():
    """Three programs, of which each gene has one at most."""
    adata = nbln.datasets.simulate(400, 80, 3, seed=2)
    return nbln.fit(adata, latent_dim=5, progress=False)


@pytest.fixture(scope="module")
def genes(fit):
    return fit.program_genes


def test_tails_are_positive(fit):
    assert ((fit.get_latent().values.astype(float) ** 3).sum(axis=0) >= 0).all()


def test_table(fit, genes):
    rank = fit.w_prior_diagnostics["effective_rank"]
    found = fit.get_program_table(n_top=5)
    assert found.index.tolist() == list(range(1, rank + 1))
    assert found.index.name == "program"
    assert found["share"].sum() == pytest.approx(1)
    z, member = fit.get_latent().values[:, :rank], fit.get_membership().values[:, :rank]
    np.testing.assert_array_equal(found["n_cells"], (z > 1).sum(axis=0))
    np.testing.assert_array_equal(found["n_genes"], (member > 0.5).sum(axis=0))
    np.testing.assert_allclose(
        found["effective_cells"], (z**2).sum(axis=0) ** 2 / (z**4).sum(axis=0), rtol=1e-4
    )
    W = fit.get_W_compositional()
    for number, row in found.iterrows():
        assert row["name"] == " / ".join(row["top_genes"].split(", ")[:3])
        for column, sign in (("top_genes", 1), ("opposed_genes", -1)):
            shown = [gene for gene in row[column].split(", ") if gene]
            assert len(shown) <= 5
            assert (sign * W.sel(gene=shown).values[:, number - 1] > 0).all()
    with pytest.raises(ValueError, match="n_top"):
        fit.get_program_table(n_top=0)


def test_rare_genes_do_not_lead(genes):
    """The weight is a share of the variance of counts, so at most that of all programs."""
    total = np.abs(genes.weight).sum(axis=1)
    assert (total <= genes.variance + 1e-6).all()
    assert ((genes.weight != 0) <= (genes.membership > 0.5)).all()


@pytest.mark.parametrize(
    ("leading", "kind"),
    [
        (["RPL3", "RPS12", "RPLP0", "CD3D"], "ribosomal"),
        (["Rpl3", "Rps12", "mt-Co1"], "ribosomal"),
        (["MT-CO1", "MT-ND4", "LYZ"], "mitochondrial"),
        (["RPL3", "CD3D"], ""),
        (["MTOR", "RPSA1X", "RPN1"], ""),
        ([], ""),
    ],
)
def test_kinds(leading, kind):
    assert kind_of(np.array(leading)) == kind


def test_every_prior_of_loadings(results):
    """Without a spike all genes belong to all programs."""
    fit = results["pln"]
    table = fit.get_program_table()
    assert (table["n_genes"] == fit.fitted.real_genes.sum()).all()


def test_enrichment_is_the_hypergeometric_test(fit, genes):
    up = genes.names[genes.leading(0, "up", 100)]
    others = [gene for gene in genes.names if gene not in set(up)]
    sets = {"mine": [*up[:6], *others[:2], "elsewhere"], "theirs": others[:10], "none": ["x", "y"]}
    found = fit.enrichment(sets)
    row = found.query("program == 1 and direction == 'up' and term == 'mine'").iloc[0]
    n, k, size = len(genes.names), len(up), 8
    assert (row["overlap"], row["size"]) == (6, size)
    assert row["p_value"] == pytest.approx(stats.hypergeom.sf(5, n, size, k), rel=1e-6)
    assert set(row["genes"].split(", ")) == set(up[:6])
    assert (found["q_value"] >= found["p_value"]).all()
    assert fit.get_program_table(gene_sets=sets)["name"][1] == "mine"


def test_names_need_leading_genes_and_are_given_once(genes):
    """A set that only genes below the tenth are of, however sure, names no program."""

    def terms(*rows):
        columns = ["program", "direction", "term", "p_value", "q_value", "genes"]
        return pd.DataFrame(rows, columns=columns)

    up, down = (genes.names[genes.leading(0, way, 100)] for way in ("up", "down"))
    first, later = ", ".join(up[:2]), ", ".join(up[10:16])
    z = np.zeros((5, genes.loading.shape[1]))

    def names(*rows):
        return table(genes, z, 10, terms(*rows))["name"].tolist()

    plain = names()
    assert names((1, "up", "late", 1e-9, 1e-8, later)) == plain
    assert names((1, "up", "unsure", 0.1, 0.2, first)) == plain
    second = ", ".join(genes.names[genes.leading(1, "up", 2)])
    twice = (1, "up", "T", 1e-9, 1e-8, first), (2, "up", "T", 1e-5, 1e-4, second)
    assert names(*twice) == ["T", *plain[1:]]
    both = (1, "up", "T", 1e-9, 1e-8, first), (1, "down", "B", 1e-9, 1e-8, ", ".join(down[:2]))
    assert names(*both)[0] == "T against B"


def test_gene_sets_of_a_file(fit, genes, tmp_path):
    up = genes.names[genes.leading(0, "up", 10)]
    path = tmp_path / "sets.gmt"
    path.write_text("\t".join(["mine", "https://", *up]) + "\n\n" + "short\n")
    pd.testing.assert_frame_equal(fit.enrichment(path), fit.enrichment({"mine": list(up)}))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (12, TypeError, "GMT file"),
        ("missing.gmt", FileNotFoundError, "no such file"),
        ({"a": ["CD3D"]}, ValueError, "they are called 'CD3D' there, and 'gene"),
        ({"a": "CD3D"}, TypeError, "give a list of genes"),
    ],
)
def test_errors_of_gene_sets(fit, given, error, words):
    with pytest.raises(error, match=words):
        fit.enrichment(given)


def test_a_file_that_is_no_gmt(fit, tmp_path):
    path = tmp_path / "x.gmt"
    path.write_text("gene\nother\n")
    with pytest.raises(ValueError, match="no gene sets"):
        fit.enrichment(path)
    path.write_bytes(b"\x89\xff\x00\x80")
    with pytest.raises(ValueError, match="not a text file"):
        fit.enrichment(path)


@pytest.mark.parametrize("kind", ["compositional", "expression"])
def test_partners(fit, kind):
    gene = "gene5"
    table = fit.partners(gene, 7, kind=kind)
    correlation = fit.get_correlation(kind).sel(gene=gene).drop_sel(gene_=gene)
    order = np.argsort(-np.abs(correlation.values))[:7]
    assert (table["gene_a"] == gene).all()
    np.testing.assert_allclose(table["correlation"], correlation.values[order], rtol=1e-5)
    assert (np.abs(fit.partners(gene, 70, min_abs=0.2)["correlation"]) >= 0.2).all()
    with pytest.raises(KeyError, match="nobody"):
        fit.partners("nobody")
    with pytest.raises(TypeError, match="one gene"):
        fit.partners(["gene1", "gene2"])


def test_graph(fit, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "BLOCK", 7)
    graph = fit.to_graph(min_abs=0.2, most=3)
    matrix = fit.get_correlation().to_pandas()
    wanted = set()
    for gene, row in matrix.iterrows():
        row = row.drop(gene)
        row = row[row.abs() >= 0.2]
        wanted |= {frozenset((gene, other)) for other in row.abs().nlargest(3).index}
    assert {frozenset(edge) for edge in graph.edges} == wanted
    for a, b, given in graph.edges(data=True):
        assert given["correlation"] == pytest.approx(matrix.loc[a, b], rel=1e-5)
        assert given["weight"] == abs(given["correlation"])
        assert given["sign"] == ("positive" if given["correlation"] > 0 else "negative")
    node = graph.nodes[a]
    assert node["mu"] == pytest.approx(float(fit.mu.sel(gene=a)))
    assert node["program"] in range(4)
    for suffix, read in ((".graphml", nx.read_graphml), (".gml", nx.read_gml)):
        network.FORMATS[suffix](graph, tmp_path / f"g{suffix}")
        back = read(tmp_path / f"g{suffix}")
        assert dict(back.nodes(data=True)) == dict(graph.nodes(data=True))
        assert nx.to_dict_of_dicts(back) == nx.to_dict_of_dicts(graph)
    assert set(fit[["gene1", "gene2", "gene5"]].to_graph(min_abs=0)) == {"gene1", "gene2", "gene5"}
    assert len(fit.to_graph(min_abs=1.0)) == 0


def test_marks(fit):
    pairs = fit.top_pairs(20)
    assert (fit.mark_pairs(pairs)["note"] == "").all()
    checks = fit.check(n_samples=5)
    rare = pairs["gene_a"][0]
    zeros = checks["zero_fraction"].copy()
    zeros.loc[dict(quantity="observed", gene=rare)] = 1 - 3 / 400
    marked = fit.mark_pairs(pairs, checks.assign(zero_fraction=zeros))
    involved = (pairs["gene_a"] == rare) | (pairs["gene_b"] == rare)
    assert marked.loc[involved, "note"].str.contains(f"{rare}: seen in 3 cells").all()
    assert (marked.loc[~involved, "note"] == "").all()


def test_pairs_that_few_cells_make(fit):
    """A factor that three cells have, and no other."""
    z = fit.cells.z.copy()
    z[:, 0] = 0
    z[:3, 0] = 10
    few = replace(fit, cells=fit.cells._replace(z=z))
    leading = few.program_genes
    pair = leading.names[leading.leading(0, "up", 2)]
    marked = few.mark_pairs(pd.DataFrame({"gene_a": pair[:1], "gene_b": pair[1:]}))
    assert "made by about 3 cells" in marked["note"][0]


def test_embedding(fit):
    rank = fit.w_prior_diagnostics["effective_rank"]
    norms = np.linalg.norm(fit.get_W_compositional().values, axis=0)[:rank]
    z = fit.get_latent().values[:, :rank]
    np.testing.assert_allclose(fit.get_embedding(), z * np.sqrt(norms), rtol=1e-5)
    np.testing.assert_allclose(fit.get_embedding(power=1), z * norms, rtol=1e-5)
    np.testing.assert_array_equal(fit.get_embedding(power=0), z)
    with pytest.raises(ValueError, match="power"):
        fit.get_embedding(power=2)


@pytest.mark.slow
def test_types_that_differ_less_than_all_cells_do():
    """Clusters of the embedding are the types where principal components miss them."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score

    rng = np.random.default_rng(1)
    n_cells, n_genes, n_types = 500, 200, 4
    types = rng.integers(0, n_types, n_cells)
    differ = rng.normal(size=(n_types, n_genes)) * (rng.random((n_types, n_genes)) < 0.15)
    W = rng.normal(0, 0.6, (n_genes, 2)) * (rng.random((n_genes, 2)) < 0.3)
    f = rng.normal(0, 1.5, n_genes) + differ[types] + rng.normal(size=(n_cells, 2)) @ W.T
    share = np.exp(f) / np.exp(f).sum(axis=1, keepdims=True)
    counts = rng.poisson(3000 * share * rng.gamma(2, 1 / 2, share.shape))
    counts = counts[:, counts.sum(axis=0) > 0].astype(np.float32)
    found = nbln.fit(anndata.AnnData(counts), progress=False).get_embedding()
    shares = counts / counts.sum(axis=1, keepdims=True)
    components = PCA(10, random_state=0).fit_transform(np.log1p(shares * 3000))

    def agreement(place):
        clusters = KMeans(n_types, n_init=20, random_state=0).fit_predict(place)
        return adjusted_rand_score(types, clusters)

    assert agreement(found) >= agreement(components)
    assert agreement(found) > 0.95
