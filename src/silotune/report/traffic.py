"""What travelled, by the ledger: bytes of each silo and round, and what the messages of each kind held."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from silotune.privacy.ledger import LedgerLine


@dataclass
class Flow:
    """All messages of one kind in one direction."""

    messages: int = 0
    bytes: int = 0
    dtype: str | None = None
    """Codec of the array's numbers; None if there was no array."""
    tensors: Sequence[Sequence[Any]] = ()
    """Pairs of name and shape, of the arrays in all messages: a method may send other tensors in other rounds."""
    fields: set[str] = field(default_factory=set)
    """Names of what stood beside the array."""

    @property
    def numbers(self) -> int:
        """Numbers in them."""
        return sum(prod(shape) for _, shape in self.tensors)

    @property
    def factors(self) -> Mapping[tuple[str, str, tuple[int, ...]], int]:
        """How many tensors there are of each (module, factor, shape); PEFT's names end in `MODULE.lora_A.weight`.

        What a method sends beside a factor has that factor's name after its own: `control/...`.
        """
        found: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
        for name, shape in self.tensors:
            beside, _, own = name.rpartition("/")
            parts = own.removesuffix(".weight").split(".")
            module, factor = parts[-2] if len(parts) > 1 else "", parts[-1].removeprefix("lora_")
            found[module, f"{factor}, {beside}" if beside else factor, tuple(shape)] += 1
        return dict(sorted(found.items()))


class Traffic:
    """Bytes from and to each silo, from lines of the ledger in their order.

    What goes to a node before its silo has said its name is added to that silo's when it has.
    """

    def __init__(self, entries: Iterable[LedgerLine] = ()) -> None:
        """Count the messages that are there already."""
        self.messages = 0
        self.late = 0
        """Messages that came after their deadline: they left a silo and were not used."""
        self.flows: dict[tuple[str, str], Flow] = defaultdict(Flow)
        """By direction and kind."""
        self.asked_to_join: dict[str, str | None] = {}
        """Who answered the first question, and the reason if it was no use."""
        self._bytes: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        for entry in entries:
            self.add(entry)

    def add(self, line: LedgerLine) -> None:
        """Count one message."""
        direction, kind, silo = line["direction"], line.get("kind", ""), line["silo"]
        self.messages += 1
        self.late += bool(line.get("late"))
        self._bytes[silo, direction][line.get("round", 0)] += line["bytes"]
        before = f"node {line.get('node')}"
        if before != silo:
            for way in ("up", "down"):
                self._bytes[silo, way].update(self._bytes.pop((before, way), Counter()))
            self.asked_to_join.pop(before, None)
        flow, fields = self.flows[direction, kind], line.get("fields") or {}
        flow.messages += 1
        flow.bytes += line["bytes"]
        flow.fields |= set(fields)
        tensors = line.get("tensors")
        if tensors and tensors != flow.tensors:
            known = {pair[0]: pair[1] for pair in (*flow.tensors, *tensors)}
            flow.dtype, flow.tensors = line["dtype"], [[name, known[name]] for name in sorted(known)]
        if (direction, kind) == ("up", "join"):
            reason = fields.get("failure") or fields.get("inadmissible")
            self.asked_to_join[silo] = str(reason) if reason else None

    def up(self, silo: str) -> int:
        """Bytes that left a silo."""
        return self.rounds(silo, "up").total()

    def down(self, silo: str) -> int:
        """Bytes that were sent to a silo."""
        return self.rounds(silo, "down").total()

    def rounds(self, silo: str, direction: str) -> Counter[int]:
        """Bytes of a silo by round; the first greeting and the base's score are round 0."""
        return self._bytes.get((silo, direction), Counter())
