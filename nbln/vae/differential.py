"""Genes whose expression differs between groups of cells: the mean share of each group, by draws.

z of each cell is drawn by the encoder and decoded to shares; the mean over a group's cells is drawn
by the Bayesian bootstrap (Rubin 1981), and the log2 fold change of two such means is what is asked
of. (Fold changes of single pairs of cells, one of each group, spread as cells do: of two groups of
the same mixture of cells most genes would seem to differ.) Cells are the units: two donors are not
told apart from two groups.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Bool, Float

from nbln.arguments import choose
from nbln.data.design import Design, read_columns
from nbln.data.fitted import Fitted
from nbln.data.slices import slices
from nbln.questions.intervals import q_values
from nbln.vae.cells import Cells, block_cells
from nbln.vae.decoded import drawn_from
from nbln.vae.scvi import SCVI, Batch

CHANGE, VANILLA = "change", "vanilla"
MODES = (CHANGE, VANILLA)
OTHERS = "rest"
# Shares are compared above a floor: below one count in a million of a cell's nothing is seen, and
# the ratio of two such shares is the decoder's fancy.
FLOOR = 1e-6
MOST_CELLS = 2_000  # of a group, at random, whose z is drawn
FEWEST_DRAWS = 500  # of z over all cells of a group: of fewer cells several each


class Asked(NamedTuple):
    """What is asked of each pair of groups."""

    mode: str
    delta: float
    fdr: float
    batch_correction: bool
    n_samples: int
    seed: int


class Pair(NamedTuple):
    """Two groups of cells."""

    first: str
    second: str
    in_first: Bool[np.ndarray, " cell"]
    in_second: Bool[np.ndarray, " cell"]


def in_batches(
    design: Design, cells: Cells, batch: str | Sequence[str] | None, caller: str
) -> list[Cells]:
    """The cells as they would be in each of these batches; as they are where None is given.

    Raises
    ------
    ValueError
        The fit knew no batches, or not this one.
    """
    if batch is None:
        return [cells]
    argument = f"{caller}(transform_batch"
    if design.batch is None:
        raise ValueError(f"{argument}={batch!r}): the fit was told of no batches (batch_key=)")
    wanted = _listed(batch, argument)
    levels = list(design.batch.levels)
    return [_moved(design, cells, levels.index(choose(argument, one, levels))) for one in wanted]


def _listed(names: Any, argument: str) -> list[str]:
    """One name or several.

    Raises
    ------
    ValueError
        Neither, or none.
    """
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, Sequence | np.ndarray) or not len(listed):
        raise ValueError(f"{argument}={names!r}): expected a name, or a list of names")
    return list(listed)


def _moved(design: Design, cells: Cells, code: int) -> Cells:
    """The cells with the design of another batch; their own depth."""
    known, n = cells.known, design.n_batches
    matrix = known.design.copy()
    matrix[:, :n] = np.eye(n, dtype=np.float32)[code]
    groups = known.groups._replace(batch=np.full_like(known.groups.batch, code))
    return cells._replace(known=known._replace(design=matrix, groups=groups))


def groups(adata: Any, n_cells: int, groupby, group1, group2, idx1, idx2) -> list[Pair]:
    """The pairs of groups that are asked for.

    Raises
    ------
    ValueError
        Both ways of asking or neither, no such group, an empty one, groups that overlap, a cell
        without a value.
    KeyError
        No such column.
    """
    call = "differential_expression"
    if (groupby is None) == (idx1 is None):
        raise ValueError(f"{call}: give groupby= (a column of adata.obs), or idx1=")
    if (idx2 if groupby is not None else group1 or group2) is not None:
        raise ValueError(f"{call}: group1= and group2= go with groupby=, idx2= with idx1=")
    if groupby is None:
        first = _mask(idx1, n_cells, f"{call}(idx1")
        second = ~first if idx2 is None else _mask(idx2, n_cells, f"{call}(idx2")
        return [_checked(Pair("one", "two" if idx2 is not None else OTHERS, first, second))]
    if adata is None:
        raise ValueError(f"{call}(groupby={groupby!r}): give adata=, whose obs has this column")
    labels = read_columns(adata, [groupby], call)[groupby].astype(str).to_numpy()
    levels = sorted(set(labels))
    others = [level for level in levels if level != group2]
    wanted = others if group1 is None else _listed(group1, f"{call}(group1")
    if not wanted:
        raise ValueError(f"{call}(groupby={groupby!r}): needs two groups; it has {levels}")
    for argument, names in (("group1", wanted), ("group2", [] if group2 is None else [group2])):
        for level in names:
            choose(f"{call}({argument}", level, levels)
    if wanted == [group2]:
        raise ValueError(f"{call}(group2={group2!r}): is group1 itself; give another, or none")
    pairs = [
        Pair(
            level,
            OTHERS if group2 is None else group2,
            labels == level,
            labels != level if group2 is None else labels == group2,
        )
        for level in wanted
    ]
    return [_checked(pair) for pair in pairs]


def _mask(index: Any, n_cells: int, argument: str) -> Bool[np.ndarray, " cell"]:
    mask, index = np.zeros(n_cells, bool), np.asarray(index)
    try:
        if index.size:
            mask[index] = True
    except IndexError as error:
        raise ValueError(
            f"{argument}): expected numbers of cells from 0 to {n_cells - 1}, or a mask of "
            f"{n_cells}; {error}"
        ) from error
    return mask


def _checked(pair: Pair) -> Pair:
    call = "differential_expression"
    for name, mask in zip(pair[:2], pair[2:], strict=True):
        if not mask.any():
            raise ValueError(f"{call}: group {name!r} has no cells")
    if (pair.in_first & pair.in_second).any():
        raise ValueError(f"{call}: groups {pair.first!r} and {pair.second!r} share cells")
    return pair


def tables(
    model: SCVI, design: Design, cells: Cells, pairs: list[Pair], asked: Asked, fitted: Fitted
) -> pd.DataFrame:
    """One table after another; see `VAEResult.differential_expression`."""
    found = [_table(model, design, cells, pair, asked, fitted) for pair in pairs]
    return pd.concat(found)


def _table(model, design, cells: Cells, pair: Pair, asked: Asked, fitted: Fitted) -> pd.DataFrame:
    rng = np.random.default_rng(asked.seed)
    first, second = (
        _means(model, design, cells, mask, asked, rng)[:, fitted.real_genes]
        for mask in (pair.in_first, pair.in_second)
    )
    lfc = np.log2(first + FLOOR) - np.log2(second + FLOOR)
    table = pd.DataFrame(
        {
            "lfc_mean": lfc.mean(axis=0),
            "lfc_median": np.median(lfc, axis=0),
            "lfc_sd": lfc.std(axis=0),
            "lfc_low": np.quantile(lfc, 0.05, axis=0),
            "lfc_high": np.quantile(lfc, 0.95, axis=0),
            "scale1": first.mean(axis=0),
            "scale2": second.mean(axis=0),
            "group1": pair.first,
            "group2": pair.second,
        },
        index=pd.Index(fitted.gene_names[fitted.real_genes], name="gene"),
    )
    return (_vanilla if asked.mode == VANILLA else _change)(table, lfc, asked)


def _log_odds(p: Float[np.ndarray, " gene"], n: int) -> Float[np.ndarray, " gene"]:
    """Log odds of a probability that n draws tell, which are never sure."""
    p = np.clip(p, 0.5 / n, 1 - 0.5 / n)
    return np.log(p) - np.log1p(-p)


def _vanilla(table: pd.DataFrame, lfc, asked: Asked) -> pd.DataFrame:
    higher = (lfc > 0).mean(axis=0)
    table.insert(0, "proba_m1", higher)
    table.insert(1, "proba_m2", 1 - higher)
    table.insert(2, "bayes_factor", _log_odds(higher, asked.n_samples))
    return table.sort_values("bayes_factor", key=np.abs, ascending=False, kind="stable")


def _change(table: pd.DataFrame, lfc, asked: Asked) -> pd.DataFrame:
    changed = (np.abs(lfc) >= asked.delta).mean(axis=0)
    table.insert(0, "proba_de", changed)
    table.insert(1, "bayes_factor", _log_odds(changed, asked.n_samples))
    table = table.sort_values("proba_de", ascending=False, kind="stable")
    table["q"] = q_values(1 - table["proba_de"].to_numpy())
    table["is_de_fdr"] = table["q"] <= asked.fdr
    return table


def _means(model, design: Design, cells: Cells, mask, asked: Asked, rng) -> np.ndarray:
    """Draws of the mean shares of a group, (draw, gene)."""
    own = np.flatnonzero(mask)
    if len(own) > MOST_CELLS:
        own = np.sort(rng.choice(own, MOST_CELLS, replace=False))
    shares = _shares(model, design, cells, own, asked.batch_correction, rng)
    weights = rng.standard_exponential((asked.n_samples, len(own)))
    weights /= weights.sum(axis=1, keepdims=True)
    # Each draw of the mean has one of the draws of z of each cell.
    which = np.array_split(np.arange(asked.n_samples), len(shares))
    parts = [weights[draws] @ of_z for draws, of_z in zip(which, shares, strict=True)]
    return np.concatenate(parts)


def _shares(model, design: Design, cells: Cells, own, corrected: bool, rng) -> list[np.ndarray]:
    """Shares of these cells, (cell, gene), for each of some draws of their z.

    Where `corrected`, the mean over batches of what they would be in each.
    """
    if corrected and design.batch is None:
        raise ValueError(
            "differential_expression(batch_correction=True): the fit was told of no batches "
            "(batch_key=)"
        )
    levels = design.batch.levels if corrected and design.batch is not None else None
    moved = in_batches(design, cells, levels, "differential_expression")
    size = block_cells(len(own), cells.counts.n_genes)
    drawn = []
    for _ in range(-(-FEWEST_DRAWS // len(own))):
        parts = []
        for block in slices(len(own), size):
            key = jax.random.key(int(rng.integers(2**31)))
            index = own[block]
            found = [np.asarray(_draw(model, one.batch(index, size), key)) for one in moved]
            parts.append(np.mean(found, axis=0)[: len(index)])
        drawn.append(np.concatenate(parts))
    return drawn


@eqx.filter_jit
def _draw(model: SCVI, batch: Batch, key: Array) -> Float[Array, "cell gene"]:
    z, _ = drawn_from(model, batch)
    return jnp.exp(model.decoder(z.draw(key), batch.design)[0])
