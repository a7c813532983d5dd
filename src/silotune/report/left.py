"""What has left a silo, for its own people: the silo's ledger as one table."""

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from silotune.data.read.files import printable
from silotune.report.figures import human_bytes

WHAT = {
    "join": "counts of rows and tokens, the base's fingerprint, the silo's public key",
    "train": "an update of the adapter, and what the training took",
    "evaluate": "sums over held-out rows: loss, tokens, right answers",
    "alone": "the same, of a model that stayed here",
}
"""What the answer to each kind of request holds."""


def as_rows(lines: Iterable[Mapping[str, object]]) -> Sequence[Mapping[str, object]]:
    """A row for each day and kind of answer, and for what was refused or turned away."""
    rows: dict[tuple[str, str, str], dict[str, object]] = {}
    for line in lines:
        day, kind, fields = str(line["time"])[:10], str(line["kind"]), line["fields"]
        assert isinstance(fields, Mapping)
        said = "turned away" if line["direction"] == "down" else "refused" if "failure" in fields else "left"
        what = {"left": WHAT.get(kind, kind), "refused": "the reason for the refusal"}.get(said, "nothing")
        key = (day, said, kind if said != "turned away" else "")
        empty = {"day": day, "outcome": said, "kind": key[2], "what": what}
        row = rows.setdefault(key, {**empty, "messages": 0, "bytes": 0, "numbers": 0, "last": ""})
        tensors = line["tensors"]
        assert isinstance(tensors, Sequence)
        row["messages"] = int(str(row["messages"])) + 1
        row["bytes"] = int(str(row["bytes"])) + int(str(line["bytes"]))
        row["numbers"] = int(str(row["numbers"])) + sum(_size(shape) for _, shape in tensors)
        row["last"] = str(fields.get("failure") or fields.get("inadmissible") or "")
    return [rows[key] for key in sorted(rows)]


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def show(rows: Sequence[Mapping[str, object]], console: Console) -> None:
    """Print the rows as a table, with what they sum to."""
    table = Table(title="what left this silo")
    for name in ("day", "outcome", "asked for", "messages", "what the answer held", "numbers of an adapter", "size"):
        table.add_column(name, justify="right" if name in ("messages", "numbers of an adapter", "size") else "left")
    for row in rows:
        what = f"{row['what']}: {printable(str(row['last']))[:200]}" if row["last"] else str(row["what"])
        table.add_row(str(row["day"]), str(row["outcome"]), str(row["kind"]), str(row["messages"]), what,
                      f"{row['numbers']:,}", human_bytes(int(str(row["bytes"]))))  # fmt: skip
    console.print(table)
    total = sum(int(str(row["bytes"])) for row in rows)
    console.print(f"In all {human_bytes(total)}. Rows and tokens are in none of it.", highlight=False)
