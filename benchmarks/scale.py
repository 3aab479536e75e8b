"""Time, memory and recovery against numbers of cells, genes and programs, beside other estimators.

usage: python benchmarks/scale.py [sizes] [cells] [genes] [rank] [--cells 50000 200000 1000000]
           [--folder FOLDER] [--out scale] [--plnpca S M] [--peer PYTHON]
       python benchmarks/scale.py report [--out scale]

sizes: S, M and L of recovery.py. cells: these numbers of cells x 2,000 genes, one entry in ten not
zero, on disk: 10^6 take 1.7 GB of FOLDER, by default a temporary one, and as much again while they
are written. genes: 500 to 8,000 of 5,000 cells. rank: `latent_dim` 4 to 32 of 5,000 cells x 1,000
genes. Each fit is `nbln.fit` of a file in a process of its own. The moments of peer_moments.py are
fitted beside sizes and cells, to so many cells that the dense counts take 1 GiB, and their time is
then multiplied; PlnPCA beside --plnpca, where its environment exists (make peers). Times are of one
machine in one run: believe the ratios.

What was measured is added to OUT/scale.jsonl, so that parts may be run one by one; the tables and
OUT/scale.png are made of all of it.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import scale_data
from recovery import HERE, correlation, run_moments, run_peer, score, simulate
from rich.console import Console
from rich.table import Table
from scale_report import HEADER, exponent, figure, rows

SIZES = ("S", "M", "L")
CELLS = (50_000, 200_000, 1_000_000)
GENES = (500, 1_000, 2_000, 4_000, 8_000)
RANKS = (4, 8, 16, 32)
MOMENTS_BYTES = 2**30  # of dense float64 counts; two more such arrays are held beside them
SEED = 1


class Case(NamedTuple):
    """One fit."""

    series: str
    name: str
    cells: int = 0
    genes: int = 0
    latent_dim: int = 16
    runs: int = 0  # after the first, which compiles
    on_disk: bool = False

    def write(self, folder: Path) -> Path:
        """The file of counts, made if it is not there, and its truth."""
        named = self.name if self.series == "sizes" else f"{self.cells}x{self.genes}"
        path = folder / f"{named}.h5ad"
        if path.exists():
            return path
        # Under another name until it is whole: a run that was stopped leaves no half for the next.
        partial = folder / f"{named}.part.h5ad"
        if self.series == "sizes":
            adata, _, (W, d) = simulate(self.name, 0)
            np.savez(partial.with_suffix(".npz"), W=W, d=d)
            adata.write_h5ad(partial)
        else:
            scale_data.write(partial, self.cells, self.genes, SEED)
        partial.with_suffix(".npz").rename(path.with_suffix(".npz"))
        return partial.rename(path)


def cases(series: list[str], cells: list[int]) -> Iterator[Case]:
    """What is asked for."""
    if "sizes" in series:
        yield from (Case("sizes", size, runs=3) for size in SIZES)
    if "rank" in series:
        yield from (Case("rank", f"rank {k}", 5_000, 1_000, k, runs=1) for k in RANKS)
    if "genes" in series:
        yield from (Case("genes", f"{g:,} genes", 5_000, g, runs=1) for g in GENES)
    if "cells" in series:
        yield from (Case("cells", f"{c:,} cells", c, 2_000, on_disk=True) for c in cells)


def fit(case: Case, counts: Path) -> dict:
    """What scale_fit.py says of a case; how it ended where it says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fit.json"
        command = [
            sys.executable, HERE / "scale_fit.py", counts, out,
            "--latent-dim", case.latent_dim, "--runs", case.runs,
            *(["--on-disk"] if case.on_disk else []),
        ]  # fmt: skip
        done = subprocess.run([str(x) for x in command], check=False)
        if done.returncode:
            return {"failed": done.returncode}  # -9: killed, as a rule for want of memory
        return json.loads(out.read_text())


def beside(case: Case, counts: Path, peer: Path | None) -> dict:
    """Seconds and scores of the other estimators, of all cells."""
    adata = ad.read_h5ad(counts, backed="r")
    n_cells, n_genes = adata.shape
    some = min(n_cells, MOMENTS_BYTES // (8 * n_genes))
    block = adata.X[:some]
    dense = block if isinstance(block, np.ndarray) else block.toarray()
    truth = np.load(counts.with_suffix(".npz"))
    true = correlation(truth["W"], truth["d"])
    found = {}
    for precision in ("float64", "float32"):
        seconds, estimate = run_moments(dense, precision)
        found[f"moments {precision}"] = seconds * n_cells / some
    found["moments r"] = score(estimate, true)["r"]
    if peer is not None:
        found["plnpca"], estimate = run_peer(peer, dense)
        found["plnpca r"] = score(estimate, true)["r"]
    return found


def measure(options: argparse.Namespace, folder: Path, console: Console) -> None:
    """Add a line to the file for each case."""
    peer = options.peer if options.peer.exists() else None
    if peer is None and "sizes" in options.series:
        console.print(f"no pyPLNmodels at {options.peer}: it is left out (make peers)")
    for case in cases(options.series, options.cells):
        console.print(f"{case.series}: {case.name}")
        counts = case.write(folder)
        found = {"series": case.series, "name": case.name, **fit(case, counts)}
        if case.series in ("sizes", "cells"):
            found |= beside(case, counts, peer if case.name in options.plnpca else None)
        with open(options.out / "scale.jsonl", "a") as file:
            file.write(json.dumps(found) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = ["sizes", "cells", "genes", "rank"]
    parser.add_argument("series", nargs="*", metavar="series", default=every)
    parser.add_argument("--cells", nargs="+", type=int, default=list(CELLS))
    parser.add_argument(
        "--folder", type=Path, help="where files of counts are made, and found again"
    )
    parser.add_argument("--out", type=Path, default=Path("scale"), help="where the results go")
    parser.add_argument("--plnpca", nargs="*", default=["S", "M"], help="L takes ten minutes")
    default = HERE.parent / ".venv-peers" / "bin" / "python"
    parser.add_argument("--peer", type=Path, default=default)
    options = parser.parse_args()
    if unknown := set(options.series) - {*every, "report"}:
        parser.error(f"unknown series {', '.join(unknown)}; choose from {', '.join(every)}, report")
    options.out.mkdir(parents=True, exist_ok=True)
    console = Console(width=170)
    with tempfile.TemporaryDirectory() as folder:
        measure(options, options.folder or Path(folder), console)
    report(options.out, console)


def report(out: Path, console: Console) -> None:
    """Tables, the exponent and the figure of all that was measured; the last of each case."""
    lines = (out / "scale.jsonl").read_text().splitlines()
    found = {(x["series"], x["name"]): x for x in map(json.loads, lines)}
    table = Table(title="Seconds, memory, recovery; ratios of times to the moments' and PlnPCA's")
    content = rows(list(found.values()))
    for name in HEADER:
        table.add_column(name, justify="right", no_wrap=name == HEADER[0])
    for row in content:
        table.add_row(*row)
    console.print(table)
    many = [x for x in found.values() if x["series"] == "cells" and "failed" not in x]
    if len(many) > 1:
        for what in ("first", "laplace"):
            power = exponent(many, what)
            console.print(f"time of {what} grows as cells to the power {power:.2f}")
    figure(list(found.values()), out / "scale.png")


if __name__ == "__main__":
    main()
