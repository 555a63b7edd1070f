"""What the parameters of the estimators must be, in code and in words."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from bilevel.scale import DeviceMesh


def check_parameters(parameters: dict[str, Any]) -> None:
    """Raise `ValueError` for the first parameter that is out of its range; `init` is seen to by its own function."""
    for name, value in parameters.items():
        if name in _WANTED:
            is_good, words = _WANTED[name]
            if not is_good(value):
                raise ValueError(f"`{name}` must be {words}, got {value!r}.")
    if parameters.get("mesh") is not None:
        # Refuses more devices than there are.
        DeviceMesh.of(int(parameters["mesh"]))


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _is_whole_or_none(value: Any) -> bool:
    return value is None or _is_whole(value)


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(float(value)))


def _is_nonnegative(value: Any) -> bool:
    return _is_finite(value) and value >= 0


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0


def _is_ratio_or_none(value: Any) -> bool:
    return value is None or (_is_positive(value) and value <= 1)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_ | Integral)


def _is_seed(value: Any) -> bool:
    is_number = isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < 2**32
    return value is None or value is np.random or is_number or isinstance(value, np.random.RandomState)


_WANTED = {
    "n_components": (_is_whole_or_none, "a whole number of at least 1, or None for the number of features"),
    "n_archetypes": (_is_whole, "a whole number of at least 1"),
    "l1": (_is_nonnegative, "finite and not negative"),
    "l2": (_is_nonnegative, "finite and not negative"),
    "alpha": (_is_nonnegative, "finite and not negative"),
    "decoder_weight": (_is_positive, "finite and positive"),
    "encoder_weight": (_is_positive, "finite and positive"),
    "max_iter": (_is_whole, "a whole number of at least 1"),
    "tol": (_is_nonnegative, "finite and not negative"),
    "batch_size": (_is_whole_or_none, "a whole number of at least 1, or None for all samples at once"),
    "learning_rate": (_is_positive, "finite and positive"),
    "random_state": (_is_seed, "None, a whole number from 0 to 2**32 - 1, or a numpy.random.RandomState"),
    "normalize": (_is_flag, "True or False"),
    "mesh": (_is_whole_or_none, "a whole number of devices, at least 1, or None"),
    "verbose": (_is_flag, "True or False"),
    "l1_ratio": (_is_ratio_or_none, "above 0 and at most 1, or None to choose l1 and l2 both"),
    "per_feature": (_is_flag, "True or False"),
    "fit_intercept": (_is_flag, "True or False"),
}
