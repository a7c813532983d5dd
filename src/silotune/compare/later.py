"""A run's model on text that came later: every row of some files, none held out, with the base beside it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from silotune.compare.comparison import Cell, Everybody, Part
from silotune.compare.gains import figures
from silotune.compare.measured import Measured, labels_of, score_rows
from silotune.data.read.files import printable
from silotune.data.read.reading import read_rows
from silotune.data.silos.corpus import chosen_rows, options_of, reading_of, silos_of
from silotune.data.silos.sources import SiloFiles
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.store import Store, open_store
from silotune.errors import DataError, InputError
from silotune.federation.run import RunFolder
from silotune.inference import samples
from silotune.model import lora
from silotune.model.adapter import initial_adapter
from silotune.model.base import published_name
from silotune.model.tuner import Tuner
from silotune.settings import Recipe
from silotune.training.scores import AnswerScores, require_packages

if TYPE_CHECKING:  # it loads torch
    from silotune.training.labels import Candidates


class Evaluation(Part):
    """What `silotune evaluate` finds."""

    matrix: list[Cell]
    """Model by silo; one file is a silo of the file's name."""
    everybody: list[Everybody]
    """Each model on all rows."""
    lost: int
    """Rows of which no token of the response fits into `data.max_length`: they are not scored."""
    cut: int
    """Rows that were shortened to fit."""
    seen_in_training: int | None
    """Rows that say what a training row of the run says; None: the run's text is not on this machine."""
    remarks: list[str]


@dataclass(frozen=True)
class _Later:
    """Rows that came later: a split of a silo."""

    silo: str
    sources: tuple[str, ...]
    split: Split


def evaluate(
    run: RunFolder,
    given: Sequence[SiloFiles],
    base: bool = False,
    answers: int = 0,
    report: Callable[[str, str], None] = lambda *_: None,
) -> Evaluation:
    """Score a finished run's model on all rows of some files, read as the run's recipe says.

    Args:
        run: the run's folder; nothing is written there.
        given: the files, by silo.
        base: score the base model too.
        answers: questions per silo to answer in text.
        report: told the model and the silo that are next.

    Raises:
        InputError: a row cannot be used, or no response fits; the base cannot be had.
    """
    if answers < 0:
        raise InputError(f"--answers {answers}: give a number of at least 0.")
    if answers:
        require_packages()
    recipe = run.recipe()
    resident = samples.load(run)
    later = _read(given, recipe, resident)
    trained, tested = _of_the_run(recipe, resident)
    new = [one.split for one in later]
    offered, remarks = labels_of(resident.tokenizer, [*new, *trained, *tested])
    scorer = _Scorer(recipe, resident, later, offered, answers, report)
    matrix, everybody = [], []
    for model in ("base", "federated") if base else ("federated",):
        spec = resident.spec
        tuned = model == "federated"
        name = published_name(recipe.model.base)
        adapter = lora.load(run.adapter, spec, recipe.lora, name, resident.norms) if tuned else initial_adapter(spec, 0)
        lora.put(resident.model, adapter)
        found = scorer.scored(model)
        labels = offered.labels if offered else ()
        matrix += [Cell(model=model, silo=silo, seed=recipe.seed, **figures(each, labels))
                   for silo, each in found.items()]  # fmt: skip
        together = [one for each in found.values() for one in each]
        everybody.append(Everybody(model=model, seed=recipe.seed, **figures(together, labels)))
    lost, cut = sum(split.lost for split in new), sum(split.shortened for split in new)
    seen = _seen(new, trained) if trained else None
    remarks = _remarks(recipe, lost, cut, seen) + remarks
    if any(split.store.described.pairs for split in new):
        remarks.append("There are preference pairs among the rows: their chosen answers are scored.")
    return Evaluation(matrix=matrix, everybody=everybody, lost=lost, cut=cut, seen_in_training=seen, remarks=remarks)


# ----------------------------------------------------------------------------------------------- reading


def _read(given: Sequence[SiloFiles], recipe: Recipe, resident: Tuner) -> list[_Later]:
    """All rows of all files.

    Raises:
        DataError: a row cannot be used, or no token of any response fits.
    """
    found = []
    for files in given:
        for sources in filter(None, (files.train, files.test)):
            store = _store(sources, recipe, resident)
            split = Split(store, np.arange(store.size))
            if not split.loss_tokens:
                raise DataError(
                    f"{printable(sources[0])}: of none of {split.rows} rows does a token of the response fit into "
                    f"data.max_length = {recipe.data.max_length}, which the run was made with."
                )
            found.append(_Later(files.name, sources, split))
    return found


def _store(sources: Sequence[str], recipe: Recipe, resident: Tuner) -> Store:
    length, options = recipe.data.max_length, options_of(recipe)
    return open_store(sources, reading_of(recipe.data), resident.tokenizer, length, options)


def _of_the_run(recipe: Recipe, resident: Tuner) -> tuple[list[Split], list[Split]]:
    """The run's own rows, to train and to test on; none where its text is not on this machine."""
    train, test = [], []
    try:
        for files in silos_of(recipe.data, recipe.seed):
            stores = _store(files.train, recipe, resident), _store(files.test or files.train, recipe, resident)
            chosen = chosen_rows(files, stores[0].size, stores[1].size, recipe.data.holdout, recipe.seed)
            train.append(Split(stores[0], chosen.train))
            test.append(Split(stores[1], chosen.test))
    except InputError:
        return [], []
    return train, test


def _seen(new: Sequence[Split], trained: Sequence[Split]) -> int:
    """New rows that say what a training row says."""
    known = {digest.tobytes() for split in trained for digest in split.store.digests[split.chosen]}
    return sum(digest.tobytes() in known for split in new for digest in split.store.digests[split.chosen])


def _remarks(recipe: Recipe, lost: int, cut: int, seen: int | None) -> list[str]:
    lines, most = [], recipe.data.max_length
    if lost:
        lines.append(f"Not scored, for no token of the response fits into data.max_length = {most}: {lost} rows.")
    if cut:
        lines.append(f"Shortened to data.max_length = {most} tokens: {cut} rows.")
    if seen:
        lines.append(f"{seen} rows also appear in the run's training data; their scores are not evidence of quality.")
    if seen is None:
        lines.append("The run's text is not on this machine: whether it was trained on any of these rows is not known.")
    return lines


# ----------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class _Scorer:
    """Scores whatever adapter lies in the model."""

    recipe: Recipe
    resident: Tuner
    later: Sequence[_Later]
    offered: "Candidates | None"
    answers: int
    report: Callable[[str, str], None]

    def scored(self, model: str) -> dict[str, list[Measured]]:
        """By silo, a split after the other."""
        found: dict[str, list[Measured]] = {}
        for silo, group in itertools.groupby(self.later, key=lambda one: one.silo):
            self.report(model, silo)
            parts = list(group)
            found[silo] = [
                self._measured(part, numbers) for part, numbers in zip(parts, self._asked(silo, parts), strict=True)
            ]
        return found

    def _asked(self, silo: str, parts: Sequence[_Later]) -> list[list[int]]:
        from silotune.inference.answers import drawn

        if not self.answers:
            return [[] for _ in parts]
        return drawn([part.split for part in parts], self.answers, self.recipe.seed, silo)

    def _measured(self, later: _Later, asked: Sequence[int]) -> Measured:
        from silotune.training.forward import forward_plan_of
        from silotune.training.kept import Keep
        from silotune.training.labels import choose

        resident, settings = self.resident, self.recipe.model
        keep = Keep(settings.keep, settings.keep_mib << 20)
        forward_plan = forward_plan_of(resident.model, resident.device, self.recipe.lora.dropout, keep)
        found = score_rows(resident, forward_plan, later.split)
        if self.offered is not None:
            most = self.recipe.data.max_length
            chosen = choose(resident, forward_plan, later.split, self.offered, most, lambda: None)
            found = replace(found, labels=chosen)
        return replace(found, answers=self._answered(later, asked)) if asked else found

    def _answered(self, later: _Later, asked: Sequence[int]) -> tuple[AnswerScores, ...]:
        from silotune.inference.answers import answer_each

        rows = read_rows(later.sources, reading_of(self.recipe.data))
        numbered = ((number, row) for number, (_, row) in enumerate(rows))
        return tuple(answer_each(self.resident, later.split, asked, numbered, lambda: None))
