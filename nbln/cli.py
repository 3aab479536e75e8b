"""The command line: `nbln demo` and `nbln fit`. Reads, calls the library, prints, writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import rich
import typer

import nbln
from nbln import atomic, report, splitting, terminal
from nbln import cli_options as options
from nbln.data import files, symbols
from nbln.data.shelf import in_memory
from nbln.outputs import DRAWS, FIT, SAID, Asked, Leaving, targets
from nbln.questions import enrichment
from nbln.session import Outputs, say, session
from nbln.text import to_csv

app = typer.Typer(
    help="Gene-gene correlations from single-cell counts, by negative-binomial log-normal models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help fits 80 columns better
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nbln {nbln.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Gene-gene correlations from single-cell counts, by negative-binomial log-normal models."""


@app.command()
def demo(
    out: options.Out = Path("nbln_demo"),
    cells: Annotated[int, typer.Option(min=20, help="Number of cells to simulate.")] = 1000,
    genes: Annotated[int, typer.Option(min=20, help="Number of genes to simulate.")] = 400,
    seed: options.Seed = 0,
    pairs: options.Pairs = 1000,
    draws: options.PosteriorDraws = 0,
    min_abs: options.MinAbs = 0.3,
    fdr: options.FDR = 0.05,
    checkpoint: options.Resume = True,
    progress: options.Bars = True,
    debug: options.Debug = False,
) -> None:
    """Simulate data whose truth is known, fit them, and report how well the truth came back."""
    with session(debug) as outputs:
        places = targets(out)
        adata = nbln.datasets.simulate(cells, genes, seed=seed)
        programs = adata.varm["W"].shape[1]
        say(f"Simulated {cells:,} cells x {genes:,} genes with {programs} gene programs.")
        asked = Asked(pairs, draws, min_abs, fdr, seed, progress, checkpoint)
        _fit(adata, {}, outputs, places, asked, truth_of=report.Truth.of)


@app.command()
def fit(
    counts: options.Counts,
    out: options.Out = Path("nbln_fit"),
    layer: options.Layer = None,
    model: options.Model = "nbln",
    formula: options.FormulaText = None,
    random: options.RandomColumn = None,
    dataset_key: options.DatasetKey = None,
    split_by: options.SplitBy = None,
    batch_key: options.BatchKey = None,
    covariate: options.Covariate = None,
    labels_key: options.LabelsKey = None,
    gene_likelihood: options.GeneLikelihood = "nb",
    dispersion: options.Dispersion = "gene",
    decoder: options.Decoder = "mlp",
    library: options.Library = "observed",
    epochs: options.Epochs = None,
    latent_dim: options.LatentDim = 16,
    gene_coverage: options.Coverage = None,
    n_steps: options.NSteps = None,
    seed: options.Seed = 0,
    pairs: options.Pairs = 1000,
    draws: options.PosteriorDraws = 0,
    min_abs: options.MinAbs = 0.3,
    fdr: options.FDR = 0.05,
    gene_sets: options.GeneSetFile = None,
    symbol_column: options.Symbols = None,
    color: options.Color = None,
    network: options.Network = None,
    halves: options.Halves = 0,
    backed: options.Backed = False,
    distributed: options.Distributed = False,
    checkpoint: options.Resume = True,
    progress: options.Bars = True,
    debug: options.Debug = False,
) -> None:
    """Fit files of counts and leave the fit, an annotated copy and the strongest gene pairs."""
    asked = Asked(pairs, draws, min_abs, fdr, seed, progress, checkpoint, tuple(color or ()))
    with session(debug, distributed and _of_one_fit(split_by)) as outputs:
        adata = files.read(counts, backed)
        sets = _names(adata, symbol_column, gene_sets, asked.colors)
        asked = asked._replace(gene_sets=sets, symbols=symbol_column, halves=halves)
        given = dict(
            model=model, layer=layer, latent_dim=latent_dim, formula=formula, random=random or None,
            dataset_key=dataset_key or None, batch_key=batch_key, covariates=covariate or None,
            labels_key=labels_key, gene_likelihood=gene_likelihood, dispersion=dispersion,
            decoder=decoder, library=library, gene_coverage=gene_coverage, n_steps=n_steps,
            vae=None if epochs is None else nbln.VAEConfig(n_epochs=epochs),
        )  # fmt: skip
        where = ", ".join(map(str, counts))
        say(f"Read {adata.n_obs:,} cells x {adata.n_vars:,} genes from {where}.")
        if split_by is None:
            _fit(adata, given, outputs, targets(out, counts, network), asked)
            return
        parts, places = splitting.parts(adata, split_by, out), {}
        for part in parts:
            own = None if network is None else part.folder / network.name
            places[part.name] = targets(part.folder, counts, own)
        _split(adata, parts, places, given, outputs, asked)


def _of_one_fit(split_by: str | None) -> bool:
    """Raise where several processes would share several fits."""
    if split_by is not None:
        raise typer.BadParameter("--distributed fits one data set; start a job for each group")
    return True


def _names(adata, column: str | None, gene_sets: Path | None, colors) -> dict | None:
    """Genes by their symbols, and the gene sets; raises before a fit for what is not there."""
    if column is None:
        symbols.hint(adata)
    else:
        symbols.rename(adata, column)
    for name in colors:
        symbols.check_column("--color", name, adata.obs, "obs")
    return None if gene_sets is None else enrichment.within(gene_sets, adata.var_names)


def _fit(
    adata,
    given: dict[str, Any],
    outputs: Outputs,
    places: dict[str, Path],
    asked: Asked,
    truth_of: Callable | None = None,
):
    """Fit, and leave what there is to leave; the fit, and draws or None."""
    say("Fitting; each stage begins with a compilation of some seconds.")
    kept = outputs.checkpoint(places[FIT]) if asked.checkpoint else None
    with outputs.fitting():
        result = nbln.fit(adata, **given, seed=asked.seed, progress=asked.progress, checkpoint=kept)
    leaving = Leaving(result, adata, outputs, places, asked)
    leaving.leave(None if truth_of is None else truth_of(adata, result.fitted.gene_names))
    return result, leaving.posterior


def _split(adata, parts, places, given, outputs: Outputs, asked: Asked) -> None:
    """A fit of each group, whatever becomes of the others; a table of them; what differs."""
    outcomes, drawn = [], {}
    for part in parts:
        say("")
        say(f"Group {part.name}: {part.cells.sum():,} cells.", "bold")
        result = None
        with outputs.writing(part.folder, f"the results of group {part.name}"):
            cells = in_memory(adata[part.cells])
            result, posterior = _fit(cells, given, outputs, places[part.name], asked)
            file = places[part.name][DRAWS]
            if posterior is not None and not outputs.failure(file):
                drawn[part.name] = file
        if error := outputs.failure(part.folder):
            say(f"Group {part.name} was not fitted: {error}", "red")
        outcomes.append(splitting.Outcome.of(part, result, error))
    rich.get_console().print(terminal.groups_table(outcomes))
    out = parts[0].folder.parent
    with outputs.writing(out / splitting.GROUPS, SAID[splitting.GROUPS]):
        atomic.write(out / splitting.GROUPS, to_csv(pd.DataFrame(outcomes)))
    if len(drawn) > 1:
        with outputs.writing(out / splitting.COMPARED, SAID[splitting.COMPARED]):
            say("Comparing the correlations of groups; cells are the units, not donors.")
            table = splitting.compared(drawn, asked.fdr)
            atomic.write(out / splitting.COMPARED, to_csv(table))


if __name__ == "__main__":
    app()
