"""The models there are, one row each, and the loadings priors.

Whoever needs to know something of a model by its name asks here; a new model is a row.
"""

from dataclasses import dataclass, field, fields
from typing import Any

from nbln import vocabulary as names
from nbln.arguments import choose
from nbln.models.lnm import LNM
from nbln.models.lnmvcp import LNMVCP
from nbln.models.nbdm import NBDM
from nbln.models.nbln import NBLN
from nbln.models.nbvcp import NBVCP
from nbln.models.pln import PLN
from nbln.models.zinb import ZINB
from nbln.models.zinbvcp import ZINBVCP
from nbln.priors.columnwise import Flat, Gaussian, HorseshoeColumnwise, NegColumnwise
from nbln.priors.loadings import LoadingsPrior
from nbln.priors.sparse import HorseshoeSparse

__all__ = [
    "AE",
    "CODE_VAE",
    "LAPLACE",
    "LOADINGS_PRIORS",
    "MCMC",
    "MODELS",
    "SVI",
    "VAE",
    "Row",
    "add",
    "find",
]

#: Name of an engine, as in ``fit(inference_method=...)``.
LAPLACE, SVI, VAE, AE, CODE_VAE = "laplace", "svi", "vae", "ae", "code_vae"
#: Name of an engine, of draws by NUTS.
MCMC = "mcmc"
NEEDS_CONCAVE = (LAPLACE,)  # engines that look for the mode of a cell's log-rates


@dataclass(frozen=True)
class Row:
    """What is said of a model once.

    Attributes
    ----------
    program
        Its class, as `nbln.models.base.Model` describes it.
    engines
        Names of the engines that fit it; the first is its own.
    title
        What it is, in a few words, for reports.
    remedy
        What to do where the data are not as it says, to follow a sentence that says how.
    parameterizations
        By name; the first is the default. Empty where there is one way only.
    aliases
        Names that its users know for its sites, beside those of `vocabulary.ALIASES`.
    """

    program: Any
    engines: tuple[str, ...]
    title: str
    remedy: str = "look at them with check() and nbln.pl.plot_ppc"
    parameterizations: dict[str, Any] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in ``fit(model=...)``."""
        return self.program.name

    @property
    def has_loadings(self) -> bool:
        """Whether genes vary together."""
        return any(field.name == "loadings" for field in fields(self.program))

    @property
    def has_capture(self) -> bool:
        """Whether cells have capture losses."""
        return self.program.depth.has_capture

    def site(self, key: Any) -> Any:
        """The site that a key or an alias of it names; the key itself where there is none."""
        if not isinstance(key, str):
            return key
        return self.aliases.get(key, names.ALIASES.get(key, key))


#: A row for each name that ``fit(model=)`` knows.
MODELS: dict[str, Row] = {}


def add(row: Row) -> None:
    """Make a model known by its name.

    Raises
    ------
    ValueError
        The name is taken, or engines are not a tuple of names.
    TypeError
        The program or its channel is abstract; names what is missing. Or an engine needs a channel
        that is log-concave, and it is not.
    """
    if row.name in MODELS:
        raise ValueError(f"registry.add: a model {row.name!r} is there already")
    if not isinstance(row.engines, tuple) or not row.engines:
        raise ValueError(f"registry.add(engines={row.engines!r}): expected a tuple of names")
    # Models of other data than counts have no channel.
    for kind in (row.program, getattr(row.program, "channel", object)):
        missing = sorted(getattr(kind, "__abstractmethods__", ()))
        if missing:
            raise TypeError(f"registry.add: {kind.__name__} does not say {', '.join(missing)}")
    for engine in NEEDS_CONCAVE:
        if engine in row.engines and not row.program.channel.concave:
            raise TypeError(
                f"registry.add: the engine {engine!r} looks for modes by Newton steps, and the "
                f"channel {row.program.channel.__name__} is not log-concave"
            )
    MODELS[row.name] = row


def find(model: Any, argument: str = "fit(model") -> Row:
    """The row of a model by its name.

    Raises
    ------
    ValueError
        No such model; lists those there are.
    """
    return MODELS[choose(argument, model, MODELS)]


EXPRESSION = {"expression": names.MEAN, "mean_expression": names.MEAN}

add(
    Row(
        NBVCP,
        (SVI, MCMC),
        "nbvcp, negative-binomial counts of independent genes",
        "genes vary together or with heavy tails: try model='nbln'",
        NBVCP.parameterizations,
        EXPRESSION,
    )
)
add(
    Row(
        NBDM,
        (SVI, MCMC),
        "nbdm, negative-binomial totals and Dirichlet-multinomial compositions",
        "cells differ in depth or genes in overdispersion: try model='nbvcp'",
        NBDM.parameterizations,
    )
)
add(
    Row(
        ZINB,
        (SVI, MCMC),
        "zinb, zero-inflated negative-binomial counts of independent genes",
        "cells differ in depth: try model='zinbvcp'",
        ZINB.parameterizations,
        EXPRESSION,
    )
)
add(
    Row(
        ZINBVCP,
        (SVI, MCMC),
        "zinbvcp, zero-inflated negative-binomial counts of independent genes, captured in part",
        "genes vary together or with heavy tails: try model='nbln'",
        ZINBVCP.parameterizations,
        EXPRESSION,
    )
)
add(
    Row(
        PLN,
        (LAPLACE, MCMC),
        "pln, Poisson log-normal counts",
        "counts vary more than Poisson: try model='nbln'",
    )
)
add(Row(NBLN, (LAPLACE, MCMC), "nbln, negative-binomial log-normal counts"))
add(
    Row(
        LNM,
        (LAPLACE, MCMC),
        "lnm, logistic-normal multinomial counts",
        "shares vary more than multinomial counts of log-normal rates: try model='nbln'",
    )
)
add(
    Row(
        LNMVCP,
        (LAPLACE, MCMC),
        "lnmvcp, logistic-normal multinomial counts, totals by capture",
        "shares vary more than multinomial counts of log-normal rates: try model='nbln'",
    )
)

#: A class for each name that ``priors={"loadings": {"type": ...}}`` knows.
LOADINGS_PRIORS: dict[str, type[LoadingsPrior]] = {
    "none": Flat,
    "gaussian": Gaussian,
    "horseshoe_columnwise": HorseshoeColumnwise,
    "horseshoe_sparse": HorseshoeSparse,
    "neg_columnwise": NegColumnwise,
}
