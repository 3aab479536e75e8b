"""Data of the NegBio-VAE benchmark: digits, Fashion-MNIST, and simulated spike trains.

Each function returns a `Data`: features (sample, feature) in train and test splits, and a label of
each sample for few-shot classification. Images are intensities from 0 to 1, flattened; spikes are
counts.
"""

import gzip
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Where Debian's package dataset-fashion-mnist puts the files of Xiao, Rasul and Vollgraf (2017).
FASHION = Path("/usr/share/datasets/fashion-mnist")


class Data(NamedTuple):
    """Features and labels of both splits."""

    name: str
    train: np.ndarray  # (sample, feature), float32
    test: np.ndarray
    train_labels: np.ndarray  # (sample,)
    test_labels: np.ndarray


def digits(seed: int = 0, test_share: float = 0.2) -> Data:
    """The 1,797 images of 8 × 8 that scikit-learn brings."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _split("digits", images / 16, labels, seed, test_share)


def fashion(n_train: int | None = 10_000, n_test: int | None = 2_000, seed: int = 0) -> Data:
    """Images of 28 × 28, the first numbers of a shuffle of each split; None takes all.

    Raises
    ------
    FileNotFoundError
        The Debian package dataset-fashion-mnist is not installed.
    """
    if not FASHION.is_dir():
        raise FileNotFoundError(f"{FASHION}: run `apt install dataset-fashion-mnist`")
    rng = np.random.default_rng(seed)
    parts = []
    for split, wanted in (("train", n_train), ("t10k", n_test)):
        images = _idx(FASHION / f"{split}-images-idx3-ubyte.gz")
        labels = _idx(FASHION / f"{split}-labels-idx1-ubyte.gz")
        chosen = rng.permutation(len(labels))[:wanted]
        flat = images.reshape(len(images), -1)[chosen]
        parts.append((flat.astype(np.float32) / 255, labels[chosen].astype(int)))
    (train, train_labels), (test, test_labels) = parts
    return Data("fashion", train, test, train_labels, test_labels)


def spikes(
    n_samples: int = 2_500,
    n_neurons: int = 100,
    n_causes: int = 8,
    dispersion: float = 2.0,
    noise: float = 5.0,
    seed: int = 0,
    test_share: float = 0.2,
) -> Data:
    """Overdispersed counts of neurons driven by a few bursting causes.

    A cause emits NB(``dispersion``) bursts whose mean depends on the sample's stimulus, its
    label; a neuron follows one to three causes, and its count is NB of concentration ``noise``
    with mean 0.2 + Σ weight × bursts. A sample's counts scatter with its bursts: variances are
    several times the means, and more so than independent noise of each neuron would make them.
    """
    rng = np.random.default_rng(seed)
    n_stimuli = 10
    tuning = rng.gamma(0.7, 2.0, (n_stimuli, n_causes))
    labels = rng.integers(n_stimuli, size=n_samples)
    gain = rng.gamma(dispersion, 1 / dispersion, (n_samples, n_causes))
    bursts = rng.poisson(tuning[labels] * gain)
    follows = rng.random((n_causes, n_neurons)).argsort(0) < rng.integers(1, 4, n_neurons)
    weights = follows * rng.gamma(2.0, 0.4, (n_causes, n_neurons))
    mean = 0.2 + bursts @ weights
    counts = rng.poisson(mean * rng.gamma(noise, 1 / noise, mean.shape))
    return _split("spikes", counts, labels, seed, test_share)


DATA = {"digits": digits, "fashion": fashion, "spikes": spikes}


def few_shot(labels: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Indices of ``shots`` random samples of each label."""
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.permutation(group)[:shots] for group in groups])


def _split(name: str, features: np.ndarray, labels: np.ndarray, seed: int, share: float) -> Data:
    order = np.random.default_rng(seed).permutation(len(labels))
    n_test = round(share * len(labels))
    test, train = order[:n_test], order[n_test:]
    features = features.astype(np.float32)
    return Data(name, features[train], features[test], labels[train], labels[test])


def _idx(path: Path) -> np.ndarray:
    """An array of bytes from a gzipped IDX file: two zeros, type 8, number of axes, sizes, data."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: no IDX file of bytes")
    sizes = np.frombuffer(raw, ">u4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)


if __name__ == "__main__":
    for load in DATA.values():
        data = load()
        mean, variance = data.train.mean(), data.train.var(0).mean()
        print(
            f"{data.name}: {data.train.shape} + {data.test.shape}, {len(set(data.test_labels))} "
            f"labels, mean {mean:.3f}, variance of a feature {variance:.3f}"
        )
