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
Test rows are dealt out in the proportions in which the training rows of their label were.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from silotune import cache
from silotune.data.files import printable
from silotune.data.reading import Reading, read_with_records
from silotune.data.records import json_type
from silotune.data.seeds import derive
from silotune.data.silos import SiloFiles, expand
from silotune.data.store import content_key
from silotune.errors import DataError
from silotune.settings import PoolSettings

Owners = NDArray[np.int32]
"""(rows,): the silo of each row, counted from 0."""
MOST_SILOS = 10_000
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
    key = content_key((*train, *test), reading, pool.model_dump(exclude={"train", "test"}), len(train), seed)

    def build(folder: Path) -> None:
        dealt = deal(pool, train, test, reading, seed)
        (folder / "names.json").write_text(json.dumps(dealt.names), encoding="utf-8")
        np.save(folder / "train.npy", dealt.train)
        np.save(folder / "test.npy", dealt.test)

    folder = cache.kept("pools", key, build)
    return tuple(SiloFiles(name, train, test, str(folder)) for name in _names(folder))


def rows_of(files: SiloFiles, split: str, rows: int) -> NDArray[np.int64]:
    """The rows of a split that are a silo's own."""
    if files.part is None:
        return np.arange(rows)
    folder = Path(files.part)
    return np.flatnonzero(np.load(folder / f"{split}.npy", mmap_mode="r") == _names(folder).index(files.name))


def _names(folder: Path) -> list[str]:
    names: list[str] = json.loads((folder / "names.json").read_text(encoding="utf-8"))
    return names


def deal(pool: PoolSettings, train: Sequence[str], test: Sequence[str], reading: Reading, seed: int) -> Dealt:
    """Read the rows and deal them out.

    Raises:
        DataError: as `pooled_silos`.
    """
    values = _values(pool, train, reading)
    test_values = _values(pool, test, reading) if test else []
    if pool.law == "field":
        return _by_field(values, test_values, pool.field or "", printable(train[0]))
    silos = pool.silos or 1
    least = pool.minimum or MINIMUM
    if silos * least > len(values):
        raise DataError(f"data.pool: {len(values)} rows are too few for {silos} silos of at least {least}.")
    labels = (
        np.unique(np.array(values), return_inverse=True)[1] if values[0] is not None else np.zeros(len(values), int)
    )
    random = np.random.default_rng(derive(seed, "pool", pool.law))
    owners = filled(LAWS[pool.law](labels, silos, pool, random), silos, least, random)
    names = tuple(f"silo-{number:0{len(str(silos))}d}" for number in range(1, silos + 1))
    tested = _alike(values, owners, silos, test_values, random) if test else np.zeros(0, np.int32)
    return Dealt(names, owners, tested)


def _values(pool: PoolSettings, sources: Sequence[str], reading: Reading) -> list[str | None]:
    """The value of the law's field in each row, None where the law looks at none. Every row is checked on the way."""
    wanted = pool.field if pool.law == "field" else (pool.field or reading.mapping.get("label", "label"))
    if pool.law not in ("field", "dirichlet", "shards"):
        wanted = None
    values: list[str | None] = []
    for record, _, _ in read_with_records(sources, reading):
        if wanted is None:
            values.append(None)
            continue
        value = record.fields.get(wanted)
        if isinstance(value, bool) or not isinstance(value, (str, int)) or not str(value).strip():
            what = json_type(value) if value is not None else "missing"
            raise DataError(f"{record.where}: field {printable(wanted)!r} must be text or a whole number for "
                            f'data.pool.law = "{pool.law}"; it is {what}.')  # fmt: skip
        values.append(str(value).strip())
    return values


def _by_field(values: Sequence[str | None], tested: Sequence[str | None], field: str, shown: str) -> Dealt:
    names = sorted({str(value) for value in values})
    if len(names) > MOST_SILOS:
        raise DataError(f"{shown}: field {printable(field)!r} has {len(names)} values; that is no list of silos.")
    for name in names:
        if len(name) > 64 or not name.isprintable():
            raise DataError(f"{shown}: a value of field {printable(field)!r} is longer than 64 characters or cannot be "
                            "shown, so it cannot name a silo.")  # fmt: skip
    number = {name: index for index, name in enumerate(names)}
    unknown = {str(value) for value in tested} - set(names)
    if unknown:
        raise DataError(f"data.pool.test: {len(unknown)} values of field {printable(field)!r} name no silo of the "
                        "training rows.")  # fmt: skip
    owners = [np.array([number[str(value)] for value in part], np.int32) for part in (values, tested)]
    return Dealt(tuple(names), owners[0], owners[1])


# ------------------------------------------------------------------------------------------------- laws


def _iid(labels: NDArray[np.int64], silos: int, _: PoolSettings, random: np.random.Generator) -> Owners:
    return _dealt(random.permutation(len(labels)), np.full(silos, 1 / silos))


def _dirichlet(labels: NDArray[np.int64], silos: int, pool: PoolSettings, random: np.random.Generator) -> Owners:
    owners = np.zeros(len(labels), np.int32)
    for label in range(int(labels.max()) + 1):
        rows = random.permutation(np.flatnonzero(labels == label))
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
    counts = np.bincount(owners, minlength=silos)
    for silo in np.flatnonzero(counts < least):
        while counts[silo] < least:
            richest = int(np.argmax(counts))
            owners[random.choice(np.flatnonzero(owners == richest))] = silo
            counts[richest] -= 1
            counts[silo] += 1
    return owners


def _alike(
    values: Sequence[str | None], owners: Owners, silos: int, tested: Sequence[str | None], random: np.random.Generator
) -> Owners:
    """Deal out test rows in the proportions in which the training rows of their label were."""
    of_value = np.array([str(value) for value in values])
    test = np.array([str(value) for value in tested])
    found = np.zeros(len(test), np.int32)
    everybody = np.bincount(owners, minlength=silos)
    for value in np.unique(test):
        counts = np.bincount(owners[of_value == value], minlength=silos)
        shares = counts if counts.any() else everybody
        rows = random.permutation(np.flatnonzero(test == value))
        found[rows] = _dealt(np.arange(len(rows)), shares / shares.sum())
    return found
