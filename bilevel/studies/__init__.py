"""Studies: one function each, which solves a problem by all that the library has and returns what came out as data.

A side room like `datasets` and `plots`: notebooks and benchmarks use it, floors 0 to 6 never do.
"""

from bilevel.studies.clamp import ClampStudy as ClampStudy, Curves as Curves, clamp_study as clamp_study
from bilevel.studies.ridge import (
    RidgeStudy as RidgeStudy,
    RidgeTuning as RidgeTuning,
    ridge_study as ridge_study,
    tune_ridge as tune_ridge,
)
