"""Some genes of a result: what is asked of them alone, and what needs all."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from nbln import vocabulary as names
from nbln.data.fitted import Fitted
from nbln.results import notebook

# Answers that are labelled by gene, of which those of the subset are taken.
LABELLED = (
    "W",
    "beta",
    "channel_parameters",
    "d",
    "get_W",
    "get_W_compositional",
    "get_compositional_samples",
    "get_covariate_effects",
    "get_d",
    "get_gate",
    "get_map",
    "get_membership",
    "get_mu",
    "get_overdispersion",
    "get_posterior_samples",
    "get_random_effects",
    "get_variance_shares",
    "mean",
    "mu",
    "r",
)
# Questions that take genes=, and are asked of the subset.
ASKED = (
    "get_correlation",
    "get_covariance",
    "get_denoised",
    "get_ppc_samples",
    "get_sigma",
    "pairs",
    "to_graph",
    "top_pairs",
)
# Answers about cells, or about the fit itself, which stay what they are.
AS_FITTED = (
    "batches",
    "cell_converged",
    "converged",
    "eta",
    "formula_words",
    "differential_activity",
    "get_embedding",
    "get_latent",
    "get_n_programs",
    "get_p_capture",
    "get_program_activity",
    "get_program_stability",
    "latent_dim",
    "model",
    "n_chains",
    "n_draws",
    "n_unconverged",
    "title",
    "unconverged_cell_mask",
)


@dataclass(frozen=True, eq=False)
class GeneSubset:
    """Some genes of a result, from ``res[genes]``.

    Nothing is fitted again: parameters, factors and capture losses are those of the whole fit, and
    what is compositional stays relative to all of its genes, so that every answer is a part of
    the whole result's. Questions that need the other genes are an AttributeError that says so.

    Attributes
    ----------
    whole
        The result that they are a part of, to be saved and asked for all else.
    gene_names
        (gene,) names in the order in which they were asked for.
    """

    whole: Any
    gene_names: np.ndarray

    def __repr__(self):
        return f"GeneSubset({len(self.gene_names)} genes of {self.whole!r})"

    def _repr_html_(self) -> str:
        return notebook.of_subset(self)

    def __dir__(self):
        answers = {*LABELLED, *ASKED, *AS_FITTED} & {*dir(self.whole)}
        return sorted({*super().__dir__(), *answers})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("whole", "gene_names"):  # while it is copied
            raise AttributeError(f"'GeneSubset' object has no attribute {name!r}")
        if name in AS_FITTED:
            return getattr(self.whole, name)
        if name in ASKED:
            return self._asked(getattr(self.whole, name))
        if name in LABELLED:
            return self._labelled(getattr(self.whole, name))
        if name not in dir(self.whole):
            return getattr(self.whole, name)  # its error says who has such an answer
        raise AttributeError(
            f"{name}: is of the whole fit, of which these are {len(self.gene_names)} genes; ask "
            f"for it there: .whole.{name}",
            name=name,
            obj=self,
        )

    def _asked(self, question):
        def ask(*args, genes=None, **kwargs):
            places = self.whole.fitted.find(genes, self.gene_names)
            return question(*args, genes=self.gene_names[places], **kwargs)

        return ask

    def _labelled(self, answer):
        if callable(answer):
            return lambda *args, **kwargs: self._labelled(answer(*args, **kwargs))
        return answer.sel({names.GENE: self.gene_names})


def take(whole: Any, genes: Any) -> GeneSubset:
    """Some genes of a result; see `Answers.__getitem__`."""
    return GeneSubset(whole, whole.fitted.gene_names[_places(whole.fitted, genes)])


def _places(fitted: Fitted, genes: Any) -> Int[np.ndarray, " gene"]:
    """Where genes are in a fit."""
    every = np.arange(fitted.n_genes)
    if isinstance(genes, slice):
        places = every[genes]
    else:
        given = np.atleast_1d(np.asarray(genes))
        if given.dtype != bool:
            places = every[given] if given.dtype.kind in "iu" else fitted.find(given)
        elif given.shape == every.shape:
            places = every[given]
        else:
            raise ValueError(
                f"res[genes]: a mask has one value for each of the {len(every)} genes of the fit, "
                f"given {given.shape}; give names: res[adata.var_names[mask]]"
            )
    if len(set(places.tolist())) < len(places):
        raise ValueError("res[genes]: a gene is named twice")
    # The pool of the rarest is no gene: a mask or a slice passes it over.
    real = places[fitted.real_genes[places]]
    if not len(real):
        raise ValueError("res[genes]: no gene")
    return real
