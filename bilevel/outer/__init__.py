"""Floor 5: bilevel problems and how they are trained."""

from bilevel.outer.loop import Fitted as Fitted
from bilevel.outer.problem import BilevelProblem as BilevelProblem, Constrained as Constrained, Variables as Variables
from bilevel.outer.state import StepMetrics as StepMetrics, TrainingState as TrainingState
from bilevel.outer.trainer import Trainer as Trainer
