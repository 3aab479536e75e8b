"""What a fit with gene programs says of genes: programs, correlations, networks, gene sets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from nbln import vocabulary as names
from nbln.arguments import check_number, check_one_gene, check_whole
from nbln.questions import (
    alr,
    correlation,
    diagnostics,
    distributions,
    enrichment,
    network,
    pair_notes,
    program_table,
    programs,
)
from nbln.questions.enrichment import GeneSets
from nbln.questions.program_table import ProgramGenes
from nbln.results.log_normal import LogNormalResult

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, eq=False)
class FittedPrograms(LogNormalResult):
    """A fit with gene programs, asked of genes."""

    # Programs

    def get_embedding(self, power: float = 0.5) -> xr.DataArray:
        """Where cells are for neighbours, clusters and maps, (cell, factor): z_j ‖w_⊥j‖^power.

        Of the programs that carry signal. By z alone (`power` 0) a weak program counts as much as
        a strong one; in units of expression (`power` 1: natural log, over all genes) the largest
        drown kinds of cells that differ in smaller ones. Between them clusters agree best with
        kinds of cells.

        Raises
        ------
        ValueError
            A power that is not between 0 and 1.
        """
        power = check_number("get_embedding(power", power, 0.0, 1.0, open_=False)
        sizes = self.w_prior_diagnostics
        norms = sizes["column_frobenius_compositional"][: sizes["effective_rank"]]
        z = self.cells.z[:, : len(norms)] * np.asarray(norms) ** power
        return self.fitted.label(z, (names.CELL, names.FACTOR), "embedding")

    @cached_property
    def program_genes(self) -> ProgramGenes:
        """How genes take part in the programs that carry signal, for tables and figures."""
        rank = self.w_prior_diagnostics["effective_rank"]
        real = self.fitted.real_genes
        member = distributions.membership(self.parameters, self.spread, self.loadings, rank)
        if member is None:
            member = np.ones(self.parameters.W.shape)
        return ProgramGenes(
            self.fitted.gene_names[real],
            self.get_W_compositional().values[real, :rank],
            member[real, :rank],
            self.get_variance_shares()["programs"].values[real],
        )

    def get_program_table(
        self, n_top: int = 10, gene_sets: GeneSets | pd.DataFrame | None = None
    ) -> pd.DataFrame:
        """The programs that carry signal, one row each, numbered from 1, largest first.

        Programs are turned so that the heavier tail of their factor is positive: the cells that
        stand out use a program, and its leading genes are high in them.

        Parameters
        ----------
        n_top
            Genes that are listed.
        gene_sets
            A GMT file, sets of genes by name, or what `enrichment` gave: programs are then named by
            the set that their leading genes are most enriched in, at a false discovery rate of 5 %
            and with two of its genes among the first ten; each set names one program, the surest.
            Where one describes the genes that go down, too, the name is "this against that".

        Returns
        -------
        ``name``: the gene set, or what most leading genes are (ribosomal, mitochondrial), or the
        first of them; ``share`` of ‖W_⊥‖²; ``top_genes`` and ``opposed_genes``: those that go up,
        or down, with the program, ordered by the share of the variance of their counts that it
        makes; ``n_genes`` that more likely belong to it than not (all, where the loadings prior has
        no spike); ``n_cells`` whose factor is above 1; ``effective_cells``, (Σz²)²/Σz⁴, over which
        it is spread: a third of all cells for a Gaussian factor, few where few cells make it;
        ``kind``, ribosomal or mitochondrial where most leading genes are.

        Raises
        ------
        FileNotFoundError, ValueError
            No such file; gene sets of which no gene is in the fit.
        ImportError
            Gene sets without GSEApy.
        """
        check_whole("get_program_table(n_top", n_top)
        genes, terms = self.program_genes, enrichment.NONE
        if isinstance(gene_sets, pd.DataFrame):
            terms = gene_sets
        elif gene_sets is not None:
            terms = self.enrichment(gene_sets)
        z = self.get_latent().values[:, : genes.loading.shape[1]]
        return program_table.table(genes, z, n_top, terms)

    def enrichment(self, gene_sets: GeneSets, n_genes: int = 100) -> pd.DataFrame:
        """Gene sets in which the leading genes of each program are enriched, surest first.

        One-sided hypergeometric tests by GSEApy, offline, against all genes of the fit.

        Parameters
        ----------
        gene_sets
            A GMT file, or sets of genes by name; names as those of the fit.
        n_genes
            So many genes at most that belong to the program and go up with it, and so many that go
            down, in the order of `get_program_table`.

        Returns
        -------
        ``program``, from 1; ``direction``, up or down; ``term``; ``overlap``, genes in common;
        ``size`` of the set within the fit; ``odds_ratio``; ``p_value``; ``q_value``, of Benjamini
        and Hochberg over all tests; ``genes``. Sets with one gene in common are left out.

        Raises
        ------
        FileNotFoundError, TypeError, ValueError
            No such file, or no gene sets in it; none of their genes is in the fit.
        ImportError
            GSEApy is not installed.
        """
        return enrichment.enriched(self.program_genes, gene_sets, n_genes)

    def get_membership(self) -> xr.DataArray:
        """Posterior probability that each gene belongs to each program, (gene, factor).

        A gene belongs where its loading comes from the slab, conditional on the cells' factors and
        on the scales. Programs that do not carry signal have probability 0.

        Raises
        ------
        ValueError
            The fit had another loadings prior than ``horseshoe_sparse``.
        """
        rank = self.w_prior_diagnostics["effective_rank"]
        probability = distributions.membership(self.parameters, self.spread, self.loadings, rank)
        if probability is None:
            raise ValueError(
                "get_membership(): this fit's loadings prior has no spike and slab; fit with "
                "priors={'loadings': 'horseshoe_sparse'}, the default"
            )
        return self.fitted.label(probability, (names.GENE, names.FACTOR), "membership")

    def get_gauge_diagnostics(self) -> dict[str, float]:
        """Frobenius norms of W_⊥ and of the all-ones part 1w̄ᵀ, and the second over the first.

        The ratio is NaN where W_⊥ is nothing but rounding: there is no program to compare with.
        """
        return programs.gauge_diagnostics(np.asarray(self.parameters.W))

    def get_variance_shares(self) -> xr.Dataset:
        """Shares of each gene's variance of counts at median depth, (gene,).

        ``programs``: what the gene programs explain; ``own``: the gene's own variation d;
        ``counting``: the channel's noise; with a formula also ``covariates``. They add up to 1
        (law of total variance).
        """
        given = self.fitted, self.parameters, self._losses, self.design
        return diagnostics.variance_shares(*given)

    # Correlations

    def _covariance(self, kind: str):
        """Over real genes: the pool of the rarest is left out, and the rest is centred again."""
        real, fitted = self.fitted.real_genes, self.parameters
        noise = np.broadcast_to(fitted.channel.noise(), len(real))
        parts = (np.asarray(x)[real] for x in (fitted.W, fitted.d, fitted.mu, noise))
        return correlation.of_kind(kind, *parts), self.fitted.gene_names[real]

    def get_covariance(
        self, kind: str = "compositional", genes: Sequence[str] | None = None
    ) -> xr.DataArray:
        """Covariance of log-rates or expression, ``(gene, gene_)``; of the given genes, or of all.

        Parameters
        ----------
        kind
            Of log-rates: ``"compositional"``, ``"log_rate"`` or ``"clr"``; of expression at full
            capture, with the channel's own variation: ``"expression"``.
        genes
            Names; all genes by default, which forms a matrix of their number squared.

        Raises
        ------
        ValueError
            An unknown kind.
        KeyError
            An unknown gene.
        """
        covariance, labels = self._covariance(kind)
        rows = self.fitted.find(genes, labels)
        return correlation.gene_matrix(covariance.block(rows, rows), labels[rows], "covariance")

    def get_correlation(
        self, kind: str = "compositional", genes: Sequence[str] | None = None
    ) -> xr.DataArray:
        """Correlation of log-rates or expression, ``(gene, gene_)``; as in `get_covariance`."""
        covariance, labels = self._covariance(kind)
        rows = self.fitted.find(genes, labels)
        values = covariance.correlation_block(rows, rows)
        return correlation.gene_matrix(values, labels[rows], "correlation")

    def top_pairs(
        self, n: int = 100, kind: str = "compositional", genes: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """The `n` most correlated pairs: gene_a, gene_b, correlation; strongest first.

        `genes` are those whose pairs are looked at; all by default.
        """
        covariance, labels = self._covariance(kind)
        return correlation.top_pairs(covariance, labels, n, self.fitted.find(genes, labels))

    def get_alr(
        self, reference: str | None = None, genes: Sequence[str] | None = None
    ) -> xr.Dataset:
        """Log-rates relative to one gene's, whatever a cell's depth: additive log-ratios.

        Parameters
        ----------
        reference
            Name of the gene; by default the one of the highest mean expression.
        genes
            Names of the others; all by default, which forms a matrix of their number squared.

        Returns
        -------
        ``mu`` (gene,) and ``Sigma`` ``(gene, gene_)``, mean and covariance of log-ratios (natural
        log); its factors ``W`` (gene, factor), ``d`` (gene,) and ``d_reference``, of which Sigma is
        W Wᵀ + diag(d) + d_reference. ``attrs["reference"]`` names the gene.

        Raises
        ------
        KeyError
            An unknown gene.
        TypeError, ValueError
            A reference that is no name, or is among `genes`.
        """
        return alr.alr(self.fitted, self.parameters, reference, genes)

    def partners(
        self, gene: str, n: int = 20, min_abs: float = 0.0, kind: str = "compositional"
    ) -> pd.DataFrame:
        """The `n` genes that vary most with one gene: gene_a (this one), gene_b, correlation.

        Points without an interval; draws say how sure they are (`PosteriorDraws.partners`).

        Parameters
        ----------
        min_abs
            Least absolute correlation.
        kind
            As in `get_covariance`.

        Raises
        ------
        KeyError
            An unknown gene.
        TypeError
            More than one gene.
        """
        check_one_gene(gene, "top_pairs")
        check_whole("partners(n", n)
        least = check_number("partners(min_abs", min_abs, 0.0, 1.0, open_=False)
        covariance, labels = self._covariance(kind)
        every, row = np.arange(len(labels)), self.fitted.find([gene], labels)
        return network.strongest_partners(covariance, labels, row, every, n, least)

    def to_graph(
        self,
        min_abs: float = 0.3,
        most: int = 10,
        kind: str = "compositional",
        genes: Sequence[str] | None = None,
    ) -> "networkx.Graph":
        """Correlated genes as a NetworkX graph, for `networkx.write_graphml` and other tools.

        Points without an interval: `PosteriorDraws.to_graph` holds the pairs that are called.

        Parameters
        ----------
        min_abs
            Least absolute correlation of a pair.
        most
            Of each gene its so many strongest pairs: without a limit those of the largest program
            would hide all others.
        kind
            As in `get_covariance`.
        genes
            Names; all genes by default.

        Returns
        -------
        Genes that are in such a pair as nodes, with ``mu`` (mean log-rate) and ``program`` (that
        varies the gene most, from 1; 0 for none); edges with ``correlation``, ``weight`` (its size)
        and ``sign``.

        Raises
        ------
        KeyError, ValueError
            An unknown gene; a number out of its range.
        """
        least = check_number("to_graph(min_abs", min_abs, 0.0, 1.0, open_=False)
        check_whole("to_graph(most", most)
        covariance, labels = self._covariance(kind)
        rows = np.unique(self.fitted.find(genes, labels))
        found = network.strongest_partners(covariance, labels, rows, rows, most, least)
        return self.graph_of(found)

    def graph_of(self, pairs: pd.DataFrame) -> "networkx.Graph":
        """Pairs that `top_pairs` or `partners` gave as a graph; see `to_graph`."""
        genes = self.program_genes
        mean = self.mu.values[self.fitted.real_genes]
        return network.graph(pairs, mean, genes.strongest(), genes.names)

    def mark_pairs(self, pairs: pd.DataFrame, checks: xr.Dataset | None = None) -> pd.DataFrame:
        """The same table with a column ``note``: why a pair is to be distrusted, '' as a rule.

        A pair is marked that fewer than ten cells make, (Σ|p|)²/Σp² of the products p of the two
        genes' programs; with what `check` gave also one with a gene that is seen in fewer than ten
        cells, or whose mean the model puts off by a factor of 3.

        Parameters
        ----------
        pairs
            What `top_pairs`, `partners` or `PosteriorDraws.pairs` gave.
        checks
            What `check` gave.
        """
        z = self.get_latent().values
        W = self.get_W_compositional().values
        found = pair_notes.notes(pairs, self.fitted.gene_names, W, z, checks)
        return pairs.assign(note=found)
