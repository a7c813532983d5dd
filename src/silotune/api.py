"""What the command line does, as functions.

import silotune

run = silotune.train("recipe.toml")
print(run.answer("When are you open?"))
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from silotune.data.read.prompts import conversation
from silotune.data.read.readers import ENDINGS
from silotune.data.read.rows import Conversation, Turn
from silotune.data.silos.corpus import silos_of
from silotune.data.silos.sources import SiloFiles
from silotune.data.silos.survey import Survey, survey
from silotune.errors import (
    InputError,
    RecipeError,
    RunError,
)
from silotune.federation import local
from silotune.federation import run as run_folder
from silotune.federation.events import Watcher
from silotune.federation.metrics import Line
from silotune.federation.run import RunFolder
from silotune.inference import chat
from silotune.inference.generation import Sampling
from silotune.launch import compare_deployed, launch
from silotune.model.base import load_tokenizer, locate
from silotune.recipe import absolute, load_recipe, overridden, recipe_of
from silotune.report import export, page
from silotune.report.card import Form
from silotune.settings import HUB, Recipe

if TYPE_CHECKING:
    from silotune.compare.comparison import Comparison
    from silotune.compare.later import Evaluation


@dataclass(frozen=True)
class Run:
    """A run that has come to its end."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    def metrics(self) -> list[Line]:
        """All lines of metrics.jsonl: one per silo per round, and one per round (there `silo` is None)."""
        return self.folder.metrics()

    def report(self) -> Path:
        """Write the HTML page again and return its path."""
        page.write(self.folder)
        return self.folder.report_file

    def stream(
        self, prompt: str, *, system: str | None = None, sampling: Sampling | None = None, base: bool = False
    ) -> Iterator[str]:
        """Yield the tuned model's answer to a prompt piece by piece; `base` asks the base model instead."""
        return self.reply(conversation(prompt, system), sampling=sampling, base=base)

    def reply(
        self, turns: Sequence[Turn] | Conversation, *, sampling: Sampling | None = None, base: bool = False
    ) -> Iterator[str]:
        """Yield the answer to a conversation that waits for one, piece by piece."""
        pieces = chat.of(self.folder).reply(turns, sampling or Sampling(), base).pieces
        return (piece.text for piece in pieces if piece.text)

    def answer(
        self, prompt: str, *, system: str | None = None, sampling: Sampling | None = None, base: bool = False
    ) -> str:
        """The tuned model's answer to a prompt; `base` asks the base model instead."""
        return "".join(self.stream(prompt, system=system, sampling=sampling, base=base)).strip()

    def answers(
        self,
        prompts: Sequence[str | Sequence[Turn] | Conversation],
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        base: bool = False,
        batch: int = 8,
    ) -> Iterator[str]:
        """Yield the answers to several prompts, in their order, `batch` of them in one forward pass.

        They are those of `answer`, up to rounding. A prompt is a text, which gets the system turn, or a whole
        conversation that waits for an answer.

        Raises:
            InputError: before the first answer: the model cannot take one of the prompts.
        """
        asked = [conversation(prompt, system) if isinstance(prompt, str) else prompt for prompt in prompts]
        return chat.of(self.folder).answers(asked, sampling or Sampling(), base, batch)

    def export(
        self,
        to: Form,
        out: str | Path | None = None,
        *,
        converter: str | Path | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> Path:
        """Write the result in a form that other programs load, and return its folder: whole or not at all.

        Args:
            to: `adapter` (PEFT), `merged` (safetensors with the adapter in the weights) or `gguf` (llama.cpp).
            out: a new folder; `export/` in the run's folder if left out.
            converter: llama.cpp's convert_hf_to_gguf.py, for `gguf`; fetched on first use if left out.
            report: called with what is being done.

        Raises:
            InputError: something is there already, or the model cannot be written so.
        """
        folder, script = (Path(path) if path is not None else None for path in (out, converter))
        return export.write(self.folder, to, folder, script, report)

    def compare(
        self,
        *,
        seeds: int = 1,
        rows: Sequence[int] = (),
        silos: Sequence[str] = (),
        answers: int = 0,
        watch: Watcher = lambda _: None,
    ) -> "Comparison":
        """Hold the run's model against the base, each silo alone and all text pooled, with the same budget.

        Of a run with a consortium, whose text is not here, each silo tells its own row; nothing is pooled.

        Args:
            seeds: seeds of training; above 1 the federation is run again too.
            rows: training rows that every silo holds, for the curve of the gain over alone.
            silos: those to train alone; empty: all.
            answers: held-out questions per silo to answer in text.
            watch: called with every `Event`: `model`, `training`, `scoring`.

        Raises:
            InputError: the silos' text is not on this machine, or an option cannot be meant.
            FederationError: a training does not come to its end.
            Interrupted: Ctrl-C or SIGTERM; what is done is kept.
        """
        if self.folder.recipe().federation.engine == "deployment":
            if (seeds, *rows, *silos, answers) != (1, 0):
                raise InputError(
                    "in a deployment each silo tells its own row: leave out seeds, rows, silos and answers."
                )
            return compare_deployed(self.folder, watch)
        from silotune.compare.compare import Wanted, compare

        found = compare(self.folder, Wanted(seeds, tuple(rows), tuple(silos), answers), watch)
        self.report()
        return found

    def evaluate(
        self,
        data: str | Path,
        *,
        base: bool = False,
        answers: int = 0,
        report: Callable[[str, str], None] = lambda *_: None,
    ) -> "Evaluation":
        """Score the run's model on every row of a file, a silo's folder, a folder of silos or an `hf:` dataset.

        Args:
            data: where the rows are; read as the run's recipe says.
            base: score the base model too.
            answers: questions per silo to answer in text.
            report: called with the model and the silo that are next.

        Raises:
            InputError: a row cannot be used.
        """
        from silotune.compare.later import evaluate

        recipe, single = _recipe_of_path(str(data), ())
        given = silos_of(recipe.data, recipe.seed) if single is None else [SiloFiles(single.name, (str(single),))]
        return evaluate(self.folder, given, base, answers, report)


def check(
    path: str | Path, *, overrides: Sequence[str] = (), show: int = 0, report: Callable[[str], None] = lambda _: None
) -> Survey:
    """Read and tokenise all that silos hold, and count it; trains nothing.

    Args:
        path: a recipe, a folder of silos, one silo's folder, one file of rows, or an `hf:` dataset id.
        overrides: `section.key=value` in place of the recipe's own.
        show: rows to show as tokens; they hold the silos' text, so they are for the eyes of whoever holds it.
        report: called with each silo's name before it is read.

    Returns:
        The recipe (defaults where a path was given), what each silo holds, and what is odd.

    Raises:
        InputError: at the first thing that cannot be used.
    """
    given, single = str(path), None
    if given.endswith(".toml"):
        recipe = load_recipe(Path(given), overrides)
    else:
        for override in overrides:
            if re.match(r"\s*data\s*(\.\s*(silos|pool)\b|=)", override):
                raise RecipeError(f"--set {override}: the rows are those of {given}; give a recipe to look elsewhere.")
        recipe, single = _recipe_of_path(given, overrides)
    silos = () if single else silos_of(recipe.data, recipe.seed)
    if given.endswith(".toml"):
        local.require_enough(recipe, [files.name for files in silos])
    tokenizer = load_tokenizer(locate(recipe.model.base))
    return survey(recipe, tokenizer, single, report, trains=given.endswith(".toml"), show=show)


def _recipe_of_path(given: str, overrides: Sequence[str]) -> tuple[Recipe, Path | None]:
    """A recipe on what lies at a path; and the path itself, if it is one file."""
    if given.startswith(HUB):
        return recipe_of({"data": {"silos": [{"name": given[:64], "train": given}]}}, overrides, Path.cwd()), None
    try:
        place = Path(given).expanduser().absolute()
        folder = place.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no such path"
        raise InputError(f"{given[:200]}: cannot be looked at ({reason}).") from None
    if place.is_file() and not given.lower().endswith(ENDINGS):
        raise InputError(f"{given}: neither a recipe (.toml) nor a file of rows ({', '.join(ENDINGS)}).")
    recipe = recipe_of({"data": {"silos": str(place)}}, overrides, Path.cwd())
    return recipe, None if folder else place


def open_run(path: str | Path) -> Run:
    """Open a finished run.

    Raises:
        RunError: no run is there, or it has not come to its end.
    """
    folder = RunFolder(Path(path).resolve())
    folder.recipe()
    if not folder.finished():
        raise RunError(f"{path}: the run has not come to its end. Go on with: silotune train --resume {path}")
    return Run(folder)


def train(
    recipe: str | Path | Recipe | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    overrides: Sequence[str] = (),
    watch: Watcher = lambda _: None,
) -> Run:
    """Train an adapter with the silos of a recipe, on this machine.

    Args:
        recipe: path of a recipe or a Recipe; may be left out with `resume`.
        out: folder of a new run; named after the recipe and the time if left out.
        resume: folder of an unfinished run to go on with.
        overrides: `section.key=value` in place of the recipe's own.
        watch: called with every `Event`.

    Raises:
        InputError: recipe, text, model or folder cannot be used.
        FederationError: too few silos answered; the rounds before are saved.
        OutputError: the disk is full, say; the rounds before are saved.
        Interrupted: Ctrl-C or SIGTERM; the rounds before are saved.
    """
    wanted, old = _wanted(recipe, out, resume, overrides)
    return Run(launch(wanted, old, Path(out) if out is not None else None, watch))


def _wanted(
    recipe: str | Path | Recipe | None, out: str | Path | None, resume: str | Path | None, overrides: Sequence[str]
) -> tuple[Recipe, RunFolder | None]:
    """The recipe to run, and the folder of the run to go on with."""
    given = None
    if isinstance(recipe, Recipe):
        given = absolute(overridden(recipe, overrides), Path.cwd())
    elif recipe is not None:
        given = load_recipe(Path(recipe), overrides)
    if resume is not None:
        if out is not None:
            raise RunError("--out names a new run and --resume an old one: give one of them.")
        if given is None and overrides:
            given = absolute(overridden(RunFolder(Path(resume).resolve()).recipe(), overrides), Path.cwd())
        if given is not None:
            given = _with_members_of(given, Path(resume))
        folder = run_folder.reopen(Path(resume), given)
        return folder.recipe(), folder
    if given is None:
        raise RunError("give a recipe, or a run to go on with.")
    return given, None


def _with_members_of(recipe: Recipe, run: Path) -> Recipe:
    """A recipe with the members with which a run of a consortium began, where it names none itself."""
    if recipe.federation.engine != "deployment" or recipe.federation.members is not None:
        return recipe
    members = RunFolder(run.resolve()).recipe().federation.members
    return recipe.model_copy(update={"federation": recipe.federation.model_copy(update={"members": members})})
