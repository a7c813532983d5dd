"""A silo's worker: the one object that reads its text, and answers envelopes.

It is the same in a simulation, on the inline engine and on a member's machine. There it has a process, a user and a
socket of its own (`local_socket`), and a policy that it looks up first.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from silotune.data.silos.sources import SiloConfig
from silotune.silo.answer import ANSWERS, Answers, guarded
from silotune.silo.progress import Progress
from silotune.wire.envelope import Envelope


def everything(request: Envelope, silo: SiloConfig) -> None:
    """The policy of a silo that has none: all that a recipe may ask for."""


@dataclass(frozen=True)
class Worker:
    """What a silo holds, what it allows, and how it answers."""

    silo: SiloConfig
    allow: Callable[[Envelope, SiloConfig], None] = everything
    """Raises where the silo's policy does not allow a request; called before anything is loaded for it."""
    answers: Answers = field(default_factory=lambda: ANSWERS)
    """What answers each kind of request."""

    def answer(self, request: Envelope) -> Envelope:
        """Answer one request; what goes wrong is an answer too, in words that carry no text."""

        def work() -> Envelope:
            round_ = int(request.fields.get("round", 0))
            Progress(self.silo.scratch, self.silo.files.name, round_, request.kind).still_wanted()
            self.allow(request, self.silo)
            return self.answers[request.kind](request, self.silo)

        return guarded(request.kind, work, self.silo)
