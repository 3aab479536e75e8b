"""Files that stay where they are: one or several as one AnnData, h5ad or zarr, and Dask arrays."""

import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from count_matrices import FORMS, assert_equal, named, small

import nbln
from nbln.data import files
from nbln.data.counts import Counts
from nbln.data.doors import COUNTS, DOORS
from nbln.data.shelf import Files, in_memory

KINDS = ("h5ad", "zarr")


def written(adata, path):
    if path.suffix == ".zarr":
        pytest.importorskip("zarr")
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


def read(given, **keywords):
    return DOORS[COUNTS].read(given, keywords.pop("layer", None), None, **keywords)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_a_path_is_read_as_its_anndata_is(kind, form, tmp_path):
    x = small()
    adata = named(FORMS[form](x), {"raw": sp.csr_matrix(x + 1)})
    path = written(adata, tmp_path / f"counts.{kind}")
    for layer in (None, "raw"):
        counts = read(path, layer=layer)
        assert_equal(counts, Counts.from_anndata(adata, layer=layer))
        assert counts.on_disk == (form != "csc" or layer == "raw")
        assert counts.files == (str(path),)
        for index in ([7, 2, 2, -1, 0], np.arange(6)[::-1], slice(2, 5), []):
            expected = Counts.from_anndata(adata, layer=layer).rows(index)
            np.testing.assert_array_equal(counts.rows(index), expected)


def test_an_anndata_with_lazy_counts(tmp_path):
    pytest.importorskip("zarr")
    import zarr

    adata = named(sp.csr_matrix(small()))
    group = zarr.open_group(str(written(adata, tmp_path / "counts.zarr")), mode="r")
    lazy = anndata.AnnData(
        anndata.io.sparse_dataset(group["X"]), obs=adata.obs.copy(), var=adata.var.copy()
    )
    part = [8, 0, 5, 3], [4, 1, 2]
    assert_equal(Counts.from_anndata(lazy), Counts.from_anndata(adata))
    assert_equal(Counts.from_anndata(lazy[part]), Counts.from_anndata(adata[part].copy()))


@pytest.fixture
def three():
    """Files whose genes and columns differ, with the AnnData that they are together."""
    x = small(30, 6) + 1
    whole = named(x)
    whole.obs["donor"] = pd.Categorical(["a", "b", "c"] * 10)
    whole.obs["age"] = np.arange(30.0)
    first, second, third = (
        whole[:11].copy(),
        whole[11:12, [5, 2, 0, 1, 3]].copy(),
        whole[12:].copy(),
    )
    third.X = sp.csr_matrix(third.X)
    del third.obs["age"]
    third.obs["other"] = 1
    return [first, second, third], whole[:, [0, 1, 2, 3, 5]].copy()


@pytest.mark.parametrize("kind", KINDS)
def test_several_files_are_one(kind, three, tmp_path, caplog):
    parts, whole = three
    paths = [written(x, tmp_path / f"{n}.{kind}") for x, n in zip(parts, "abc", strict=True)]
    with caplog.at_level("INFO", logger="nbln"):
        shelf = Files.of(paths)
    assert "1 of the genes are not in all files and are left out" in caplog.text
    assert list(shelf.obs) == ["donor", "file"]
    assert shelf.obs["file"].tolist() == ["a"] * 11 + ["b"] + ["c"] * 18
    assert shelf.obs["donor"].tolist() == whole.obs["donor"].tolist()
    counts = read(paths, columns=["file"])
    assert counts.on_disk
    assert counts.files == tuple(map(str, paths))
    reference = whole.copy()
    reference.obs["file"] = shelf.obs["file"].values
    assert_equal(counts, Counts.from_anndata(reference, columns=["file"]))
    for index in (slice(9, 14), [29, 11, 11, 0], np.arange(30)[::-3], slice(3, 3)):
        np.testing.assert_array_equal(counts.rows(index), whole.X[index])
    part = Counts.from_anndata(shelf[5:20, 1:])
    np.testing.assert_array_equal(part.rows(slice(None)), whole.X[5:20, 1:])
    np.testing.assert_array_equal(in_memory(shelf[5:20]).X.toarray(), whole.X[5:20])


def test_names_that_repeat_get_that_of_their_file(tmp_path):
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths.append(written(named(small()), tmp_path / name / "counts.h5ad"))
    shelf = Files.of(paths)
    assert shelf.obs_names[0] == f"cell0-{tmp_path}/one/counts"
    assert shelf.obs_names.is_unique
    other = written(named(small()), tmp_path / "other.h5ad")
    assert Files.of([paths[0], other]).obs_names[-1] == "cell8-other"


def test_what_does_not_go_together(tmp_path):
    x = small()
    a = written(named(x, {"raw": x}), tmp_path / "a.h5ad")
    renamed = named(x)
    renamed.var_names = [f"ENS{i}" for i in range(6)]
    b = written(renamed, tmp_path / "b.h5ad")
    with pytest.raises(
        ValueError, match=r"2 files have no gene in common .*a.h5ad 'gene0'.*'ENS0'"
    ):
        nbln.fit([a, b])
    half = named(x / 2)
    half.obs_names = [f"other{i}" for i in range(9)]
    c = written(half, tmp_path / "c.h5ad")
    with pytest.raises(ValueError, match=r'"other0" of file c, .*looks like normalised data'):
        nbln.fit([a, c])
    with pytest.raises(KeyError, match=r"no such layer in .*c\.h5ad; adata has no layers"):
        nbln.fit([a, c], layer="raw")
    with pytest.raises(ValueError, match=r"a\.h5ad: given twice"):
        nbln.fit([a, a])
    with pytest.raises(FileNotFoundError, match=r"d\.h5ad: no such file"):
        nbln.fit([a, tmp_path / "d.h5ad"])
    with pytest.raises(ValueError, match="no file; give the path of at least one"):
        nbln.fit([])
    twice = named(x)
    twice.var_names = ["gene0"] * 6
    with pytest.raises(ValueError, match=r'e\.h5ad: .*"gene0" occurs more than once'):
        nbln.fit([a, written(twice, tmp_path / "e.h5ad")])
    empty = anndata.AnnData(obs=named(x).obs, var=named(x).var)
    with pytest.raises(ValueError, match=r"f\.h5ad has no X; name a layer"):
        nbln.fit([a, written(empty, tmp_path / "f.h5ad")])


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix])
def test_a_zarr_store_that_lacks_chunks(form, tmp_path):
    path = written(named(form(small())), tmp_path / "counts.zarr")
    gone = path / "X" if form is np.asarray else path / "X" / "data"
    for chunk in [*gone.glob("0*"), *gone.glob("c")]:
        shutil.rmtree(chunk) if chunk.is_dir() else chunk.unlink()
    kind = ValueError if form is np.asarray else OSError
    with pytest.raises(kind, match=r"has no counts|counts\.zarr cannot be read; .*0 of 1 chunks"):
        read(path)


def test_a_directory_that_is_no_zarr_store(tmp_path):
    with pytest.raises(ValueError, match="not a file; give an h5ad file of raw counts, or a zarr"):
        nbln.fit(tmp_path)


def test_an_annotated_copy_of_several_files(three, tmp_path):
    parts, whole = three
    for part in parts:
        part.layers["raw"] = part.X
    paths = [written(x, tmp_path / f"{n}.h5ad") for x, n in zip(parts, "abc", strict=True)]
    shelf = files.read(paths, backed=True)
    files.write_annotated(lambda adata: adata.uns.update(nbln="said"), shelf, tmp_path / "out.h5ad")
    made = anndata.read_h5ad(tmp_path / "out.h5ad")
    assert made.uns["nbln"] == "said"
    for counts in (made.X, made.layers["raw"], files.read(paths).X):
        np.testing.assert_array_equal(counts.toarray(), whole.X)
    assert made.obs["file"].tolist() == shelf.obs["file"].tolist()


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize("chunks", [(4, 6), (4, 2), (9, 6)])
def test_dask(form, chunks):
    array = pytest.importorskip("dask.array")
    x = small()
    if form is not np.asarray and chunks[1] < 6:
        pytest.skip("AnnData has sparse blocks of whole rows")
    lazy = array.from_array(x, chunks=chunks).map_blocks(form)
    counts = Counts.from_anndata(named(lazy))
    assert_equal(counts, Counts.from_anndata(named(x)))
    assert counts.on_disk
    np.testing.assert_array_equal(counts.rows([8, 1, 1, 3]), x[[8, 1, 1, 3]])
    part = Counts.from_anndata(named(lazy)[2:7, [3, 0]])
    np.testing.assert_array_equal(part.rows(slice(None)), x[2:7, [3, 0]])


def test_dask_that_fails():
    array = pytest.importorskip("dask.array")

    def broken(block):
        raise RuntimeError("lost")

    lazy = array.from_array(small(), chunks=(4, 6)).map_blocks(
        broken, dtype=np.float32, meta=small()
    )
    with pytest.raises(OSError, match=r"rows 0 to 4 of the Dask array cannot be made .*lost"):
        Counts.from_anndata(named(lazy))
