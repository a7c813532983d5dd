"""Every setting of a run, with its bounds and what it means. `recipe` reads them from a file.

The docstrings here are the reference in `docs/recipe.md`, word for word.
"""

from silotune.settings.data import HUB, ON_TOP, DataSettings, PoolSettings, SiloSource, SystemTurns, TextRows
from silotune.settings.federation import SERVER_OPTIONS, AlgorithmName, FederationSettings, ServerOptimizerName
from silotune.settings.model import NOT_NF4, LoraSettings, ModelSettings
from silotune.settings.output import EvaluationSettings, ReportSettings, TrackerSettings
from silotune.settings.recipe import Job, Recipe
from silotune.settings.training import CodecName, LossOn, TrainingSettings, WireSettings

__all__ = [
    "HUB", "NOT_NF4", "ON_TOP", "SERVER_OPTIONS", "AlgorithmName", "CodecName", "DataSettings", "EvaluationSettings",
    "FederationSettings", "Job", "LoraSettings", "LossOn", "ModelSettings", "PoolSettings", "Recipe", "ReportSettings",
    "ServerOptimizerName", "SiloSource", "SystemTurns", "TextRows", "TrackerSettings", "TrainingSettings",
    "WireSettings",
]  # fmt: skip
