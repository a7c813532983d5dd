"""A silo's own text: found, read, split and tokenised once for a content."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silotune.data.read.content import kept, stamp
from silotune.data.read.files import printable
from silotune.data.read.reading import Reading, read_rows
from silotune.data.read.rows import Row
from silotune.data.seeds import derive
from silotune.data.silos import leaks
from silotune.data.silos.leaks import Placed
from silotune.data.silos.pool import dealt_rows, pooled_silos, rows_of
from silotune.data.silos.sources import SiloConfig, SiloFiles, find_runs, find_silos, listed_silos
from silotune.data.tokenize.split import Split
from silotune.data.tokenize.store import Same, Store, open_store
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.data.tokenize.tokens import ChatOptions
from silotune.errors import DataError
from silotune.settings import DataSettings, Recipe, SiloSource


def reading_of(data: DataSettings) -> Reading:
    """How a recipe says that rows are to be read."""
    return Reading(tuple(sorted(data.fields.items())), data.text_rows)


def options_of(recipe: Recipe) -> ChatOptions:
    """How a recipe says that conversations become tokens."""
    return ChatOptions(recipe.data.system, recipe.training.loss_on)


def silos_of(data: DataSettings, seed: int) -> tuple[SiloFiles, ...]:
    """The silos of a recipe, sorted by name (those of a pool in its order).

    Raises:
        DataError: there are none, two of one name, or files that cannot be used.
    """
    if data.pool is not None:
        return pooled_silos(data.pool, reading_of(data), seed)
    named = [source for source in data.silos or () if isinstance(source, SiloSource)]
    if named:
        return listed_silos(named)
    return find_silos([str(pattern) for pattern in data.silos or ()])


def runs_among(data: DataSettings) -> tuple[str, ...]:
    """Names of the folders of runs that lie where a recipe's silos do, and are none."""
    return find_runs([pattern for pattern in data.silos or () if isinstance(pattern, str)])


@dataclass(frozen=True)
class Corpus:
    """What a silo trains on and what it is tested on."""

    train: Split
    test: Split
    dropped: int = 0
    """Test rows left out because they also stand in training text."""


def load_corpus(
    silo: SiloConfig,
    tokenizer: Tokenizer,
    max_length: int,
    seed: int,
    options: ChatOptions = ChatOptions(),  # noqa: B008
) -> Corpus:
    """A silo's text in tokens; kept for the life of the process while its files stay as they are.

    Raises:
        DataError: a file or row cannot be used, or there is nothing to train or to test on.
    """
    stamps = tuple(stamp(source) for source in (*silo.files.train, *silo.files.test))
    told = SiloConfig(
        silo.files, holdout=silo.holdout, reading=silo.reading, leaks=silo.leaks, drop_leaks=silo.drop_leaks,
        rows=silo.rows,
    )  # fmt: skip
    return _loaded(told, Same(tokenizer), max_length, options, seed if silo.seed is None else silo.seed, stamps)


@functools.lru_cache(maxsize=64)
def _loaded(silo: SiloConfig, same: Same, max_length: int, options: ChatOptions, seed: int, _stamps: object) -> Corpus:
    """As `load_corpus`, of a configuration that holds nothing but what a corpus depends on."""
    files = silo.files
    assert silo.holdout is not None, "settled by the job before text is read"
    train = open_store(files.train, silo.reading, same.tokenizer, max_length, options)
    test = open_store(files.test, silo.reading, same.tokenizer, max_length, options) if files.test else train
    chosen = first_rows(chosen_rows(files, train.size, test.size, silo.holdout, seed), silo.rows, files.name, seed)
    dropped = leaks.read(silo.leaks, files.name).all if silo.drop_leaks and silo.leaks is not None else frozenset()
    corpus = corpus_of(train, test, chosen, dropped)
    require_answers(files, corpus)
    require_something(files, corpus, max_length)
    return corpus


def corpus_of(train: Store, test: Store, chosen: "Chosen", left_out: frozenset[int] = frozenset()) -> Corpus:
    """A silo's rows of its stores, without the test rows that are to be left out."""
    kept = np.array([row for row in chosen.test.tolist() if row not in left_out], np.int64)
    return Corpus(Split(train, chosen.train), Split(test, kept), len(chosen.test) - len(kept))


def require_answers(files: SiloFiles, corpus: Corpus) -> None:
    """Refuse rows that supervised training does not learn from.

    Raises:
        DataError: they are preference pairs.
    """
    if corpus.train.store.described.pairs:
        raise DataError(
            f"{printable(files.train[0])}: the rows are preference pairs, and training learns from one answer per "
            'prompt. To learn from the chosen ones: data.fields = { prompt = "prompt", response = "chosen" }.'
        )


def require_something(files: SiloFiles, corpus: Corpus, max_length: int) -> None:
    """Refuse a silo that has nothing to train or to test on.

    Raises:
        DataError: no token of any response fits, or there are no test rows.
    """
    tested = printable((files.test or files.train)[0])
    for split, source in ((corpus.train, printable(files.train[0])), (corpus.test, tested)):
        if split.rows and not len(split):
            raise DataError(
                f"{source}: of none of {split.rows} rows does a token of the response fit into "
                f"data.max_length = {max_length}. Raise it, or shorten the system turns."
            )
    if not corpus.dropped and not corpus.test.rows:
        raise DataError(f"{tested}: silo {printable(files.name)!r} gets no row to test on. Give it more test rows, or "
                        "no test file, so that a share of its training rows is held out.")  # fmt: skip
    if corpus.dropped and not corpus.test.rows:
        raise DataError(
            f"{tested}: all {corpus.dropped} test rows also stand in training text, so data.drop_leaks leaves nothing "
            "to test on. Give other test rows."
        )


# ------------------------------------------------------------------------------------------------ split


@dataclass(frozen=True)
class Chosen:
    """Which rows a silo trains on and is tested on: numbers of rows in their sources, rising."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def chosen_rows(files: SiloFiles, train_rows: int, test_rows: int, holdout: float, seed: int) -> Chosen:
    """Split a silo's rows.

    Without a test file, the share `holdout` of the training rows (at least one, but never all) is held out, drawn
    from the seed and the silo's name.

    Raises:
        DataError: a single row, of which nothing can be held out.
    """
    own = rows_of(files, "train", train_rows)
    if files.test:
        return Chosen(own, rows_of(files, "test", test_rows))
    if len(own) < 2:
        raise DataError(f"{printable(files.train[0])}: silo {printable(files.name)!r} has one row and no test file: "
                        "there is nothing to hold out. Give it more rows, or a test file.")  # fmt: skip
    held = min(max(1, round(holdout * len(own))), len(own) - 1)
    order = np.random.default_rng(derive(seed, "holdout", files.name)).permutation(len(own))
    tested = np.zeros(len(own), np.bool_)
    tested[order[:held]] = True
    return Chosen(own[~tested], own[tested])


def first_rows(chosen: Chosen, most: int, silo: str, seed: int) -> Chosen:
    """Keep the first `most` training rows of a shuffle (0: all of them); fewer are a subset of more."""
    if not most or most >= len(chosen.train):
        return chosen
    order = np.random.default_rng(derive(seed, "rows", silo)).permutation(len(chosen.train))
    return Chosen(np.sort(chosen.train[order[:most]]), chosen.test)


def silo_rows(files: SiloFiles, reading: Reading, chosen: Chosen, split: str) -> Iterator[tuple[int, Row]]:
    """Yield (number in its sources, row) of a silo's split, streamed."""
    for _, number, row in _placed([(files, chosen)], reading, split):
        yield number, row


def _placed(silos: Sequence[tuple[SiloFiles, Chosen]], reading: Reading, split: str) -> Iterator[Placed]:
    """Yield all rows of a split of all silos; a pool is read once for all silos that it was dealt out to."""
    together: dict[tuple[tuple[str, ...], str], list[tuple[str, NDArray[np.int64]]]] = defaultdict(list)
    for files, chosen in silos:
        sources = files.test if split == "test" and files.test else files.train
        wanted = chosen.test if split == "test" else chosen.train
        together[sources, files.part or f"all of {files.name}"].append((files.name, wanted))
    for (sources, _), shares in together.items():
        owners = np.full(1 + max(int(wanted.max(initial=-1)) for _, wanted in shares), -1, np.int32)
        for index, (_, wanted) in enumerate(shares):
            owners[wanted] = index
        for number, ((_, row), owner) in enumerate(zip(read_rows(sources, reading), owners, strict=False)):
            if owner >= 0:
                yield shares[owner][0], number, row


# ------------------------------------------------------------------------------------------------ leaks


def leaks_of(silos: Sequence[SiloFiles], reading: Reading, holdout: float, seed: int) -> Path:
    """The folder of these silos' leaks: which rows of a test also stand in any of their training texts.

    Raises:
        DataError: a row cannot be used; every row is checked on the way, unless that was done for this content.
    """
    sources = list(dict.fromkeys(source for files in silos for source in (*files.train, *files.test)))
    numbers = {source: number for number, source in enumerate(sources)}
    described = [
        (
            files.name,
            [numbers[source] for source in files.train],
            [numbers[source] for source in files.test],
            files.part and Path(files.part).name,
        )
        for files in silos
    ]

    def build(folder: Path) -> None:
        chosen = [(files, chosen_rows(files, *counted_rows(files, reading), holdout, seed)) for files in silos]
        names = [files.name for files in silos]
        found = leaks.find(names, _placed(chosen, reading, "train"), _placed(chosen, reading, "test"))
        leaks.write(folder, found)

    return kept("leaks", sources, reading, (described, holdout, seed), build)


def counted_rows(files: SiloFiles, reading: Reading) -> tuple[int, int]:
    """How many rows a silo's sources hold, train and test; counted once for a content.

    Raises:
        DataError: a row cannot be used; every row is checked on the way.
    """
    return dealt_rows(files) or (_count(files.train, reading), _count(files.test, reading))


def _count(sources: Sequence[str], reading: Reading) -> int:
    def build(folder: Path) -> None:
        (folder / "rows").write_text(str(sum(1 for _ in read_rows(sources, reading))))

    return int((kept("counts", sources, reading, (), build) / "rows").read_text()) if sources else 0


def first_test_rows(
    files: SiloFiles, reading: Reading, chosen: Chosen, count: int, left_out: frozenset[int] = frozenset()
) -> Sequence[Row]:
    """The first rows of a silo's test, without those that are left out of it."""
    rows = (row for number, row in silo_rows(files, reading, chosen, "test") if number not in left_out)
    return list(itertools.islice(rows, count))
