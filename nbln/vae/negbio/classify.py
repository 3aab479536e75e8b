"""How well few labelled codes tell the labels of others."""

import numpy as np
from jaxtyping import Float

MOST_STEPS = 2_000  # of the logistic regression; on ten digits 100 are enough


def accuracy(code: Float[np.ndarray, "cell factor"], labels: np.ndarray, n_shots: int, seed: int):
    """Share of right labels among samples that the regression has not seen.

    Raises
    ------
    ValueError, ImportError
        As `NegBioResult.few_shot_accuracy`.
    """
    call = "few_shot_accuracy"
    if labels.shape != (len(code),):
        raise ValueError(
            f"{call}(labels=): one label for each of {len(code)} samples, given {labels.shape}"
        )
    kinds, numbers, sizes = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    if len(kinds) < 2:
        raise ValueError(f"{call}(labels=): a single label; there is nothing to tell apart")
    if sizes.min() <= n_shots:
        rare = str(kinds[sizes.argmin()])
        raise ValueError(
            f"{call}(n_shots={n_shots}): label {rare!r} has {sizes.min()} samples, of which none "
            "would be left to be asked of"
        )
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ImportError(
            f'{call}: needs scikit-learn; install it by pip install "nbln[classify]"'
        ) from error
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(code))
    seen = np.concatenate([shuffled[numbers[shuffled] == k][:n_shots] for k in range(len(kinds))])
    other = np.setdiff1d(shuffled, seen)
    mean, sd = code[seen].mean(axis=0), code[seen].std(axis=0)
    scaled = (code - mean) / np.where(sd > 0, sd, 1)
    regression = LogisticRegression(max_iter=MOST_STEPS).fit(scaled[seen], numbers[seen])
    return float(np.mean(regression.predict(scaled[other]) == numbers[other]))
