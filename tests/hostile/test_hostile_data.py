"""Every input of the table is read as it is or refused in words; see `hostile_data`."""

import numpy as np
import pytest
from hostile_data import BAD, GOOD, make

import nbln
from nbln.data.counts import Counts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*names are not unique"),
    pytest.mark.filterwarnings("ignore:.*ransforming to str index"),
]


@pytest.mark.parametrize("name", GOOD)
def test_read_as_it_is(name, tmp_path):
    case = GOOD[name]
    adata, where = make(case, tmp_path / "counts.h5ad")
    x = np.asarray(case.x, np.float32)
    if case.view is not None:
        x = x[case.view[0]][:, case.view[1]]
    counts = Counts.from_anndata(adata, strict=False, **where)
    seen = x.any(axis=0)
    np.testing.assert_array_equal(counts.rows(slice(None)), x[:, seen])
    np.testing.assert_array_equal(counts.gene_names, adata.var_names.astype(str)[seen])
    np.testing.assert_array_equal(counts.cell_names, adata.obs_names.astype(str))
    assert counts.genes_never_seen == (~seen).sum()
    counts.check_unchanged()


@pytest.mark.parametrize("name", BAD)
def test_refused(name, tmp_path):
    case = BAD[name]
    adata, where = make(case, tmp_path / "counts.h5ad")
    with pytest.raises(case.error, match=case.message) as error:
        nbln.fit(adata, progress=False, **where)
    assert str(error.value).startswith("fit(")
    assert len(str(error.value)) < 600


def test_the_table_is_long():
    assert len(GOOD) + len(BAD) > 250
