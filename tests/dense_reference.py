"""The posterior of one cell by dense algebra in NumPy float64: the slow twin of nbln.posterior."""

import contextlib
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from nbln.channels.negative_binomial import NegativeBinomial
from nbln.channels.poisson import Poisson
from nbln.posterior.mode import Cells, Columns, Parameters

LATENT = Columns((-1.0,), (1.0,), (True,))
FLAT = Columns((1.0,), (0.0,), (False,))
KNOWN = Columns()
COLUMNS = {"latent": LATENT, "known": KNOWN, "flat": FLAT}


def precision_of(name):
    """A context in which arrays of this float type are computed with."""
    if name == "float32":
        return contextlib.nullcontext()
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64(True)


@dataclass(frozen=True)
class Problem:
    """Cells of a log-normal model, as NumPy arrays; `log_r` is None for Poisson counts."""

    u: np.ndarray
    mu: np.ndarray
    W: np.ndarray
    d: np.ndarray
    log_r: np.ndarray | None
    offset: np.ndarray
    scale: np.ndarray
    columns: Columns

    def kernel(self, dtype):
        """Parameters and cells as the kernel takes them."""
        cast = lambda x: jnp.asarray(x, dtype)  # noqa: E731
        channel = Poisson() if self.log_r is None else NegativeBinomial(cast(self.log_r))
        parameters = Parameters(cast(self.mu), cast(self.W), cast(self.d), channel)
        mask = jnp.ones(len(self.u), dtype)
        none = jnp.zeros((len(self.u), 0), dtype)
        return parameters, Cells(cast(self.u), mask, cast(self.offset), cast(self.scale), none)

    def start(self, dtype):
        """Log-rates to start from."""
        return jnp.log(jnp.asarray(self.u, dtype) + 0.5)

    def with_(self, **changes):
        return replace(self, **changes)


def random_problem(channel, columns, n_cells=5, n_genes=7, k=2, seed=0, depth=8.0):
    """Counts drawn from the model, with every parameter random."""
    rng = np.random.default_rng(seed)
    mu = np.log(depth) + rng.normal(0, 1, n_genes)
    W = rng.normal(0, 0.6, (n_genes, k))
    d = rng.uniform(0.05, 0.6, n_genes)
    log_r = rng.normal(1.0, 0.8, n_genes) if channel == "nb" else None
    eta = rng.uniform(0.1, 1.0, n_cells)
    x = mu + rng.normal(size=(n_cells, k)) @ W.T + rng.normal(size=(n_cells, n_genes)) * np.sqrt(d)
    rate = np.exp(x - eta[:, None])
    if log_r is not None:
        rate = rng.gamma(np.exp(log_r), rate / np.exp(log_r))
    u = rng.poisson(rate).astype(float)
    u[:, 0] += 1
    scale = np.zeros((n_cells, 0))
    offset = -eta
    if columns == "latent":
        offset, scale = -(eta + rng.normal(0, 0.2, n_cells)), np.full((n_cells, 1), 0.5)
    elif columns == "flat":
        offset, scale = np.zeros(n_cells), np.ones((n_cells, 1))
    return Problem(u, mu, W, d, log_r, offset, scale, COLUMNS[columns])


def log_prob(u, f, log_r):
    """Of every count."""
    if log_r is None:
        return stats.poisson.logpmf(u, np.exp(f))
    r, m = np.exp(log_r), np.exp(f)
    return stats.nbinom.logpmf(u, r, r / (r + m))


def score(u, f, log_r):
    """Its derivative in the log-rate."""
    m = np.exp(f)
    return u - m if log_r is None else (u - m) * np.exp(log_r) / (np.exp(log_r) + m)


def information(u, f, log_r):
    """Minus its second derivative."""
    m = np.exp(f)
    if log_r is None:
        return m
    r = np.exp(log_r)
    return (u + r) * r * m / (r + m) ** 2


@dataclass(frozen=True)
class Posterior:
    """Laplace approximation of one cell over θ = (coordinates z̃, residuals ε)."""

    z: np.ndarray
    f: np.ndarray
    inverse: np.ndarray  # of the Hessian over θ
    var_f: np.ndarray  # (gene, gene)
    evidence: float
    eta: tuple[float, float] | None  # location, scale before truncation


def design_of(p, c):
    """W̃ of a cell, and the prior precision of its coordinates."""
    extra = np.array(p.columns.value) * p.scale[c]
    X = np.hstack([p.W, np.broadcast_to(extra, (len(p.mu), len(extra)))])
    return X, np.array([1.0] * p.W.shape[1] + list(p.columns.precision))


def posterior(p, c):
    """Mode by damped Newton over θ with its dense Hessian; evidence by its determinant."""
    X, prior = design_of(p, c)
    n, G = len(prior), len(p.mu)
    J = np.hstack([X, np.eye(G)])
    P = np.concatenate([prior, 1 / p.d])
    mean, u = p.mu + p.offset[c], p.u[c]

    def objective(theta):
        with np.errstate(over="ignore", invalid="ignore"):
            value = log_prob(u, mean + J @ theta, p.log_r).sum() - 0.5 * P @ theta**2
        return value if np.isfinite(value) else -np.inf

    theta = np.linalg.lstsq(J.T @ J + np.diag(P), J.T @ (np.log(u + 0.5) - mean), rcond=None)[0]
    for _ in range(200):
        f = mean + J @ theta
        gradient = J.T @ score(u, f, p.log_r) - P * theta
        H = J.T @ (information(u, f, p.log_r)[:, None] * J) + np.diag(P)
        step = np.linalg.solve(H, gradient)
        h = 1.0
        while objective(theta + h * step) < objective(theta) - 1e-9 and h > 1e-9:
            h /= 2
        theta = theta + h * step
        if np.abs(step).max() < 1e-11:
            break
    f = mean + J @ theta
    H = J.T @ (information(u, f, p.log_r)[:, None] * J) + np.diag(P)
    inverse = np.linalg.inv(H)
    proper = P > 0
    value = log_prob(u, f, p.log_r).sum() - 0.5 * P @ theta**2 + 0.5 * np.log(P[proper]).sum()
    value += -0.5 * np.linalg.slogdet(H)[1] + 0.5 * (~proper).sum() * np.log(2 * np.pi)
    eta = None
    if any(p.columns.truncated):
        e = p.W.shape[1] + p.columns.truncated.index(True)
        scale = abs(p.scale[c, e - p.W.shape[1]])
        eta = -p.offset[c] + scale * theta[e], scale * np.sqrt(inverse[e, e])
        value += stats.norm.logcdf(eta[0] / eta[1]) - stats.norm.logcdf(-p.offset[c] / scale)
    return Posterior(theta[:n], f, inverse[:n, :n], J @ inverse @ J.T, value, eta)


def total_evidence(p):
    """Sum over the cells."""
    return sum(posterior(p, c).evidence for c in range(len(p.u)))
