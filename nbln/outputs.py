"""What a fit leaves in a directory: files of results, tables, a report."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from nbln import atomic, splitting, terminal, webpage
from nbln.data import files, symbols
from nbln.questions.enrichment import NamedSets
from nbln.questions.network import FORMATS, of_each_gene
from nbln.questions.stability import SAME
from nbln.session import Outputs, say
from nbln.text import to_csv

FIT, FITTED, PAIRS, REPORT = "fit.nc", "fitted.h5ad", "top_pairs.csv", "report.html"
DRAWS, CALLS, EFFECTS = "draws.nc", "called_pairs.csv", "covariate_effects.csv"
ACTIVITIES, PROGRAMS, SETS = "program_activity.csv", "gene_programs.csv", "gene_sets.csv"
NETWORK = "network"  # what is said of it; its file has a name of the user's
SAID = {
    FIT: "the fit, for nbln.load",
    FITTED: "the counts with the results (keys that contain nbln)",
    PROGRAMS: "the gene programs: names, genes, cells",
    SETS: "gene sets in which the genes of programs are enriched",
    PAIRS: "the most correlated pairs of genes",
    REPORT: "all of this with figures and predictive checks, for a browser",
    DRAWS: "the draws, for nbln.load",
    CALLS: "the pairs that the draws call correlated",
    EFFECTS: "effects of covariates on genes, natural log",
    ACTIVITIES: "how active programs are in each data set",
    NETWORK: "correlated genes as a network",
    splitting.GROUPS: "the groups with their cells, genes and programs",
    splitting.COMPARED: "pairs of genes whose correlation differs between two groups",
}
NAMES = (FIT, FITTED, PAIRS, REPORT, DRAWS, CALLS, EFFECTS, ACTIVITIES, PROGRAMS, SETS)
PARTNERS = 10  # strongest pairs of each gene in a network of called pairs
DRAWN_COUNTS = 2e8  # of the predictive checks in the report: half a minute


class Asked(NamedTuple):
    """What both commands are asked for beyond the fit."""

    pairs: int
    draws: int
    min_abs: float
    fdr: float
    seed: int
    progress: bool
    checkpoint: bool
    colors: tuple[str, ...] = ()
    gene_sets: NamedSets | None = None
    symbols: str | None = None
    halves: int = 0


def targets(out: Path, originals: Sequence[Path] = (), network: Path | None = None):
    """Where each result goes; raises early where it cannot, or where an input lies."""
    for folder in (out, out.parent):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {folder}: is a file; give a directory")
    found = {name: out / name for name in NAMES}
    for target in found.values():
        _check_free(f"--out {out}: {target.name} there", target, originals)
    out.mkdir(parents=True, exist_ok=True)
    # Hours of work must not end at a directory that cannot be written to.
    _try_to_write(out)
    if network is None:
        return found
    _check_free(f"--network {network}:", network, originals)
    if network.suffix not in FORMATS:
        raise ValueError(f"--network {network}: its name must end with {' or '.join(FORMATS)}")
    if not network.parent.is_dir():
        raise ValueError(f"--network {network}: no directory {network.parent}")
    _try_to_write(network.parent)
    return found | {NETWORK: network}


def _check_free(what: str, target: Path, originals: Sequence[Path]) -> None:
    if target.exists() and any(target.samefile(original) for original in originals):
        raise ValueError(
            f"{what} is the input file, which would be overwritten; give another directory"
        )
    if target.is_dir():
        raise ValueError(f"{what} is a directory; remove it")


def _try_to_write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"0")


class Leaving:
    """The results of a fit on their way into files; each is made when it is first needed."""

    def __init__(self, result, adata, outputs: Outputs, targets: Mapping[str, Path], asked: Asked):
        self.result, self.posterior = result, None
        self._adata, self._outputs, self._targets, self._asked = adata, outputs, targets, asked

    def leave(self, truth=None) -> None:
        """Sample if it is asked for, and write all that a fit leaves; the AnnData gets results."""
        result, targets = self.result, self._targets
        with self._writing(FIT):
            result.save(targets[FIT])
        self.posterior = self._sampled()
        self._tables()
        with self._writing(REPORT):
            terminal.show(result, self._summary, truth, self.posterior, PAIRS, self._named)
            page = webpage.page(
                result, self._checks, self._summary, self._data, truth, self.posterior,
                self._called, self._colors, self._named,
            )  # fmt: skip
            atomic.write(targets[REPORT], page.encode())
        with self._writing(FITTED):
            files.write_annotated(self._annotate, self._adata, targets[FITTED])

    def _writing(self, name: str):
        return self._outputs.writing(self._targets[name], SAID[name])

    def _annotate(self, adata) -> None:
        if self._asked.symbols is not None:
            symbols.rename(adata, self._asked.symbols)  # of a backed file, a copy as it was
        self.result.write_to(adata)

    def _sampled(self):
        """Draws of the posterior, saved; None where none are asked for or there are no programs."""
        asked, result = self._asked, self.result
        if not asked.draws:
            return None
        if not result.has_programs:
            model = result.model
            say(f"Model {model} has no correlations between genes, so --draws does nothing.")
            return None
        say(f"Drawing from the posterior: two chains of {asked.draws} draws.")
        posterior, file = None, self._targets[DRAWS]
        with self._writing(DRAWS):
            posterior = result.sample_posterior(
                asked.draws,
                seed=asked.seed,
                progress=asked.progress,
                checkpoint=self._outputs.checkpoint(file) if asked.checkpoint else None,
            )
            posterior.save(file)
        return posterior

    def _tables(self) -> None:
        result, asked = self.result, self._asked
        sure = result if self.posterior is None else self.posterior
        if self.posterior is not None:
            with self._writing(CALLS):
                self._table(CALLS, self._marked(self._called))
                say(f"{len(self._called):,} pairs of genes are called.")
        if result.has_effects:
            with self._writing(EFFECTS):
                self._table(EFFECTS, sure.get_covariate_effects().to_dataframe().reset_index())
        if result.has_activities:
            with self._writing(ACTIVITIES):
                self._table(ACTIVITIES, sure.get_program_activity().to_dataframe().reset_index())
        if result.has_programs:
            with self._writing(PROGRAMS):
                self._table(PROGRAMS, self._named.reset_index())
            with self._writing(PAIRS):
                self._table(PAIRS, self._marked(result.top_pairs(asked.pairs)))
            if asked.gene_sets is not None:
                with self._writing(SETS):
                    self._table(SETS, self._terms)
        self._network()

    def _network(self) -> None:
        file, posterior = self._targets.get(NETWORK), self.posterior
        if file is None:
            return
        if not self.result.has_programs:
            say(f"Model {self.result.model} has no correlations, so --network does nothing.")
            return
        with self._writing(NETWORK):
            if posterior is None:
                graph = self.result.to_graph(self._asked.min_abs)
            else:
                graph = posterior.graph_of(of_each_gene(self._called, PARTNERS))
            edges = pd.DataFrame(list(graph.edges), columns=["gene_a", "gene_b"])
            for (a, b), note in zip(graph.edges, self._marked(edges)["note"], strict=True):
                graph.edges[a, b]["note"] = note
            FORMATS[file.suffix](graph, file)

    def _table(self, name: str, table: pd.DataFrame) -> None:
        atomic.write(self._targets[name], to_csv(table))

    def _marked(self, pairs: pd.DataFrame) -> pd.DataFrame:
        try:
            checks = self._checks
        except Exception:  # for which the report is not written, and which is told there
            checks = None
        return self.result.mark_pairs(pairs, checks)

    @cached_property
    def _data(self) -> Any:
        return self.result.fitted.data()  # once, since it looks whether counts are still the same

    @cached_property
    def _checks(self):
        say("Comparing the data with draws from the model.")
        size = self.result.fitted.n_cells * self.result.fitted.n_genes
        n_samples = int(min(50, max(10, DRAWN_COUNTS / size)))
        return self.result.check(n_samples=n_samples, counts=self._data)

    @cached_property
    def _summary(self) -> pd.DataFrame:
        return self.result.summary(checks=self._checks, counts=self._data)

    @cached_property
    def _called(self) -> pd.DataFrame:
        """The pairs that the draws call; empty without draws."""
        if self.posterior is None:
            return pd.DataFrame()
        return self.posterior.pairs(self._asked.min_abs, self._asked.fdr)

    @cached_property
    def _terms(self) -> pd.DataFrame | None:
        """Enriched gene sets; None where none are given."""
        given = self._asked.gene_sets
        return None if given is None else self.result.enrichment(given)

    @cached_property
    def _named(self) -> pd.DataFrame:
        """The programs; empty of a model without."""
        result, n = self.result, self._asked.halves
        if not result.has_programs:
            return pd.DataFrame()
        named = result.get_program_table(gene_sets=self._terms)
        if not n or not len(named):
            return named
        say(f"Fitting {n} random halves of the cells, to see which programs are found again.")
        found = result.rank_stability(n, self._asked.seed)
        again = (found["cosine"] > SAME).sum("half").values
        return named.assign(found_again=[f"{k} of {n}" for k in again])

    @property
    def _colors(self) -> dict[str, Any]:
        return {name: self._adata.obs[name] for name in self._asked.colors}
