"""The options of the commands, with their help."""

from pathlib import Path
from typing import Annotated

import typer

from nbln.outputs import CALLS, PAIRS, REPORT
from nbln.questions.network import FORMATS

QUOTED = "names like a formula begin with an apostrophe there"


def _folder(given: str | Path) -> Path:
    if not str(given).strip():
        raise typer.BadParameter("an empty name; give a directory")
    return Path(given)


Counts = Annotated[
    list[Path],
    typer.Argument(
        metavar="COUNTS.h5ad...",
        help="AnnData file of raw counts, h5ad or zarr. Several are fitted as one: the genes that "
        "all have; the column file of obs names the file of each cell.",
    ),
]
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
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Share the cells among the processes of a job (SLURM, Open MPI, TPU); see scale.md.",
    ),
]
Pairs = Annotated[int, typer.Option(min=1, help=f"Number of gene pairs in {PAIRS}; {QUOTED}.")]
GeneSetFile = Annotated[
    Path | None,
    typer.Option(
        "--gene-sets", help="GMT file: programs are named by gene sets.", show_default="none"
    ),
]
Symbols = Annotated[
    str | None,
    typer.Option(
        "--symbols", help="Column of var with the names of genes.", show_default="names of var"
    ),
]
Color = Annotated[
    list[str] | None,
    typer.Option(
        help=f"Column of obs to colour the map in {REPORT} by; once for each.", show_default="none"
    ),
]
Halves = Annotated[
    int,
    typer.Option(
        min=0,
        help="Fits of random halves of the cells, which say what programs are found again; each "
        "takes half the time of the fit.",
    ),
]
Network = Annotated[
    Path | None,
    typer.Option(
        help=f"File for the network of correlated genes, {' or '.join(FORMATS)}: of called pairs "
        "with --draws, else of each gene's ten strongest.",
        show_default="none",
    ),
]
