"""What a silo does with its rows, and how the adapter travels."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from silotune.settings.section import Positive, Section

LossOn = Literal["all", "last"]
"""Which answers of a conversation carry loss."""
CodecName = Literal["float32", "bfloat16", "int8"]
"""A module of `silotune.wire.codecs` each."""


class TrainingSettings(Section):
    """What a silo does with its rows in a round: supervised fine-tuning, by cross-entropy on the tokens of answers, the
    end of their turn included."""

    loss_on: LossOn = "all"
    """Which answers of a conversation carry loss: all, or the last one only. Turns that their rows exempt never do."""
    rounds: Positive = 5
    """Rounds of the federation."""
    steps: Positive | None = None
    """Optimizer steps per silo per round (20 where neither this nor `epochs` is given)."""
    epochs: Annotated[float, Field(gt=0, le=1e4, allow_inf_nan=False)] | None = None
    """Passes over a silo's rows per round, in place of `steps`."""
    batch: Positive = 8
    """Rows in a forward pass."""
    accumulation: Positive = 1
    """Forward passes to an optimizer step; the loss is the mean over all their response tokens."""
    learning_rate: Annotated[float, Field(ge=1e-12, le=10, allow_inf_nan=False)] = 1e-3
    """Peak rate of AdamW."""
    warmup: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.03
    """Share of the whole run (all rounds) over which the rate rises from 0."""
    final_rate: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.1
    """The cosine over all rounds ends at this share of the peak rate."""
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Decoupled weight decay of AdamW."""
    moments: Literal["reset", "keep"] = "reset"
    """Whether a silo's AdamW starts each round anew or where its last one ended. Worth trying where a round is a few
    steps."""
    clip: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] = 1.0
    """Largest norm of a step's gradient over the whole adapter."""
    proximal: Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False)] = 0.0
    """FedProx (Li et al. 2020, arXiv 1812.06127): mu of a term that holds a silo near the adapter that it received,
    0.001 to 0.01 for rounds of more than one pass over its rows; 0 is plain training."""

    @model_validator(mode="after")
    def _one_length(self) -> "TrainingSettings":
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give `steps` or `epochs`, not both: each sets how long a round is")
        return self


class WireSettings(Section):
    """How an adapter travels."""

    codec: CodecName = "float32"
    """Numbers on the wire, both ways: `float32` as they are; `bfloat16` in half the bytes; `int8` in a quarter, rounded
    by a draw, where what is lost of an update is added to the silo's next one."""
