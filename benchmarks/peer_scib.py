"""Mixing of batches and separation of labels by scib-metrics; for the environment of peer_scvi.py.

usage: python peer_scib.py EMBEDDINGS.npz OUT.json

EMBEDDINGS.npz holds ``batch`` and ``label`` (cell,), and any number of embeddings (cell, dimension)
under other names. OUT.json gets, for each embedding, scores that are better the higher they are:
``iLISI`` over 90 neighbours, ``kBET`` (share of cells whose 50 neighbours have the batches of all)
and ``kBET_label`` (the same within each label, as scIB reports it), ``silhouette_label`` and
``ARI_kmeans`` (as many clusters as labels, one start). Neighbours are exact.
"""

import json
import sys

import numpy as np
import scib_metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors


def scores(embedding, batch, label) -> dict[str, float]:
    """The five scores of one embedding."""
    search = NearestNeighbors(n_neighbors=min(90, len(embedding))).fit(embedding)
    distances, indices = search.kneighbors(embedding)
    wide = NeighborsResults(indices=indices, distances=distances)
    clusters = KMeans(len(np.unique(label)), n_init=20, random_state=0)
    near = wide.subset_neighbors(min(50, len(embedding)))
    return {
        "iLISI": float(scib_metrics.ilisi_knn(wide, batch)),
        "kBET": float(scib_metrics.kbet(near, batch)[0]),
        "kBET_label": float(scib_metrics.kbet_per_label(near, batch, label)),
        "silhouette_label": float(scib_metrics.silhouette_label(embedding, label)),
        "ARI_kmeans": float(adjusted_rand_score(label, clusters.fit_predict(embedding))),
    }


def main(source: str, target: str) -> None:
    arrays = dict(np.load(source))
    batch, label = (np.unique(arrays.pop(k), return_inverse=True)[1] for k in ("batch", "label"))
    results = {
        name: scores(np.asarray(embedding, dtype=np.float32), batch, label)
        for name, embedding in arrays.items()
    }
    with open(target, "w") as file:
        json.dump(results, file, indent=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
