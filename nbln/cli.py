"""The command line: `nbln demo` and `nbln fit`. Reads, calls the library, prints, writes."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import rich
import typer

import nbln
from nbln import atomic, report, splitting, terminal, webpage
from nbln.data import files
from nbln.session import Outputs, say, session
from nbln.text import to_csv

FIT, FITTED, PAIRS, REPORT = "fit.nc", "fitted.h5ad", "top_pairs.csv", "report.html"
DRAWS, CALLS, EFFECTS = "draws.nc", "called_pairs.csv", "covariate_effects.csv"
ACTIVITIES = "program_activity.csv"
SAID = {
    FIT: "the fit, for nbln.load",
    FITTED: "the counts with the results (keys that contain nbln)",
    PAIRS: "the most correlated pairs of genes",
    REPORT: "all of this with figures and predictive checks, for a browser",
    DRAWS: "the draws, for nbln.load",
    CALLS: "the pairs that the draws call correlated",
    EFFECTS: "effects of covariates on genes, natural log",
    ACTIVITIES: "how active programs are in each data set",
    splitting.GROUPS: "the groups with their cells, genes and programs",
    splitting.COMPARED: "pairs of genes whose correlation differs between two groups",
}
QUOTED = "names like a formula begin with an apostrophe there"
DRAWN_COUNTS = 2e8  # of the predictive checks in the report: half a minute

app = typer.Typer(
    help="Gene-gene correlations from single-cell counts, by negative-binomial log-normal models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help fits 80 columns better
)


def _folder(given: str | Path) -> Path:
    if not str(given).strip():
        raise typer.BadParameter("an empty name; give a directory")
    return Path(given)


Out = Annotated[
    Path,
    typer.Option(
        help="Directory for the results; made if it is not there.",
        parser=_folder,
        metavar="DIRECTORY",
    ),
]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers on the same machine.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--checkpoint/--no-checkpoint",
        help="Keep where the work stands beside the results, so that the same command goes on.",
    ),
]
Bars = Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress bars.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PosteriorDraws = Annotated[
    int,
    typer.Option(min=0, help="Posterior draws a chain (two chains), for intervals and calls."),
]
MinAbs = Annotated[float, typer.Option(min=0, max=1, help=f"Size of the correlations in {CALLS}.")]
FDR = Annotated[float, typer.Option(help=f"Share of wrong calls that {CALLS} may hold.")]
Layer = Annotated[str | None, typer.Option(help="Layer that holds the counts.", show_default="X")]
Coverage = Annotated[
    float | None,
    typer.Option(
        help="Keep the most abundant genes that hold this share of all counts, pool the rest.",
        show_default="all genes",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        help="nbln, pln (Poisson), lnm or lnmvcp (multinomial), nbvcp, nbdm, zinb or zinbvcp "
        "(independent genes), scvi or negbio_vae (auto-encoders)."
    ),
]
BatchKey = Annotated[
    str | None,
    typer.Option(help="Column of obs with the batch of each cell (scvi).", show_default="none"),
]
Covariate = Annotated[
    list[str] | None,
    typer.Option(help="Further column of obs; once for each (scvi).", show_default="none"),
]
FormulaText = Annotated[
    str | None,
    typer.Option(
        "--formula",
        help="Covariates over columns of obs, as '~ treatment + percent_mito' (models of gene "
        "programs, and nbvcp).",
        show_default="none",
    ),
]
RandomColumn = Annotated[
    list[str] | None,
    typer.Option(
        "--random",
        help="Column of obs whose levels, donors say, have random effects; once for each.",
        show_default="none",
    ),
]
DatasetKey = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-key",
        help="Column of obs by which programs are more or less active; once for each.",
        show_default="none",
    ),
]
SplitBy = Annotated[
    str | None,
    typer.Option(
        help="Column of obs: a fit of each group of cells, in a directory of its own.",
        show_default="none",
    ),
]
LabelsKey = Annotated[
    str | None,
    typer.Option(help="Column of labels, for --dispersion gene-label (scvi).", show_default="none"),
]
GeneLikelihood = Annotated[str, typer.Option(help="nb, zinb or poisson (scvi).")]
Dispersion = Annotated[
    str, typer.Option(help="Of gene, gene-batch, gene-label or gene-cell (scvi).")
]
Decoder = Annotated[str, typer.Option(help="mlp or linear (scvi).")]
Library = Annotated[str, typer.Option(help="Library sizes: observed or latent (scvi).")]
Epochs = Annotated[
    int | None,
    typer.Option(help="Passes over the cells, at most (scvi).", show_default="by cells"),
]
LatentDim = Annotated[
    int, typer.Option(help="Gene programs, or factors of scvi, offered; not all need be used.")
]
NSteps = Annotated[
    int | None,
    typer.Option(
        help="Upper bound on steps of the model's engine; not of scvi.", show_default="its own"
    ),
]
Backed = Annotated[
    bool, typer.Option("--backed", help="Leave the counts on disk and read them in parts.")
]
Pairs = Annotated[int, typer.Option(min=1, help=f"Number of gene pairs in {PAIRS}; {QUOTED}.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nbln {nbln.__version__}")
        raise typer.Exit


class Asked(NamedTuple):
    """What both commands are asked for beyond the fit."""

    pairs: int
    draws: int
    min_abs: float
    fdr: float
    seed: int
    progress: bool
    checkpoint: bool


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
    out: Out = Path("nbln_demo"),
    cells: Annotated[int, typer.Option(min=20, help="Number of cells to simulate.")] = 1000,
    genes: Annotated[int, typer.Option(min=20, help="Number of genes to simulate.")] = 400,
    seed: Seed = 0,
    pairs: Pairs = 1000,
    draws: PosteriorDraws = 0,
    min_abs: MinAbs = 0.3,
    fdr: FDR = 0.05,
    checkpoint: Resume = True,
    progress: Bars = True,
    debug: Debug = False,
) -> None:
    """Simulate data whose truth is known, fit them, and report how well the truth came back."""
    with session(debug) as outputs:
        targets = _targets(out)
        adata = nbln.datasets.simulate(cells, genes, seed=seed)
        programs = adata.varm["W"].shape[1]
        say(f"Simulated {cells:,} cells x {genes:,} genes with {programs} gene programs.")
        say("Fitting; each stage begins with a compilation of some seconds.")
        kept = outputs.checkpoint(targets[FIT]) if checkpoint else None
        with outputs.fitting():
            result = nbln.fit(adata, seed=seed, progress=progress, checkpoint=kept)
        truth = report.Truth.of(adata, result.fitted.gene_names)
        asked = Asked(pairs, draws, min_abs, fdr, seed, progress, checkpoint)
        _leave(result, adata, outputs, targets, asked, truth)


@app.command()
def fit(
    counts: Annotated[
        Path, typer.Argument(metavar="COUNTS.h5ad", help="AnnData file of raw counts.")
    ],
    out: Out = Path("nbln_fit"),
    layer: Layer = None,
    model: Model = "nbln",
    formula: FormulaText = None,
    random: RandomColumn = None,
    dataset_key: DatasetKey = None,
    split_by: SplitBy = None,
    batch_key: BatchKey = None,
    covariate: Covariate = None,
    labels_key: LabelsKey = None,
    gene_likelihood: GeneLikelihood = "nb",
    dispersion: Dispersion = "gene",
    decoder: Decoder = "mlp",
    library: Library = "observed",
    epochs: Epochs = None,
    latent_dim: LatentDim = 16,
    gene_coverage: Coverage = None,
    n_steps: NSteps = None,
    seed: Seed = 0,
    pairs: Pairs = 1000,
    draws: PosteriorDraws = 0,
    min_abs: MinAbs = 0.3,
    fdr: FDR = 0.05,
    backed: Backed = False,
    checkpoint: Resume = True,
    progress: Bars = True,
    debug: Debug = False,
) -> None:
    """Fit a file of counts and leave the fit, an annotated copy and the strongest gene pairs."""
    with session(debug) as outputs:
        adata = files.read(counts, backed)
        asked = Asked(pairs, draws, min_abs, fdr, seed, progress, checkpoint)

        given = dict(
            model=model, layer=layer, latent_dim=latent_dim, formula=formula, random=random or None,
            dataset_key=dataset_key or None, batch_key=batch_key, covariates=covariate or None,
            labels_key=labels_key, gene_likelihood=gene_likelihood, dispersion=dispersion,
            decoder=decoder, library=library, gene_coverage=gene_coverage, n_steps=n_steps,
            vae=None if epochs is None else nbln.VAEConfig(n_epochs=epochs),
        )  # fmt: skip
        targets = None if split_by is not None else _targets(out, counts)
        say(f"Read {adata.n_obs:,} cells x {adata.n_vars:,} genes from {counts}.")
        if targets is not None:
            _fit(adata, given, outputs, targets, asked)
            return
        parts = splitting.parts(adata, split_by, out)
        places = {part.name: _targets(part.folder, counts) for part in parts}
        _split(adata, parts, places, given, outputs, asked)


def _fit(adata, given: dict[str, Any], outputs: Outputs, targets: dict[str, Path], asked: Asked):
    """Fit, and leave what there is to leave; the fit, and draws or None."""
    say("Fitting; each stage begins with a compilation of some seconds.")
    kept = outputs.checkpoint(targets[FIT]) if asked.checkpoint else None
    with outputs.fitting():
        result = nbln.fit(adata, **given, seed=asked.seed, progress=asked.progress, checkpoint=kept)
    return result, _leave(result, adata, outputs, targets, asked)


def _split(adata, parts, targets, given, outputs: Outputs, asked: Asked) -> None:
    """A fit of each group, whatever becomes of the others; a table of them; what differs."""
    outcomes, drawn = [], {}
    for part in parts:
        say("")
        say(f"Group {part.name}: {part.cells.sum():,} cells.", "bold")
        result = None
        with outputs.writing(part.folder, f"the results of group {part.name}"):
            cells = adata[part.cells]
            cells = cells.to_memory() if adata.isbacked else cells.copy()
            result, posterior = _fit(cells, given, outputs, targets[part.name], asked)
            file = targets[part.name][DRAWS]
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


def _targets(out: Path, original: Path | None = None) -> dict[str, Path]:
    """Where each result goes; raises early where it cannot, or where the input lies."""
    for folder in (out, out.parent):
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"--out {folder}: is a file; give a directory")
    targets = {
        name: out / name for name in (FIT, FITTED, PAIRS, REPORT, DRAWS, CALLS, EFFECTS, ACTIVITIES)
    }
    for target in targets.values():
        if original is not None and target.exists() and target.samefile(original):
            raise ValueError(
                f"--out {out}: {target.name} there is the input file, which would be overwritten; "
                "give another directory"
            )
        if target.is_dir():
            raise ValueError(f"--out {out}: {target.name} there is a directory; remove it")
    out.mkdir(parents=True, exist_ok=True)
    # Hours of work must not end at a directory that cannot be written to.
    with tempfile.TemporaryFile(dir=out) as probe:
        probe.write(b"0")
    return targets


def _leave(result, adata, outputs: Outputs, targets: dict[str, Path], asked: Asked, truth=None):
    """Sample if it is asked for, and write all that a fit leaves; `adata` gets its results.

    Returns the draws, or None.
    """
    with outputs.writing(targets[FIT], SAID[FIT]):
        result.save(targets[FIT])
    posterior = _sample(result, outputs, targets, asked)
    _report(result, outputs, targets, asked, truth, posterior)
    with outputs.writing(targets[FITTED], SAID[FITTED]):
        files.write_annotated(result.write_to, adata, targets[FITTED])
    return posterior


def _sample(result, outputs: Outputs, targets: dict[str, Path], asked: Asked):
    """Draws of the posterior, saved; None where none are asked for or there are no programs."""
    if not asked.draws:
        return None
    if not result.has_programs:
        say(f"Model {result.model} has no correlations between genes, so --draws does nothing.")
        return None
    say(f"Drawing from the posterior: two chains of {asked.draws} draws.")
    posterior = None
    with outputs.writing(targets[DRAWS], SAID[DRAWS]):
        posterior = result.sample_posterior(
            asked.draws,
            seed=asked.seed,
            progress=asked.progress,
            checkpoint=outputs.checkpoint(targets[DRAWS]) if asked.checkpoint else None,
        )
        posterior.save(targets[DRAWS])
    return posterior


def _report(result, outputs: Outputs, targets: dict[str, Path], asked: Asked, truth, posterior):
    """Print the report, and write it with the pairs and what the draws say of them."""
    called = None
    if posterior is not None:
        with outputs.writing(targets[CALLS], SAID[CALLS]):
            called = posterior.pairs(asked.min_abs, asked.fdr)
            atomic.write(targets[CALLS], to_csv(called))
            say(f"{len(called):,} pairs of genes are called.")
    if result.has_effects:
        with outputs.writing(targets[EFFECTS], SAID[EFFECTS]):
            effects = (result if posterior is None else posterior).get_covariate_effects()
            atomic.write(targets[EFFECTS], to_csv(effects.to_dataframe().reset_index()))
    if result.has_activities:
        with outputs.writing(targets[ACTIVITIES], SAID[ACTIVITIES]):
            active = (result if posterior is None else posterior).get_program_activity()
            atomic.write(targets[ACTIVITIES], to_csv(active.to_dataframe().reset_index()))
    if result.has_programs:
        with outputs.writing(targets[PAIRS], SAID[PAIRS]):
            atomic.write(targets[PAIRS], to_csv(result.top_pairs(asked.pairs)))
    with outputs.writing(targets[REPORT], SAID[REPORT]):
        say("Comparing the data with draws from the model.")
        size = result.fitted.n_cells * result.fitted.n_genes
        data = result.fitted.data()  # once, since it looks whether the counts are still the same
        checks = result.check(n_samples=int(min(50, max(10, DRAWN_COUNTS / size))), counts=data)
        summary = result.summary(checks=checks, counts=data)
        terminal.show(result, summary, truth, posterior, PAIRS)
        page = webpage.page(result, checks, summary, data, truth, posterior, called)
        atomic.write(targets[REPORT], page.encode())


if __name__ == "__main__":
    app()
