"""Correlations that differ between groups of donors, judged by permuting labels over donors.

Each donor has a correlation of each pair of genes by moments of its counts, without a fit. Cells
of donor i have totals L_c, s_c is L_c over their mean, and each cell weighs s_c. With
m_g = Σ u_g / Σ s the relative covariance of two genes' rates is c_gh = Σ (u_g u_h / s) / Σ s
/ (m_g m_h) - 1, and their variance c_gg has u_g (u_g - 1) in place of the square: Poisson noise
has mean 0 in both. A gene's variance in one donor is shrunk to its mean over donors.

Whatever the moments miss, they miss in all donors. If a donor's group means nothing, its labels
may be exchanged, and the statistic of the true labels is a draw from those of all labelings.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from nbln.arguments import check_number, check_seed, check_whole, choose_from
from nbln.data.counts import Counts
from nbln.data.slices import slices
from nbln.text import visible

log = logging.getLogger("nbln")

CALL = "compare_correlations_by_donor"
FEWEST_CELLS = 20  # of a donor in a group: with fewer, moments are those of one or two cells
FEWEST_COUNTS = 20  # of a gene in each donor and group, for the same reason
# A gene's variance over donors must be above 0 by so many standard errors, or its correlations
# have next to no denominator.
KNOWN_VARIANCE = 2.0
# Cells that a gene's mean variance is worth beside a donor's own: a variance by moments of heavy-
# tailed counts is known to about a half from a hundred cells.
VARIANCE_CELLS = 100.0
MOST_PAIRS = 2_000_000  # of a table: some minutes of a thousand labelings
TELLING = 40  # labelings, which come in pairs of opposites: 1 in 20 is then possible
BLOCK_CELLS = 2048  # read at a time
BLOCK_BYTES = 2**27  # of statistics of several labelings


class Sample(NamedTuple):
    """Moments of the cells of a donor in one group."""

    n_cells: int
    totals: Float[np.ndarray, " gene"]  # counts
    covariance: Float[np.ndarray, "gene gene"]  # relative; the diagonal without Poisson noise


class Design(NamedTuple):
    """Which samples are compared: donors in both groups as pairs, or one sample a donor."""

    paired: bool
    first: Int[np.ndarray, " donor"]  # samples of the group
    second: Int[np.ndarray, " donor"]  # of the reference, of the same donors where they are pairs

    @property
    def n_labelings(self) -> int:
        """Ways to give labels to donors."""
        if self.paired:
            return 2 ** len(self.first)
        return math.comb(len(self.first) + len(self.second), len(self.first))


def compare_correlations_by_donor(
    adata: Any,
    column: str,
    group: str,
    reference: str,
    donor: str,
    pairs: pd.DataFrame | None = None,
    genes: Sequence[str] | None = None,
    n_permutations: int = 1000,
    fdr: float = 0.05,
    layer: str | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Pairs of genes whose correlation differs between groups of donors, by permutation.

    Donors are the units: a check of what `compare_correlations` finds with cells as units, that
    shares nothing with fits. Correlations are of rates relative to a cell's total, by moments of
    each donor's counts (see the formulas in `nbln/questions/donors.py`), noisier than those of a
    fit and relative to all genes of `adata`. Labels are permuted over donors, or exchanged within
    donors where each has both groups.

    Parameters
    ----------
    adata
        Raw counts, with columns of ``obs`` for groups and donors.
    column, group, reference
        A column and two of its values; cells of other groups are left out.
    donor
        Column of donors.
    pairs
        A table with ``gene_a`` and ``gene_b``, as `compare_correlations` gives it: these rows are
        returned. They are judged among all pairs of `genes`, since they were chosen by the labels.
    genes
        Names; by default all that have 20 counts in each donor and group.
    n_permutations
        Labelings drawn at random; all there are, where these are no more.
    fdr
        Share of wrong calls that is accepted.
    layer
        The layer that holds the counts.
    seed
        Of the labelings.

    Returns
    -------
    gene_a, gene_b; ``mean_group`` and ``mean_reference``, mean correlations over donors;
    ``difference``; ``p_value`` of the pair alone; ``q``, the least rate of false discoveries at
    which it is called (mean number of pairs at least as extreme over labelings, the true one among
    them, by the number in the data: Tusher et al. 2001); ``is_different`` (``q <= fdr``). Surest
    first, or in the order of `pairs`, where pairs of genes that vary too little have NaN. In
    ``attrs``: ``n_labelings``, ``exact`` (all there are), ``paired``, and ``p_value_any``, of the
    hypothesis that groups differ in no pair.

    Raises
    ------
    KeyError
        No such column or gene.
    ValueError
        No such group, fewer than two donors in one, a donor with few cells in a group, donors of
        whom some have both groups and some one, or genes that are too few or too many.
    """
    check_whole(f"{CALL}(n_permutations", n_permutations)
    check_number(f"{CALL}(fdr", fdr, 0.0, 1.0, open_=True)
    check_seed(f"{CALL}(seed", seed)
    wanted = _pair_names(pairs)
    counts = Counts.from_anndata(adata, layer=layer, columns=[column, donor], caller=CALL)
    labels = counts.obs[column].astype(str).to_numpy(str)
    donors = counts.obs[donor].astype(str).to_numpy(str)
    for value in (group, reference):
        choose_from(
            sorted(set(labels.tolist())), str(value), f"{CALL}({column!r}): {value!r}", "group"
        )
    design, cells = _design(labels, donors, str(group), str(reference))
    places = _places(counts.gene_names, genes)
    samples = [_moments(counts, one, places) for one in cells]
    kept = _informative(samples)
    if kept.sum() < 2:
        raise ValueError(
            f"{CALL}: {int(kept.sum())} genes vary measurably and have {FEWEST_COUNTS} counts in "
            "each donor and group; two are needed. Pool donors' samples, or leave small ones out"
        )
    named = counts.gene_names[places][kept]
    correlations, (a, b) = _correlations(samples, kept)
    labelings = list(_labelings(design, n_permutations, seed))
    table = _judged(_Statistic(correlations, design), labelings)
    table.insert(0, "gene_a", named[a])
    table.insert(1, "gene_b", named[b])
    attributes = dict(table.attrs)
    if wanted is None:
        order = np.lexsort((-np.abs(table["difference"]), table["p_value"], table["q"]))
        table = table.iloc[order].reset_index(drop=True)
    else:
        table = _rows_of(table, wanted)
    table["is_different"] = table["q"] <= fdr
    exact = design.n_labelings <= n_permutations
    if exact and design.n_labelings < TELLING:
        log.info(
            "%s: donors can be labelled in %d ways, so that no p-value and no q is below %.2g",
            CALL,
            design.n_labelings,
            table["p_value"].min(),
        )
    table.attrs = {**attributes, "exact": exact, "paired": design.paired, "fdr": fdr}
    return table


def _design(
    labels, donors, group: str, reference: str
) -> tuple[Design, list[Int[np.ndarray, " cell"]]]:
    """Which samples there are, and the cells of each."""
    of = [sorted(set(donors[labels == name])) for name in (group, reference)]
    for name, listed in zip((group, reference), of, strict=True):
        if len(listed) < 2:
            raise ValueError(
                f"{CALL}: group {visible(name)!r} has {len(listed)} donor; labels can be permuted "
                "over two a group and more"
            )
    both = set(of[0]) & set(of[1])
    if both and (set(of[0]) | set(of[1])) != both:
        alone = sorted(set(of[0]) ^ set(of[1]))
        raise ValueError(
            f"{CALL}: {len(both)} donors have both groups, and {len(alone)} one, the first "
            f"{visible(alone[0])!r}; leave out either kind of donors"
        )
    samples = [*((group, d) for d in of[0]), *((reference, d) for d in of[1])]
    cells = [np.flatnonzero((labels == name) & (donors == d)) for name, d in samples]
    for (name, d), one in zip(samples, cells, strict=True):
        if len(one) < FEWEST_CELLS:
            raise ValueError(
                f"{CALL}: donor {visible(d)!r} has {len(one)} cells in group {visible(name)!r}, "
                f"and {FEWEST_CELLS} are needed; leave this donor out"
            )
    n = len(of[0])
    return Design(bool(both), np.arange(n), np.arange(n, len(samples))), cells


def _places(gene_names: np.ndarray, genes: Sequence[str] | None) -> Int[np.ndarray, " gene"]:
    if genes is None:
        return np.arange(len(gene_names))
    places = pd.Index(gene_names).get_indexer(pd.Index(list(genes)))
    if (places < 0).any():
        missing = list(genes)[int(np.argmax(places < 0))]
        raise KeyError(f"{CALL}(genes=): no gene {missing!r} with counts in adata")
    if len(set(places.tolist())) < len(places):
        raise ValueError(f"{CALL}(genes=): a gene is named twice")
    return places


def _moments(counts: Counts, cells: Int[np.ndarray, " cell"], genes) -> Sample:
    """The moments of some cells; see the formulas above."""
    total = counts.library_size[cells]
    size = total / total.mean()
    sums, first, noise = np.zeros((len(genes),) * 2), np.zeros(len(genes)), np.zeros(len(genes))
    for block in slices(len(cells), BLOCK_CELLS):
        u = counts.rows(cells[block])[:, genes].astype(np.float64)
        weighted = u / np.sqrt(size[block])[:, None]
        sums += weighted.T @ weighted
        first += u.sum(axis=0)
        noise += (u / size[block][:, None]).sum(axis=0)
    sums[np.diag_indices_from(sums)] -= noise
    mean = np.maximum(first, 1e-12) / size.sum()
    return Sample(len(cells), first, sums / size.sum() / np.outer(mean, mean) - 1)


def _informative(samples: list[Sample]) -> Bool[np.ndarray, " gene"]:
    """Genes whose variance is known; no label says which."""
    seen = np.min([sample.totals for sample in samples], axis=0) >= FEWEST_COUNTS
    variances = np.stack([np.diagonal(sample.covariance) for sample in samples])
    error = variances.std(axis=0, ddof=1) / np.sqrt(len(samples))
    return seen & (variances.mean(axis=0) > KNOWN_VARIANCE * error)


def _correlations(samples: list[Sample], kept) -> tuple[Float[np.ndarray, "sample pair"], Any]:
    """Correlations of all pairs of genes in each sample, and which genes they are of."""
    n = int(kept.sum())
    if n * (n - 1) // 2 > MOST_PAIRS:
        raise ValueError(
            f"{CALL}: {n:,} genes have {n * (n - 1) // 2:,} pairs, of which {MOST_PAIRS:,} can be "
            "judged; name fewer with genes="
        )
    first, second = np.triu_indices(n, 1)
    parts = [sample.covariance[np.ix_(kept, kept)] for sample in samples]
    mean = np.mean([np.diagonal(part) for part in parts], axis=0)
    values = np.empty((len(samples), len(first)))
    for i, (sample, part) in enumerate(zip(samples, parts, strict=True)):
        own = sample.n_cells / (sample.n_cells + VARIANCE_CELLS)
        # Of a variance that is below 0 by chance nothing is taken.
        variance = own * np.maximum(np.diagonal(part), 0) + (1 - own) * mean
        sd = np.sqrt(variance)
        values[i] = np.clip(part[first, second] / (sd[first] * sd[second]), -1, 1)
    return values, (first, second)


class _Statistic:
    """t of each pair of genes, given the labels of donors.

    To the standard error of each pair the median over pairs is added (Tusher et al. 2001), since
    that of a few donors is small by chance in some of many pairs.
    """

    def __init__(self, correlations: Float[np.ndarray, "sample pair"], design: Design):
        self.design, self.values = design, correlations
        first, second = (correlations[x] for x in (design.first, design.second))
        self.means = first.mean(axis=0), second.mean(axis=0)
        # The squares, from which standard errors of any labeling follow.
        self._unit = first - second if design.paired else correlations
        self._square = (self._unit**2).sum(axis=0)

    def of(self, labels: Float[np.ndarray, "labeling unit"]) -> Float[np.ndarray, "labeling pair"]:
        """t for labels 1 and -1 of donors, or of the differences within donors."""
        n = labels.shape[1]
        if self.design.paired:
            mean = labels @ self._unit / n
            variance = np.maximum(self._square / n - mean**2, 0) / (n - 1)
            error = np.sqrt(variance)
            return mean / (error + np.median(error, axis=1, keepdims=True))
        n_first = len(self.design.first)
        n_second = n - n_first
        one = (labels > 0) @ self._unit / n_first
        other = (labels < 0) @ self._unit / n_second
        within = np.maximum(self._square - n_first * one**2 - n_second * other**2, 0) / (n - 2)
        error = np.sqrt(within * (1 / n_first + 1 / n_second))
        return (one - other) / (error + np.median(error, axis=1, keepdims=True))


def _labelings(
    design: Design, n_permutations: int, seed: int
) -> Iterator[Float[np.ndarray, " unit"]]:
    """Labels 1 and -1 of donors, the true ones first: all there are, or some at random."""
    n_first = len(design.first)
    n = n_first if design.paired else n_first + len(design.second)
    true = np.ones(n)
    if not design.paired:
        true[n_first:] = -1
    if design.n_labelings <= n_permutations:
        if design.paired:
            # The first of the product is that of ones.
            yield from (np.array(signs) for signs in itertools.product((1.0, -1.0), repeat=n))
            return
        for chosen in itertools.combinations(range(n), n_first):  # the first is the true one
            labels = -np.ones(n)
            labels[list(chosen)] = 1
            yield labels
        return
    rng = np.random.default_rng(seed)
    yield true
    for _ in range(n_permutations):
        yield rng.choice([-1.0, 1.0], n) if design.paired else rng.permutation(true)


def _judged(statistic: _Statistic, labelings: list[np.ndarray]) -> pd.DataFrame:
    """Differences of all pairs with their p-values and rates of false discoveries."""
    labels = np.stack(labelings)
    size = np.abs(statistic.of(labels[:1])[0])
    order = np.argsort(size)
    ranked = size[order]
    # Statistics that are the same but for rounding, of labels and their opposites, are the same.
    ranked_down = ranked * (1 - 1e-9)
    beyond = np.zeros(len(size))  # (pair,) labelings in which the pair itself is as extreme
    number = np.zeros(len(size))  # (pair,) pairs as extreme, over all labelings
    total = np.empty(len(labels))
    step = max(1, BLOCK_BYTES // (8 * len(size)))
    for block in slices(len(labels), step):
        drawn = np.abs(statistic.of(labels[block]))
        beyond += (drawn >= size * (1 - 1e-9)).sum(axis=0)
        total[block] = (drawn**2).mean(axis=1)
        places = np.searchsorted(ranked_down, drawn.ravel(), side="right")
        counted = np.bincount(places, minlength=len(size) + 1)
        number += np.cumsum(counted[::-1])[::-1][1:]
    rank = np.empty(len(size))
    rank[order] = np.minimum(
        1.0, number / len(labels) / (len(size) - np.searchsorted(ranked, ranked, side="left"))
    )
    # The least rate at which a pair is called: of it and of all less sure thresholds.
    rank[order] = np.minimum.accumulate(rank[order])
    one, other = statistic.means
    table = pd.DataFrame(
        {
            "mean_group": one,
            "mean_reference": other,
            "difference": one - other,
            "p_value": beyond / len(labels),
            "q": rank,
        }
    )
    at_least = int((total >= total[0] * (1 - 1e-9)).sum())
    table.attrs = {"n_labelings": len(labels), "p_value_any": at_least / len(labels)}
    return table


def _pair_names(pairs: pd.DataFrame | None) -> list[tuple[str, str]] | None:
    if pairs is None:
        return None
    if not isinstance(pairs, pd.DataFrame) or not {"gene_a", "gene_b"} <= {*pairs.columns}:
        raise TypeError(
            f"{CALL}(pairs=): expected a table with gene_a and gene_b, as compare_correlations() "
            f"gives it; got {type(pairs).__name__}"
        )
    return list(zip(pairs["gene_a"].astype(str), pairs["gene_b"].astype(str), strict=True))


def _rows_of(table: pd.DataFrame, wanted: list[tuple[str, str]]) -> pd.DataFrame:
    """The rows of these pairs, whichever gene is named first; NaN where there are none."""
    ours = zip(table["gene_a"], table["gene_b"], strict=True)
    found = {frozenset(pair): i for i, pair in enumerate(ours)}
    places = [found.get(frozenset(pair), -1) for pair in wanted]
    rows = table.reindex(places).reset_index(drop=True)
    rows["gene_a"], rows["gene_b"] = ([pair[i] for pair in wanted] for i in (0, 1))
    missing = sum(place < 0 for place in places)
    if missing:
        log.info("%s: %d pairs have a gene that varies too little to be judged", CALL, missing)
    return rows
