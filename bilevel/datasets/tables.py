"""Small tables, standardized and split."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn import datasets
from sklearn.model_selection import train_test_split


class Part(NamedTuple):
    """`X` (samples, features); `y` (samples,)."""

    X: np.ndarray
    y: np.ndarray


class Table(NamedTuple):
    """Three parts of a table, standardized by the first: its features have mean 0 and variance 1.

    What is known of the validation and test part does not enter; a feature that is constant in training is only
    centered.

    **Attributes:**

    - `train`, `validation`, `test`: `Part`s; one whose fraction is 0 has no samples.
    - `feature_names`; `target_names`: of the classes 0, 1, …, empty for a regression.
    - `target_mean`, `target_scale`: of a regression,  target = target_scale · y + target_mean; else 0 and 1.
    """

    train: Part
    validation: Part
    test: Part
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_scale: float = 1.0


def load_diabetes(
    dtype: type = np.float32, *, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2), seed: int = 0
) -> Table:
    """442 patients with diabetes, 10 features; how far the disease is a year later (standardized, too).

    B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, "Least Angle Regression", Annals of Statistics 32, 2004; no
    licence stated; as packaged by scikit-learn.

    **Arguments:** `fractions` of training, validation and test, of sum 1: (1, 0, 0) is the whole table; `seed` of the
    split.
    """
    data: Any = datasets.load_diabetes(scaled=False)
    parts = _split(data.data, data.target, fractions, seed, stratify=False)
    mean, scale = float(parts[0].y.mean()), float(parts[0].y.std())
    parts = [Part(part.X, (part.y - mean) / scale) for part in parts]
    train, validation, test = _standardized(parts, dtype)
    return Table(train, validation, test, tuple(data.feature_names), (), mean, scale)


def load_breast_cancer(
    dtype: type = np.float32, *, fractions: tuple[float, float, float] = (0.6, 0.2, 0.2), seed: int = 0
) -> Table:
    """569 tumors of the breast, 30 features of the nuclei of their cells; `y` is 0 malignant (212), 1 benign (357).

    "Breast Cancer Wisconsin (Diagnostic)", W. H. Wolberg, W. N. Street and O. L. Mangasarian, 1995, UCI Machine
    Learning Repository (CC BY 4.0), as packaged by scikit-learn.

    **Arguments:** as of `load_diabetes`. Each part has both classes in the same proportion.
    """
    data: Any = datasets.load_breast_cancer()
    train, validation, test = _standardized(_split(data.data, data.target, fractions, seed, stratify=True), dtype)
    names = tuple(str(name) for name in data.feature_names), tuple(str(name) for name in data.target_names)
    return Table(train, validation, test, *names)


def _split(X: np.ndarray, y: np.ndarray, fractions: Any, seed: int, *, stratify: bool) -> list[Part]:
    given = np.asarray(fractions, float)
    if given.shape != (3,) or not np.all(given >= 0) or given[0] == 0 or not np.isclose(given.sum(), 1):
        raise ValueError(
            f"`fractions` must be those of training (more than 0), validation and test, with sum 1, got {fractions!r}."
        )
    counts = np.round(given * len(X)).astype(int)
    counts[0] = len(X) - counts[1] - counts[2]
    rest, parts = np.arange(len(X)), []
    for count in counts[:0:-1]:
        taken = rest[:0]
        if count:
            labels = y[rest] if stratify else None
            rest, taken = train_test_split(rest, test_size=int(count), random_state=seed, stratify=labels)
        parts.append(Part(X[taken], y[taken]))
    return [Part(X[rest], y[rest]), *parts[::-1]]


def _standardized(parts: list[Part], dtype: type) -> list[Part]:
    X: Float[np.ndarray, "samples features"] = parts[0].X
    mean, scale = X.mean(axis=0), X.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    to = lambda y: y if np.issubdtype(y.dtype, np.integer) else y.astype(dtype)
    return [Part(((part.X - mean) / scale).astype(dtype), to(part.y)) for part in parts]
