"""A fitted model with a code as groups of named arrays and plain values, and back."""

from dataclasses import asdict

import numpy as np

from nbln import vocabulary as names
from nbln.results import io
from nbln.vae import weights
from nbln.vae.engine import Epoch
from nbln.vae.negbio.model import CodedArchitecture, skeleton
from nbln.vae.negbio.words import CodeKind

CELL = (names.CELL,)


def groups(result) -> io.Groups:
    """What a file of a `NegBioResult` holds."""
    of = result.architecture
    plain = {
        "model": result.model,
        "best": result.best,
        "stopped": bool(result.stopped),
        "architecture": asdict(of) | {"kind": of.kind._asdict()},
        "shape": list(result.shape),
    }
    held_out = weights.mask(result.held_out, result.fitted.n_cells)
    said = (*CELL, "head", "latent")
    return {
        "data": io.of_fitted(result.fitted),
        "fit": io.group({"held_out": (CELL, held_out)}, plain),
        "network": weights.group(result.network),
        "code": io.group({"said": (said, result.said)}),
        "history": io.group({n: (("epoch",), x) for n, x in result.epochs._asdict().items()}),
    }


def parts(groups: io.Groups) -> dict:
    """The fields of a `NegBioResult`."""
    plain = io.values(groups["fit"])
    written = plain["architecture"]
    of = CodedArchitecture(**written | {"kind": CodeKind(**written["kind"])})
    fitted = io.to_fitted(groups["data"])
    if of.n_features != fitted.n_genes:
        raise ValueError(
            f"the network is of {of.n_features} features, the data of {fitted.n_genes}"
        )
    network = weights.restored(skeleton(of), io.arrays(groups["network"]))
    said = io.arrays(groups["code"])["said"]
    if said.shape[1:] != (network.code.n_heads, of.latent_dim):
        raise ValueError(f"code/said has shape {said.shape}")
    return {
        "fitted": fitted,
        "model": plain["model"],
        "network": network,
        "epochs": Epoch(**io.arrays(groups["history"])),
        "best": plain["best"],
        "held_out": np.flatnonzero(io.arrays(groups["fit"])["held_out"]),
        "stopped": plain["stopped"],
        "architecture": of,
        "said": said,
        "shape": tuple(plain["shape"]),
    }
