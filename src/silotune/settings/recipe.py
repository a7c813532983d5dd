"""The whole of a run's settings, and the part of it that a silo is sent."""

from collections.abc import Set
from typing import Annotated

from pydantic import Field, model_validator

from silotune.settings.data import DataSettings, Holdout, MaxLength, SystemTurns
from silotune.settings.federation import AlgorithmName, FederationSettings
from silotune.settings.model import NOT_NF4, LoraSettings, ModelSettings
from silotune.settings.output import EvaluationSettings, ReportSettings, TrackerSettings
from silotune.settings.section import Positive, Section, Share
from silotune.settings.training import CodecName, TrainingSettings, WireSettings

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
RunIdentity = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


WITH_DORA: Set[AlgorithmName] = frozenset({"fedavg", "scaffold"})
"""Methods that DoRA's adapters go with."""


class Recipe(Section):
    """Every setting of a run."""

    name: RunName = "run"
    """Name of the run: letters, digits, `.`, `_` and `-`."""
    seed: Seed = 0
    """Random seed. Runs with the same seed are identical."""
    model: ModelSettings = ModelSettings()
    lora: LoraSettings = LoraSettings()
    data: DataSettings = DataSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    wire: WireSettings = WireSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    report: ReportSettings = ReportSettings()
    trackers: TrackerSettings = TrackerSettings()

    @model_validator(mode="after")
    def _no_contradiction(self) -> "Recipe":
        model, federation, pool = self.model, self.federation, self.data.pool
        if model.device == "cpu" and model.dtype in ("bfloat16", "nf4"):
            raise ValueError(f"model.device = \"cpu\" and model.dtype = \"{model.dtype}\" contradict each other: "
                             "those numbers need CUDA")  # fmt: skip
        if federation.together > 1 and federation.engine != "inline":
            raise ValueError(f"federation.together = {federation.together} and federation.engine = "
                             f"\"{federation.engine}\" contradict each other: silos train in one pass in one process "
                             "only; take engine = \"inline\", or together = 1")  # fmt: skip
        if federation.together > 1 and self.lora.dropout:
            raise ValueError(f"federation.together = {federation.together} and lora.dropout = {self.lora.dropout:g} "
                             "contradict each other: what is dropped would be another thing than for each silo alone; "
                             "take together = 1, or no dropout")  # fmt: skip
        if self.lora.kind == "dora":
            self._require_dora()
        if federation.silos is not None and federation.silos < federation.minimum:
            raise ValueError(f"federation.silos = {federation.silos} and federation.minimum = {federation.minimum} "
                             "contradict each other: a round would never count")  # fmt: skip
        if pool is not None and pool.silos is not None and pool.silos < federation.minimum:
            raise ValueError(f"data.pool.silos = {pool.silos} and federation.minimum = {federation.minimum} "
                             "contradict each other: a round would never count")  # fmt: skip
        return self

    def _require_dora(self) -> None:
        """Refuse what goes with LoRA and not with DoRA."""
        federation = self.federation
        if federation.algorithm not in WITH_DORA:
            raise ValueError(f"lora.kind = \"dora\" and federation.algorithm = \"{federation.algorithm}\" do not go "
                             "together: that method is for an exact mean of the products BA, and DoRA's rows are "
                             "divided by norms that depend on BA; take \"fedavg\" or \"scaffold\"")  # fmt: skip
        if federation.together > 1:
            raise ValueError(f"federation.together = {federation.together} and lora.kind = \"dora\" contradict each "
                             "other: each silo's rows have norms of their own, so one pass saves nothing; take "
                             "together = 1")  # fmt: skip
        if self.training.weight_decay:
            raise ValueError(f"training.weight_decay = {self.training.weight_decay:g} and lora.kind = \"dora\" do not "
                             "go together: a magnitude that decays to 0 takes the base's weights with it; take "
                             "weight_decay = 0")  # fmt: skip
        if self.model.dtype == "nf4":
            raise ValueError(f'model.dtype = "nf4": {NOT_NF4}')


class Job(Section):
    """The part of a recipe that a silo is sent: no path of anybody's machine, no setting of the server."""

    name: RunName
    run: RunIdentity
    """The run's own, drawn when it was made: what a silo remembers of one run is never used in another."""
    seed: Seed
    base: Annotated[str, Field(min_length=1, max_length=256)]
    """An embedded name or a hub id, or `local` where every silo holds the base in a place of its own."""
    lora: LoraSettings
    max_length: MaxLength
    system: SystemTurns
    training: TrainingSettings
    holdout: Holdout
    """For a silo without a test file whose node does not say its own, and, on a machine of its own, has none yet."""
    algorithm: AlgorithmName
    codec: CodecName
    minimum: Positive
    """Updates that a round must have to count: the server's promise, as is the next."""
    max_share: Share
