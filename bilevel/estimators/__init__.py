"""Floor 6: scikit-learn estimators."""

from bilevel.estimators.archetypal_analysis import ArchetypalAnalysis as ArchetypalAnalysis
from bilevel.estimators.dictionary_learning import DictionaryLearning as DictionaryLearning
from bilevel.estimators.energy_autoencoder import EnergyAutoencoder as EnergyAutoencoder
from bilevel.estimators.persistence import load as load, save as save
from bilevel.estimators.task_driven import (
    TaskDrivenDictionaryClassifier as TaskDrivenDictionaryClassifier,
    TaskDrivenDictionaryRegressor as TaskDrivenDictionaryRegressor,
)
from bilevel.estimators.tuned import ElasticNetTuned as ElasticNetTuned, RidgeTuned as RidgeTuned
