"""The command line: `nbln demo` and `nbln fit`. Reads, calls the library, prints, writes."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import rich
import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

import nbln
from nbln import report, webpage
from nbln.data import files
from nbln.questions.diagnostics import doubts

FIT, FITTED, PAIRS, REPORT = "fit.nc", "fitted.h5ad", "top_pairs.csv", "report.html"
DRAWS, CALLS = "draws.nc", "called_pairs.csv"
SHOWN_PAIRS = 10
DRAWN_COUNTS = 2e8  # of the predictive checks in the report: half a minute
# What the library and the file system raise for reasons that are the user's to mend.
USER_ERRORS = (ValueError, KeyError, TypeError, FloatingPointError, OSError)

app = typer.Typer(
    help="Gene-gene correlations from single-cell counts, by negative-binomial log-normal models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help fits 80 columns better
)

Out = Annotated[Path, typer.Option(help="Directory for the results; made if it is not there.")]
Seed = Annotated[int, typer.Option(help="Same seed, same numbers on the same machine.")]
Bars = Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress bars.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PosteriorDraws = Annotated[
    int,
    typer.Option(min=0, help="Posterior draws a chain (two chains), for intervals and calls."),
]
Pairs = Annotated[int, typer.Option(min=1, help=f"Number of gene pairs in {PAIRS}.")]


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
    out: Out = Path("nbln_demo"),
    cells: Annotated[int, typer.Option(min=20, help="Number of cells to simulate.")] = 1000,
    genes: Annotated[int, typer.Option(min=20, help="Number of genes to simulate.")] = 400,
    seed: Seed = 0,
    pairs: Pairs = 1000,
    draws: PosteriorDraws = 0,
    progress: Bars = True,
    debug: Debug = False,
) -> None:
    """Simulate data whose truth is known, fit them, and report how well the truth came back."""
    with _session(debug):
        targets = _targets(out)
        adata = nbln.datasets.simulate(cells, genes, seed=seed)
        programs = adata.varm["W"].shape[1]
        _say(f"Simulated {cells:,} cells x {genes:,} genes with {programs} gene programs.")
        _say("Fitting; each stage begins with a compilation of some seconds.")
        result = nbln.fit(adata, seed=seed, progress=progress)
        result.write_to(adata)
        adata.write_h5ad(targets[FITTED])
        truth = report.Truth.of(adata, result.fitted.gene_names)
        result.save(targets[FIT])
        posterior = _sample(result, draws, targets, seed, progress)
        _leave(result, targets, pairs, truth=truth, posterior=posterior)


@app.command()
def fit(
    counts: Annotated[
        Path, typer.Argument(metavar="COUNTS.h5ad", help="AnnData file of raw counts.")
    ],
    out: Out = Path("nbln_fit"),
    layer: Annotated[
        str | None, typer.Option(help="Layer that holds the counts.", show_default="X")
    ] = None,
    model: Annotated[
        str, typer.Option(help="nbln, pln (Poisson) or nbvcp (independent genes).")
    ] = "nbln",
    latent_dim: Annotated[
        int, typer.Option(help="Gene programs offered; shrinkage decides how many are used.")
    ] = 16,
    gene_coverage: Annotated[
        float | None,
        typer.Option(
            help="Keep the most abundant genes that hold this share of all counts, pool the rest.",
            show_default="all genes",
        ),
    ] = None,
    n_steps: Annotated[
        int | None,
        typer.Option(help="Upper bound on steps of the model's engine.", show_default="its own"),
    ] = None,
    seed: Seed = 0,
    pairs: Pairs = 1000,
    draws: PosteriorDraws = 0,
    backed: Annotated[
        bool, typer.Option("--backed", help="Leave the counts on disk and read them in parts.")
    ] = False,
    progress: Bars = True,
    debug: Debug = False,
) -> None:
    """Fit a file of counts and leave the fit, an annotated copy and the strongest gene pairs."""
    with _session(debug):
        adata = files.read(counts, backed)
        targets = _targets(out, counts)
        _say(f"Read {adata.n_obs:,} cells x {adata.n_vars:,} genes from {counts}.")
        _say("Fitting; each stage begins with a compilation of some seconds.")
        result = nbln.fit(
            adata,
            model=model,
            layer=layer,
            latent_dim=latent_dim,
            gene_coverage=gene_coverage,
            n_steps=n_steps,
            seed=seed,
            progress=progress,
        )
        files.write_annotated(result.write_to, adata, counts, targets[FITTED])
        # A file that was read in parts is closed by now.
        again = files.read(counts, backed) if backed else None
        result.save(targets[FIT])  # drawing is the longer part, and may be interrupted
        posterior = _sample(result, draws, targets, seed, progress, again)
        _leave(result, targets, pairs, again, posterior=posterior)


def _say(text: str, style: str = "") -> None:
    rich.get_console().print(Text(text, style=style))


@contextmanager
def _session(debug: bool) -> Iterator[None]:
    """The library's notes on the terminal, its errors as one paragraph."""
    # The console of the progress bars, so that a note does not tear a bar apart.
    notes = RichHandler(
        console=rich.get_console(), show_time=False, show_path=False, highlighter=NullHighlighter()
    )
    log = logging.getLogger("nbln")
    level = log.level
    log.addHandler(notes)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            # The library's own message says more.
            warnings.filterwarnings("ignore", message=".* names are not unique", module="anndata")
            yield
    except USER_ERRORS as error:
        if debug:
            raise
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        Console(stderr=True).print(Text(f"Error: {message}", style="red"))
        raise typer.Exit(1) from None
    finally:
        log.removeHandler(notes)
        log.setLevel(level)


def _targets(out: Path, original: Path | None = None) -> dict[str, Path]:
    """Where each result goes; raises early where it cannot, or where the input lies."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out}: is a file; give a directory")
    targets = {name: out / name for name in (FIT, FITTED, PAIRS, REPORT, DRAWS, CALLS)}
    for target in targets.values():
        if original is not None and target.exists() and target.samefile(original):
            raise ValueError(
                f"--out {out}: {target.name} there is the input file, which would be overwritten; "
                "give another directory"
            )
    out.mkdir(parents=True, exist_ok=True)
    return targets


def _sample(result, n_draws: int, targets, seed: int, progress: bool, adata=None):
    """Draws of the posterior, saved; None where none are asked for or there are no programs."""
    if not n_draws:
        return None
    if not result.has_programs:
        _say("A model of independent genes has no correlations, so --draws does nothing.")
        return None
    _say(f"Drawing from the posterior: two chains of {n_draws} draws.")
    checkpoint = targets[DRAWS].with_suffix(".checkpoint")
    posterior = result.sample_posterior(
        n_draws, seed=seed, progress=progress, checkpoint=checkpoint, counts=adata
    )
    posterior.save(targets[DRAWS])
    return posterior


def _leave(
    result, targets: dict[str, Path], n_pairs: int, adata=None, truth=None, posterior=None
) -> None:
    """Write what the pairs and the draws are, and print the report."""
    data = result.fitted.data(adata)
    _say("Comparing the data with draws from the model.")
    size = result.fitted.n_cells * result.fitted.n_genes
    checks = result.check(n_samples=int(min(50, max(10, DRAWN_COUNTS / size))), counts=data)
    summary = result.summary(checks=checks, counts=data)
    console = rich.get_console()
    console.print()
    table = Table.grid(padding=(0, 2))
    for label, sentence in report.lines(result, truth):
        table.add_row(Text(label, style="bold"), Text(sentence))
    summaries = [summary] if posterior is None else [summary, posterior.summary()]
    for i, doubt in enumerate(doubt for one in summaries for doubt in doubts(one)):
        table.add_row(Text("" if i else "Warnings", style="bold red"), Text(doubt))
    console.print(table)
    said = [
        (targets[FIT], "the fit, for nbln.load"),
        (targets[FITTED], "the counts with the results (keys that contain nbln)"),
    ]
    if result.has_programs:
        pairs = result.top_pairs(n_pairs)
        pairs.to_csv(targets[PAIRS], index=False)
        said.append((targets[PAIRS], f"the {len(pairs):,} most correlated pairs of genes"))
        console.print()
        if result.w_prior_diagnostics["effective_rank"]:
            console.print(_pairs_table(pairs.head(SHOWN_PAIRS), truth))
        else:
            _say("No gene program was found: the correlations of all pairs of genes are 0.")
    else:
        _say(f"\nA model of independent genes has no gene pairs, so there is no {PAIRS}.")
    if posterior is not None:
        called = posterior.pairs()
        called.to_csv(targets[CALLS], index=False)
        said += [
            (targets[DRAWS], "the draws, for nbln.load"),
            (targets[CALLS], f"the {len(called):,} pairs called beyond 0.3, 5 % of them wrong"),
        ]
    page = webpage.page(result, checks, summary, data, truth, posterior)
    targets[REPORT].write_text(page, encoding="utf-8")
    said.append((targets[REPORT], "all of this with figures and predictive checks, for a browser"))
    _say("\nWritten", "bold")
    files = Table.grid(padding=(0, 2))
    for path, what in said:
        files.add_row(Text(str(path), overflow="fold"), Text(what))
    console.print(files)


def _pairs_table(pairs, truth) -> Table:
    table = Table(title="Strongest gene pairs", title_justify="left", title_style="bold", box=None)
    for name in ("gene", "gene"):
        table.add_column(name)
    table.add_column("correlation", justify="right")
    if truth is not None:
        table.add_column("true", justify="right")
    for first, second, value in pairs.itertuples(index=False):
        true = [] if truth is None else [f"{truth.correlation.loc[first, second]:.3f}"]
        table.add_row(Text(first), Text(second), f"{value:.3f}", *true)
    return table


if __name__ == "__main__":
    app()
