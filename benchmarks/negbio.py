"""NegBio-VAE beside other codes of equal size and training: make bench-negbio.

Each line of a table is a code, fitted to the same training samples from the same five seeds, and
judged on test samples: mean squared error of reconstructions from one exact draw of the code, KL
divergence, evidence lower bound, importance-weighted negative log-likelihood (nats), and the share
of labels that a logistic regression on codes tells after 20 samples of each. Numbers are means over
seeds, ± their standard errors. CPU seconds are of one fit and its judgement, once compiled: most of
the time goes into compilation, which is why the seeds of a setting follow each other.

    python benchmarks/negbio.py [replicate] [search] [cost] [--seeds 5] [--data digits,spikes]

Standard errors are of five seeds, each with a split of its own; differences are paired.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from typing import NamedTuple

# Two fits side by side, each on one core, are faster than one on two.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from negbio_data import DATA, Data, digits, fashion, spikes
from scipy.special import logsumexp

import nbln
from nbln.vae.negbio import classify

N_STEPS = 1_000  # of each fit, whatever the data
BATCH, HIDDEN, LAYERS = 128, 128, 2
N_DRAWS = 20  # of each sample's code
COST_STEPS = 240
SHOTS = 20
METRICS = ("mse", "kl", "elbo", "nll", "accuracy")
LIKELIHOODS = {"digits": "gaussian", "fashion": "gaussian", "spikes": "nb"}


class Setting(NamedTuple):
    """A code and how it is trained."""

    code: str
    elbo: str = "exact"
    way: str = "gumbel"
    objective: str = "elbo"
    beta: float = 1.0
    dispersion: float = 1.0
    last: float = 0.05  # temperature
    through: bool = False
    length: float = 1.0  # of `N_STEPS`

    @property
    def name(self) -> str:
        """In a table."""
        parts = [self.code]
        if self.code == "nb":
            parts.append({"dispersion_sharing": "ds", "monte_carlo": "mc"}.get(self.elbo, "exact"))
        if self.code in ("nb", "poisson"):
            parts.append({"gumbel": "G", "continuous_time": "C"}[self.way])
        default = Setting(self.code)
        fields = ("objective", "beta", "dispersion", "last", "through", "length")
        changed = [
            f"{f}={getattr(self, f)}" for f in fields if getattr(self, f) != getattr(default, f)
        ]
        return " ".join([*parts, *changed])


CODES = (
    *(Setting(code) for code in ("gaussian", "laplace", "categorical")),
    *(Setting("poisson", way=way) for way in ("gumbel", "continuous_time")),
    *(
        Setting("nb", elbo, way)
        for elbo in ("exact", "monte_carlo", "dispersion_sharing")
        for way in ("gumbel", "continuous_time")
    ),
)


def load(name: str, seed: int) -> Data:
    """Data whose size allows five seeds of all codes; the seed decides the split."""
    if name == "fashion":
        return fashion(3_000, 1_000, seed)
    return {"digits": digits, "spikes": spikes}[name](seed=seed)


def fitted(
    data: Data,
    setting: Setting,
    latent_dim: int,
    seed: int,
    n_steps: int = N_STEPS,
    n_hidden: int = HIDDEN,
):
    """A fit of `n_steps` steps."""
    steps = -(-len(data.train) // BATCH)
    config = nbln.NegBioConfig(
        n_hidden=n_hidden,
        n_layers=LAYERS,
        n_epochs=max(round(setting.length * n_steps / steps), 1),
        batch_size=BATCH,
        validation_share=0.0,
        objective=setting.objective,
        beta=setting.beta,
        dispersion=setting.dispersion,
        last_temperature=setting.last,
        straight_through=setting.through,
    )
    return nbln.fit(
        data.train,
        model="negbio_vae",
        latent_dim=latent_dim,
        code=setting.code,
        elbo=setting.elbo,
        reparameterization=setting.way,
        likelihood=LIKELIHOODS[data.name],
        negbio=config,
        seed=seed,
        progress=False,
    )


def judged(result, data: Data, seed: int) -> dict[str, float]:
    """All figures of a fit."""
    key = jax.random.key(seed)
    code, divergence, drawn = map(np.asarray, _at_draws(result.network, data.test, key))
    error, log_prob, log_ratio = drawn
    evidence = logsumexp(log_prob + log_ratio, axis=0) - np.log(N_DRAWS)
    shots = min(SHOTS, np.unique(data.test_labels, return_counts=True)[1].min() - 5)
    return {
        "mse": float(error.mean()),
        "kl": float(divergence.mean()),
        "elbo": float(log_prob.mean() - divergence.mean()),
        "nll": -float(evidence.mean()),
        "accuracy": classify.accuracy(code, data.test_labels, shots, seed),
    }


@eqx.filter_jit
def _at_draws(model, x, key):
    """Expected codes and divergences of samples, and of each draw of a code, exact all.

    Of draws: squared error, log p(x | z) and log p(z) − log q(z), each (draw, sample). What
    `reconstruct`, `get_elbo` and `score` say, in one program instead of three.
    """
    q, prior = model.posterior(x), model.code.prior()

    def of_draw(key):
        z = q.draw(key, None)
        f, _ = model.decode(z)
        error = jnp.mean((model.observed.mean(f) - x) ** 2, axis=1)
        log_prob = jnp.sum(model.observed.log_prob(x, f), axis=1)
        return jnp.stack([error, log_prob, jnp.sum(prior.log_prob(z) - q.log_prob(z), axis=1)])

    drawn = jax.lax.map(of_draw, jax.random.split(key, N_DRAWS))
    return q.mean.reshape(len(x), -1), jnp.sum(q.divergence(prior), 1), jnp.moveaxis(drawn, 1, 0)


def task(given: tuple[str, Setting, int, int]) -> dict[str, np.ndarray]:
    """All seeds of a setting, whose programs are compiled once."""
    name, setting, latent_dim, n_seeds = given
    found, seconds = [], []
    for seed in range(n_seeds):
        data, began = load(name, seed), time.process_time()
        # Empty samples have no counts to fit.
        if LIKELIHOODS[name] == "nb":
            data = without_empty(data)
        found.append(judged(fitted(data, setting, latent_dim, seed), data, seed))
        seconds.append(time.process_time() - began)
    cpu = np.array(np.median(seconds))
    return {m: np.array([one[m] for one in found]) for m in METRICS} | {"cpu": cpu}


def without_empty(data: Data) -> Data:
    """Samples that have counts."""
    train, test = (x.sum(axis=1) > 0 for x in (data.train, data.test))
    return Data(
        data.name,
        data.train[train],
        data.test[test],
        data.train_labels[train],
        data.test_labels[test],
    )


def run(tasks: list) -> Iterator[dict]:
    """What tasks give, in order, by two processes; says on stderr how far it is.

    Programs that settings have in common, such as those that judge, are compiled once.
    """
    began = time.perf_counter()
    with TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            for i, one in enumerate(pool.map(task, tasks)):
                passed = time.perf_counter() - began
                print(f"{i + 1}/{len(tasks)}, {passed:.0f} s", file=sys.stderr, flush=True)
                yield one
        del os.environ["JAX_COMPILATION_CACHE_DIR"]


def table(title: str, settings, found: list[dict], reference: int) -> None:
    """Markdown: a setting a row, with paired differences of ELBO and NLL from the reference."""
    extra = ["ΔELBO", "ΔNLL"]
    print(f"\n### {title}\n")
    print("| " + " | ".join(["code", *METRICS, *extra, "CPU s"]) + " |")
    print("|" + "---|" * (len(METRICS) + len(extra) + 2))
    for setting, one in zip(settings, found, strict=True):
        cells = [_cell(one[m], m) for m in METRICS]
        cells += [_cell(one[m] - found[reference][m], m) for m in ("elbo", "nll")]
        print("| " + " | ".join([setting.name, *cells, f"{one['cpu']:.1f}"]) + " |", flush=True)


def _cell(values: np.ndarray, metric: str) -> str:
    digits = {"mse": 4, "accuracy": 3}.get(metric, 2)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def replicate(names: list[str], n_seeds: int) -> None:
    """The table of the paper, of other data and by perceptrons."""
    groups = [(name, k, CODES) for name in names for k in (16, 32)]
    if "digits" in names:
        some = (s for s in CODES if s.way == "gumbel" and s.code not in ("laplace", "categorical"))
        groups.append(("digits", 16, tuple(s._replace(objective="published") for s in some)))
    report(groups, n_seeds)


def search(n_seeds: int) -> None:
    """Where negative-binomial codes beat Poisson codes on overdispersed counts, and where not.

    Each group is of one way to train, and its first setting, a Poisson code, the reference.
    """
    poisson, nb, shared = Setting("poisson"), Setting("nb"), Setting("nb", "dispersion_sharing")
    groups = [[poisson, *(nb._replace(dispersion=r) for r in (0.2, 1.0, 5.0, 50.0)), shared,
               shared._replace(dispersion=50.0)]]  # fmt: skip
    changes = ({"beta": 0.5}, {"beta": 2.0}, {"last": 0.5}, {"through": True}, {"length": 0.5},
               {"length": 3.0})  # fmt: skip
    groups += [[s._replace(**change) for s in (poisson, nb)] for change in changes]
    report([("spikes", 16, tuple(group)) for group in groups], n_seeds)


def report(groups: list[tuple[str, int, tuple[Setting, ...]]], n_seeds: int) -> None:
    """A table for each data set, number of latents and settings; beside the first Poisson code."""
    found = run([(name, s, k, n_seeds) for name, k, settings in groups for s in settings])
    for name, k, settings in groups:
        own = list(islice(found, len(settings)))
        reference = [s.code for s in settings].index("poisson")
        title = f"{name}, K = {k}, objective {settings[0].objective}"
        table(title, settings, own, reference)


def cost() -> None:
    """CPU time of training steps by code, beside a Gaussian code of equal size.

    Of images of 784 pixels by the default network, and of digits by the small one of the tables.
    """
    for name, n_hidden in (("fashion", nbln.NegBioConfig().n_hidden), ("digits", HIDDEN)):
        data, times = load(name, 0), {s.name: [] for s in CODES}
        # By turns, since other work comes and goes; what the first turn compiles is not counted.
        for turn in range(5):
            for setting in CODES:
                spent = _epochs(data, setting, n_hidden)
                if turn:
                    times[setting.name].append(spent / COST_STEPS)
        print(f"\n### cost of a step, {name}, K = 32, {n_hidden} hidden units, batch {BATCH}\n")
        print("| code | CPU ms | of a Gaussian code |\n|---|---|---|")
        reference = np.median(times["gaussian"])
        for code, values in times.items():
            step = np.median(values)
            print(f"| {code} | {1e3 * step:.2f} | {step / reference:.2f} |", flush=True)


def _epochs(data: Data, setting: Setting, n_hidden: int) -> float:
    """CPU seconds of the epochs of a fit: all of its seconds, by the share of time they took."""
    began = time.process_time()
    took = fitted(data, setting, 32, 0, COST_STEPS, n_hidden).fitted.seconds
    return (time.process_time() - began) * took["epochs"] / took["total"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="*", default=["cost", "replicate"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default=",".join(DATA))
    asked = parser.parse_args()
    wanted = asked.data.split(",")
    if "cost" in asked.what:
        cost()
    if "replicate" in asked.what:
        replicate(wanted, asked.seeds)
    if "search" in asked.what:
        search(asked.seeds)
