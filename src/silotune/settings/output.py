"""What is measured, shown and passed on."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from silotune.settings.section import Section


class EvaluationSettings(Section):
    """Held-out loss, perplexity and token accuracy at the silos."""

    every: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Evaluate after each n-th round, and always the base and the last; 0: the last only, with the base."""


class ReportSettings(Section):
    """What the report may show."""

    samples: Annotated[int, Field(ge=0, le=20)] = 0
    """Held-out questions per silo to answer in the report with the base and the tuned model. Their text is then
    in the report and on this machine: for simulations only."""
    names: bool = True
    """Whether the model card, which goes where the adapter goes, names the silos; else it numbers them."""


class TrackerSettings(Section):
    """Copies of the figures for other tools, written by the server; each needs its package (`pip install
    "silotune[tensorboard]"` and so on)."""

    tensorboard: bool = False
    """Write TensorBoard files into the run's folder `tensorboard`."""
    mlflow: bool = False
    """Keep the figures with MLflow."""
    mlflow_uri: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """MLflow's tracking URI, a server (`http://...`) or a database (`sqlite:///...`); a database in the run's folder if
    not given, whatever the environment says. Silos' names go there."""
    wandb: bool = False
    """Keep the figures with Weights & Biases, in the run's folder `wandb`."""
    wandb_mode: Literal["offline", "online"] = "offline"
    """`offline`: files only, for `wandb sync`; `online`: they are sent to the service, with the silos' names."""

    @model_validator(mode="after")
    def _of_what_is_on(self) -> "TrackerSettings":
        if self.mlflow_uri is not None and not self.mlflow:
            raise ValueError("`mlflow_uri` is given and `mlflow` is off: switch it on, or remove the URI")
        if self.wandb_mode == "online" and not self.wandb:
            raise ValueError('`wandb_mode = "online"` and `wandb` off contradict each other')
        return self
