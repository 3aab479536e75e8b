"""Are doublets named, and single cells not? Beside Scrublet, where an environment has it.

usage: python benchmarks/doublets.py [FILE.h5ad ...] [--share 0.02] [--seeds 1 2]
                                     [--most-genes 1000] [--most-cells 5000] [--peer PYTHON]

To each data set cells are added, each the sum of two others: a share of it. Without files, the
simulations S and M of ``recovery.py`` are taken. The table says how many of the added cells are
named, how many of the others, among which real data have doublets of their own, and the area under
the ROC curve of the added ones. The peer is run by the Python of an environment that has scanpy and
scikit-image, with the share as the rate that it expects.
"""

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
from recovery import HERE, run_script, simulate
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

import nbln


def main() -> None:
    """Print the table."""
    asked = argparse.ArgumentParser()
    asked.add_argument("files", nargs="*", type=Path)
    asked.add_argument("--share", type=float, default=0.02)
    asked.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    asked.add_argument("--most-genes", type=int, default=1000)
    asked.add_argument("--most-cells", type=int, default=5000)
    asked.add_argument("--peer", type=Path)
    given = asked.parse_args()
    columns = "data", "seed", "by", "added", "of these named", "others", "of these named", "AUC"
    table = Table(*columns, title="doublets")
    for source in given.files or ["S", "M"]:
        for seed in given.seeds:
            counts, added = with_doublets(source, seed, given)
            for by, (score, named) in answers(counts, given).items():
                found = [[str(np.sum(x)), str(np.sum(named & x))] for x in (added, ~added)]
                area = f"{roc_auc_score(added, score):.2f}"
                name = source.stem if isinstance(source, Path) else source
                table.add_row(name, str(seed), by, *found[0], *found[1], area)
    Console().print(table)


def with_doublets(source, seed: int, given):
    """Counts of some cells and the most abundant genes, doublets last, and which these are."""
    if isinstance(source, Path):
        matrix = ad.read_h5ad(source).X
        counts = matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix)
    else:
        counts = simulate(source, 0)[1]
    rng = np.random.default_rng(seed)
    counts = counts[rng.permutation(len(counts))[: given.most_cells]].astype(np.float32)
    counts = counts[:, np.argsort(-counts.sum(axis=0))[: given.most_genes]]
    n = round(given.share * len(counts))
    pairs = np.array([rng.choice(len(counts), 2, replace=False) for _ in range(n)])
    added = np.arange(len(counts) + n) >= len(counts)
    return np.vstack([counts, counts[pairs[:, 0]] + counts[pairs[:, 1]]]), added


def answers(counts, given) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of all cells, and which are named, by nbln and by the peer."""
    result = nbln.fit(ad.AnnData(counts), progress=False)
    probability = result.get_doublet_probability().to_numpy()
    found = {"nbln": (probability, probability > 0.5)}
    if given.peer is not None:
        script = [given.peer, HERE / "peer_scrublet.py"]
        out = run_script(script, counts=counts, share=given.share)
        found["Scrublet"] = out["score"], out["named"]
    return found


if __name__ == "__main__":
    main()
