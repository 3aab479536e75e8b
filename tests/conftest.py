"""Data and fits that many tests read and none changes."""

import gc
import os
import shutil
import tempfile
from pathlib import Path

import anndata
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import nbln
from nbln.webpage import parts

SMALL = dict(progress=False, latent_dim=3)
# Linux gives a process 65,530 memory maps. Compiled programs take several each, and JAX keeps them
# all: a process that has run most of the tests would die when it compiles one more. A file of tests
# adds up to 10,000.
MOST_MAPS = 45_000
COMPILED = pytest.StashKey[str]()


def pytest_configure(config):
    """What one process of a run has compiled, the others load: both workers, and commands.

    JAX reads the variables when it is imported, as workers and commands do after this. The folder
    is of this run alone, so that no run depends on another.
    """
    if hasattr(config, "workerinput") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = config.stash[COMPILED] = tempfile.mkdtemp(prefix="nbln-compiled-")
    settings = {
        "jax_compilation_cache_dir": folder,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


def pytest_unconfigure(config):
    if COMPILED in config.stash:
        shutil.rmtree(config.stash[COMPILED], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def room_for_compiled_code():
    """After a file of tests, let go of compiled programs if there are very many."""
    yield
    _let_go()


@pytest.fixture
def room_after_each_test():
    """The same after a test, for files whose tests compile for shapes of their own."""
    yield
    _let_go()


def _let_go():
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def undrawn(monkeypatch):
    """Pages hold their figures as they are made, not drawn, which takes longer than a small fit."""

    def empty(figure):
        plt.close(figure)
        return b""

    monkeypatch.setattr(parts, "to_png", empty)


@pytest.fixture(scope="session")
def adata():
    """Counts of 90 cells and 30 genes, with a gene never seen, a layer, and columns of `obs`."""
    simulated = nbln.datasets.simulate(90, 29, 2, mean_log_dispersion=2.0, seed=1)
    counts = np.asarray(simulated.X.todense())
    counts[:, 0] += 1  # no empty cell
    counts[0] += 1  # no empty gene but the last
    counts = np.hstack([counts, np.zeros((90, 1), np.float32)])
    made = anndata.AnnData(counts)
    made.obs_names = simulated.obs_names
    made.var_names = [*simulated.var_names, "unseen"]
    made.layers["raw"] = counts.copy()
    made.obs["batch"] = ["one", "two", "two"] * 30
    made.obs["age"] = np.arange(90)
    return made


@pytest.fixture(scope="session")
def nbvcp(adata):
    """A fit of independent genes."""
    return nbln.fit(adata, model="nbvcp", progress=False)


@pytest.fixture(scope="session")
def nbln_fit(adata, nbvcp):
    """NBLN by the published recipe: r and η frozen."""
    return nbln.fit(
        adata, informative_priors_from=nbvcp, priors={"loadings": {"type": "none"}}, **SMALL
    )


@pytest.fixture(scope="session")
def nbln_latent(adata):
    """NBLN on its own, η latent."""
    return nbln.fit(adata, informative_priors_from=False, gene_coverage=0.9, **SMALL)


@pytest.fixture(scope="session")
def pln_fit(adata):
    """PLN with fixed library-size offsets."""
    return nbln.fit(
        adata,
        model="pln",
        informative_priors_from=False,
        priors={"capture_efficiency": None, "loadings": {"type": "gaussian", "scale": 0.5}},
        **SMALL,
    )


@pytest.fixture(scope="session")
def lnm_fit(adata):
    """LNM; the pool of the rarest genes is a share as any other."""
    return nbln.fit(adata, model="lnm", gene_coverage=0.9, **SMALL)


def quick_svi(adata, parameterization, guide, priors=None, model="nbvcp"):
    return nbln.fit(
        adata,
        model=model,
        parameterization=parameterization,
        priors=priors,
        n_steps=100,
        svi=nbln.SVIConfig(guide=guide),
        progress=False,
    )


def quick_scvi(adata):
    """SCVI with all that a file has to hold: batches, covariates, held-out cells and so on."""
    return nbln.fit(
        adata,
        model="scvi",
        batch_key="batch",
        covariates=["age"],
        gene_likelihood="zinb",
        library="latent",
        vae=nbln.VAEConfig(
            n_epochs=80, n_hidden=8, batch_size=24, learning_rate=1e-2, validation_share=0.2
        ),
        **SMALL,
    )


def quick_negbio(adata):
    """A code of counts, with held-out cells."""
    return nbln.fit(
        adata,
        model="negbio_vae",
        negbio=nbln.NegBioConfig(n_epochs=30, n_hidden=8, batch_size=24, validation_share=0.2),
        **SMALL,
    )


class Lazily(dict):
    """Values made when they are first asked for, by functions without arguments."""

    def __init__(self, makers):
        self._makers = makers

    def __missing__(self, key):
        self[key] = self._makers[key]()
        return self[key]


@pytest.fixture(scope="session")
def results(adata, request):
    """One result of every kind, fitted when it is first asked for."""
    return Lazily(
        {
            "mean_disp-mean_field": lambda: request.getfixturevalue("nbvcp"),
            "mean_odds-mean_field": lambda: quick_svi(adata, "mean_odds", "mean_field"),
            "canonical-mean_field": lambda: quick_svi(adata, "canonical", "mean_field"),
            "mean_disp-low_rank": lambda: quick_svi(adata, "mean_disp", "low_rank"),
            "mean_odds-low_rank": lambda: quick_svi(
                adata, "mean_odds", "low_rank", {"capture_efficiency": None}
            ),
            "canonical-low_rank": lambda: quick_svi(adata, "canonical", "low_rank"),
            "nbdm": lambda: quick_svi(adata, "canonical", "mean_field", model="nbdm"),
            "zinb": lambda: quick_svi(adata, "mean_disp", "low_rank", model="zinb"),
            "zinbvcp": lambda: quick_svi(adata, "mean_disp", "mean_field", model="zinbvcp"),
            "scvi": lambda: quick_scvi(adata),
            "negbio_vae": lambda: quick_negbio(adata),
            "pln": lambda: request.getfixturevalue("pln_fit"),
            "nbln-frozen": lambda: request.getfixturevalue("nbln_fit"),
            "nbln-latent-coverage": lambda: request.getfixturevalue("nbln_latent"),
            "lnm": lambda: request.getfixturevalue("lnm_fit"),
            # Capture losses of a source, softly, so that there are two results in one file.
            "lnmvcp": lambda: nbln.fit(
                adata,
                model="lnmvcp",
                informative_priors_from=request.getfixturevalue("nbvcp"),
                informative_priors_freeze=(),
                priors={"loadings": {"type": "gaussian", "scale": 0.5}},
                **SMALL,
            ),
        }
    )
