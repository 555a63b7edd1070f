"""Floor 2: inner problems."""

from bilevel.objectives.archetypes import (
    Archetypes as Archetypes,
    ArchetypeWeights as ArchetypeWeights,
    HullPoints as HullPoints,
)
from bilevel.objectives.base import (
    AbstractExactObjective as AbstractExactObjective,
    AbstractObjective as AbstractObjective,
    Units as Units,
)
from bilevel.objectives.blocks import AbstractBlockObjective as AbstractBlockObjective, Quadratic as Quadratic
from bilevel.objectives.clamp import Clamp as Clamp
from bilevel.objectives.elastic_net import ElasticNet as ElasticNet
from bilevel.objectives.energy_autoencoder import Autoencoder as Autoencoder, EnergyAutoencoder as EnergyAutoencoder
from bilevel.objectives.function import FunctionObjective as FunctionObjective
from bilevel.objectives.least_squares import (
    AbstractLeastSquares as AbstractLeastSquares,
    LeastSquares as LeastSquares,
)
from bilevel.objectives.logistic import LogisticRegression as LogisticRegression
from bilevel.objectives.multiclass_svm import MulticlassSVM as MulticlassSVM
from bilevel.objectives.ridge import LinearModel as LinearModel, Ridge as Ridge
from bilevel.objectives.sparse_coding import SparseCoding as SparseCoding
