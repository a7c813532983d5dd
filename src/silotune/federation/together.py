"""Several silos of this process trained in one pass, before each of them answers its own message.

A silo that cannot take part, and all of them where the pass cannot be had, are left to their own answers: there each
trains alone, or says what is wrong with it.
"""

import functools
import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from flwr.app import Context, Message

from silotune.federation.app import MOST_BYTES
from silotune.federation.messages import envelope
from silotune.federation.nodes import silo_of
from silotune.model.adapter import AdapterState
from silotune.silo.start import Start, begin
from silotune.silo.train import TRAINED
from silotune.silo.work import Work, prepare
from silotune.training.local_run import StepReport, TrainingTask, TrainingTotals
from silotune.training.optimizer import Moments
from silotune.training.together import TrainingOutcome, can_stack, train_together

logger = logging.getLogger(__name__)


@contextmanager
def trained(asked: Sequence[tuple[Message, Context]]) -> Iterator[None]:
    """Train the silos that are asked to; while it lasts, each answers with what it has come to.

    Args:
        asked: messages of kind `train` and one round, each with the node that it goes to.
    """
    outcomes = _outcomes([work for work in map(_work, asked) if work is not None])
    token = TRAINED.set(outcomes)
    try:
        yield
    finally:
        TRAINED.reset(token)


def _work(asked: tuple[Message, Context]) -> tuple[Work, Start] | None:
    """What a silo is to do, or None where that cannot be found out: its own answer will say why."""
    message, context = asked
    try:
        request = envelope(message, "down", "train", MOST_BYTES)
        work = prepare(request, silo_of(context.node_config))
        return work, begin(request, work)
    except Exception:
        return None


def _outcomes(
    works: Sequence[tuple[Work, Start]],
) -> Mapping[tuple[str, int], Callable[[], tuple[TrainingTotals, AdapterState, Moments | None]]]:
    """What the silos have come to, by name and round; nothing where they are to be trained alone."""
    alike = [asked for asked in works if _alike(asked[0], works[0][0])]
    if len(alike) < 2:
        return {}
    first = alike[0][0]
    if not can_stack(first.tuner.model):
        logger.warning("federation.together: this model cannot train silos in one pass exactly; each trains alone")
        return {}
    parts = [
        TrainingTask(work.silo.files.name, work.corpus.train, start.received.adapter, start.trainable, _shown(work),
             start.moments, start.drift)
        for work, start in alike
    ]  # fmt: skip
    try:
        outcomes = train_together(
            first.tuner, first.forward_plan, parts, first.job.training, first.job.seed, first.round
        )
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
        logger.warning("federation.together: a pass over %d silos broke (%s); each trains alone", len(parts), place)
        return {}
    told = {part.silo: functools.partial(_told, part, outcome) for part, outcome in zip(parts, outcomes, strict=True)}
    return {(silo, first.round): tell for silo, tell in told.items()}


def _told(part: TrainingTask, outcome: TrainingOutcome) -> tuple[TrainingTotals, AdapterState, Moments | None]:
    return (*outcome.result(), part.moments)


def _alike(work: Work, first: Work) -> bool:
    """Whether two silos were given the same job on the same resident model."""
    return work.tuner is first.tuner and (work.job, work.round) == (first.job, first.round)


def _shown(work: Work) -> Callable[[StepReport], None]:
    def show(step: StepReport) -> None:
        work.progress(**asdict(step))

    return show
