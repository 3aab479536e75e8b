"""What covariates and data sets change, for the page."""

from typing import Any

from nbln import pl
from nbln.questions import effects
from nbln.webpage.parts import pictures, table

# A page of many categories would be nothing but their tables; covariate_effects.csv has them all.
SHOWN_COVARIATES, SHOWN_EFFECTS, SHOWN_COMPARISONS = 10, 8, 6


def covariates(result, posterior) -> dict[str, Any] | None:
    """The design in words, the strongest effects, and by draws the genes that are called."""
    if not result.formula_words:
        return None
    shown: dict[str, Any] = {"words": result.formula_words, "strongest": None, "comparisons": []}
    if result.has_effects:
        asked = result if posterior is None else posterior
        every = asked.get_covariate_effects()
        some = every.isel(covariate=slice(SHOWN_COVARIATES))
        units = result.formula.units[:SHOWN_COVARIATES]
        shown["strongest"] = table(effects.strongest(some, units, SHOWN_EFFECTS))
        shown["further"] = every.sizes["covariate"] - some.sizes["covariate"]
        shown["drawn"] = posterior is not None
    if posterior is not None:
        compared = result.formula.comparisons
        shown["comparisons"] = [_comparison(posterior, *x) for x in compared[:SHOWN_COMPARISONS]]
    return shown


def _comparison(posterior, column: str, group, reference) -> dict[str, Any]:
    """One group over its reference: a volcano, and the surest genes."""
    called = posterior.differential_expression(column, group, reference)
    delta, fdr = called.attrs["delta"], called.attrs["fdr"]
    caption = (
        f"Calls are of changes beyond {delta:g} (log2); at most {fdr:.0%} of them are expected to "
        "be wrong."
    )
    names = [x if isinstance(x, str) else f"{x:.3g}" for x in (group, reference)]
    title = f"{column}: {names[0]} over {names[1]}"
    (picture,) = pictures([(title, caption, pl.plot_effects(called))])
    return {"picture": picture, "genes": table(called.head(SHOWN_EFFECTS).reset_index())}


def activities(result, posterior) -> dict[str, Any] | None:
    """How active programs are in data sets, and by draws how sure differences are."""
    if not result.has_activities:
        return None
    asked, compared = result if posterior is None else posterior, []
    title = "Programs that are more or less active"
    caption = (
        "Standard deviation of a program's factor over the cells of a data set; 1 is typical of "
        "the program. Points of one colour are data sets of one level."
    )
    (picture,) = pictures([(title, caption, pl.plot_program_activity(asked))])
    for key in result.datasets.keys:
        if posterior is not None and len(key.levels) == 2:
            found = posterior.differential_activity(key.column, *key.levels)
            title = f"{key.column}: {key.levels[0]} over {key.levels[1]}"
            compared.append({"title": title, "programs": table(found.reset_index())})
    return {"picture": picture, "compared": compared}
