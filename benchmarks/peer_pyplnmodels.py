"""PlnPCA of pyPLNmodels on counts from a file; runs in an environment of its own.

usage: python peer_pyplnmodels.py COUNTS.npz OUT.npz [RANK]

COUNTS.npz holds ``counts`` (cell, gene) and ``offset`` (cell,); OUT.npz gets ``covariance`` and
``seconds`` of `fit`, imports and construction left out.
"""

import contextlib
import io
import sys
import time

import numpy as np
import pandas as pd
from pyPLNmodels import PlnPCA


def main(source: str, target: str, rank: str = "8") -> None:
    data = np.load(source)
    counts = pd.DataFrame(data["counts"].astype(float))
    offsets = np.repeat(data["offset"][:, None], counts.shape[1], axis=1)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = PlnPCA(counts, offsets=offsets, rank=int(rank), add_const=True)
        began = time.perf_counter()
        model.fit()
    seconds = time.perf_counter() - began
    np.savez(target, covariance=np.asarray(model.covariance), seconds=seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
