"""What silos hold, counted: files, rows, tokens, lengths, labels, what is cut or lost, duplicates and leaks.

Numbers and names only, no row's text. Labels are values of the label field, shown to whoever holds the files.
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from silotune.data.read.readers import ENDINGS, place
from silotune.data.silos import leaks
from silotune.data.silos.corpus import (
    Chosen,
    chosen_rows,
    corpus_of,
    leaks_of,
    options_of,
    reading_of,
    require_answers,
    require_something,
    runs_among,
    silos_of,
)
from silotune.data.silos.sources import SiloFiles
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.store import Store, open_store
from silotune.data.tokenize.template_check import oddities
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.settings import HUB, Recipe

QUANTILES = {"min": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class SplitSurvey:
    """What a split holds."""

    files: tuple[str, ...]
    shape: str
    rows: int
    examples: int
    """What is trained or tested on: rows, or windows of plain texts."""
    tokens: int
    loss_tokens: int
    """Tokens that carry loss."""
    lengths: Mapping[str, int]
    """Quantiles of the examples' tokens, after cutting."""
    cut: int
    """Rows shortened in the user's text, or by early exchanges, to fit `data.max_length`."""
    answer_cut: int
    """Rows in which the answer lost its end."""
    lost: int
    """Rows of which no token of the response fits; they are left out."""
    thoughts_dropped: int
    """Rows of which the chat template leaves out what the assistant thought before an answer."""
    duplicates: int
    """Rows that say what a row before them says."""
    labels: Mapping[str, int]
    """Rows of each label, the commonest first."""
    text_bytes: int
    fields_not_read: Mapping[str, tuple[str, ...]]
    """By the name of a file."""


@dataclass(frozen=True)
class SiloSurvey:
    """What a silo holds."""

    name: str
    train: SplitSurvey
    test: SplitSurvey | None
    """None for a single file, which is looked at as it is."""
    held_out: bool
    """Whether the test is a share of the training file."""
    leaks: leaks.Leaks
    """Test rows that also appear in any silo's training text."""
    files_not_read: tuple[str, ...]
    """Files of rows beside the silo's own, by formats that could be read."""

    @property
    def splits(self) -> tuple[SplitSurvey, ...]:
        """Train and, if there is one, test."""
        return (self.train,) if self.test is None else (self.train, self.test)


@dataclass(frozen=True)
class TokenisedRow:
    """A row as it is learned, for the eyes of whoever holds it."""

    silo: str
    place: str
    """Where it stands."""
    examples: tuple[tuple[tuple[str, bool], ...], ...]
    """The tokens of each of its examples, and whether each carries loss."""


@dataclass(frozen=True)
class Survey:
    """What `check` finds."""

    recipe: Recipe
    silos: Sequence[SiloSurvey]
    oddities: Sequence[str]
    """What is odd about the base's chat template."""
    runs: Sequence[str]
    """Names of folders that lie among the silos and are folders of runs."""
    rows: Sequence[TokenisedRow]


def survey(
    recipe: Recipe,
    tokenizer: Tokenizer,
    single: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    trains: bool = True,
    show: int = 0,
) -> Survey:
    """Read and tokenise everything that a recipe's silos hold.

    Args:
        recipe: with absolute paths.
        tokenizer: of the base model.
        single: one file to look at, in place of the recipe's silos.
        report: called with each silo's name before it is read.
        trains: refuse all that training would; else rows that nothing learns from yet are counted like others.
        show: rows to show as tokens, the first of each silo in turn.

    Raises:
        DataError: at the first row or silo that cannot be used.
    """
    silos = (SiloFiles(single.name, (str(single),)),) if single else silos_of(recipe.data, recipe.seed)
    reading, length, options = reading_of(recipe.data), recipe.data.max_length, options_of(recipe)
    opened: list[tuple[SiloFiles, Store, Store, Chosen | None]] = []
    for files in silos:
        report(files.name)
        train = open_store(files.train, reading, tokenizer, length, options)
        test = open_store(files.test, reading, tokenizer, length, options) if files.test else train
        chosen = None if single else chosen_rows(files, train.size, test.size, recipe.data.holdout, recipe.seed)
        opened.append((files, train, test, chosen))
    folder = None if single else leaks_of(silos, reading, recipe.data.holdout, recipe.seed)
    found, splits = [], []
    for files, train, test, chosen in opened:
        leaked = leaks.read(folder, files.name) if folder else leaks.Leaks()
        whole, nothing = np.arange(train.size), np.arange(0)
        dropped = leaked.all if recipe.data.drop_leaks else frozenset()
        corpus = corpus_of(train, test, chosen or Chosen(whole, nothing), dropped)
        if trains:
            require_answers(files, corpus)
        if chosen is not None:
            require_something(files, corpus, length)
        tested = _split(files.test or files.train, corpus.test) if chosen is not None else None
        own = _split(files.train, corpus.train)
        splits.append((files, corpus.train))
        found.append(SiloSurvey(files.name, own, tested, not files.test, leaked, _not_read(files, silos)))
    runs = () if single or recipe.data.pool is not None else runs_among(recipe.data)
    return Survey(recipe, found, oddities(tokenizer, recipe.data.system), runs, _rows(splits, tokenizer, show))


def _rows(splits: Sequence[tuple[SiloFiles, Split]], tokenizer: Tokenizer, count: int) -> list[TokenisedRow]:
    """The first rows of each silo in turn, as tokens."""
    queues = [[(files, split, row) for row in split.chosen[:count].tolist()] for files, split in splits]
    in_turn = [one for several in itertools.zip_longest(*queues) for one in several if one is not None]
    found = []
    for files, split, row in in_turn[:count]:
        store = split.store
        examples = [split[index] for index in np.flatnonzero(split.row_of == row).tolist()]
        source, line = store.places[row].tolist()
        words = [
            tuple((tokenizer.decode([token]), bool(answered)) for token, answered in
                  zip(example.ids.tolist(), example.answered.tolist(), strict=True))
            for example in examples
        ]  # fmt: skip
        found.append(TokenisedRow(files.name, place(Path(files.train[source]).name, line), tuple(words)))
    return found


def _split(sources: Sequence[str], split: Split) -> SplitSurvey:
    store, lengths = split.store, split.lengths
    labels, counts = np.unique(store.labels[split.chosen], return_counts=True)
    by_count = sorted(zip(counts.tolist(), labels.tolist(), strict=True), reverse=True)
    digests = {bytes(digest) for digest in store.digests[split.chosen]}
    return SplitSurvey(
        files=tuple(source if source.startswith(HUB) else Path(source).name for source in sources),
        shape=store.described.shape,
        rows=split.rows,
        examples=len(split),
        tokens=split.tokens,
        loss_tokens=split.loss_tokens,
        lengths={name: int(np.quantile(lengths, share, method="higher")) if len(lengths) else 0
                 for name, share in QUANTILES.items()},
        cut=split.cut,
        answer_cut=split.answer_cut,
        lost=split.lost,
        thoughts_dropped=split.thoughts_dropped,
        duplicates=split.rows - len(digests),
        labels={store.described.labels[label]: count for count, label in by_count if label >= 0},
        text_bytes=split.text_bytes,
        fields_not_read=store.described.unused,
    )  # fmt: skip


def _not_read(files: SiloFiles, silos: Sequence[SiloFiles]) -> tuple[str, ...]:
    """Files of rows that lie in the silo's folder and are nobody's."""
    used = {source for silo in silos for source in (*silo.train, *silo.test)}
    folders = {Path(source).parent for source in (*files.train, *files.test) if not source.startswith(HUB)}
    return tuple(
        sorted(
            entry.name
            for folder in folders
            if os.access(folder, os.R_OK)
            for entry in folder.iterdir()
            if entry.name.lower().endswith(ENDINGS) and str(entry) not in used and entry.is_file()
        )
    )
