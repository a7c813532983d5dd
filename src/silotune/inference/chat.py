"""A run's model, ready to answer: prompts become the tokens that training would make of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from silotune.data.read.rows import Conversation, Turn
from silotune.data.tokenize.tokens import encode_beginning, encode_prompt
from silotune.errors import RunError
from silotune.federation.run import RunFolder
from silotune.inference import batched, generation
from silotune.inference.generation import Reply, Sampling
from silotune.model import lora
from silotune.model.adapter import AdapterState, fault_of
from silotune.model.base import place, published_name
from silotune.model.tuner import Tuner, tuner
from silotune.settings import SystemTurns

WINDOW = 16
"""Batches of prompts that are sorted by length together; their answers come when all of them are there."""

Said = Conversation | Sequence[Turn] | str
"""What is answered: turns that wait for an answer, or the beginning of a plain text to go on with."""


@dataclass(frozen=True)
class Chat:
    """The resident base and a run's adapter. Several may share one base: each puts its adapter in before it speaks."""

    tuner: Tuner
    adapter: AdapterState
    system: SystemTurns
    """What becomes of system turns, as in training."""

    def reply(self, said: Said, sampling: Sampling, base: bool = False) -> Reply:
        """An answer, token by token as its pieces are read.

        Raises:
            DataError: the chat template refuses the conversation.
            LengthError: it is longer than the model reads.
        """
        prompt = self._tokens(said)
        pieces = generation.pieces(self.tuner.model, self.tuner.tokenizer, prompt, sampling, base, self.adapter)
        return Reply(len(prompt), pieces)

    def answers(self, asked: Sequence[Said], sampling: Sampling, base: bool, batch: int) -> Iterator[str]:
        """Yield the answers to several prompts, in their order, `batch` prompts in a forward pass.

        Raises:
            DataError: before the first answer, as above.
            LengthError: before the first answer, as above.
        """
        prompts = [self._tokens(said) for said in asked]
        for prompt in prompts:
            generation.room(self.tuner.model, prompt, sampling)
        return self._answers(prompts, sampling, base, batch)

    def _answers(self, prompts: Sequence[list[int]], sampling: Sampling, base: bool, batch: int) -> Iterator[str]:
        model, tokenizer = self.tuner.model, self.tuner.tokenizer
        for start in range(0, len(prompts), WINDOW * batch):
            lora.put(model, self.adapter)
            yield from batched.answers(model, tokenizer, prompts[start : start + WINDOW * batch], sampling, batch, base)

    def _tokens(self, said: Said) -> list[int]:
        if isinstance(said, str):
            return encode_beginning(self.tuner.tokenizer, said)
        asked = said if isinstance(said, Conversation) else Conversation(tuple(said))
        return encode_prompt(self.tuner.tokenizer, asked.turns, asked.tools, self.system)


def of(folder: RunFolder, adapter: AdapterState | None = None) -> Chat:
    """The model of a run, with its adapter or with one of an earlier round.

    Raises:
        ModelError: base or adapter cannot be had.
        RunError: the adapter is of another base or of other settings.
    """
    recipe = folder.recipe()
    resident = tuner(recipe.model.base, recipe.lora, place(recipe.model.device, recipe.model.dtype))
    if adapter is None:
        name = published_name(recipe.model.base)
        adapter = lora.load(folder.adapter, resident.spec, recipe.lora, name, resident.norms)
    elif fault := fault_of(adapter, resident.spec):
        raise RunError(f"{folder.path}: the saved adapter cannot be used: {fault}.")
    return Chat(resident, adapter, recipe.data.system)
