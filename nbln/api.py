"""`fit` and `load`: arguments -> plan -> result."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbln import log_normal, plan, sampled  # noqa: F401  their plans enter PLANS
from nbln.amortised import EXACT, GUMBEL, MOMENTS, NB, SPELLINGS
from nbln.arguments import check_flag, check_keywords, check_seed, setting_of
from nbln.inference.checkpoint import Checkpoint, Saver
from nbln.inference.laplace.config import LaplaceConfig
from nbln.inference.mcmc.engine import MCMCConfig
from nbln.inference.svi.engine import SVIConfig
from nbln.processes import current
from nbln.results import io
from nbln.results.drawn import Drawn
from nbln.results.laplace import LaplaceResult
from nbln.results.mcmc import MCMCGenes, MCMCPrograms
from nbln.results.posterior import PosteriorDraws
from nbln.results.result import Result
from nbln.results.svi import SVIResult
from nbln.vae.config import VAEConfig
from nbln.vae.negbio.config import NegBioConfig
from nbln.vae.negbio.result import NegBioResult
from nbln.vae.result import VAEResult

RESULTS: dict[str, Any] = {
    kind.kind: kind
    for kind in (
        SVIResult,
        LaplaceResult,
        PosteriorDraws,
        MCMCGenes,
        MCMCPrograms,
        VAEResult,
        NegBioResult,
    )
}


def fit(
    adata,
    *,
    model: str = "nbln",
    inference_method: str | None = None,
    layer: str | None = None,
    latent_dim: int = 16,
    priors: dict[str, Any] | None = None,
    parameterization: str | None = None,
    informative_priors_from: SVIResult | bool | None = None,
    informative_priors_tau: float = 1.0,
    informative_priors_freeze: tuple[str, ...] | str | None = None,
    informative_priors_match: str = "verbatim",
    informative_priors_n_samples: int = 1000,
    gene_coverage: float | None = None,
    n_steps: int | None = None,
    batch_size: int | None = None,
    tol: float | None = None,
    seed: int = 0,
    progress: bool = True,
    strict: bool = False,
    checkpoint: str | Path | Checkpoint | None = None,
    svi: SVIConfig | None = None,
    laplace: LaplaceConfig | None = None,
    mcmc: MCMCConfig | None = None,
    formula: str | None = None,
    random: Sequence[str] | None = None,
    dataset_key: str | Sequence[str] | None = None,
    batch_key: str | None = None,
    covariates: Sequence[str] | None = None,
    labels_key: str | None = None,
    gene_likelihood: str = "nb",
    dispersion: str = "gene",
    decoder: str = "mlp",
    library: str = "observed",
    start: str | LaplaceResult = MOMENTS,
    vae: VAEConfig | None = None,
    code: str = NB,
    elbo: str = EXACT,
    reparameterization: str = GUMBEL,
    likelihood: str | None = None,
    negbio: NegBioConfig | None = None,
    **unknown: Any,
) -> Result | Drawn:
    """Fit a model of single-cell counts.

    ``fit(adata)`` alone runs the recommended pipeline: NBVCP by SVI, then NBLN by Laplace with
    capture losses frozen from it, dispersions and means learned, sparse horseshoe loadings.

    Parameters
    ----------
    adata
        An AnnData of counts, cells in rows; dense, CSR or CSC, in memory, ``backed="r"`` or in Dask
        arrays. It is not changed. Or the path of an h5ad file or zarr store, or a list of paths,
        which are one data set: the genes that all have, in the order of the first, and in ``obs``
        the columns that all have and ``file``, which names the file of each cell; counts stay on
        disk. Of negbio_vae also an array, samples in rows, of images too.
    model
        A name in `nbln.registry.MODELS`: ``"nbln"``, ``"pln"``, ``"lnm"``, ``"lnmvcp"``,
        ``"nbvcp"``, ``"nbdm"``, ``"zinb"``, ``"zinbvcp"``, ``"scvi"`` or ``"negbio_vae"``.
    inference_method
        ``"svi"``, ``"laplace"``, ``"vae"``, ``"ae"`` (an auto-encoder without a prior) or
        ``"code_vae"``; by default the model's own. ``"mcmc"``: of small data, draws from the
        posterior by NUTS, of any model but scvi and negbio_vae.
    layer
        Name of the layer with the counts; by default ``adata.X``.
    latent_dim
        Number of gene programs offered; shrinkage of the loadings decides how many are used. Of
        scvi and negbio_vae, latents.
    priors
        By site: ``mean``, ``r``, ``phi``, ``total_mean`` and ``total_r`` (mean and sd of the
        natural log), ``mu`` (mean, sd), ``d`` (shape, rate of an inverse gamma), ``p`` and ``gate``
        (a, b of a beta); ``capture_efficiency``: (log_M0, sigma_M), or None for fixed offsets by
        library size; ``loadings``: ``{"type": "horseshoe_sparse", "tau_scale": 1.0}``,
        ``horseshoe_columnwise`` (of both tau_scale, lambda_min, tau_min, init_scale),
        ``neg_columnwise`` (alpha, beta, psi_min, gamma_min, init_scale), ``gaussian`` (scale) or
        ``none``.
    parameterization
        Of nbvcp: ``"mean_disp"`` (default), ``"mean_odds"`` or ``"canonical"``.
    informative_priors_from
        A fit of independent genes, to the same cells and to these genes or more: NBVCP, or another
        for what it has. By default NBVCP is fitted first, for capture losses and starting values,
        but of lnm, which has none, and lnmvcp, which takes nothing else; ``False`` fits the model
        on its own, capture losses latent.
    informative_priors_tau
        Factor on the source's standard deviations; ``inf``: starting values only.
    informative_priors_freeze
        What is held at the source's values: of ``"r"``, ``"mu"``, ``"eta"``; by default r and eta
        (PLN and LNMVCP: eta), as far as the source has them.
    informative_priors_match
        ``"verbatim"``, or ``"marginal"`` to match the moments of the counts.
    informative_priors_n_samples
        Draws of the source for its means and standard deviations.
    gene_coverage
        Keep the most abundant genes that hold this share of all counts, pool the others as
        ``_other``; all genes by default.
    n_steps, batch_size, tol
        Upper bound on steps, cells in an SVI step, tolerance of convergence; see `SVIConfig` and
        `LaplaceConfig`.
    seed
        Same seed, same numbers on the same machine.
    progress
        Show a progress bar.
    strict
        Refuse counts that look normalised or multiplied, and rounded; by default they are fitted,
        with a warning in the log (``logging.getLogger("nbln")``).
    checkpoint
        A file that says where the fit stands, written every minute and when it is interrupted. The
        same call goes on from it and ends with the same numbers; then it is removed. For other
        habits give a `nbln.Checkpoint`.
    svi, laplace, mcmc, vae, negbio
        Finer settings of the engines.
    formula
        Of models with gene programs and of nbvcp: covariates, as a formula over ``adata.obs``:
        ``"~ treatment + percent_mito"``, ``"~ C(treatment, Treatment('vehicle')) * sex"``. Their
        effects on the log-rate of each gene are learned beside the programs, which are then
        uncorrelated with them; see `LaplaceResult.get_covariate_effects`.
    random
        Of models with gene programs: columns of ``adata.obs`` whose levels, donors say, have random
        effects on each gene, with a variance that is learned: ``random=["donor"]``. Differences
        between groups of donors are then judged by how much donors differ.
    dataset_key
        Of models with gene programs: a column of ``adata.obs``, or several, such as condition and
        donor. Programs are the same in all data sets that they tell apart, but more or less active,
        by a factor that is learned; see `LaplaceResult.get_program_activity`. Data sets have means
        of their own, as random effects of the columns that are in neither `formula` nor `random`,
        and of all columns together where these cross.
    batch_key
        Of scvi: a column of ``adata.obs`` with the batch of each cell, which the decoder is told
        of, so that factors need not hold it.
    covariates
        Of scvi: further columns of the same kind; numbers are standardised.
    labels_key
        Of scvi: a column of labels, for ``dispersion="gene-label"``.
    gene_likelihood
        Of scvi: ``"nb"``, ``"zinb"`` (with structural zeros) or ``"poisson"``.
    dispersion
        Of scvi, what θ depends on: ``"gene"``, ``"gene-batch"``, ``"gene-label"`` or
        ``"gene-cell"`` (the decoder says it).
    decoder
        Of scvi: ``"mlp"`` or ``"linear"`` (log shares linear in the factors).
    library
        Of scvi: ``"observed"``, or ``"latent"``: log-normal about the batch's mean.
    start
        Of scvi: ``"moments"``, or a fitted `LaplaceResult` of the same genes, whose loadings the
        decoder starts from.
    code
        Of negbio_vae, the family of its code: ``"nb"``, or for comparison ``"poisson"``,
        ``"gaussian"``, ``"laplace"`` or ``"categorical"``.
    elbo
        Of negative-binomial codes, how the divergence from the prior is computed: ``"exact"``;
        ``"monte_carlo"`` (at relaxed draws, biased); ``"dispersion_sharing"`` (in closed form,
        since posteriors keep the prior's r).
    reparameterization
        Of counts as code, how draws get gradients: ``"gumbel"`` or ``"continuous_time"``.
    likelihood
        Of negbio_vae: ``"gaussian"`` (real numbers; by default of an array), ``"bernoulli"``
        (numbers from 0 to 1), ``"poisson"`` or ``"nb"`` (counts; by default of an AnnData).

    Returns
    -------
    An `SVIResult` for nbvcp, nbdm, zinb and zinbvcp, a `LaplaceResult` for pln, nbln, lnm and
    lnmvcp, a `VAEResult` for scvi, a `NegBioResult` for negbio_vae; by mcmc draws, as
    `MCMCPrograms` or of independent genes `MCMCGenes`. In a job of several processes
    (``jax.distributed.initialize()``), which share the cells, the same result in each of them; call
    ``jax.distributed.shutdown()`` before one of them goes on alone.

    Raises
    ------
    TypeError
        Not an AnnData, an unknown keyword, or an argument of another type than its own.
    KeyError
        No such layer, or no such column of ``adata.obs``.
    FileNotFoundError
        A path that leads nowhere.
    ValueError
        Counts or arguments that cannot be fitted, or an argument that the model does not use; the
        message says which and what to do. With `strict`, counts that look scaled. A checkpoint
        that is damaged, or of another fit.
    FloatingPointError
        The fit diverged; the message names the step and the parameter.
    ConnectionError
        Another process of the job has ended.
    """
    given = dict(locals())  # before anything else: the arguments by name
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(fit).parameters.items()
        if name not in ("adata", "strict", "checkpoint", "unknown")
    }
    check_keywords("fit", unknown, ["adata", "strict", "checkpoint", *defaults], _elsewhere)
    for flag in ("progress", "strict"):
        check_flag(f"fit({flag}", given[flag])
    _check_checkpoint(checkpoint)
    check_seed("fit(seed", seed)
    given["progress"] = progress and current().first
    built = plan.make({name: given[name] for name in defaults}, defaults)
    return _run(built, adata, strict, checkpoint)


def _run(built: plan.Plan, adata, strict: bool, checkpoint) -> Result | Drawn:
    """What a plan makes of the data, in this process or with the others of its job."""
    processes = current()
    if processes.count > 1 and not built.shares_cells:
        raise ValueError(
            f"fit(model={built.row.name!r}): {built.title} runs in one process, and this job has "
            f"{processes.count}; start it in one, without jax.distributed.initialize()"
        )
    data = built.read(adata, strict)
    with processes.telling():
        if processes.count > 1:
            asked = f"{data.fingerprint} {built.row.name} {built.seed}"
            processes.check_same(asked, "data, model or seed")
        with Saver(checkpoint, processes) as saver:
            return built.run(data, saver)


def _check_checkpoint(given: Any) -> None:
    if not isinstance(given, str | os.PathLike | Checkpoint | None):
        raise TypeError(
            f"fit(checkpoint={given!r}): expected a path, an nbln.Checkpoint or None; got "
            f"{type(given).__name__}"
        )


def _elsewhere(keyword: str) -> str:
    """What to give in place of a keyword that is a finer setting, or one of scvi-tools."""
    if way := setting_of(keyword, (kind.settings for kind in plan.PLANS.values())):
        return f"give {way}"
    return SPELLINGS.get(keyword, "")


def load(path) -> Result | Drawn:
    """Load a result that `save` wrote.

    The counts are not in the file; pass them again where they are needed (``counts=adata``).

    Raises
    ------
    FileNotFoundError
        No such file.
    OSError
        The file cannot be read.
    ValueError
        The file is damaged or cut short, of another kind, of another format version, of a model
        that this nbln does not have, or holds what no result can.
    """
    kind, groups = io.read(path)
    if kind not in RESULTS:
        raise ValueError(
            f"load({str(path)!r}): holds a {kind!r}; this nbln reads {', '.join(RESULTS)}"
        )
    with io.refusing(f"load({str(path)!r})"):
        return RESULTS[kind].from_groups(groups)
