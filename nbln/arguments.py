"""How an argument is refused: what was given, what is accepted, and what may have been meant.

`argument` is how the user wrote it without its value, as in ``fit(seed``, or a name alone.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

Rule = Callable[[str, Any], Any]  # (argument, value) -> the value, or an error


def shown(argument: str, value: Any) -> str:
    """The argument with its value, as the user wrote it."""
    return f"{argument}={value!r}{')' if '(' in argument else ''}"


def choose(argument: str, value: Any, accepted: Iterable[str]) -> str:
    """`value` if it is accepted.

    Raises
    ------
    ValueError
        It is not; the message lists what is and guesses what was meant.
    """
    what = argument.split("(")[-1].split("=")[0].replace("_", " ")
    return choose_from(list(accepted), value, shown(argument, value), what)


def choose_from(accepted: list[str], value: Any, given: str, what: str) -> str:
    """`value` if it is accepted; `given` is how the user wrote it, `what` it should have been."""
    if isinstance(value, str) and value in accepted:
        return value
    raise ValueError(
        f"{given}: unknown {what}; choose one of {', '.join(accepted)}"
        f"{hint(value, accepted, quoted=True)}"
    )


def hint(value: Any, accepted: Iterable[str], quoted: bool = False) -> str:
    """'; did you mean ...?' where an accepted word is close, whatever its case; else nothing."""
    folded = {word.casefold(): word for word in accepted}
    near = difflib.get_close_matches(str(value).casefold(), folded, n=1)
    if not near:
        return ""
    word = folded[near[0]]
    return f"; did you mean {repr(word) if quoted else word}?"


LARGEST_SEED = 2**32 - 2  # what JAX takes without 64-bit numbers; one more is used as well


def check_seed(argument: str, value: Any) -> int:
    """`value`, if it is a seed: a whole number from 0 to 2**32 - 2.

    Raises
    ------
    ValueError
        It is not.
    """
    if check_whole(argument, value, 0) > LARGEST_SEED:
        raise ValueError(f"{shown(argument, value)}: a seed is at most {LARGEST_SEED}")
    return int(value)


def check_flag(argument: str, value: Any) -> bool:
    """`value`, if it is True or False.

    Raises
    ------
    TypeError
        It is not.
    """
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{shown(argument, value)}: must be True or False")
    return bool(value)


def check_whole(argument: str, value: Any, least: int = 1) -> int:
    """`value`, if it is a whole number of at least `least`.

    Raises
    ------
    ValueError
        It is not.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{shown(argument, value)}: must be a whole number, at least {least}")
    return int(value)


def check_folder(call: str, path: Path) -> Path:
    """`path`, if a file can be put there; `call` is how the user gave it.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{call}: no such folder: {path.parent}")
    return path


def check_number(argument: str, value: Any, least: float, most: float, open_: bool) -> float:
    """`value`, if it is a number from `least` (excluded where `open_`) to `most`.

    Raises
    ------
    ValueError
        It is not.
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not least <= float(value) <= most or (open_ and float(value) == least):
        bound = f"above {least:g}" if open_ else f"at least {least:g}"
        upper = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(f"{shown(argument, value)}: must be a number {bound}{upper}")
    return float(value)


def whole(least: int = 1) -> Rule:
    """The rule of a setting that is a whole number."""
    return lambda argument, value: check_whole(argument, value, least)


def number(least: float = 0.0, most: float = math.inf, open_: bool = False) -> Rule:
    """The rule of a setting that is a number."""
    return lambda argument, value: check_number(argument, value, least, most, open_)


def optional(rule: Rule) -> Rule:
    """The rule of a setting that may be None."""
    return lambda argument, value: None if value is None else rule(argument, value)


def one_of(accepted: Iterable[str]) -> Rule:
    """The rule of a setting that is one of some words."""
    return lambda argument, value: choose(argument, value, accepted)


def check_settings(settings: Any, rules: Mapping[str, Rule]) -> None:
    """Check the fields of a settings dataclass, each by its rule.

    Raises
    ------
    ValueError
        The first field that breaks its rule.
    """
    for name, rule in rules.items():
        rule(f"{type(settings).__name__}({name}", getattr(settings, name))


def replace_settings(settings, argument: str, rules: Mapping[str, Rule], **overrides):
    """The settings with keywords of `fit` on top of them; a keyword that is None changes nothing.

    Raises
    ------
    TypeError, ValueError
        A keyword that the settings do not have, or that breaks its rule.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    for name, value in given.items():
        rules[name](f"{argument}({name}", value)
    return dataclasses.replace(settings, **given)


def setting_of(name: str, settings: Iterable[tuple[str, type]]) -> str:
    """How a keyword is given as a field of settings, ``svi=nbln.SVIConfig(guide=...)``; '' if none.

    `settings` are pairs of the keyword and the dataclass of settings that it takes.
    """
    ways = (
        f"{keyword}=nbln.{kind.__name__}({name}=...)"
        for keyword, kind in settings
        if name in {field.name for field in dataclasses.fields(kind)}
    )
    return " or ".join(dict.fromkeys(ways))


def check_keywords(
    call: str,
    unknown: Mapping[str, Any],
    accepted: Iterable[str],
    elsewhere: Callable[[str], str] = lambda keyword: "",
) -> None:
    """Raise for keywords that a call does not have.

    `elsewhere` says of a keyword what to give in its place, '' where it does not know it.

    Raises
    ------
    TypeError
        Names the first, with what to give in its place, or the one that may have been meant.
    """
    words = list(accepted)
    for keyword in unknown:
        if remedy := elsewhere(keyword):
            raise TypeError(f"{call}({keyword}=...): unknown keyword; {remedy}")
        raise TypeError(
            f"{call}({keyword}=...): unknown keyword{hint(keyword, words)}; known: "
            f"{', '.join(words)}"
        )


def check_one_gene(gene: Any, every: str) -> None:
    """Raise a TypeError for more than one gene, or for what is no name; `every` asks about all."""
    if not isinstance(gene, str):
        raise TypeError(f"partners(gene=): give the name of one gene; {every}() is about all")


def find(
    wanted: Any, labels: np.ndarray, what: str, absent: str = ""
) -> Int[np.ndarray, " wanted"]:
    """Positions of names among labels; `what` they are, and why one may be absent, for the message.

    Raises
    ------
    KeyError
        Names the first that is not there.
    ValueError
        No name at all.
    """
    wanted = np.atleast_1d(wanted)
    positions = pd.Index(labels).get_indexer(pd.Index(wanted))
    missing = np.flatnonzero(positions < 0)
    if len(missing):
        first = wanted[missing[0]].item()
        near = hint(first, map(str, labels), quoted=True)
        raise KeyError(f"{what}={first!r}: not in this fit of {len(labels)} {what}{near}{absent}")
    if not len(positions):
        raise ValueError(f"{what}=[]: name one at least, or leave it out for all")
    return positions
