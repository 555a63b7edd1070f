"""Floor 4: `argmin`, and how it is differentiated."""

from bilevel.differentiation.argmin import argmin as argmin, default_solver as default_solver
from bilevel.differentiation.base import AbstractDifferentiation as AbstractDifferentiation
from bilevel.differentiation.implicit import Implicit as Implicit
from bilevel.differentiation.unrolled import Unrolled as Unrolled
