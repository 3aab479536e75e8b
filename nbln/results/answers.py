"""A question that a kind of result does not answer is an error that says which kinds do."""

import abc
import inspect
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from nbln import registry
from nbln.arguments import hint
from nbln.data.fitted import Fitted
from nbln.results import subset

START = "sample_posterior"  # the question whose answer is draws


class Answers(abc.ABC):
    """What is asked by methods: a fit, or draws from its posterior; a dataclass."""

    kind: ClassVar[str]  # of the file that it is saved in: for a fit, its engine
    fitted: Fitted
    asked_by: ClassVar[str] = ""  # for draws by `fit`: the argument that gives them
    model: str

    @property
    def formula_words(self) -> tuple[str, ...]:
        """The formula of the fit, then its columns in a few words each; empty without one."""
        return ()

    @property
    def has_activities(self) -> bool:
        """Whether programs have an activity in each of several data sets."""
        return False

    def __getitem__(self, genes) -> subset.GeneSubset:
        """The same result, asked of some of its genes only.

        Parameters
        ----------
        genes
            A name or names, a slice, a mask with one value for each gene of the fit, or positions.
            A slice or a mask passes over ``_other``, the pool of the rarest, which is no gene.

        Raises
        ------
        KeyError, IndexError
            A name or a position that is not in the fit.
        ValueError
            No gene, a gene twice, or a mask of another length.
        """
        return subset.take(self, genes)

    if not TYPE_CHECKING:  # to a type checker an attribute that is not there is not there

        def __getattr__(self, name: str) -> Any:
            if name in dir(type(self)):  # a property that failed, with an error of its own
                return object.__getattribute__(self, name)
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            # While it is copied a result has no fields yet, and so no model to name.
            if not name.startswith("_") and name not in _fields(type(self)):
                message = _who_does(self, name) or message + hint(name, _public(type(self)))
            raise AttributeError(message, name=name, obj=self)


def _who_does(asked: Answers, name: str) -> str:
    """A sentence that says who answers; '' where nobody does."""
    kinds = [kind for kind in _concrete(Answers) if name in _public(kind)]
    if not kinds:
        return ""
    ways = []
    if models := _models(kinds):
        by = f" without {asked.asked_by}" if asked.asked_by else ""
        ways.append(f"a fit of {_named(models)}{by} has it")
    if any(not _models([kind]) and not kind.asked_by for kind in kinds):
        models = _models([kind for kind in _concrete(Answers) if START in _public(kind)])
        of = "this fit" if asked.model in models else f"a fit of {_named(models)}"
        ways.append(f"draws from the posterior of {of} have it ({START}())")
    if not ways:
        ways = [f"a fit with {asked_by} has it" for asked_by in {kind.asked_by for kind in kinds}]
    what = f"{type(asked).__name__} of {registry.find(asked.model).title}"
    return f"{name}: a {what}, has no such answer; {'; '.join(ways)}"


def _named(models: list[str]) -> str:
    return " or ".join(f"model={model!r}" for model in models)


def _models(kinds: list[type[Answers]]) -> list[str]:
    """The models whose fits are of these kinds; none for draws."""
    engines = {kind.kind for kind in kinds}
    return [model for model, row in registry.MODELS.items() if engines & set(row.engines)]


def _concrete(kind: type) -> Iterator[type]:
    """The kinds of results that there are."""
    for below in kind.__subclasses__():
        if not inspect.isabstract(below):
            yield below
        yield from _concrete(below)


def _fields(kind: Any) -> set[str]:
    return {field.name for field in fields(kind)}


def _public(kind: type) -> set[str]:
    """What can be asked of it."""
    return {name for name in {*dir(kind), *_fields(kind)} if not name.startswith("_")}
