"""Text from a run's model: held-out questions answered by the base and the tuned model."""

import json
from pathlib import Path
from typing import TypedDict

from silotune import atomic
from silotune.data.read.rows import Row
from silotune.data.silos import leaks
from silotune.data.silos.corpus import (
    chosen_rows,
    counted_rows,
    first_test_rows,
    leaks_of,
    options_of,
    reading_of,
    silos_of,
)
from silotune.data.tokenize.rendering import learned
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.data.tokenize.tokens import ChatOptions, encode_beginning, encode_prompt
from silotune.federation.run import RunFolder
from silotune.inference import chat, generation
from silotune.inference.generation import Sampling
from silotune.model import lora
from silotune.model.tuner import Tuner

SAMPLE_TOKENS = 60
"""Tokens of a sample's answer at most."""


def load(folder: RunFolder) -> Tuner:
    """The base model of a run with the run's adapter in it."""
    found = chat.of(folder)
    lora.put(found.tuner.model, found.adapter)
    return found.tuner


def path(folder: RunFolder) -> Path:
    """Where a run's samples lie, if it has any."""
    return folder.path / "samples.json"


class Sample(TypedDict):
    """A held-out question, what the row answers, and what the two models do."""

    silo: str
    question: str
    reference: str
    base: str
    tuned: str


def read(folder: RunFolder) -> list[Sample]:
    """The samples of a run; none if the recipe asked for none."""
    file = path(folder)
    found: list[Sample] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return found


def _asked(row: Row, tokenizer: Tokenizer, options: ChatOptions) -> tuple[list[int], str, str]:
    """The tokens of a conversation up to its last answer, its last question, and that answer; for a plain text, its
    first half and what follows."""
    if row.text is None:
        *asked, said = learned(row.turns, options.loss_on == "last")
        prompt = encode_prompt(tokenizer, asked, row.tools, options.system)
        return prompt, asked[-1].content, said.content or said.tool_calls or ""
    words = row.text.split(" ")
    half = min(len(words) // 2, SAMPLE_TOKENS)
    beginning, rest = " ".join(words[:half]), " ".join(words[half : half + SAMPLE_TOKENS])
    return encode_beginning(tokenizer, beginning), beginning, rest


def write(folder: RunFolder) -> None:
    """Answer the first held-out questions of every silo with the base and the tuned model, greedily.

    Where `data.drop_leaks` leaves leaked rows out of the tests, they are passed over here as well.

    The rows' text goes into the run folder: a recipe must ask for it (`report.samples`).
    """
    recipe = folder.recipe()
    resident = load(folder)
    sampling = Sampling(max_tokens=SAMPLE_TOKENS)
    found: list[Sample] = []
    reading, silos = reading_of(recipe.data), silos_of(recipe.data, recipe.seed)
    leaked = leaks_of(silos, reading, recipe.data.holdout, recipe.seed) if recipe.data.drop_leaks else None
    for files in silos:
        chosen = chosen_rows(files, *counted_rows(files, reading), recipe.data.holdout, recipe.seed)
        passed = leaks.read(leaked, files.name).all if leaked else frozenset()
        for row in first_test_rows(files, reading, chosen, recipe.report.samples, passed):
            prompt, question, reference = _asked(row, resident.tokenizer, options_of(recipe))
            base, tuned = (
                generation.answer(resident.model, resident.tokenizer, prompt, sampling, base=plain)
                for plain in (True, False)
            )
            found.append({"silo": files.name, "question": question, "reference": reference,
                          "base": base, "tuned": tuned})  # fmt: skip
    atomic.write_text(path(folder), json.dumps(found, indent=2, ensure_ascii=False))
