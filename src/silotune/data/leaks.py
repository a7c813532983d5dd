"""Test rows that also stand in training text: a test that was trained on proves nothing.

Exact: a training row says the same in the same roles, runs of white space apart. Near: at least `NEAR` of the test
row's runs of five words stand in one training row (the measure by which Lee et al., "Deduplicating Training Data
Makes Language Models Better", ACL 2022, arXiv 2107.06499, and others tell copies); words are compared in NFKC and
without case, and each Chinese, Japanese or Korean character is a word. Runs that stand in more than `TEMPLATE` test
rows of a silo are its template (a fixed instruction, say) and tell nothing.

All training text is streamed past; what is held is the test rows' runs. Only row numbers come out, never text.
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from silotune import cache
from silotune.data.rows import Row

NEAR = 0.8
RUN = 5
TEMPLATE = 10

WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]|[^\W_]+")


@dataclass(frozen=True)
class Leaks:
    """Of a silo's test rows, those that also stand in training text: numbers of rows."""

    exact: tuple[int, ...] = ()
    near: tuple[int, ...] = ()
    """Near, and not exact."""
    own: int = 0
    """How many of both stand in the silo's own training text."""

    @property
    def all(self) -> frozenset[int]:
        """Exact and near."""
        return frozenset(self.exact + self.near)


@dataclass(frozen=True)
class Text:
    """A silo's rows, each split with the rows' numbers. Read twice at most; may stream."""

    train: Iterable[tuple[int, Row]]
    test: Iterable[tuple[int, Row]]


def find(silos: Mapping[str, Text]) -> dict[str, Leaks]:
    """Look for every silo's test rows in every silo's training text."""
    looked_for = _Wanted()
    for name, text in silos.items():
        looked_for.add(name, text.test)
    hits: dict[tuple[str, int], list[set[str]]] = defaultdict(lambda: [set(), set()])
    for name, text in silos.items():
        for _, row in text.train:
            for place, exact in looked_for.found_in(row):
                hits[place][0 if exact else 1].add(name)
    leaks = {}
    for name in silos:
        mine = {number: kinds for (silo, number), kinds in hits.items() if silo == name}
        exactly = tuple(sorted(number for number, kinds in mine.items() if kinds[0]))
        nearly = tuple(sorted(number for number, kinds in mine.items() if not kinds[0]))
        own = sum(name in kinds[0] | kinds[1] for kinds in mine.values())
        leaks[name] = Leaks(exactly, nearly, own)
    return leaks


@dataclass
class _Wanted:
    """What is looked for: digests and runs of test rows."""

    digests: dict[bytes, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))
    runs: dict[int, list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))
    sizes: dict[tuple[str, int], int] = field(default_factory=dict)
    """Runs of each test row that are no template."""

    def add(self, silo: str, rows: Iterable[tuple[int, Row]]) -> None:
        """Note the test rows of a silo."""
        counted: Counter[int] = Counter()
        kept: list[tuple[int, set[int]]] = []
        for number, row in rows:
            self.digests[row.digest].append((silo, number))
            found = runs(row)
            counted.update(found)
            kept.append((number, found))
        for number, found in kept:
            telling = [run for run in found if counted[run] <= TEMPLATE]
            self.sizes[silo, number] = len(telling)
            for run in telling:
                self.runs[run].append((silo, number))

    def found_in(self, row: Row) -> Iterable[tuple[tuple[str, int], bool]]:
        """Test rows that a training row holds, and whether exactly."""
        for place in self.digests.get(row.digest, ()):
            yield place, True
        counted: Counter[tuple[str, int]] = Counter()
        for run in runs(row):
            counted.update(self.runs.get(run, ()))
        for place, count in counted.items():
            if count >= NEAR * self.sizes[place]:
                yield place, False


def runs(row: Row) -> set[int]:
    """Hashes of all runs of five words; of all words where there are fewer."""
    words = WORD.findall(unicodedata.normalize("NFKC", "\n".join(row.parts)).casefold())
    size = min(RUN, len(words))
    return {hash(tuple(words[start : start + size])) for start in range(len(words) - size + 1)} if words else set()


# ----------------------------------------------------------------------------------------------- on disk


def kept(key: str, silos: Mapping[str, Text]) -> Path:
    """The folder of these silos' leaks, worked out once for a content.

    Args:
        key: a digest of the silos' text and of how it is split.
        silos: the same text.
    """

    def build(folder: Path) -> None:
        found = {
            name: {"exact": leaks.exact, "near": leaks.near, "own": leaks.own} for name, leaks in find(silos).items()
        }
        (folder / "leaks.json").write_text(json.dumps(found), encoding="utf-8")

    return cache.kept("leaks", key, build)


def read(folder: Path, silo: str) -> Leaks:
    """What `kept` found for a silo."""
    found = json.loads((folder / "leaks.json").read_text(encoding="utf-8"))[silo]
    return Leaks(tuple(found["exact"]), tuple(found["near"]), found["own"])


def duplicates(digests: Sequence[bytes]) -> int:
    """How many rows say what a row before them says."""
    return len(digests) - len(set(digests))
