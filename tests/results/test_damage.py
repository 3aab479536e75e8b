"""A file that was changed, cut or written by hand is refused; a full disk harms nothing."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import nbln
from nbln.results import digest, io

VERSION3 = Path(__file__).parent / "version3" / "nbln.nc"
DAMAGED = "damaged: its contents do not match the digest"


@pytest.fixture(scope="module")
def saved(nbln_fit, tmp_path_factory):
    """A saved fit, its source included."""
    path = tmp_path_factory.mktemp("saved") / "fit.nc"
    nbln_fit.save(path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """A copy to spoil."""
    return Path(shutil.copy(saved, tmp_path / "copy.nc"))


def refused(path, message=DAMAGED):
    with pytest.raises(ValueError, match=message) as caught:
        nbln.load(path)
    assert str(path) in str(caught.value)


# Bytes


def test_two_thousand_changes_are_refused(saved, tmp_path):
    """Bits and bytes anywhere; one in ten near the digest itself, a small part of the file."""
    content, path, rng = saved.read_bytes(), tmp_path / "changed.nc", np.random.default_rng(0)
    near = content.index(digest.MARK.encode())
    for i in range(2000):
        changed = bytearray(content)
        at = near - 50 + rng.integers(200) if i % 10 == 0 else rng.integers(len(content))
        changed[at] ^= 1 << rng.integers(8) if i % 2 else rng.integers(1, 256)
        path.write_bytes(changed)
        refused(path)


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_a_part_of_a_file_is_refused(share, saved, tmp_path):
    path = tmp_path / "cut.nc"
    path.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    refused(path, r"cut short")


def test_more_than_the_file_is_refused(copy):
    with open(copy, "ab") as file:
        file.write(b"\0")
    refused(copy)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", digest.MARK.encode() + b"0" * 64])
def test_no_file_of_ours(content, tmp_path):
    path = tmp_path / "none.nc"
    path.write_bytes(content)
    refused(path, "damaged|not a readable NetCDF")


# Contents, changed by a program that writes sound HDF5


def change_number(file):
    file["parameters/mu"][0] += 1


def change_name(file):
    file["data/gene_names"][0] = "other"


def change_values(file):
    plain = json.loads(file["fit"].attrs["values"])
    file["fit"].attrs["values"] = json.dumps(plain | {"converged": not plain["converged"]})


def delete_array(file):
    del file["spread/normal"]


def delete_group(file):
    del file["priors"]


def swap_arrays(file):
    file.move("cells/eta", "cells/other")
    file.move("cells/eta_loc", "cells/eta")
    file.move("cells/other", "cells/eta_loc")


def take_group_of_another(file):
    del file["history"]
    with h5py.File(VERSION3) as other:
        other.copy("history", file)


def call_it_version_3(file):
    file.attrs["format_version"] = io.WITHOUT_DIGEST


def delete_digest(file):
    del file.attrs["digest"]


@pytest.mark.parametrize(
    "change",
    [
        change_number,
        change_name,
        change_values,
        delete_array,
        delete_group,
        swap_arrays,
        take_group_of_another,
        call_it_version_3,
        delete_digest,
    ],
)
def test_rewritten_contents_are_refused(change, copy):
    with h5py.File(copy, "r+") as file:
        change(file)
    refused(copy)


def test_a_file_written_anew_is_refused(saved, tmp_path):
    path = tmp_path / "anew.nc"
    with xr.open_datatree(saved, engine="h5netcdf") as tree:
        tree.load().to_netcdf(path, engine="h5netcdf")
    refused(path)


def test_version_4_needs_a_digest(saved, tmp_path):
    path = tmp_path / "without.nc"
    with xr.open_datatree(saved, engine="h5netcdf") as tree:
        tree = tree.load()
    del tree.attrs["digest"]
    tree.to_netcdf(path, engine="h5netcdf")
    refused(path)


def test_other_readers_open_the_file(saved, nbln_fit):
    with xr.open_datatree(saved, engine="h5netcdf") as tree:
        assert tree.attrs["digest"].startswith(digest.MARK)
        np.testing.assert_array_equal(tree["parameters/mu"], nbln_fit.mu)
    with h5py.File(saved) as file:
        np.testing.assert_array_equal(file["parameters/mu"], nbln_fit.mu)


def test_names_that_look_like_a_digest_do_no_harm(nbln_fit, tmp_path):
    groups = nbln_fit.to_groups()
    strange = groups["data"]["gene_names"].values.copy()
    strange[:2] = [digest.MARK + "0" * 64, digest.MARK]
    groups["data"]["gene_names"] = ("gene", strange)
    io.write(tmp_path / "strange.nc", nbln_fit.kind, groups)
    assert list(nbln.load(tmp_path / "strange.nc").fitted.gene_names[:2]) == list(strange[:2])


# Earlier files


def test_version_3_has_no_digest_and_loads(tmp_path):
    assert digest.intact(VERSION3.read_bytes()) is None
    result = nbln.load(VERSION3)
    with h5py.File(VERSION3) as file:
        assert file.attrs["format_version"] == io.WITHOUT_DIGEST
        np.testing.assert_array_equal(result.mu, file["parameters/mu"])
        np.testing.assert_array_equal(result.d, file["parameters/d"])
    result.save(tmp_path / "again.nc")
    assert digest.intact((tmp_path / "again.nc").read_bytes())
    assert nbln.load(tmp_path / "again.nc").get_map().identical(result.get_map())


# Files with a digest, written by hand


def put(name, value):
    def change(groups):
        group, _, array = name.rpartition("/")
        x = groups[group][array].values.copy()
        x.flat[0] = value
        groups[group][array] = (groups[group][array].dims, x)

    return change


def halve(group, dim):
    def change(groups):
        groups[group] = groups[group].isel({dim: slice(None, None, 2)})

    return change


def turn(groups):
    groups["parameters"]["W"] = groups["parameters"]["W"].T


def repeat(name):
    def change(groups):
        put(f"data/{name}", groups["data"][name].values[1])(groups)

    return change


def drop(group, array=None):
    def change(groups):
        if array is None:
            del groups[group]
        else:
            groups[group] = groups[group].drop_vars(array)

    return change


def text(groups):
    groups["parameters"]["mu"] = groups["parameters"]["mu"].astype(str).astype(object)


def no_json(groups):
    groups["fit"] = groups["fit"].assign_attrs(values="{")


def of_other_genes(groups):
    for name in [n for n in groups if n.startswith("cascade_source/") and "gene" in groups[n].dims]:
        groups[name] = groups[name].isel(gene=slice(1, None))


BY_HAND = {
    "d": (put("parameters/d", 0.0), "parameters/d must hold positive"),
    "mu": (put("parameters/mu", np.inf), "parameters/mu must hold finite"),
    "W": (put("parameters/W", np.nan), "parameters/W must hold finite"),
    "r": (put("channel/log_r", np.nan), "channel/log_r must hold finite"),
    "sd": (put("cells/eta_sd", -1.0), "cells/eta_sd must hold finite numbers of at least 0"),
    "r sd": (put("spread/r_sd", -1.0), "spread/r_sd must"),
    "flag": (put("cells/converged", 2), "cells/converged must hold 0 or 1"),
    "library": (put("data/library_size", 0), "data/library_size must hold positive"),
    "prior": (put("priors/mu.scale", -1.0), "priors/mu.scale must"),
    "source": (put("cascade_source/posterior/r_scale", 0.0), "posterior/r_scale must"),
    "genes": (halve("parameters", "gene"), "channel has 30 of 'gene', others 15|parameters has"),
    "cells": (halve("cells", "cell"), "of 'cell'"),
    "factors": (halve("parameters", "factor"), "of 'factor'"),
    "columns": (halve("cells", "column"), "cells/z has 2 columns; the model 3"),
    "names too few": (halve("data", "gene"), "of 'gene'"),
    "source's genes": (of_other_genes, "of 'gene'"),
    "turned": (turn, r"parameters/W is an array over \('factor', 'gene'\)"),
    "gene twice": (repeat("gene_names"), "data/gene_names must hold names, each given once"),
    "cell twice": (repeat("cell_names"), "data/cell_names must hold names, each given once"),
    "text": (text, "parameters/mu must hold finite numbers"),
    "no group": (drop("parameters"), "'parameters' is missing"),
    "no array": (drop("parameters", "d"), "'d' is missing"),
    "no values": (no_json, "not a result that can be used"),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_what_no_result_can_hold_is_refused(case, nbln_fit, tmp_path):
    change, message = BY_HAND[case]
    groups = {name: dataset.copy() for name, dataset in nbln_fit.to_groups().items()}
    change(groups)
    io.write(tmp_path / "made.nc", nbln_fit.kind, groups)
    refused(tmp_path / "made.nc", message)


# A full disk


def test_a_full_disk_leaves_the_old_file_and_the_result(nbln_fit, copy):
    resource = pytest.importorskip("resource")
    old, limits = copy.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"save\(.*copy\.nc.*still in memory"):
            nbln_fit.save(copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert copy.read_bytes() == old
    assert [path.name for path in copy.parent.iterdir()] == ["copy.nc"]
    nbln_fit.save(copy)
    assert nbln.load(copy).get_map().identical(nbln_fit.get_map())
