"""Draws of log-normal models, and how sure they make each answer."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float

from nbln import registry
from nbln import vocabulary as names
from nbln.arguments import check_number, check_one_gene, check_whole
from nbln.inference.sampler.engine import Draws
from nbln.priors.loadings import LoadingsPrior
from nbln.questions import intervals, network, sampling, stability
from nbln.questions.intervals import CorrelationDraws
from nbln.results import notebook
from nbln.results.drawn import Drawn

if TYPE_CHECKING:
    import networkx

LEVEL = 0.9  # of an interval unless another is asked for


class DrawnPrograms(Drawn):
    """Draws of means, loadings and overdispersion of genes, and what follows from them.

    Attributes
    ----------
    draws
        By part, with leading axes (chain, draw): means, loadings, d, the channel's fields, centres
        and scales of the programs, the pool, shares of accepted proposals.
    prior
        Of the loadings.
    reference
        (gene, factor) loadings of the fit that programs are matched to.
    z_mean, z_sd
        (cell, column) of every cell's coordinates.
    """

    draws: Draws
    prior: LoadingsPrior
    reference: Float[np.ndarray, "gene factor"]
    z_mean: Float[np.ndarray, "cell column"]
    z_sd: Float[np.ndarray, "cell column"]

    def _repr_html_(self) -> str:
        return notebook.of_draws(self, self.reference.shape[1])

    @property
    def n_chains(self) -> int:
        """Number of chains."""
        return self.draws.mu.shape[0]

    @property
    def n_draws(self) -> int:
        """Draws of each chain."""
        return self.draws.mu.shape[1]

    @property
    def channel(self):
        """The count channel with the draws of its parameters, (chain, draw, gene)."""
        return registry.find(self.model).program.channel.restore(self.draws.channel)

    @property
    def noise(self) -> Float[np.ndarray, "chain draw gene"]:
        """Squared coefficient of variation of the channel's own noise."""
        return np.broadcast_to(self.channel.noise(), self.draws.d.shape)

    def _flat(self, array: np.ndarray) -> np.ndarray:
        """Chains one after the other."""
        return array.reshape(array.shape[0] * array.shape[1], *array.shape[2:])

    def _real(self, array: np.ndarray) -> np.ndarray:
        """Draws (draw, gene, ...) of real genes."""
        return self._flat(array)[:, self.fitted.real_genes]

    # Correlations

    def correlation_draws(self, kind: str) -> CorrelationDraws:
        """What all correlations of one kind come from, draw by draw."""
        draws = self.draws
        parts = draws.W, draws.d, draws.mu, self.noise
        W, d, mu, noise = (self._real(np.asarray(x)) for x in parts)
        gene_names = self.fitted.gene_names[self.fitted.real_genes]
        return CorrelationDraws(W, d, mu, noise, kind, gene_names)

    def get_correlation(
        self, kind: str = "compositional", genes: Sequence[str] | None = None, level: float = LEVEL
    ) -> xr.Dataset:
        """Correlations with their uncertainty, ``(gene, gene_)``.

        Parameters
        ----------
        kind
            As in `LaplaceResult.get_correlation`.
        genes
            Names; all genes by default, which forms five matrices of their number squared.
        level
            Probability that an interval covers, with equal tails.

        Returns
        -------
        ``mean``, ``sd``, ``low`` and ``high`` (the ends of the interval) and ``prob_sign``, the
        probability that the correlation has the sign that it more likely has.

        Raises
        ------
        ValueError
            An unknown kind, a level that is no probability.
        KeyError
            An unknown gene.
        """
        intervals.check_level(level)
        draws = self.correlation_draws(kind)
        rows = self.fitted.find(genes, draws.gene_names)
        summary = intervals.correlations(draws, rows, rows, level)
        labels = {names.GENE: draws.gene_names[rows], names.GENE_: draws.gene_names[rows]}
        dims = (names.GENE, names.GENE_)
        return xr.Dataset(
            {name: (dims, x.astype(np.float32)) for name, x in summary._asdict().items()},
            coords=labels,
            attrs={"kind": kind, "level": level},
        )

    def pairs(
        self,
        min_abs: float = 0.3,
        fdr: float = 0.05,
        kind: str = "compositional",
        level: float = LEVEL,
        genes: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Pairs of genes whose correlation is beyond `min_abs`, surest first.

        A pair is called where the draws say so with few enough errors: the mean probability of
        being wrong, over the called pairs, is at most `fdr` (Bayesian false discovery rate, Newton
        et al. 2004). To be wrong is to be within `min_abs`, or to have the other sign.

        Parameters
        ----------
        min_abs
            Size of a correlation that matters; 0 asks for its sign alone.
        fdr
            Share of wrong calls that is accepted, between 0 and 1.
        kind, level
            As in `get_correlation`.
        genes
            Only pairs of these genes, over which the rate is then; by default all pairs.

        Returns
        -------
        gene_a, gene_b, ``mean``, ``low`` and ``high`` of the correlation, ``lfsr`` (local false
        sign rate: probability of the other sign, Stephens 2017), ``error_probability`` (that this
        call is wrong) and ``q`` (mean of these down to this pair). Memory grows with the pairs
        that are more likely right than wrong, not with genes squared times draws.
        """
        draws = self.correlation_draws(kind)
        rows = None if genes is None else np.unique(self.fitted.find(genes, draws.gene_names))
        limits = checked("pairs", min_abs, fdr, level)
        return intervals.pairs(draws, *limits, rows=rows, among=True)

    def partners(
        self,
        gene: str,
        min_abs: float = 0.3,
        fdr: float = 0.05,
        kind: str = "compositional",
        level: float = LEVEL,
    ) -> pd.DataFrame:
        """Genes that vary with one gene, surest first; see `pairs`, whose gene_a is this gene.

        Raises
        ------
        KeyError
            An unknown gene.
        TypeError
            More than one gene.
        """
        check_one_gene(gene, "pairs")
        draws = self.correlation_draws(kind)
        row = self.fitted.find([gene], draws.gene_names)
        return intervals.pairs(draws, *checked("partners", min_abs, fdr, level), rows=row)

    def to_graph(
        self,
        min_abs: float = 0.3,
        fdr: float = 0.05,
        most: int = 10,
        kind: str = "compositional",
        genes: Sequence[str] | None = None,
    ) -> "networkx.Graph":
        """Called pairs as a NetworkX graph, for `networkx.write_graphml` and other tools.

        Of each gene the `most` strongest of its called pairs, since a large program makes millions;
        further arguments are those of `pairs`, and ``graph_of(pairs)`` takes all.

        Returns
        -------
        Genes that are in a called pair as nodes, with ``mu`` (mean log-rate) and ``program`` (of
        the fit, that varies the gene most, from 1); edges with ``correlation``, ``low``, ``high``,
        ``lfsr``, ``error_probability``, ``q``, ``weight`` (size of the correlation) and ``sign``.
        """
        check_whole("to_graph(most", most)
        called = self.pairs(min_abs, fdr, kind, genes=genes)
        return self.graph_of(network.of_each_gene(called, most))

    def graph_of(self, pairs: pd.DataFrame) -> "networkx.Graph":
        """Pairs that `pairs` or `partners` gave as a graph; see `to_graph`."""
        real = self.fitted.real_genes
        W = self.reference[real] - self.reference.mean(axis=0)
        return network.graph(
            pairs,
            self._real(self.draws.mu).mean(axis=0),
            1 + np.argmax(np.abs(W), axis=1),
            self.fitted.gene_names[real],
        )

    # Programs

    @cached_property
    def _alignment(self) -> stability.Alignment:
        return stability.align(self._flat(self.draws.W), self.reference)

    def get_W_compositional(self, level: float = LEVEL) -> xr.Dataset:
        """W_⊥ with its uncertainty, (gene, factor), programs matched to those of the fit."""
        intervals.check_level(level)
        aligned = stability.aligned(self._flat(self.draws.W), self._alignment)
        dims = (names.GENE, names.FACTOR)
        summary = intervals.summarise(aligned, level)
        return xr.Dataset(
            {name: (dims, np.float32(x)) for name, x in summary._asdict().items()},
            coords={names.GENE: self.fitted.gene_names},
            attrs={"level": level},
        )

    def get_latent(self) -> xr.Dataset:
        """``mean`` and ``sd`` of every cell's factors, (cell, factor).

        Programs are not matched between draws here: where chains exchange them or their signs,
        which `get_program_stability` shows, the sd says so.
        """
        k, dims = self.reference.shape[1], (names.CELL, names.FACTOR)
        values = {"mean": self.z_mean[:, :k], "sd": self.z_sd[:, :k]}
        coords = {names.CELL: self.fitted.cell_names}
        return xr.Dataset({name: (dims, x) for name, x in values.items()}, coords=coords)

    def get_membership(self) -> xr.DataArray:
        """Probability that each gene belongs to each program, (gene, factor), over all draws.

        Raises
        ------
        ValueError
            The loadings prior has no spike and slab.
        """
        W, centre = self._flat(self.draws.W), self._flat(self.draws.centre)
        scales = {name: self._flat(x) for name, x in self.draws.scales.items()}
        member = sampling.membership(self.prior, W, centre, scales, self._alignment)
        coords = {names.GENE: self.fitted.gene_names}
        return xr.DataArray(
            member, dims=(names.GENE, names.FACTOR), coords=coords, name="membership"
        )

    def get_n_programs(self) -> pd.Series:
        """Probability of each number of programs that carry signal.

        Among the programs of the fit: columns that it dropped stay out, and one at least stays in.
        """
        limits = self.prior.shrinkage
        numbers = stability.n_programs(
            self._flat(self.draws.W), limits.signal_share, limits.smallest_signal
        )
        shares = pd.Series(numbers).value_counts(normalize=True).sort_index()
        return shares.rename("probability").rename_axis("n_programs")

    def get_program_stability(self, level: float = LEVEL) -> pd.DataFrame:
        """How well each program is determined, one row a program, numbered from 1.

        ``cosine`` (mean of the absolute cosine of a draw's W_⊥ column with the fit's), ``same``
        (share of draws where it is above 0.9), and ``norm``, ``norm_low``, ``norm_high`` of the
        column.
        """
        intervals.check_level(level)
        aligned = stability.aligned(self._flat(self.draws.W), self._alignment)
        norms = intervals.summarise(np.sqrt((aligned**2).sum(axis=1)), level)
        cosine = self._alignment.cosine
        return pd.DataFrame(
            {
                "cosine": cosine.mean(axis=0),
                "same": (cosine > stability.SAME).mean(axis=0),
                "norm": norms.mean,
                "norm_low": norms.low,
                "norm_high": norms.high,
            },
            index=pd.RangeIndex(1, 1 + cosine.shape[1], name="program"),
        )

    # Overdispersion

    def get_overdispersion(self, level: float = LEVEL) -> xr.Dataset:
        """How overdispersed genes are, (gene,), and how that splits.

        ``total`` is φ = d + log(1 + c), c the squared coefficient of variation of the channel's own
        noise (1/r); ``share`` is d/φ. Each has a mean, and ends ``_low`` and ``_high``.
        """
        intervals.check_level(level)
        d, own = self._flat(self.draws.d), np.log1p(self._flat(self.noise))
        found = {}
        for name, values in {"total": d + own, "share": d / (d + own)}.items():
            summary = intervals.summarise(values, level)
            found |= {name: summary.mean, f"{name}_low": summary.low, f"{name}_high": summary.high}
        return xr.Dataset(
            {name: ((names.GENE,), np.float32(x)) for name, x in found.items()},
            coords={names.GENE: self.fitted.gene_names},
            attrs={"level": level},
        )

    # Quality

    def get_diagnostics(self) -> pd.DataFrame:
        """Effective draws (``ess``), ``ess_per_draw`` and ``r_hat`` of what matters, one row each.

        Correlations: of 200 pairs drawn at random and of the 200 strongest; total overdispersion of
        genes, and its share; norms of the programs; effects of covariates; activities in data
        sets. Of many numbers the median of ess is given, and the r_hat that 95 % of them are below.
        """
        return sampling.diagnostics_table(self)

    def _aligned_draws(self) -> Float[np.ndarray, "chain draw gene factor"]:
        """W_⊥ of every draw, programs matched to those of the fit."""
        W = stability.aligned(self._flat(self.draws.W), self._alignment)
        return W.reshape(self.draws.W.shape)


def checked(call: str, min_abs: float, fdr: float, level: float) -> tuple[float, float, float]:
    """What is asked of pairs, checked."""
    return (
        check_number(f"{call}(min_abs", min_abs, 0.0, 1.0, open_=False),
        check_number(f"{call}(fdr", fdr, 0.0, 1.0, open_=True),
        intervals.check_level(level),
    )
