"""Rows that lie in one place, dealt out to silos by a law, for simulations: a function of the rows and the seed.

iid         shuffled, equal parts
field       a silo for each value of a field
dirichlet   of each label, the silos' shares are drawn from Dirichlet(alpha) (Hsu, Qi, Brown, "Measuring the Effects
            of Non-Identical Data Distribution for Federated Visual Classification", 2019, arXiv 1909.06335)
lognormal   shuffled, in parts whose sizes are log-normal
power       shuffled, in parts whose sizes fall with the rank to the power of -spread
shards      sorted by label and cut into equal pieces, each silo gets some (McMahan et al., "Communication-Efficient
            Learning of Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629)

Every law deals out each row once. Every silo gets `minimum` rows at least: what is missing is taken from the largest.
Test rows are dealt out in the proportions in which the training rows of their label were, and every silo gets one.
"""

import functools
import heapq
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from silotune.data.read.content import kept
from silotune.data.read.files import printable
from silotune.data.read.reading import Reading, read_with_records
from silotune.data.read.records import Record, json_type
from silotune.data.read.rows import Row
from silotune.data.read.shapes import LONGEST_LABEL
from silotune.data.seeds import derive
from silotune.data.silos.sources import SiloFiles, expand
from silotune.errors import DataError
from silotune.settings import PoolSettings

Owners = NDArray[np.int32]
"""(rows,): the silo of each row, counted from 0."""
MOST_SILOS, MOST_NAME = 10_000, 64
"""Values of a field that may name silos, and characters of such a name."""
ALPHA, SPREAD, SHARDS, MINIMUM = 0.5, 1.0, 2, 2


@dataclass(frozen=True)
class Dealt:
    """Which row is whose."""

    names: tuple[str, ...]
    train: Owners
    test: Owners


def pooled_silos(pool: PoolSettings, reading: Reading, seed: int) -> tuple[SiloFiles, ...]:
    """The silos that a pool is dealt out to.

    Raises:
        DataError: a row cannot be used, has no value of the field, or there are too few rows.
    """
    train = expand(pool.train, "data.pool.train")
    test = expand(pool.test, "data.pool.test") if pool.test is not None else ()
    depends = pool.model_dump(exclude={"train", "test"}), len(train), seed

    def build(folder: Path) -> None:
        dealt = deal(pool, train, test, reading, seed)
        (folder / "names.json").write_text(json.dumps(dealt.names), encoding="utf-8")
        np.save(folder / "train.npy", dealt.train)
        np.save(folder / "test.npy", dealt.test)

    folder = kept("pools", (*train, *test), reading, depends, build)
    names: list[str] = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    return tuple(SiloFiles(name, train, test, str(folder)) for name in names)


def rows_of(files: SiloFiles, split: str, rows: int) -> NDArray[np.int64]:
    """The rows of a split that are a silo's own."""
    return np.arange(rows) if files.part is None else _parts(files.part, split)[files.name]


@functools.lru_cache(maxsize=4)
def _parts(folder: str, split: str) -> Mapping[str, NDArray[np.int64]]:
    """Return the rows of each silo, rising. A folder's content never changes: it is named by its content."""
    names: list[str] = json.loads((Path(folder) / "names.json").read_text(encoding="utf-8"))
    owners = np.load(Path(folder) / f"{split}.npy")
    return dict(zip(names, _grouped(owners, len(names)), strict=True))


def _grouped(numbers: NDArray[np.int32] | NDArray[np.int64], count: int) -> list[NDArray[np.int64]]:
    """For each number below `count` the rows that have it, rising."""
    starts = np.cumsum(np.bincount(numbers, minlength=count))[:-1]
    return np.split(np.argsort(numbers, kind="stable"), starts)


def dealt_rows(files: SiloFiles) -> tuple[int, int] | None:
    """How many rows, train and test, were dealt out to a silo and its like; None: it is of no pool."""
    if files.part is None:
        return None
    train, test = (np.load(Path(files.part) / f"{split}.npy", mmap_mode="r") for split in ("train", "test"))
    return len(train), len(test)


def deal(pool: PoolSettings, train: Sequence[str], test: Sequence[str], reading: Reading, seed: int) -> Dealt:
    """Read the rows and deal them out.

    Raises:
        DataError: as `pooled_silos`.
    """
    values = _Values(pool, reading)
    labels = values.read(train)
    tested = values.read(test)
    if pool.law == "field":
        return _by_field(list(values.numbers), labels, tested)
    silos, least = pool.silos or 1, pool.minimum or MINIMUM
    if silos * least > len(labels):
        raise DataError(f"data.pool: {len(labels)} rows are too few for {silos} silos of at least {least}.")
    if test and len(tested) < silos:
        raise DataError(f"data.pool.test: {len(tested)} rows are too few to test {silos} silos. Give more rows or "
                        "fewer silos, or leave it out, so that every silo holds out a share of its own.")  # fmt: skip
    random = np.random.default_rng(derive(seed, "pool", pool.law))
    owners = filled(LAWS[pool.law](labels, silos, pool, random), silos, least, random)
    names = tuple(f"silo-{number:0{len(str(silos))}d}" for number in range(1, silos + 1))
    return Dealt(names, owners, _alike(labels, owners, silos, tested, random))


def _by_field(names: list[str], labels: NDArray[np.int64], tested: NDArray[np.int64]) -> Dealt:
    """A silo for each value, in the order of their names."""
    place = np.argsort(np.argsort(np.array(names, object), kind="stable"))
    if len(tested) and (untested := len(names) - len(np.unique(tested))):
        raise DataError(f"data.pool.test: {untested} of {len(names)} silos get no row to test on. Give rows of every "
                        "silo, or leave it out, so that every silo holds out a share of its own.")  # fmt: skip
    return Dealt(tuple(sorted(names)), place[labels].astype(np.int32), place[tested].astype(np.int32))


class _Values:
    """What the law looks at in each row, as numbers in the order in which the values come up."""

    def __init__(self, pool: PoolSettings, reading: Reading) -> None:
        self.numbers: dict[str, int] = {}
        self._pool, self._reading = pool, reading
        self._type: type | None = None

    def read(self, sources: Sequence[str]) -> NDArray[np.int64]:
        """(rows,): the number of each row's value, 0 where the law looks at none. Every row is checked on the way.

        The training rows come first: a silo that is named in test rows only has nothing to train on.
        """
        known = len(self.numbers)
        looks = self._pool.law in ("field", "dirichlet", "shards")
        numbers = array("q")
        for record, _, row in read_with_records(sources, self._reading):
            value = self._checked(self._value(record, row), record.where) if looks else ""
            numbers.append(self.numbers.setdefault(value, len(self.numbers)))
            if self._pool.law == "field" and len(self.numbers) > (known or MOST_SILOS):
                self._too_many(record.where, known)
        return np.array(numbers, np.int64)

    def _too_many(self, where: str, known: int) -> NoReturn:
        if known:
            raise DataError(f"{where}: the value of field {self._field!r} names no silo of the training rows.")
        raise DataError(f"{where}: field {self._field!r} has more than {MOST_SILOS} values; that is no list of silos.")

    @property
    def _field(self) -> str:
        return printable(self._pool.field or self._reading.mapping.get("label", "label"))

    def _value(self, record: Record, row: Row) -> object:
        return record.fields.get(self._pool.field) if self._pool.field else row.label

    def _checked(self, value: object, where: str) -> str:
        law = self._pool.law
        named = f'{where}: field {self._field!r} must be text or a whole number for data.pool.law = "{law}"'
        if not isinstance(value, (str, int)) or (isinstance(value, bool) and law == "field"):
            raise DataError(f"{named}; it is {'missing' if value is None else json_type(value)}.")
        text = str(value)
        if not text.strip():
            raise DataError(f"{named}; it is blank.")
        if self._type not in (None, type(value)):
            raise DataError(f"{named}, the same in all rows; here it is {json_type(value)}, before it was another.")
        self._type = type(value)
        if law == "field" and (len(text) > MOST_NAME or not text.isprintable()):
            raise DataError(f"{where}: the value of field {self._field!r} is longer than {MOST_NAME} characters or "
                            "cannot be shown, so it cannot name a silo.")  # fmt: skip
        if len(text) > LONGEST_LABEL:
            raise DataError(f"{where}: the value of field {self._field!r} is longer than {LONGEST_LABEL} characters: "
                            "that is no label.")  # fmt: skip
        return text


# ------------------------------------------------------------------------------------------------- laws


def _iid(labels: NDArray[np.int64], silos: int, _: PoolSettings, random: np.random.Generator) -> Owners:
    return _dealt(random.permutation(len(labels)), np.full(silos, 1 / silos))


def _dirichlet(labels: NDArray[np.int64], silos: int, pool: PoolSettings, random: np.random.Generator) -> Owners:
    owners = np.zeros(len(labels), np.int32)
    for rows in map(random.permutation, _grouped(labels, int(labels.max()) + 1)):
        shares = random.dirichlet(np.full(silos, pool.alpha or ALPHA))
        owners[rows] = _dealt(np.arange(len(rows)), shares)
    return owners


def _lognormal(labels: NDArray[np.int64], silos: int, pool: PoolSettings, random: np.random.Generator) -> Owners:
    sizes = random.lognormal(0.0, pool.spread or SPREAD, silos)
    return _dealt(random.permutation(len(labels)), sizes / sizes.sum())


def _power(labels: NDArray[np.int64], silos: int, pool: PoolSettings, random: np.random.Generator) -> Owners:
    sizes = np.arange(1, silos + 1, dtype=float) ** -(pool.spread or SPREAD)
    return _dealt(random.permutation(len(labels)), sizes / sizes.sum())


def _shards(labels: NDArray[np.int64], silos: int, pool: PoolSettings, random: np.random.Generator) -> Owners:
    shuffled = random.permutation(len(labels))
    ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
    pieces = np.array_split(ordered, silos * (pool.shards or SHARDS))
    owners = np.zeros(len(labels), np.int32)
    for position, piece in enumerate(random.permutation(len(pieces))):
        owners[pieces[piece]] = position % silos
    return owners


LAWS: Mapping[str, Callable[[NDArray[np.int64], int, PoolSettings, np.random.Generator], Owners]] = {
    "iid": _iid,
    "dirichlet": _dirichlet,
    "lognormal": _lognormal,
    "power": _power,
    "shards": _shards,
}


def _dealt(order: NDArray[np.int64], shares: NDArray[np.float64]) -> Owners:
    """Give rows in this order to silos, as many to each as its share says, to the row (largest remainder)."""
    counts = np.floor(shares * len(order)).astype(int)
    remainders = shares * len(order) - counts
    missing = len(order) - int(counts.sum())
    counts[np.argsort(-remainders, kind="stable")[:missing]] += 1
    owners = np.zeros(len(order), np.int32)
    owners[order] = np.repeat(np.arange(len(shares), dtype=np.int32), counts)
    return owners


def filled(owners: Owners, silos: int, least: int, random: np.random.Generator) -> Owners:
    """Bring every silo to `least` rows, each missing row drawn from the silo that then has most."""
    owners = owners.copy()
    held = [rows.tolist() for rows in _grouped(owners, silos)]
    largest = [(-len(part), silo) for silo, part in enumerate(held)]
    heapq.heapify(largest)
    for silo in range(silos):
        while len(held[silo]) < least:
            # Never one that was short itself, whose entry is stale: while one is, another has more than `least`.
            _, richest = heapq.heappop(largest)
            drawn = int(random.integers(len(held[richest])))
            held[richest][drawn], held[richest][-1] = held[richest][-1], held[richest][drawn]
            row = held[richest].pop()
            held[silo].append(row)
            owners[row] = silo
            heapq.heappush(largest, (-len(held[richest]), richest))
    return owners


def _alike(
    labels: NDArray[np.int64], owners: Owners, silos: int, tested: NDArray[np.int64], random: np.random.Generator
) -> Owners:
    """Deal out test rows in the proportions in which the training rows of their label were, at least one to a silo."""
    found = np.zeros(len(tested), np.int32)
    if not len(tested):
        return found
    everybody = np.bincount(owners, minlength=silos)
    count = int(max(labels.max(), tested.max())) + 1
    waiting = [random.permutation(rows) for rows in _grouped(tested, count)]
    for trained, rows in zip(_grouped(labels, count), waiting, strict=True):
        counts = np.bincount(owners[trained], minlength=silos)
        shares = counts if counts.any() else everybody
        found[rows] = _dealt(np.arange(len(rows)), shares / shares.sum())
    _give_one(found, [labels[rows] for rows in _grouped(owners, silos)], [rows.tolist() for rows in waiting])
    return filled(found, silos, 1, random)


def _give_one(found: Owners, trained: Sequence[NDArray[np.int64]], waiting: Sequence[list[int]]) -> None:
    """Give silos without a test row one of a label that they train on, from a silo that has more.

    Args:
        found: the silo of each test row; changed.
        trained: for each silo the labels of its training rows.
        waiting: for each label its test rows; used up.
    """
    counts = np.bincount(found, minlength=len(trained))
    for silo in np.flatnonzero(counts == 0).tolist():
        for label in np.unique(trained[silo]):
            while waiting[label] and not counts[silo]:
                row = waiting[label].pop()  # for good: who has one row now never has more
                if counts[found[row]] > 1:
                    counts[found[row]] -= 1
                    counts[silo], found[row] = 1, silo
