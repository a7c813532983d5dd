"""Several silos of this process trained in one pass, before each of them answers its own message.

A silo that cannot take part, and all of them where the pass cannot be had, are left to their own answers: there each
trains alone, or says what is wrong with it.
"""

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Context, Message
from flwr.serverapp import Grid

from silotune.data.silos.sources import SiloConfig
from silotune.federation.app import MOST_BYTES, PARTITION
from silotune.federation.inline import run_inline
from silotune.federation.messages import envelope
from silotune.silo.answer import ANSWERS
from silotune.silo.start import Start
from silotune.silo.train import finished, ready, train
from silotune.silo.work import Work
from silotune.silo.worker import Worker
from silotune.training.local_run import StepReport, TrainingTask
from silotune.training.together import TrainingOutcome, can_stack, train_together
from silotune.wire.envelope import Envelope

logger = logging.getLogger(__name__)


def run_together(serve: Callable[[Grid], object], silos: Sequence[SiloConfig], most: int) -> None:
    """Run a ServerApp inline, with at most so many silos trained in one pass; what `serve` raises comes through."""
    together = Together(silos, most)
    run_inline(serve, [Worker(silo, answers={**ANSWERS, "train": together.train}) for silo in silos], together)


class Together:
    """Silos of a round that are trained in one pass; each is then asked, and answers with what it has come to."""

    def __init__(self, silos: Sequence[SiloConfig], most: int) -> None:
        """Train at most so many of these silos, numbered by their partitions, in a pass."""
        self.most = most
        self._silos = silos
        self._done: dict[tuple[str, int], Done] = {}

    def train_all(self, asked: Sequence[tuple[Message, Context]]) -> None:
        """Train the silos that are asked to, where that is possible in one pass.

        Args:
            asked: messages of kind `train` and one round, each with the node that it goes to.
        """
        self._done = _outcomes([begun for begun in map(self._begun, asked) if begun is not None])

    def train(self, request: Envelope, silo: SiloConfig) -> Envelope:
        """Answer for a silo: with what came of the pass, or of its own training if it was in none.

        Raises:
            Exception: what ended the silo's part of the pass, or its training.
        """
        done = self._done.pop((silo.files.name, int(request.fields["round"])), None)
        if done is None:
            return train(request, silo)
        return finished(done.work, done.start, *done.outcome.result(), done.start.moments)

    def _begun(self, asked: tuple[Message, Context]) -> tuple[Work, Start] | None:
        """What a silo is to do, or None where that cannot be found out: its own answer will say why."""
        message, context = asked
        try:
            silo = self._silos[int(context.node_config[PARTITION])]
            return ready(envelope(message, "down", "train", MOST_BYTES), silo)
        except Exception:
            return None


@dataclass(frozen=True)
class Done:
    """A silo's part of a pass."""

    work: Work
    start: Start
    outcome: TrainingOutcome


def _outcomes(begun: Sequence[tuple[Work, Start]]) -> dict[tuple[str, int], Done]:
    """What the silos have come to, by name and round; nothing where they are to be trained alone."""
    alike = [asked for asked in begun if _alike(asked[0], begun[0][0])]
    if len(alike) < 2:
        return {}
    first = alike[0][0]
    if not can_stack(first.tuner.model):
        logger.warning("federation.together: this model cannot train silos in one pass exactly; each trains alone")
        return {}
    tasks = [
        TrainingTask(work.silo.files.name, work.corpus.train, start.received.adapter, start.trainable, _shown(work),
                     start.moments, start.drift)
        for work, start in alike
    ]  # fmt: skip
    try:
        outcomes = train_together(
            first.tuner, first.forward_plan, tasks, first.job.training, first.job.seed, first.round
        )
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
        logger.warning("federation.together: a pass over %d silos broke (%s); each trains alone", len(tasks), place)
        return {}
    return {
        (work.silo.files.name, work.round): Done(work, start, outcome)
        for (work, start), outcome in zip(alike, outcomes, strict=True)
    }


def _alike(work: Work, first: Work) -> bool:
    """Whether two silos were given the same job on the same resident model."""
    return work.tuner is first.tuner and (work.job, work.round) == (first.job, first.round)


def _shown(work: Work) -> Callable[[StepReport], None]:
    def show(step: StepReport) -> None:
        work.progress(**asdict(step))

    return show
