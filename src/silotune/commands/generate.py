"""`silotune generate` and `silotune chat`: text from a run's model."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import silotune
from silotune.commands.options import (
    AsJson,
    BothModels,
    MaxTokens,
    RunPath,
    SamplingSeed,
    SystemTurn,
    Temperature,
    TopP,
)

if TYPE_CHECKING:
    from silotune.data.read.rows import Conversation

Prompts = Annotated[
    list[str],
    typer.Option("--prompt", help="What to answer; may be given several times. - reads one from standard input."),
]
PromptFiles = Annotated[
    list[str],
    typer.Option(
        "--file",
        metavar="PATH",
        help="A prompt a line (.txt, or - for standard input), or rows with prompt or messages (.jsonl and the like).",
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Prompts in a forward pass at most.")]


def generate(
    run: RunPath,
    prompt: Prompts = [],  # noqa: B006 - typer reads it and never changes it
    file: PromptFiles = [],  # noqa: B006
    batch: Batch = 8,
    base: BothModels = False,
    system: SystemTurn = None,
    max_tokens: MaxTokens = 200,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: SamplingSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Answer prompts with a run's model: one as it is generated, several in batches."""
    asked = _asked(prompt, file, system)
    opened = silotune.open_run(run)
    sampling = silotune.Sampling(max_tokens, temperature, top_p, seed)
    if len(asked) == 1:
        _answers(opened, asked[0], sampling, base, as_json, "--- {}\n" if base else "")
        return
    names = ("base", "tuned") if base else ("tuned",)
    said = [opened.answers(asked, sampling=sampling, base=name == "base", batch=batch) for name in names]
    for conversation, *texts in zip(asked, *said, strict=True):
        answers = dict(zip(names, texts, strict=True))
        if as_json:
            typer.echo(_line(conversation, answers))
        else:
            typer.echo(f"=== {conversation.turns[-1].content}")
            for name, text in answers.items():
                typer.echo(f"--- {name}\n{text}" if base else text)


def chat(
    run: RunPath,
    base: BothModels = False,
    system: SystemTurn = None,
    max_tokens: MaxTokens = 200,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: SamplingSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Talk with a run's model; an empty line or the end of input ends it."""
    from silotune.data.read.rows import Conversation, Turn

    opened = silotune.open_run(run)
    sampling = silotune.Sampling(max_tokens, temperature, top_p, seed)
    turns = [Turn("system", system)] if system else []
    while text := _typed():
        turns.append(Turn("user", text))
        answers = _answers(opened, Conversation(tuple(turns)), sampling, base, as_json, "{}> ")
        turns.append(Turn("assistant", answers["tuned"] or "..."))


def _asked(prompts: Sequence[str], files: Sequence[str], system: str | None) -> "list[Conversation]":
    """The conversations that wait for an answer, those of --prompt first.

    Raises:
        InputError: there is none, or one cannot be used.
    """
    from silotune.data.read.prompts import conversation, read_prompts

    if not prompts and not files:
        raise silotune.InputError("what to answer? Give --prompt TEXT, --prompt - for standard input, or --file PATH.")
    if [*prompts, *files].count("-") > 1:
        raise silotune.InputError("standard input can be read once: give - once.")
    found = []
    for prompt in prompts:
        text = sys.stdin.read() if prompt == "-" else prompt
        if not text.strip():
            raise silotune.InputError("--prompt: the prompt is blank.")
        found.append(conversation(text, system))
    for file in files:
        if file == "-":
            lines = [line for line in sys.stdin.read().split("\n") if line.strip()]
            if not lines:
                raise silotune.InputError("--file -: no prompt on standard input.")
            found += [conversation(line, system) for line in lines]
        else:
            found += read_prompts(Path(file), system)
    return found


def _answers(
    run: "silotune.Run", asked: "Conversation", sampling: "silotune.Sampling", base: bool, as_json: bool, heading: str
) -> dict[str, str]:
    """Print the next answer of a conversation as it comes, the base model's first if wanted; return the answers."""
    answers: dict[str, str] = {}
    for name in ("base", "tuned") if base else ("tuned",):
        reply = run.reply(asked, sampling=sampling, base=name == "base")
        if not as_json:
            typer.echo(heading.format(name), nl=False)
        pieces = []
        for piece in reply:
            pieces.append(piece)
            if not as_json:
                typer.echo(piece, nl=False)
        answers[name] = "".join(pieces).strip()
        if not as_json:
            typer.echo()
    if as_json:
        typer.echo(_line(asked, answers))
    return answers


def _line(asked: "Conversation", answers: dict[str, str]) -> str:
    return json.dumps({"prompt": asked.turns[-1].content, **answers}, ensure_ascii=False)


def _typed() -> str:
    """The next line of the user's, or nothing at the end."""
    if sys.stdin.isatty():
        sys.stderr.write("you> ")
        sys.stderr.flush()
    return sys.stdin.readline().strip()
