"""Test rows that also stand in training text: a test that was trained on proves nothing.

Exact: a training row says the same in the same roles, runs of white space apart. Near: at least `NEAR` of the test
row's runs of five words stand in one training row (the measure by which Lee et al., "Deduplicating Training Data
Makes Language Models Better", ACL 2022, arXiv 2107.06499, and others tell copies); words are compared in NFKC and
without case, and each Chinese, Japanese or Korean character is a word.

Runs that many rows share are a template (a fixed instruction, say) and tell nothing. All silos' rows count, train and
test: a run in more than `TEMPLATE` of them is one, or, where rows are few, in more than a fifth of them and more than
three. So a text that is nearly repeated in more than ten rows is taken for a template; one that is exactly repeated is
found however often it stands there.

All training text is streamed past once; what is held is the test rows' runs, and for each the first few training rows
that have it. Only row numbers come out, never text.
"""

import functools
import json
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from silotune.data.read.rows import Row

NEAR = 0.8
RUN = 5
TEMPLATE, TEMPLATE_SHARE, NO_TEMPLATE = 10, 0.2, 3

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+")

Placed = tuple[str, int, Row]
"""A silo, the number of a row in its sources, the row."""


@dataclass(frozen=True)
class Leaks:
    """The test rows of a silo that also appear in training text, by row number."""

    exact: tuple[int, ...] = ()
    near: tuple[int, ...] = ()
    """Near, and not exact."""
    own: int = 0
    """How many of both stand in the silo's own training text."""

    @property
    def all(self) -> frozenset[int]:
        """Exact and near."""
        return frozenset(self.exact + self.near)


def find(silos: Sequence[str], train: Iterable[Placed], test: Iterable[Placed]) -> dict[str, Leaks]:
    """Look for every silo's test rows in all silos' training text, each read once."""
    wanted = _Wanted()
    for place in test:
        wanted.add(*place)
    for silo, _, row in train:
        wanted.look_in(silo, row)
    template = min(TEMPLATE, max(NO_TEMPLATE, TEMPLATE_SHARE * wanted.rows))
    found: dict[str, tuple[list[int], list[int], list[int]]] = {silo: ([], [], []) for silo in silos}
    for one in wanted.tests:
        exact, near, own = found[one.silo]
        same, alike = wanted.digests[one.digest], wanted.alike(one, template)
        if same:
            exact.append(one.number)
        elif alike:
            near.append(one.number)
        if one.silo in same or one.silo in alike:
            own.append(one.number)
    return {
        silo: Leaks(tuple(sorted(exact)), tuple(sorted(near)), len(own)) for silo, (exact, near, own) in found.items()
    }


@dataclass(frozen=True)
class _Test:
    """A test row without its text."""

    silo: str
    number: int
    digest: bytes
    runs: "array[int]"


@dataclass
class _Wanted:
    """What is looked for, and where it was found."""

    tests: list[_Test] = field(default_factory=list)
    digests: dict[bytes, set[str]] = field(default_factory=dict)
    """For each test row, the silos that train on the same row."""
    runs: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    """For each run of a test row, the number of test rows that have it."""
    trains: dict[int, "array[int]"] = field(default_factory=dict)
    """For each such run, the first training rows that have it: one more at most than if it were no template."""
    owners: list[str] = field(default_factory=list)
    """The silo of each training row."""

    @property
    def rows(self) -> int:
        """Number of rows of all silos, train and test."""
        return len(self.tests) + len(self.owners)

    def add(self, silo: str, number: int, row: Row) -> None:
        """Note a test row."""
        found = array("q", runs(row))
        self.tests.append(_Test(silo, number, row.digest, found))
        self.digests.setdefault(row.digest, set())
        for run in found:
            self.runs[run] += 1

    def look_in(self, silo: str, row: Row) -> None:
        """Note what a training row has of what is looked for."""
        number = len(self.owners)
        self.owners.append(silo)
        if row.digest in self.digests:
            self.digests[row.digest].add(silo)
        for run in runs(row):
            if run in self.runs and len(known := self.trains.setdefault(run, array("q"))) <= TEMPLATE:
                known.append(number)

    def alike(self, test: _Test, template: float) -> set[str]:
        """The silos of training rows that have enough of a test row's telling runs."""
        known = ((self.runs[run], self.trains.get(run, ())) for run in test.runs)
        telling = [trains for tests, trains in known if tests + len(trains) <= template]
        counted = Counter(number for trains in telling for number in trains)
        return {self.owners[number] for number, count in counted.items() if count >= NEAR * len(telling)}


def runs(row: Row) -> set[int]:
    """Hashes of all runs of five words; of all words where there are fewer."""
    words = WORD.findall(unicodedata.normalize("NFKC", "\n".join(row.parts)).casefold())
    size = min(RUN, len(words))
    return {hash(tuple(words[start : start + size])) for start in range(len(words) - size + 1)} if words else set()


# ----------------------------------------------------------------------------------------------- on disk


def write(folder: Path, found: dict[str, Leaks]) -> None:
    """Write what `find` found."""
    (folder / "leaks.json").write_text(json.dumps({silo: asdict(leaks) for silo, leaks in found.items()}))


def read(folder: Path, silo: str) -> Leaks:
    """What was found for a silo."""
    return _written(folder)[silo]


@functools.lru_cache(maxsize=4)
def _written(folder: Path) -> dict[str, Leaks]:
    """All of a folder; what stands in one never changes, for it is named by its content."""
    told = json.loads((folder / "leaks.json").read_text())
    return {silo: Leaks(tuple(one["exact"]), tuple(one["near"]), one["own"]) for silo, one in told.items()}
