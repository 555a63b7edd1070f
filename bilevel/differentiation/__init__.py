"""Floor 4: `argmin`, and how it is differentiated."""

from bilevel.differentiation.argmin import argmin as argmin, default_solver as default_solver
from bilevel.differentiation.base import AbstractDifferentiation as AbstractDifferentiation
from bilevel.differentiation.certificate import Certificate as Certificate, OuterLoss as OuterLoss
from bilevel.differentiation.check import (
    HypergradientCheck as HypergradientCheck,
    check_hypergradient as check_hypergradient,
)
from bilevel.differentiation.implicit import Implicit as Implicit
from bilevel.differentiation.jaxopt_implicit import JaxoptImplicit as JaxoptImplicit
from bilevel.differentiation.shine import Shine as Shine
from bilevel.differentiation.truncated import OneStep as OneStep, Truncated as Truncated
from bilevel.differentiation.unrolled import Unrolled as Unrolled
