"""A fit of random halves of the cells, against that of all."""

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from nbln.arguments import check_seed, check_whole
from nbln.questions.stability import found_again

FEWEST = 4  # cells, of which a half has two


def rank_stability(result, n_halves: int, seed: int, counts) -> xr.Dataset:
    """See `LaplaceResult.rank_stability`."""
    check_whole("rank_stability(n_halves", n_halves)
    check_seed("rank_stability(seed", seed)
    fitted = result.fitted
    if fitted.again is None:
        raise ValueError(
            "rank_stability(): this result was loaded from a file, which does not hold all "
            "settings of the fit; fit again, and ask the result of nbln.fit"
        )
    data, half = fitted.data(counts), fitted.n_cells // 2
    least = max(FEWEST, 2 * (result.latent_dim + 1))
    if fitted.n_cells < least:
        raise ValueError(
            f"rank_stability(): {fitted.n_cells} cells; halves of at least {least} are needed to "
            f"fit {result.latent_dim} programs; fit with a smaller latent_dim"
        )
    rng, rows = np.random.default_rng(seed), []
    for i in range(n_halves):
        cells = np.sort(rng.permutation(fitted.n_cells)[:half])
        try:
            other = fitted.again(data.part(cells, "rank_stability"))
        except (ValueError, FloatingPointError) as error:
            raise ValueError(f"rank_stability(): half {i} cannot be fitted: {error}") from error
        rows.append((_rank(other), bool(other.converged), *_compared(result, other)))
    ranks, converged, cosine, span = (np.stack(x) for x in zip(*rows, strict=True))
    dims = ("half", "program")
    return xr.Dataset(
        {
            "effective_rank": (dims[:1], ranks),
            "converged": (dims[:1], converged),
            "cosine": (dims, cosine),
            "span": (dims, span),
        },
        coords={"program": np.arange(1, 1 + cosine.shape[1])},
        attrs={"effective_rank": _rank(result), "cells": half, "seed": seed},
    )


def _rank(result) -> int:
    return int(result.w_prior_diagnostics["effective_rank"])


def _compared(result, other) -> tuple[Float[np.ndarray, " program"], Float[np.ndarray, " program"]]:
    """How well each program of a result is found again, over the genes that both have."""
    genes = pd.Index(result.fitted.gene_names).get_indexer(pd.Index(other.fitted.gene_names))
    ours, theirs = (np.asarray(x.parameters.W, np.float64) for x in (result, other))
    return found_again(ours[genes][:, : _rank(result)], theirs[:, : _rank(other)])
