"""Text from a run's model: answers to prompts, and held-out questions answered by the base and the tuned model."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from silotune.data.corpus import read_split
from silotune.data.rows import Turn
from silotune.data.silos import find_silos
from silotune.data.tokens import encode_prompt
from silotune.federation.run import RunFolder
from silotune.model import generation, lora
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
    recipe = folder.recipe()
    resident = tuner(recipe.model.base, recipe.lora, place(recipe.model.device, recipe.model.dtype))
    lora.put(resident.model, lora.load(folder.adapter))
    return resident


def stream(folder: RunFolder, conversation: Sequence[Turn], sampling: Sampling, base: bool) -> Iterator[str]:
    """Yield the next answer of a conversation piece by piece, from the tuned or the base model."""
    resident = load(folder)
    prompt = encode_prompt(resident.tokenizer, conversation)
    return generation.stream(resident.model, resident.tokenizer, prompt, sampling, base)


def path(folder: RunFolder) -> Path:
    """Where a run's samples lie, if it has any."""
    return folder.path / "samples.json"


def read(folder: RunFolder) -> list[dict[str, Any]]:
    """The samples of a run; none if the recipe asked for none."""
    file = path(folder)
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else []


def write(folder: RunFolder) -> None:
    """Answer the first held-out questions of every silo with the base and the tuned model, greedily.

    The rows' text goes into the run folder: a recipe must ask for it (`report.samples`).
    """
    recipe = folder.recipe()
    resident = load(folder)
    sampling = Sampling(max_tokens=SAMPLE_TOKENS)
    found = []
    for files in find_silos(recipe.data.silos):
        _, test = read_split(files, recipe.data.holdout, recipe.seed)
        for row in test[: recipe.report.samples]:
            prompt = encode_prompt(resident.tokenizer, row.turns[:-1])
            base, tuned = (
                generation.answer(resident.model, resident.tokenizer, prompt, sampling, base=plain)
                for plain in (True, False)
            )
            found.append({"silo": files.name, "question": row.turns[-2].content, "reference": row.turns[-1].content,
                          "base": base, "tuned": tuned})  # fmt: skip
    unfinished = path(folder).with_suffix(".unfinished")
    unfinished.write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(path(folder))
