"""Every model: the engine's log joint is the program's, and its sites are what it says."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense_reference import precision_of
from numpyro import handlers
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import logsumexp

from nbln.models.lnm import LNM
from nbln.models.lnmvcp import LNMVCP
from nbln.models.nbdm import NBDM
from nbln.models.nbln import NBLN
from nbln.models.nbvcp import NBVCP
from nbln.models.pln import PLN
from nbln.models.zinb import ZINB
from nbln.models.zinbvcp import ZINBVCP
from nbln.priors.capture import KnownCapture, LatentCapture
from nbln.priors.univariate import Beta, Frozen, InverseGamma, LogNormal, Normal
from nbln.registry import LOADINGS_PRIORS

C, G, K = 4, 6, 2
RNG = np.random.default_rng(0)
ETA = RNG.uniform(0.1, 2.0, C)
PRIORS = {
    "mu": (Normal, 0.3, 2.0),
    "d": (InverseGamma, 3.0, 0.7),
    "r": (LogNormal, 1.0, 0.8),
    "mean": (LogNormal, 0.5, 2.0),
    "phi": (LogNormal, 0.1, 1.5),
    "p": (Beta, 2.0, 3.0),
    "total_mean": (LogNormal, 3.0, 1.0),
    "total_r": (LogNormal, 1.0, 1.5),
    "gate": (Beta, 1.5, 9.0),
}
SITES = {
    NBLN: ("mu", "d", "r"),
    PLN: ("mu", "d"),
    **dict.fromkeys((LNM, LNMVCP), ("mu", "d", "total_mean", "total_r")),
}
LOG_NORMAL = tuple(SITES)
SCIPY = {
    Normal: lambda x, a, b: stats.norm.logpdf(x, a, b),
    LogNormal: lambda x, a, b: stats.lognorm.logpdf(x, b, scale=np.exp(a)),
    InverseGamma: lambda x, a, b: stats.invgamma.logpdf(x, a, scale=b),
    Beta: lambda x, a, b: stats.beta.logpdf(x, a, b),
}


def capture_of(kind):
    if kind == "known":
        return KnownCapture(jnp.asarray(ETA))
    return LatentCapture(jnp.asarray([1.0, 0.2, -0.3, 2.0]), jnp.full(C, 0.5))


def site_priors(*names):
    return {n: PRIORS[n][0](*map(jnp.asarray, PRIORS[n][1:])) for n in names}


def log_normal_model(kind, capture, loadings):
    return kind(site_priors(*SITES[kind]), LOADINGS_PRIORS[loadings](), capture_of(capture), K)


def independent_model(kind, parameterization, capture):
    way = kind.parameterizations[parameterization]()
    given = capture_of(capture) if kind.depth.has_capture else KnownCapture(jnp.zeros(C))
    return kind(site_priors(*(s.name for s in kind.gene_sites(way))), given, way)


def nbvcp_model(parameterization, capture):
    return independent_model(NBVCP, parameterization, capture)


def random_values(model, seed):
    rng = np.random.default_rng(seed)
    sizes = {"gene": G, "factor": K, "cell": C}
    values = {}
    for site in model.sites:
        shape = tuple(sizes[dim] for dim in site.dims)
        if site.name in ("mu", "W", "x"):
            values[site.name] = rng.normal(0.5, 1.0, shape)
        elif site.name in ("p", "gate", "inclusion", "spike"):
            values[site.name] = rng.uniform(0.1, 0.5, shape)
        else:
            values[site.name] = rng.uniform(0.1, 2.5, shape)
    if isinstance(model.capture, KnownCapture) and model.depth.has_capture:
        values["eta"] = ETA
    if hasattr(model, "loadings"):
        # Where a level of all genes is not identified, it is 0.
        fixed = model.depth.fix(values["mu"], values["W"])
        values["mu"], values["W"] = map(np.asarray, fixed[:2])
    return values


def scale_density(prior, values):
    """Hyperpriors of the loadings' scales, by SciPy."""
    if "tau" in values:
        columns = stats.halfcauchy.logpdf(values["tau"], scale=prior.tau_scale) + np.sum(
            stats.halfcauchy.logpdf(values["lambda"], scale=values["tau"])
        )
        if "spike" not in values:
            return columns
        width = K * np.log(prior.shrinkage.most_inclusion)
        columns += stats.beta.logpdf(values["spike"], 0.5, 1.0).sum()
        return columns - width + stats.norm.logpdf(values["centre"], 0, 10).sum()
    if "gamma" in values:
        return stats.gamma.logpdf(values["gamma"], prior.alpha, scale=1 / prior.beta) + np.sum(
            stats.expon.logpdf(values["psi"], scale=1 / values["gamma"])
        )
    return 0.0


def priors_density(model, values):
    return sum(np.sum(SCIPY[PRIORS[n][0]](values[n], *PRIORS[n][1:])) for n in model.priors)


def capture_density(capture, eta):
    """Through the engine's column: η = -(o + value v ζ), ζ ~ N(0, 1/precision), η ≥ 0."""
    if isinstance(capture, KnownCapture):
        return 0.0
    offset, scale = -np.asarray(capture.loc), np.asarray(capture.scale)
    zeta = (eta + offset) / scale
    truncation = stats.norm.logcdf(-offset / scale)
    return np.sum(stats.norm.logpdf(zeta) - np.log(scale) - truncation)


def of_counts(model, values, counts):
    """Log-probability of the counts given log-rates, as the engine has it."""
    offset, scale, columns, *_ = model.augmentation
    if model.depth.has_totals:
        return shares_density(model, values, counts) + totals_density(model, values, counts)
    f = values["x"] - values["eta"][:, None]
    if columns.value:
        assert (columns.value, columns.precision, columns.truncated) == ((-1.0,), (1.0,), (True,))
        np.testing.assert_allclose(scale[:, 0], model.capture.scale)
        np.testing.assert_allclose(offset, -np.asarray(model.capture.loc))
    else:
        np.testing.assert_allclose(offset, -ETA)
    channel = model.channel.of(values)
    return float(jnp.sum(channel.log_prob(jnp.asarray(counts), jnp.asarray(f))))


def shares_density(model, values, counts):
    """Through the engine's flat column: times L, the integral over κ of all genes' counts."""
    _, scale, columns, *_ = model.augmentation
    assert (columns.value, columns.precision, columns.truncated) == ((1.0,), (0.0,), (False,))
    np.testing.assert_array_equal(scale, 1)
    channel = model.channel.of(values)
    # The trapezoidal rule converges exponentially for an integrand like this.
    kappa, step = np.linspace(-12, 12, 2401, retstep=True)
    f = values["x"][:, :, None] + kappa
    given = channel.log_prob(jnp.asarray(counts)[:, :, None], jnp.asarray(f)).sum(axis=1)
    return float(np.sum(np.log(counts.sum(axis=1) * step) + logsumexp(given, axis=1)))


def totals_density(model, values, counts):
    mean, r = values["total_mean"], values["total_r"]
    mean = mean * np.exp(-values["eta"]) if model.depth.has_capture else mean
    return stats.nbinom.logpmf(counts.sum(axis=1), r, r / (r + mean)).sum()


def log_normal_joint(model, values, counts):
    """What the Laplace engine takes the model to be."""
    total = of_counts(model, values, counts)
    W, d = values["W"], values["d"]
    total += stats.multivariate_normal.logpdf(values["x"], values["mu"], W @ W.T + np.diag(d)).sum()
    scales = {site.name: jnp.asarray(values[site.name]) for site in model.loadings.sites(K)}
    total += float(model.loadings.log_density(jnp.asarray(W), scales))
    total += scale_density(model.loadings, values) + priors_density(model, values)
    return total + (capture_density(model.capture, values["eta"]) if "eta" in values else 0.0)


def program_density(model, values, counts):
    values = {n: jnp.asarray(x) for n, x in values.items()}
    return float(log_density(model, (jnp.asarray(counts),), {}, values)[0])


COUNTS = RNG.poisson(3.0, (C, G)).astype(float)
both_captures = pytest.mark.parametrize("capture", ["known", "latent"])


@both_captures
@pytest.mark.parametrize("loadings", LOADINGS_PRIORS)
@pytest.mark.parametrize("kind", LOG_NORMAL, ids=lambda kind: kind.name)
def test_the_engine_fits_the_program(kind, loadings, capture):
    with precision_of("float64"):
        model = log_normal_model(kind, capture, loadings)
        for seed in range(3):
            values = random_values(model, seed)
            ours = log_normal_joint(model, values, COUNTS)
            assert program_density(model, values, COUNTS) == pytest.approx(ours, rel=1e-9)


@both_captures
@pytest.mark.parametrize("parameterization", NBVCP.parameterizations)
def test_independent_genes(parameterization, capture):
    with precision_of("float64"):
        model = nbvcp_model(parameterization, capture)
        values = random_values(model, 0)
        mean, r = {
            "mean_disp": lambda v: (v["mean"], v["r"]),
            "mean_odds": lambda v: (v["mean"], v["mean"] * v["phi"]),
            "canonical": lambda v: (v["r"] * v["p"] / (1 - v["p"]), v["r"]),
        }[parameterization](values)
        m = mean * np.exp(-values["eta"][:, None])
        dense = stats.nbinom.logpmf(COUNTS, r, r / (r + m)).sum()
        dense += priors_density(model, values) + capture_density(model.capture, values["eta"])
        assert program_density(model, values, COUNTS) == pytest.approx(dense, rel=1e-9)


@both_captures
@pytest.mark.parametrize("kind", [ZINB, ZINBVCP], ids=lambda kind: kind.name)
def test_genes_with_a_gate(kind, capture):
    with precision_of("float64"):
        model = independent_model(kind, "mean_disp", capture)
        values = random_values(model, 0)
        m = values["mean"] * np.exp(-values.get("eta", np.zeros(C))[:, None])
        counted = stats.nbinom.pmf(COUNTS, values["r"], values["r"] / (values["r"] + m))
        pmf = (COUNTS == 0) * values["gate"] + (1 - values["gate"]) * counted
        dense = np.log(pmf).sum() + priors_density(model, values)
        if "eta" in values:
            dense += capture_density(model.capture, values["eta"])
        assert program_density(model, values, COUNTS) == pytest.approx(dense, rel=1e-9)


def test_totals_and_compositions():
    """NBDM is NBVCP's canonical way without capture, and a Dirichlet-multinomial given totals."""
    with precision_of("float64"):
        model = independent_model(NBDM, "canonical", "none")
        values = random_values(model, 0)
        ours = program_density(model, values, COUNTS)
        same = NBVCP(model.priors, model.capture, model.parameterization)
        assert ours == pytest.approx(program_density(same, values, COUNTS), abs=1e-5)
        totals, concentration = COUNTS.sum(axis=1), values["r"].sum()
        dense = stats.nbinom.logpmf(totals, concentration, 1 - values["p"]).sum()
        shared_out = [
            stats.dirichlet_multinomial.logpmf(u.astype(int), values["r"], int(u.sum()))
            for u in COUNTS
        ]
        dense += np.sum(shared_out) + priors_density(model, values)
        assert ours == pytest.approx(dense, abs=1e-5)


MODELS = {
    **{
        f"{kind.name}-{capture}-{loadings}": lambda k=kind, c=capture, p=loadings: log_normal_model(
            k, c, p
        )
        for kind in LOG_NORMAL
        for capture in ("known", "latent")
        for loadings in LOADINGS_PRIORS
    },
    **{
        f"nbvcp-{capture}-{name}": lambda n=name, c=capture: nbvcp_model(n, c)
        for capture in ("known", "latent")
        for name in NBVCP.parameterizations
    },
    **{
        f"{kind.name}-{capture}": lambda k=kind, c=capture: independent_model(
            k, next(iter(k.parameterizations)), c
        )
        for kind, capture in (
            (NBDM, "none"),
            (ZINB, "none"),
            (ZINBVCP, "known"),
            (ZINBVCP, "latent"),
        )
    },
}


def traced(model):
    """Shapes of every site of the program but the counts."""
    program = handlers.seed(model, jax.random.key(0))
    if hasattr(model, "loadings"):  # an improper prior cannot be sampled
        program = handlers.substitute(program, {"W": jnp.ones((G, K))})
    trace = handlers.trace(program).get_trace(jnp.asarray(COUNTS, jnp.float32))
    return {
        name: np.shape(site["value"])
        for name, site in trace.items()
        if site["type"] == "deterministic" or (site["type"] == "sample" and not site["is_observed"])
    }


def shapes(sites):
    sizes = {"gene": G, "factor": K, "cell": C}
    return {name: tuple(sizes[dim] for dim in dims) for name, dims in sites.items()}


@pytest.mark.parametrize("name", MODELS)
def test_sites_are_those_of_the_trace(name):
    model = MODELS[name]()
    assert shapes({site.name: site.dims for site in model.sites}) == traced(model)
    assert all(site.meaning for site in model.sites)


def table(kind):
    """Site -> dims, from the table in the docstring."""
    rows = re.search(r"=+ =+ =+\n *site .*?\n *=+ =+ =+\n(.*?)\n *=+ =+ =+", kind.__doc__, re.S)
    found = {}
    for row in rows.group(1).splitlines():
        name, dims = re.match(
            r" *(\w+) +(one number|(?:cell|gene|factor)(?:, (?:cell|gene|factor))*|) ", row
        ).groups()
        found[name] = () if dims in ("", "one number") else tuple(dims.split(", "))
    return found


@pytest.mark.parametrize(
    "model",
    [
        log_normal_model(NBLN, "latent", "none"),
        log_normal_model(PLN, "latent", "none"),
        log_normal_model(LNM, "latent", "none"),
        log_normal_model(LNMVCP, "latent", "none"),
        nbvcp_model("mean_disp", "latent"),
        independent_model(NBDM, "canonical", "none"),
        independent_model(ZINB, "mean_disp", "none"),
        independent_model(ZINBVCP, "mean_disp", "latent"),
    ],
    ids=["nbln", "pln", "lnm", "lnmvcp", "nbvcp", "nbdm", "zinb", "zinbvcp"],
)
def test_the_docstring_tells_the_sites(model):
    sites = {site.name: site.dims for site in model.sites}
    assert table(type(model)) == sites
    assert shapes(table(type(model))) == traced(model)


@pytest.mark.parametrize(
    "kind", [*LOG_NORMAL, NBVCP, NBDM, ZINB, ZINBVCP], ids=lambda kind: kind.name
)
def test_the_docstring_has_an_equation(kind):
    assert "~" in inspect.getdoc(kind)


def test_a_frozen_site_is_no_parameter():
    model = log_normal_model(NBLN, "known", "none")
    model = NBLN(model.priors | {"r": Frozen(jnp.full(G, 2.0))}, model.loadings, model.capture, K)
    program = handlers.seed(model, jax.random.key(0))
    program = handlers.substitute(program, {"W": jnp.ones((G, K))})
    trace = handlers.trace(program).get_trace(jnp.asarray(COUNTS, jnp.float32))
    assert trace["r"]["type"] == "deterministic"
    np.testing.assert_array_equal(trace["r"]["value"], 2.0)
