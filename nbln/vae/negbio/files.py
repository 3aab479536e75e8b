"""A fitted model with a code as groups of named arrays and plain values, and back."""

from dataclasses import asdict

from nbln import vocabulary as names
from nbln.results import io
from nbln.vae import weights
from nbln.vae.negbio.model import CodedArchitecture, skeleton
from nbln.vae.negbio.words import CodeKind

CELL = (names.CELL,)


def groups(result) -> io.Groups:
    """What a file of a `NegBioResult` holds."""
    of = result.architecture
    plain = {
        "architecture": asdict(of) | {"kind": of.kind._asdict()},
        "shape": list(result.shape),
    }
    said = (*CELL, "head", "latent")
    code = io.group({"said": (said, result.said)})
    return {**weights.of_training(result, plain), "code": code}


def parts(groups: io.Groups) -> dict:
    """The fields of a `NegBioResult`."""
    plain = io.values(groups["fit"])
    written = plain["architecture"]
    of = CodedArchitecture(**written | {"kind": CodeKind(**written["kind"])})
    trained = weights.to_training(groups, skeleton(of))
    if of.n_features != trained["fitted"].n_genes:
        raise ValueError(
            f"the network is of {of.n_features} features, the data of {trained['fitted'].n_genes}"
        )
    said = io.arrays(groups["code"])["said"]
    if said.shape[1:] != (trained["network"].code.n_heads, of.latent_dim):
        raise ValueError(f"code/said has shape {said.shape}")
    return {
        **trained,
        "architecture": of,
        "said": said,
        "shape": tuple(plain["shape"]),
    }
