"""Rows from datasets on the Hugging Face hub: `hf:OWNER/NAME`, `hf:OWNER/NAME:CONFIG`, `...@SPLIT`."""

import functools
import os
import re
from collections.abc import Iterator
from typing import Protocol

from silotune.data.read.files import MOST_ROW, printable, too_long
from silotune.data.read.records import Record
from silotune.errors import DataError

ID = re.compile(r"hf:(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.\[\]:%+-]+))?$")


class Dataset(Protocol):
    """What is used of a dataset of the datasets library, which has no types."""

    _fingerprint: str

    def __iter__(self) -> Iterator[dict[str, object]]:
        """The rows."""


def hub_records(source: str) -> Iterator[Record]:
    """Yield the rows of a dataset, which the datasets library fetches once and memory-maps.

    Raises:
        DataError: no such dataset, it cannot be reached or read, or a row is too long.
    """
    rows = enumerate(load(source), 1)
    while True:
        try:
            number, fields = next(rows)
        except StopIteration:
            return
        except Exception as error:  # as in `load`
            raise DataError(f"{source}: the dataset cannot be read ({type(error).__name__}). Fetch it again.") from None
        where = f"{source}: row {number}"
        if _size(fields) > MOST_ROW:
            raise too_long(where)
        yield Record(number, where, fields)


def _size(value: object) -> int:
    """Bytes of all text in a value."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 0


def identity(source: str) -> str:
    """What changes when the dataset changes."""
    return str(load(source)._fingerprint)


@functools.lru_cache(maxsize=32)
def load(source: str) -> Dataset:
    """The dataset that an id names, as the datasets library holds it; asked for once in a process.

    Raises:
        DataError: no such dataset, or it cannot be reached.
    """
    match = ID.fullmatch(source)
    if match is None:
        raise DataError(f"{printable(source)}: not of the form hf:OWNER/NAME[:CONFIG][@SPLIT].")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()
    try:
        found: Dataset = datasets.load_dataset(match["name"], match["config"], split=match["split"] or "train")
        return found
    except Exception as error:  # the library raises many kinds, from many libraries below it
        offline = datasets.config.HF_HUB_OFFLINE or datasets.config.HF_DATASETS_OFFLINE
        reach = (
            "unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, with which only what was fetched before can be had"
            if offline
            else "see that the hub can be reached from here"
        )
        raise DataError(
            f"{source}: the dataset cannot be had ({type(error).__name__}). Check its name, configuration and split, "
            f"and {reach}; or give files."
        ) from None
