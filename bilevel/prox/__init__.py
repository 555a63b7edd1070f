"""Floor 1: penalties and constraints as objects that know their geometry."""

from bilevel.prox.base import (
    AbstractConstraint as AbstractConstraint,
    AbstractPenalty as AbstractPenalty,
    AbstractPolyhedralPenalty as AbstractPolyhedralPenalty,
    AbstractSparsePenalty as AbstractSparsePenalty,
)
from bilevel.prox.box import Box as Box, NonNegative as NonNegative
from bilevel.prox.group import GroupL1 as GroupL1
from bilevel.prox.separable import (
    BlockSeparable as BlockSeparable,
    PolyhedralBlockSeparable as PolyhedralBlockSeparable,
    block_separable as block_separable,
)
from bilevel.prox.simplex import Simplex as Simplex
from bilevel.prox.sparse import L1 as L1, ElasticNet as ElasticNet, ShiftedL1 as ShiftedL1
from bilevel.prox.sphere import UnitBall as UnitBall, UnitSphere as UnitSphere
