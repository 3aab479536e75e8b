"""How good the draws of a posterior are, and what they say of programs."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Float
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from nbln.linalg import gauge
from nbln.priors.loadings import LoadingsPrior
from nbln.questions.diagnostics import WARNING, Row
from nbln.questions.stability import Alignment

N_PAIRS = 200
R_HAT_LIMIT = (
    1.05  # above which chains have not mixed; Vehtari et al. (2021) advise 1.01 for a mean
)
LEAST_ESS = 100.0  # for the ends of an interval of 90 %
LEAST_ACCEPTED = 0.3
# Of many numbers, R-hat is told that this share of them is below: the largest of hundreds is above
# 1.1 by chance alone where a chain has a hundred effective draws.
MOST = 0.95
FEWEST_CELLS = 100  # calibration was measured from 500 cells on
LEAST_SAME = 0.5  # share of draws in which a program is that of the fit

QUANTITIES = {
    "correlations": "correlations of pairs at random",
    "strong_correlations": "the strongest correlations",
    "overdispersion": "overdispersion of genes",
    "norms": "sizes of programs",
    "effects": "effects of covariates",
    "activities": "activities of programs in data sets",
    "share": "how overdispersion splits, and with it the scale of correlations",
    "means": "mean log-rates of genes",
    "residuals": "variances d of genes",
}
# Any divergence may hide a part of the posterior (Betancourt 2017): all are told, and more than one
# in a thousand is a warning.
MOST_DIVERGING = 0.001
MOST_CUT_SHORT = 0.05  # share of draws whose trajectories were still moving away when they ended


def membership(
    prior: LoadingsPrior,
    W: Float[np.ndarray, "draw gene factor"],
    centre: Float[np.ndarray, "draw factor"],
    scales: dict[str, np.ndarray],
    alignment: Alignment,
) -> Float[np.ndarray, "gene factor"]:
    """Mean over the draws of the probability of the slab, programs matched.

    Raises
    ------
    ValueError
        The prior has no spike and slab.
    """
    total = np.zeros(W.shape[1:], np.float64)
    for i, order in enumerate(alignment.order):
        of_draw = {name: jnp.asarray(x[i]) for name, x in scales.items()}
        member = _member(prior, jnp.asarray(W[i] - centre[i]), of_draw)
        if member is None:
            raise ValueError(
                "get_membership(): the loadings prior of this fit has no spike and slab; fit with "
                "priors={'loadings': 'horseshoe_sparse'}, the default"
            )
        total += np.asarray(member)[:, order]
    return total / len(W)


@jax.jit
def _member(prior, away, scales):
    return prior.member_probability(away, scales)


def diagnostics_table(posterior) -> pd.DataFrame:
    """See `DrawnPrograms.get_diagnostics`."""
    return chain_table(groups(posterior))


def groups(posterior) -> dict[str, np.ndarray]:
    """What no rotation of the programs changes, and their norms: (chain, draw, quantity)."""
    draws = posterior.draws
    W = draws.W - draws.W.mean(axis=2, keepdims=True)
    sd = np.sqrt((W**2).sum(axis=3) + draws.d)
    mean = (W / sd[..., None]).mean(axis=(0, 1))
    n_genes = len(mean)
    random = np.random.default_rng(0).integers(0, n_genes, (N_PAIRS, 2))
    random = random[random[:, 0] != random[:, 1]]
    some = np.unique(random)[:N_PAIRS]
    found = {
        "correlations": gauge.pair_correlations(draws.W, draws.d, random),
        "strong_correlations": gauge.pair_correlations(draws.W, draws.d, _strongest(mean)),
        "overdispersion": np.log((draws.d + np.log1p(posterior.noise))[..., some]),
        "norms": np.sqrt((W**2).sum(axis=2)),
    }
    if draws.effects.shape[-1]:
        found["effects"] = draws.effects[:, :, some].reshape(*draws.effects.shape[:2], -1)
    if draws.activity.effects.shape[2]:
        found["activities"] = draws.activity.effects.reshape(*draws.W.shape[:2], -1)
    if np.any(draws.pool[..., 2:] != 0):
        found["share"] = draws.pool[..., 2:]
    return found


def chain_table(groups: dict[str, np.ndarray]) -> pd.DataFrame:
    """Effective draws and R-hat of groups of numbers, (chain, draw, ...) each; see `MOST`."""
    rows = []
    for name, values in groups.items():
        values = values.astype(np.float64)
        n_chains, n_draws = values.shape[:2]
        # Four draws of a chain are the least that either needs.
        ess = r_hat = np.nan
        if n_draws >= 4:
            ess = float(np.nanmedian(effective_sample_size(values)))
            r_hat = float(np.nanquantile(split_gelman_rubin(values), MOST))
        rows.append((name, ess, ess / (n_chains * n_draws), r_hat))
    return pd.DataFrame(rows, columns=["quantity", "ess", "ess_per_draw", "r_hat"]).set_index(
        "quantity"
    )


def summary(posterior) -> Iterator[Row]:
    """Rows of `PosteriorDraws.summary`."""
    yield from _size(posterior)
    if not posterior.fit_converged:
        note = "the fit that the chains started from had not converged; fit with more n_steps"
        yield Row("fit_converged", False, WARNING, note)
    accepted = posterior.draws.accepted.mean(axis=(0, 1))
    for step, share in zip(("cells", "genes"), accepted, strict=False):
        low = share < LEAST_ACCEPTED
        note = "few proposals are accepted: draws are correlated; sample more of them"
        yield Row.judged(f"accepted_{step}", round(float(share), 3), low, note)
    n_cells = posterior.fitted.n_cells
    note = f"fewer than {FEWEST_CELLS} cells: intervals and calls were not tried on so few"
    yield Row.judged("cells", n_cells, n_cells < FEWEST_CELLS, note)
    yield from _mixing(posterior.get_diagnostics())
    yield from _programs(posterior)


def summary_of_chains(posterior, programs: bool = False) -> Iterator[Row]:
    """Rows of the summary of draws by NUTS; `programs` where there are any."""
    yield from _size(posterior)
    yield from _steps(posterior.chains.steps)
    yield from _mixing(posterior.get_diagnostics())
    if programs:
        yield from _programs(posterior)


def _size(posterior) -> Iterator[Row]:
    yield Row("chains", posterior.n_chains)
    yield Row("draws", posterior.n_draws)


def _steps(steps: xr.Dataset) -> Iterator[Row]:
    """How NUTS came to the draws."""
    yield Row("accept_prob", round(float(steps["accept_prob"].mean()), 3))
    yield Row("steps_a_draw", round(float(steps["n_steps"].mean()), 1))
    n, share = int(steps["diverging"].sum()), float(steps["diverging"].mean())
    note = "steps were too long where the posterior is narrow, which draws then miss; raise "
    note += "target_accept, toward 0.99, or set tighter priors"
    yield Row.judged("divergences", n, share > MOST_DIVERGING, note)
    cut = float(steps["cut_short"].mean())
    note = f"{cut:.0%} of draws ended at the limit of steps; raise max_tree_depth"
    yield Row.judged("cut_short", round(cut, 3), cut > MOST_CUT_SHORT, note)


def _mixing(table: pd.DataFrame) -> Iterator[Row]:
    """Effective draws and R-hat of every group."""
    for name, row in table.iterrows():
        of_what = QUANTITIES.get(str(name), str(name))
        low = not row.ess >= LEAST_ESS
        note = f"{of_what}: too few effective draws for the ends of intervals; raise n_draws"
        yield Row.judged(f"ess_{name}", round(float(row.ess), 1), low, note)
        apart = row.r_hat > R_HAT_LIMIT
        note = f"{of_what}: chains differ; raise n_warmup and n_draws"
        yield Row.judged(f"r_hat_{name}", round(float(row.r_hat), 3), apart, note)


def _programs(posterior) -> Iterator[Row]:
    """How many programs, how stable, and how overdispersed genes are."""
    numbers = posterior.get_n_programs()
    yield Row("programs", int(numbers.idxmax()))
    yield Row("programs_probability", round(float(numbers.max()), 3))
    loose = int((posterior.get_program_stability()["same"] < LEAST_SAME).sum())
    note = "their genes differ between draws: read correlations, not these programs"
    yield Row.judged("unstable_programs", loose, loose > 0, note)
    over = posterior.get_overdispersion()
    yield Row("overdispersion", round(float(over["total"].median()), 3))
    yield Row("residual_share", round(float(over["share"].median()), 3))


def _strongest(unit: Float[np.ndarray, "gene factor"]) -> np.ndarray:
    """Pairs with large correlations: among the genes that vary most with others."""
    n = min(len(unit), 200)
    genes = np.argsort(-np.abs(unit).max(axis=1))[:n]
    values = np.triu(np.abs(unit[genes] @ unit[genes].T), 1)
    order = np.argsort(-values, axis=None)[:N_PAIRS]
    return np.stack([genes[i] for i in np.unravel_index(order, values.shape)], axis=1)
