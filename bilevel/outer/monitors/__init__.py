"""Callbacks that watch a training: logs, what they can measure, and dead atoms brought back to life."""

from bilevel.outer.callbacks import AbstractMonitor as AbstractMonitor
from bilevel.outer.monitors.certificate import HypergradientCertificate as HypergradientCertificate
from bilevel.outer.monitors.console import Console as Console
from bilevel.outer.monitors.files import CSVLog as CSVLog, JSONLines as JSONLines
from bilevel.outer.monitors.reseeding import ReseedDeadAtoms as ReseedDeadAtoms
from bilevel.outer.monitors.sparsity import Sparsity as Sparsity
from bilevel.outer.monitors.tensorboard import TensorBoard as TensorBoard
