"""Text from a run's model: answers to prompts, and held-out questions answered by the base and the tuned model."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from silotune import atomic
from silotune.data.corpus import chosen_rows, counted_rows, first_test_rows, reading_of, silos_of
from silotune.data.rows import Row, Turn
from silotune.data.tokens import encode_beginning, encode_prompt
from silotune.errors import RunError
from silotune.federation.run import RunFolder
from silotune.model import generation, lora
from silotune.model.adapter import AdapterSpec, AdapterState
from silotune.model.base import place
from silotune.model.generation import Sampling
from silotune.model.tuner import Tuner, tuner

SAMPLE_TOKENS = 60
"""Tokens of a sample's answer at most."""


def turns(prompt: str, system: str | None) -> list[Turn]:
    """A conversation that waits for its first answer."""
    return [*([Turn("system", system)] if system else []), Turn("user", prompt)]


def load(folder: RunFolder) -> Tuner:
    """The base model of a run with the run's adapter in it."""
    resident = _resident(folder)
    lora.put(resident.model, _adapter(folder, resident))
    return resident


def _resident(folder: RunFolder) -> Tuner:
    recipe = folder.recipe()
    return tuner(recipe.model.base, recipe.lora, place(recipe.model.device, recipe.model.dtype))


def _adapter(folder: RunFolder, resident: Tuner) -> AdapterState:
    found = lora.load(folder.adapter)
    if AdapterSpec.of(found) != resident.spec:
        raise RunError(f"{folder.adapter}: the adapter does not fit the base model and the settings of the run.")
    return found


def stream(folder: RunFolder, conversation: Sequence[Turn], sampling: Sampling, base: bool) -> Iterator[str]:
    """Yield the next answer of a conversation piece by piece, from the tuned or the base model.

    Answers of several runs may be read side by side: each speaks with its own adapter.
    """
    resident = _resident(folder)
    adapter = _adapter(folder, resident)
    prompt = encode_prompt(resident.tokenizer, conversation)
    return generation.stream(resident.model, resident.tokenizer, prompt, sampling, base, adapter)


def path(folder: RunFolder) -> Path:
    """Where a run's samples lie, if it has any."""
    return folder.path / "samples.json"


def read(folder: RunFolder) -> list[dict[str, Any]]:
    """The samples of a run; none if the recipe asked for none."""
    file = path(folder)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def _asked(row: Row, tokenizer: Any) -> tuple[list[int], str, str]:
    """Of a conversation the tokens up to its last answer, the last question and the answer; of a plain text its
    first half and what follows."""
    if row.text is None:
        return encode_prompt(tokenizer, row.turns[:-1]), row.turns[-2].content, row.turns[-1].content
    words = row.text.split(" ")
    half = min(len(words) // 2, SAMPLE_TOKENS)
    beginning, rest = " ".join(words[:half]), " ".join(words[half : half + SAMPLE_TOKENS])
    return encode_beginning(tokenizer, beginning), beginning, rest


def write(folder: RunFolder) -> None:
    """Answer the first held-out questions of every silo with the base and the tuned model, greedily.

    The rows' text goes into the run folder: a recipe must ask for it (`report.samples`).
    """
    recipe = folder.recipe()
    resident = load(folder)
    sampling = Sampling(max_tokens=SAMPLE_TOKENS)
    found = []
    reading = reading_of(recipe.data)
    for files in silos_of(recipe.data, recipe.seed):
        chosen = chosen_rows(files, *counted_rows(files, reading), recipe.data.holdout, recipe.seed)
        for row in first_test_rows(files, reading, chosen, recipe.report.samples):
            prompt, question, reference = _asked(row, resident.tokenizer)
            base, tuned = (
                generation.answer(resident.model, resident.tokenizer, prompt, sampling, base=plain)
                for plain in (True, False)
            )
            found.append({"silo": files.name, "question": question, "reference": reference,
                          "base": base, "tuned": tuned})  # fmt: skip
    atomic.write_text(path(folder), json.dumps(found, indent=2, ensure_ascii=False))
