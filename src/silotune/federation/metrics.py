"""The lines of metrics.jsonl: one per silo per round, and one per round."""

import math
from collections.abc import Mapping
from typing import NotRequired, TypedDict

from silotune.aggregation.interface import Aggregate
from silotune.federation.cohort import bounded


class Evaluation(TypedDict):
    """Held-out figures, of a silo or over all."""

    loss: float
    perplexity: float
    token_accuracy: float
    tokens: int
    rows: NotRequired[int]
    """How many rows were scored; the figures over all silos do not say it."""


class TrainFigures(TypedDict):
    """What a silo said of its training: the fields of its answer (`wire.envelope.DECLARED`)."""

    steps: int
    loss: float
    tokens: int
    loss_tokens: int
    seconds: float
    examples: NotRequired[int]
    codec_error: NotRequired[float]
    rates: NotRequired[float]
    """Sum of the steps' learning rates; only lines of models that were trained without a federation have it."""


class SiloLine(TypedDict):
    """A silo's line of a round."""

    round: int
    silo: str
    status: str
    reason: str | None
    weight: int | None
    train: TrainFigures | None
    evaluation: Evaluation | None
    bytes_down: int
    bytes_up: int


class RoundLine(TypedDict):
    """A round's own line."""

    round: int
    silo: None
    silos: int
    left_out: list[str]
    e_agg: float | None
    train_loss: float | None
    evaluation: Evaluation | None
    bytes_down: int
    bytes_up: int
    seconds: float


Line = SiloLine | RoundLine


def silo_line(round_: int, name: str, weight: int | None, bytes_down: int = 0, bytes_up: int = 0) -> SiloLine:
    """A silo's line of a round, to be filled in; `weight` is None where it was only evaluated."""
    return {
        "round": round_,
        "silo": name,
        "status": "ok",
        "reason": None,
        "weight": weight,
        "train": None,
        "evaluation": None,
        "bytes_down": bytes_down,
        "bytes_up": bytes_up,
    }


def figures(loss: float, tokens: int, correct: int) -> Evaluation:
    """Held-out figures from sums: loss in nats and correct first choices over `tokens` tokens."""
    mean = loss / tokens
    return {
        "loss": mean,
        "perplexity": math.exp(min(mean, 700.0)),
        "token_accuracy": correct / tokens,
        "tokens": tokens,
    }


def round_line(
    round_: int, aggregate: Aggregate | None, lines: Mapping[str, SiloLine], seconds: float, most: float
) -> RoundLine:
    """The round's own line.

    Means over silos are weighted by held-out tokens (evaluation) or loss tokens (training). Silos count these
    themselves, so that, as in the aggregation, none weighs more than the share `most`.
    """
    scores = {name: line["evaluation"] for name, line in lines.items() if line["evaluation"]}
    held_out = bounded({name: score["tokens"] for name, score in scores.items()}, most)
    trained = {name: line["train"] for name, line in lines.items() if line["train"]}
    learned = bounded({name: train["loss_tokens"] for name, train in trained.items()}, most)
    summary: RoundLine = {
        "round": round_,
        "silo": None,
        "silos": len(aggregate.silos) if aggregate else 0,
        "left_out": sorted(name for name, line in lines.items() if line["status"] != "ok"),
        "e_agg": aggregate.e_agg if aggregate else None,
        "train_loss": None,
        "evaluation": None,
        "bytes_down": sum(line["bytes_down"] for line in lines.values()),
        "bytes_up": sum(line["bytes_up"] for line in lines.values()),
        "seconds": seconds,
    }
    if tokens := sum(held_out.values()):
        loss = sum(scores[name]["loss"] * weight for name, weight in held_out.items())
        correct = sum(scores[name]["token_accuracy"] * weight for name, weight in held_out.items())
        summary["evaluation"] = figures(loss, tokens, round(correct))
    if trained:
        loss = sum(trained[name]["loss"] * weight for name, weight in learned.items())
        summary["train_loss"] = loss / sum(learned.values())
    return summary
