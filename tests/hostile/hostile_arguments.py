"""Values that no keyword of `fit` takes: keyword, error, what it says, values. Data only."""

import math
from pathlib import Path

import numpy as np

NAN, INF = math.nan, math.inf
NO_WHOLE = [0, -1, 2.5, "2", True, NAN, INF, [2], np.float32(2), {}]
NO_TEXT = [3, 2.5, True, ["nbln"], {"nbln"}, b"nbln", "", "nbln ", "NBLN"]

# keyword: (error, message, values, other arguments)
SCVI, CODED = {"model": "scvi"}, {"model": "negbio_vae"}
NUTS = {"model": "pln", "inference_method": "mcmc"}
WRONG = {
    "model": (ValueError, r"fit\(model=.*unknown model", [*NO_TEXT, None, {}], {}),
    "inference_method": (
        ValueError,
        r"inference_method=.*(laplace, mcmc, svi|no such pair)",
        [*NO_TEXT, "svi", "nuts"],
        {},
    ),
    "layer": (KeyError, r"fit\(layer=.*no such layer", [3, True, "", "x", 2.5, ("a",)], {}),
    "layer that no name can be": (TypeError, r"fit\(layer=.*name", [["x"], {}, np.ones(2)], {}),
    "latent_dim": (
        ValueError,
        r"fit\(latent_dim=.*whole number from 1 to 19",
        [*NO_WHOLE, 20, 10**30, None, np.ones(2), np.array(2.0)],
        {},
    ),
    "priors": (
        ValueError,
        r"fit\(priors=",
        [
            [],
            "r",
            3,
            {"": 1},
            {3: (0, 1)},
            {None: 1},
            {"mu": None},
            {"mu": (0, NAN)},
            {"mu": (NAN, 1)},
            {"mu": "ab"},
            {"mu": {}},
            {"mu": ([1], [2])},
            {"d": (-1, 1)},
            {"r": (0, 0)},
            {"r": (0, INF)},
            {"p": (1, 1)},
            {"loadings": 3},
            {"loadings": []},
            {"loadings": {"type": None}},
            {"loadings": {"type": "gaussian", "scale": NAN}},
            {"loadings": {"type": "gaussian", "scale": INF}},
            {"loadings": {"type": "gaussian", "scale": "1"}},
            {"loadings": {"type": "none", "scale": 1}},
            {"loadings": {"type": "neg_columnwise", "alpha": 0}},
            {"capture_efficiency": 3},
            {"capture_efficiency": "ab"},
            {"capture_efficiency": (INF, 1)},
            {"capture_efficiency": (1e6, 1)},
            {"capture_efficiency": (11, -1)},
            {"capture_efficiency": (-50, 1e-3)},
        ],
        {},
    ),
    "parameterization": (
        ValueError,
        r"fit\(parameterization=.*mean_disp, mean_odds, canonical",
        [3, "", "MEAN_DISP", ["mean_disp"], True],
        {"model": "nbvcp"},
    ),
    "informative_priors_from": (
        TypeError,
        r"fit\(informative_priors_from=\).*None or False; got",
        [True, 0, 3, "x", {}, [], np.ones(2)],
        {},
    ),
    "informative_priors_tau": (
        ValueError,
        r"fit\(informative_priors_tau=.*positive",
        [0, -1, NAN, "1", None, True, [1], -INF, np.ones(2)],
        {},
    ),
    "informative_priors_freeze": (
        ValueError,
        r"fit\(informative_priors_freeze",
        ["x", "", 3, True, {"r": 1}, (3,), ("r", "r"), (["r"],), ("d",)],
        {},
    ),
    "informative_priors_match": (
        ValueError,
        r"fit\(informative_priors_match=.*verbatim, marginal",
        [3, None, "", "Verbatim", ["verbatim"], True],
        {},
    ),
    "informative_priors_n_samples": (
        ValueError,
        r"fit\(informative_priors_n_samples=.*at least 2",
        [*NO_WHOLE, 1, None],
        {},
    ),
    "gene_coverage": (
        ValueError,
        r"fit\(gene_coverage=.*\(0, 1\]",
        [0, -1, 1.0001, NAN, INF, -INF, 1e-400],
        {},
    ),
    "gene_coverage of another type": (
        TypeError,
        r"fit\(gene_coverage=.*\(0, 1\]",
        ["0.9", [0.9], {}, np.ones(2), 1j, True, False],
        {},
    ),
    "n_steps": (ValueError, r"fit\(n_steps=.*whole number", NO_WHOLE, {}),
    # Of no steps, the posterior is where they would begin.
    "n_steps of nbvcp": (ValueError, r"fit\(n_steps=.*whole", NO_WHOLE[1:], {"model": "nbvcp"}),
    "batch_size": (ValueError, r"fit\(batch_size=.*whole", NO_WHOLE, {"model": "nbvcp"}),
    "batch_size of nbln": (ValueError, r"fit\(batch_size=.*does not use", [10], {}),
    "tol": (ValueError, r"fit\(tol=.*number", [-1, NAN, "1", True, [1], {}, -INF, 1j], {}),
    "seed": (
        ValueError,
        r"fit\(seed=",
        [-1, 2.5, "2", True, NAN, INF, None, [2], 2**32 - 1, 2**64, np.ones(1)],
        {},
    ),
    "progress": (TypeError, r"fit\(progress=.*True or False", ["no", 3, None, [], 2.5], {}),
    "strict": (TypeError, r"fit\(strict=.*True or False", ["no", 3, None, [], 0, 1], {}),
    "checkpoint": (TypeError, r"fit\(checkpoint=.*a path", [3, 2.5, True, [], {}], {}),
    "checkpoint in no folder": (
        FileNotFoundError,
        "no such folder",
        ["/nowhere/at/all/x", Path("/nowhere/x")],
        {},
    ),
    "svi": (TypeError, r"fit\(svi=\).*SVIConfig", [3, {}, "x", True, []], {}),
    "laplace": (TypeError, r"fit\(laplace=\).*LaplaceConfig", [3, {}, "x", True, []], {}),
    "mcmc": (TypeError, r"fit\(mcmc=\).*MCMCConfig", [3, {}, "x", True, []], NUTS),
    "mcmc without its engine": (
        ValueError,
        r"fit\(mcmc=.*inference_method='mcmc'",
        [3, {}],
        {},
    ),
    "vae": (TypeError, r"fit\(vae=\).*VAEConfig", [3, {}, "x", True, []], SCVI),
    "negbio": (TypeError, r"fit\(negbio=\).*NegBioConfig", [3, {}, "x", True, []], CODED),
    "code": (ValueError, r"fit\(code=.*choose", [3, None, "binomial"], CODED),
    "elbo": (ValueError, r"fit\(elbo=.*choose", [3, None, "iwae"], CODED),
    "reparameterization": (ValueError, r"reparameterization=.*choose", [3, None, "none"], CODED),
    "likelihood": (ValueError, r"fit\(likelihood=.*choose", [3, "binomial", True], CODED),
    "formula": (TypeError, r"fit\(formula=.*expected a formula", [3, True, ["~ a"], {}], {}),
    "formula that is none": (
        ValueError,
        r"fit\(formula=",
        ["", "~", "~ 1", "~ 0 + a", "y ~ a", "~ a +", "~ a:b(", "~ open('x')", "~ np.log(a)"],
        {},
    ),
    "formula of no column": (KeyError, "no column", ["~ nowhere"], {}),
    "formula of nbdm": (ValueError, r"fit\(formula=.*does not use", ["~ a"], {"model": "nbdm"}),
    "formula of nbvcp by NUTS": (
        ValueError,
        r"fit\(formula=.*does not use it; it is for inference_method='svi'",
        ["~ a"],
        {"model": "nbvcp", "inference_method": "mcmc"},
    ),
    "formula of one odds ratio": (
        ValueError,
        r"fit\(formula=.*parameterization='mean_odds'.*leave parameterization out",
        ["~ a"],
        {"model": "nbvcp", "parameterization": "mean_odds"},
    ),
    "random": (TypeError, r"fit\(random=", [3, "age", {}, [3], [None]], {}),
    "random of no column": (KeyError, "no column", [["nowhere"]], {}),
    "dataset_key": (TypeError, r"fit\(dataset_key=", [3, {}, [3], [None]], {}),
    "dataset_key of no column": (KeyError, "no column", ["nowhere", ["nowhere"]], {}),
    "dataset_key twice": (ValueError, r"fit\(dataset_key=.*given twice", [["batch", "batch"]], {}),
    "random twice": (ValueError, r"fit\(random=.*given twice", [["batch", "batch"]], {}),
    "batch_key": (TypeError, r"fit\(batch_key=.*name of a column", [3, {}, True, ["a"]], SCVI),
    "batch_key that is no column": (KeyError, "no column", ["nowhere", ""], SCVI),
    "batch_key of nbln": (ValueError, r"fit\(batch_key=.*does not use", ["batch"], {}),
    "covariates": (TypeError, r"fit\(covariates=", [3, "age", {}, [3], [None]], SCVI),
    "labels_key": (ValueError, r"fit\(labels_key=.*gene-label", ["label", 3, True], SCVI),
    "gene_likelihood": (ValueError, r"fit\(gene_likelihood=.*choose", [3, None, "normal"], SCVI),
    "dispersion": (ValueError, r"fit\(dispersion=.*choose", [3, None, "cell"], SCVI),
    "dispersion by what is not told": (
        ValueError,
        r"fit\(dispersion=.*name the column",
        ["gene-batch", "gene-label"],
        SCVI,
    ),
    "decoder": (ValueError, r"fit\(decoder=.*choose", [3, None, "deep"], SCVI),
    "library": (ValueError, r"fit\(library=.*choose", [3, None, "fixed"], SCVI),
    "start": (TypeError, r"fit\(start=\).*moments", [3, None, {}, True], SCVI),
    "start by another word": (ValueError, r"fit\(start=.*choose", ["random"], SCVI),
}
# Names that are no keyword, and what they are taken for.
UNKNOWN = {
    "latentdim": "latent_dim",
    "Seed": "seed",
    "n_step": "n_steps",
    "layers": "layer",
    "prior": "priors",
    "genes": "known: adata",
    "strictly": "strict",
    "check_point": "checkpoint",
}

CASES = [
    (name, number, keyword, value)
    for name, (_, _, values, _) in WRONG.items()
    for keyword in [name.partition(" ")[0]]
    for number, value in enumerate(values)
]
