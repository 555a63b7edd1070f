"""Floor 5: bilevel problems and how they are trained."""

from bilevel.outer import monitors as monitors
from bilevel.outer.comparison import ModeComparison as ModeComparison, compare_modes as compare_modes
from bilevel.outer.hypergradient import Hypergradient as Hypergradient, hypergradient as hypergradient
from bilevel.outer.loop import Fitted as Fitted
from bilevel.outer.problem import BilevelProblem as BilevelProblem, Constrained as Constrained, Variables as Variables
from bilevel.outer.search import Search as Search, search as search
from bilevel.outer.state import StepMetrics as StepMetrics, TrainingState as TrainingState
from bilevel.outer.trainer import Trainer as Trainer
