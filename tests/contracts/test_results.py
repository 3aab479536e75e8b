"""Every result: what is saved comes back, draws are labelled, nothing is written unasked."""

import json

import h5py
import jax
import numpy as np
import pytest
import xarray as xr

import nbln
from nbln.results import io

KINDS = (
    "mean_disp-mean_field",
    "mean_odds-mean_field",
    "canonical-mean_field",
    "mean_disp-low_rank",
    "mean_odds-low_rank",
    "canonical-low_rank",
    "nbdm",
    "zinb",
    "zinbvcp",
    "scvi",
    "negbio_vae",
    "pln",
    "nbln-frozen",
    "nbln-latent-coverage",
    "lnm",
    "lnmvcp",
)
LAPLACE = KINDS[-5:]
SVI = KINDS[:9]
LEVELS = ("marginal", "library_anchored", "per_cell")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_laplace = pytest.mark.parametrize("kind", LAPLACE)


@pytest.fixture(scope="session")
def saved(results, tmp_path_factory):
    """Path of every result."""
    folder = tmp_path_factory.mktemp("results")
    paths = {kind: folder / f"{kind}.nc" for kind in KINDS}
    for kind, path in paths.items():
        results[kind].save(path)
    return paths


@pytest.fixture(scope="session")
def loaded(saved):
    """Every result, back from its file."""
    return {kind: nbln.load(path) for kind, path in saved.items()}


def assert_same(ours, theirs):
    if isinstance(ours, xr.DataArray | xr.Dataset):
        xr.testing.assert_identical(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_same(ours[key], theirs[key])
    elif hasattr(ours, "batch_shape"):  # a NumPyro distribution
        assert type(ours) is type(theirs)
        key = jax.random.key(0)
        np.testing.assert_array_equal(ours.sample(key, (3,)), theirs.sample(key, (3,)))
    elif hasattr(ours, "equals"):
        assert ours.equals(theirs)
    elif ours is None:
        assert theirs is None
    else:
        np.testing.assert_array_equal(ours, theirs)


def answers(result, adata):
    """Everything a result can be asked."""
    asked = {"map": result.get_map(), "repr": repr(result)}
    if result.kind == "vae":
        # The data of the fit, with its columns.
        return asked | {
            "weights": {str(i): x for i, x in enumerate(jax.tree.leaves(result.network))},
            "architecture": repr(result.architecture),
            "design": repr(result.design),
            "known": {str(i): x for i, x in enumerate(jax.tree.leaves(result.known))},
            "latents": result.latents._asdict(),
            "history": result.history,
            "held_out": result.held_out,
            "best": (result.best, result.stopped, result.inference_method),
            "z": result.get_latent(refined=True, counts=adata),
            "denoised": result.get_denoised(seed=3, counts=adata),
            "draws": result.draw_parameters(4, seed=3),
            **{
                level: result.get_ppc_samples(level, n_samples=2, seed=3, counts=adata)
                for level in LEVELS
            },
        }
    if result.kind == "code_vae":
        return asked | {
            "weights": {str(i): x for i, x in enumerate(jax.tree.leaves(result.network))},
            "architecture": repr(result.architecture),
            "shape": result.shape,
            "history": result.history,
            "held_out": result.held_out,
            "best": (result.best, result.stopped),
            "z": result.get_latent(),
            "counts": result.get_latent_counts(seed=3),
            "dispersion": result.get_dispersion(),
            "reconstructed": result.reconstruct(seed=3),
            "prior": result.sample_prior(3, noise=True),
            "score": result.score(adata, 3),
            "draws": result.draw_parameters(4, seed=3),
            **{
                level: result.get_ppc_samples(level, n_samples=2, seed=3, counts=adata)
                for level in LEVELS
            },
        }
    asked["converged"] = result.converged
    if result.kind == "svi":
        return asked | {
            "mean": result.mean,
            "r": result.r,
            "eta": result.eta,
            "losses": result.losses,
            "n_steps": result.n_steps,
            "samples": result.get_posterior_samples(7, seed=3),
            "ppc": result.get_ppc_samples(n_samples=2, seed=3),
        }
    if "inclusion" in result.scales:
        asked["membership"] = result.get_membership()
    attributes = (
        "mu",
        "W",
        "d",
        "r",
        "eta",
        "totals",
        "n_unconverged",
        "w_prior_diagnostics",
        "frozen",
    )
    attributes += ("log_evidence", "gradient_norm", "cell_converged", "trace", "match", "search")
    asked |= {name: getattr(result, name) for name in attributes}
    asked["columns"] = result.augmentation.columns
    return asked | {
        "z": result.get_latent(),
        "W_compositional": result.get_W_compositional(),
        "gauge": result.get_gauge_diagnostics(),
        "covariance": result.get_covariance("clr"),
        "correlation": result.get_correlation("log_rate"),
        "pairs": result.top_pairs(10),
        "compositions": result.get_compositional_samples(5, seed=3),
        "source": None if result.cascade_source is None else repr(result.cascade_source),
        **{
            level: result.get_ppc_samples(level, n_samples=2, seed=3, counts=adata)
            for level in LEVELS
        },
    }


@every_kind
def test_save_and_load(kind, results, loaded, adata):
    assert type(loaded[kind]) is type(results[kind])
    for name in ("settings", "layer", "gene_coverage", "fingerprint"):
        assert getattr(loaded[kind].fitted, name) == getattr(results[kind].fitted, name), name
    if results[kind].has_capture:
        assert loaded[kind].capture_rule == results[kind].capture_rule
    assert_same(answers(results[kind], adata), answers(loaded[kind], adata))


@pytest.mark.parametrize("kind", [*SVI, *LAPLACE])
def test_distributions_survive(kind, results, loaded):
    assert_same(results[kind].get_distributions(), loaded[kind].get_distributions())


@every_kind
def test_saved_again_it_is_the_same(kind, loaded, adata, tmp_path):
    loaded[kind].save(tmp_path / "again.nc")
    again = nbln.load(tmp_path / "again.nc")
    assert_same(answers(loaded[kind], adata), answers(again, adata))


@every_kind
def test_no_pickle(kind, saved):
    content = saved[kind].read_bytes()
    assert content[1:4] == b"HDF"
    assert b"\x80\x04\x95" not in content  # how a pickle of protocol 4 begins
    assert b"\x80\x05\x95" not in content

    def check(name, item):
        del name
        if isinstance(item, h5py.Dataset):
            assert item.dtype.kind != "V"
            assert item.dtype.kind != "O" or h5py.check_string_dtype(item.dtype)
        if "values" in item.attrs:
            json.loads(item.attrs["values"])

    with h5py.File(saved[kind]) as file:
        file.visititems(check)


@every_kind
def test_any_fit_can_be_compared(kind, results, adata):
    some = adata[:20].copy()
    table = nbln.compare({"one": results[kind], "other": results[kind]}, some)
    np.testing.assert_array_equal(table["difference"], 0)


@every_kind
def test_counts_are_not_in_the_file(kind, loaded):
    assert loaded[kind].fitted.counts is None


@pytest.mark.parametrize("level", LEVELS)
@every_kind
def test_predictive_draws(kind, level, results):
    result = results[kind]
    drawn = result.get_ppc_samples(level, n_samples=3, seed=1)
    assert drawn.dims == ("chain", "draw", "cell", "gene")
    assert drawn.shape == (1, 3, result.fitted.n_cells, result.fitted.n_genes)
    np.testing.assert_array_equal(drawn["gene"], result.fitted.gene_names)
    np.testing.assert_array_equal(drawn["cell"], result.fitted.cell_names)
    assert np.issubdtype(drawn.dtype, np.integer)
    assert int(drawn.min()) >= 0
    if level == "library_anchored":
        totals = drawn.sum("gene").values
        np.testing.assert_array_equal(totals[0, 0], result.fitted.library_size)
    xr.testing.assert_identical(drawn, result.get_ppc_samples(level, n_samples=3, seed=1))
    assert not drawn.equals(result.get_ppc_samples(level, n_samples=3, seed=2))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["mean_disp-mean_field", "pln", "nbln-frozen", "lnm", "lnmvcp"])
def test_predictive_totals_are_near_the_data(kind, level, results):
    result = results[kind]
    drawn = result.get_ppc_samples(level, n_samples=40, seed=1)
    observed = result.fitted.data().rows(slice(None)).sum()
    ratio = float(drawn.sum(("cell", "gene")).mean()) / observed
    assert 0.8 < ratio < 1.25


@pytest.mark.parametrize("kind", SVI)
def test_posterior_draws(kind, results):
    result = results[kind]
    drawn = result.get_posterior_samples(6, seed=1)
    for name, value in drawn.items():
        assert value.dims[:2] == ("chain", "draw"), name
        assert value.shape[:2] == (1, 6)
    assert drawn["eta"].dims == ("chain", "draw", "cell")
    assert drawn["mean"].dims == drawn["r"].dims == ("chain", "draw", "gene")
    xr.testing.assert_identical(drawn, result.get_posterior_samples(6, seed=1))
    assert not drawn["r"].equals(result.get_posterior_samples(6, seed=2)["r"])
    assert float(drawn["mean"].min()) > 0


@every_laplace
def test_labels(kind, results):
    result = results[kind]
    assert result.mu.dims == result.d.dims == result.r.dims == ("gene",)
    assert result.W.dims == result.get_W_compositional().dims == ("gene", "factor")
    assert result.get_latent().dims == ("cell", "factor")
    assert result.eta.dims == ("cell",)
    chosen = list(result.fitted.gene_names[[3, 1]])
    matrix = result.get_correlation(genes=chosen)
    assert matrix.dims == ("gene", "gene_")
    assert list(matrix["gene"].values) == list(matrix["gene_"].values) == chosen
    np.testing.assert_allclose(np.diag(matrix), 1)
    drawn = result.get_compositional_samples(4, seed=1)
    assert drawn.dims == ("chain", "draw", "gene")
    np.testing.assert_allclose(drawn.sum("gene"), 1, rtol=1e-5)
    xr.testing.assert_identical(drawn, result.get_compositional_samples(4, seed=1))


@every_laplace
def test_correlations_are_those_of_the_dense_covariance(kind, results):
    result = results[kind]
    real = result.fitted.real_genes
    W, d = result.W.values[real].astype(float), result.d.values[real].astype(float)
    Sigma = W @ W.T + np.diag(d)
    H = np.eye(len(d)) - 1 / len(d)
    centred = W - W.mean(axis=0)
    dense = {
        "log_rate": Sigma,
        "clr": H @ Sigma @ H,
        "compositional": centred @ centred.T + np.diag(d),
    }
    for name, expected in dense.items():
        np.testing.assert_allclose(result.get_covariance(name), expected, atol=1e-6)
        sd = np.sqrt(np.diag(expected))
        np.testing.assert_allclose(
            result.get_correlation(name), expected / np.outer(sd, sd), atol=1e-6
        )
    correlation = np.triu(result.get_correlation().values, 1)
    top = result.top_pairs(5)
    largest = np.sort(np.abs(correlation).ravel())[::-1][:5]
    np.testing.assert_allclose(np.abs(top["correlation"]), largest, atol=1e-9)


def test_the_pool_of_the_rarest_is_left_out_of_correlations(results):
    result = results["nbln-latent-coverage"]
    assert result.fitted.has_other
    assert result.mu["gene"].values[-1] == "_other"
    assert "_other" not in result.get_correlation()["gene"].values
    pairs = result.top_pairs(1_000)
    assert "_other" not in {*pairs["gene_a"], *pairs["gene_b"]}


@every_laplace
def test_diagnostics(kind, results):
    result = results[kind]
    diagnostics = result.w_prior_diagnostics
    keys = {"column_frobenius_compositional", "column_norm_effective_rank", "effective_rank"}
    keys |= {"sigma_k", "scale_effective_rank", "column_frobenius_raw"}
    assert keys | result.loadings.prior.named(result.scales).keys() == diagnostics.keys()
    np.testing.assert_allclose(
        diagnostics["column_frobenius_raw"], np.linalg.norm(result.W, axis=0), rtol=1e-6
    )
    norms = diagnostics["column_frobenius_compositional"]
    assert np.all(np.diff(norms) <= 1e-4 * norms[0])  # largest first
    centred = result.get_W_compositional().values
    gauge = result.get_gauge_diagnostics()
    W = result.W.values.astype(float)
    assert gauge["W_compositional_norm"] == pytest.approx(np.linalg.norm(centred), rel=1e-4)
    ones = np.linalg.norm(np.ones((len(W), 1)) * W.mean(axis=0))
    assert gauge["W_all_ones_component_norm"] == pytest.approx(ones, rel=1e-4, abs=1e-6)  # or 0
    assert gauge["gauge_contamination_ratio"] == pytest.approx(
        gauge["W_all_ones_component_norm"] / gauge["W_compositional_norm"]
    )


def test_membership_needs_spike_and_slab(results):
    with pytest.raises(ValueError, match=r"horseshoe_sparse"):
        results["nbln-frozen"].get_membership()


@every_laplace
def test_frozen_sites_keep_the_draws_of_the_source(kind, results):
    result = results[kind]
    distributions = result.get_distributions()
    assert distributions["mu"].batch_shape == (result.fitted.n_genes,)
    if "r" not in result.frozen:
        return
    draws = np.log(result.cascade_source.get_posterior_samples(1000)["r"].values[0])
    expected = draws.mean(axis=0)
    np.testing.assert_allclose(distributions["r"].loc, expected, rtol=1e-4, atol=1e-4)


# Writing into an AnnData


def everything(adata):
    parts = {"X": adata.X, **{f"layers/{n}": adata.layers[n] for n in adata.layers}}
    for name in ("obsm", "varm", "obsp", "varp"):
        parts |= {f"{name}/{key}": value for key, value in getattr(adata, name).items()}
    parts |= {f"obs/{n}": adata.obs[n].values for n in adata.obs}
    parts |= {f"var/{n}": adata.var[n].values for n in adata.var}
    return parts | {f"uns/{n}": value for n, value in adata.uns.items()}


@pytest.mark.parametrize("key", ["nbln", "other"])
@every_kind
def test_write_to(kind, key, results, adata, tmp_path):
    written = adata.copy()
    before = everything(written.copy())
    results[kind].write_to(written, key_added=key)
    after = everything(written)
    site = {"svi": "mean", "laplace": "mu", "vae": "r", "code_vae": "r"}[results[kind].kind]
    new = {f"var/{key}_{site}", f"uns/{key}"}
    if results[kind].has_capture or results[kind].kind == "vae":
        new |= {f"obs/{key}_eta"}
    if kind.startswith("zinb"):
        new |= {f"var/{key}_gate"}
    if results[kind].kind in ("vae", "code_vae"):
        new |= {f"obsm/X_{key}"}
    if kind not in ("pln", "lnm", "lnmvcp"):
        new |= {f"var/{key}_r"}
    if results[kind].kind == "laplace":
        new |= {f"obsm/X_{key}", f"varm/{key}_loadings", f"var/{key}_d"}
    assert after.keys() - before.keys() == new
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)
    assert np.isnan(written.var.loc["unseen", f"{key}_{site}"])
    written.write_h5ad(tmp_path / "written.h5ad")


def test_write_to_finds_cells_by_name(results, adata):
    reordered = adata[::-1, ::2].copy()
    results["pln"].write_to(reordered)
    expected = results["pln"].get_embedding().sel(cell=reordered.obs_names.to_numpy().astype(str))
    np.testing.assert_allclose(reordered.obsm["X_nbln"], expected, rtol=1e-6)


@pytest.mark.parametrize("wrong", ["other names", "no AnnData"])
def test_write_to_needs_the_data_of_the_fit(wrong, results, adata):
    given = adata.copy()
    given.obs_names = [f"x{i}" for i in range(adata.n_obs)]
    target, error = (given, ValueError) if wrong == "other names" else (adata.X, TypeError)
    with pytest.raises(error, match=r"write_to\(adata=\)"):
        results["pln"].write_to(target)


# Files that are not results


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        nbln.load(tmp_path / "none.nc")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.98])
def test_truncated_file(share, saved, tmp_path):
    content = saved["pln"].read_bytes()
    path = tmp_path / "cut.nc"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"load\(.*cut\.nc.*cut short"):
        nbln.load(path)


def test_no_netcdf_at_all(tmp_path):
    path = tmp_path / "text.nc"
    path.write_text("cells and genes")
    with pytest.raises(ValueError, match="not a readable NetCDF"):
        nbln.load(path)


def test_another_netcdf(tmp_path):
    path = tmp_path / "weather.nc"
    xr.Dataset({"rain": ("day", [1.0, 2.0])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match="not a result that nbln saved"):
        nbln.load(path)


def test_another_version(results, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(io, "VERSION", 99)
        results["pln"].save(tmp_path / "later.nc")
    with pytest.raises(ValueError, match=r"later\.nc.*format version 99.*reads version"):
        nbln.load(tmp_path / "later.nc")


def test_another_kind(results, tmp_path):
    io.write(tmp_path / "other.nc", "mcmc", results["pln"].to_groups())
    with pytest.raises(ValueError, match=r"other\.nc.*'mcmc'.*svi"):
        nbln.load(tmp_path / "other.nc")


def test_a_failed_save_leaves_nothing(results, tmp_path):
    with pytest.raises(OSError, match=r"missing"):
        results["pln"].save(tmp_path / "missing" / "fit.nc")
    assert list(tmp_path.iterdir()) == []


def test_a_loaded_result_is_given_its_counts(loaded, results, adata):
    with pytest.raises(ValueError, match="counts=adata"):
        loaded["nbln-frozen"].get_ppc_samples("per_cell", n_samples=1)
    other = adata.copy()
    other.X[0, 0] += 1
    with pytest.raises(ValueError, match="not the data of this fit"):
        loaded["nbln-frozen"].get_ppc_samples("per_cell", n_samples=1, counts=other)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.get_ppc_samples("cell"), ValueError, "choose one of marginal"),
        (lambda r: r.get_ppc_samples(n_samples=0), ValueError, "at least 1"),
        (lambda r: r.get_correlation("pearson"), ValueError, "choose one of compositional"),
        (lambda r: r.get_correlation(genes=["gene1", "ACTB"]), KeyError, "ACTB"),
    ],
)
def test_wrong_questions(call, error, message, results):
    with pytest.raises(error, match=message):
        call(results["nbln-frozen"])
