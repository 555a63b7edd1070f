"""Gene expression of breast cancers: many more features than samples."""

import hashlib
import io
import warnings
from typing import Any, NamedTuple

import numpy as np

from bilevel.datasets.packages import packaged_file

_ADVICE = "pip install SurvSet==0.2.11"
_SHA256 = "634657437682040e156425b4e90998e177d93a2f9f294bbf927074a86bde0c97"


class GeneExpression(NamedTuple):
    """`X` (samples, genes), log ratios to a reference; `time` (samples,) in years until death or the end of
    observation; `event` (samples,), whether it was death."""

    X: np.ndarray
    time: np.ndarray
    event: np.ndarray


def load_gene_expression(dtype: type = np.float32) -> GeneExpression:
    """295 women with breast cancer, 4,919 genes: the Dutch Breast Cancer Data ("DBCD").

    M. J. van de Vijver et al., "A gene-expression signature as a predictor of survival in breast cancer", New England
    Journal of Medicine 347, 2002; no licence stated; as packaged by SurvSet 0.2.11. That package is under the GPL, and
    is in none of the extras: install it by `pip install SurvSet==0.2.11`. Nothing of it is imported.

    The data are a pickle, which can run any code when it is read. So it is read only if it is, byte by byte, the one
    that was examined (by its SHA-256); else `ValueError`. Reading it takes pandas.
    """
    path = packaged_file("SurvSet", "resources/pickles/DBCD.pickle", "SurvSet", _ADVICE)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise ValueError(f"{path.name} is not the file of SurvSet 0.2.11, so it is not unpickled. Try: {_ADVICE}")
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("These data are read by pandas. Install it with: pip install pandas") from error
    with warnings.catch_warnings():
        # It was pickled by an older NumPy.
        warnings.filterwarnings("ignore", message="numpy.core", category=DeprecationWarning)
        table: Any = pd.read_pickle(io.BytesIO(content))
    X = table.filter(like="num_gene_").to_numpy(dtype)
    return GeneExpression(X, table["time"].to_numpy(dtype), table["event"].to_numpy() == 1)
