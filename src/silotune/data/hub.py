"""Rows from datasets on the Hugging Face hub: `hf:OWNER/NAME`, `hf:OWNER/NAME:CONFIG`, `...@SPLIT`."""

import os
import re
from collections.abc import Iterator
from typing import Any

from silotune.data.records import Record
from silotune.errors import DataError

ID = re.compile(r"hf:(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.\[\]:%+-]+))?$")


def hub_records(source: str) -> Iterator[Record]:
    """Yield the rows of a dataset, which the datasets library fetches once and memory-maps.

    Raises:
        DataError: no such dataset, or it cannot be reached.
    """
    for number, fields in enumerate(load(source), 1):
        yield Record(number, f"{source}: row {number}", fields)


def identity(source: str) -> str:
    """What changes when the dataset changes."""
    return str(load(source)._fingerprint)


def load(source: str) -> Any:
    """The dataset that an id names, as the datasets library holds it.

    Raises:
        DataError: no such dataset, or it cannot be reached.
    """
    match = ID.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: not of the form hf:OWNER/NAME[:CONFIG][@SPLIT].")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(match["name"], match["config"], split=match["split"] or "train")
    except Exception as error:  # the library raises many kinds, from many libraries below it
        raise DataError(
            f"{source}: the dataset cannot be had ({type(error).__name__}). Check its name, configuration and split, "
            "and that the hub can be reached from here; or give files."
        ) from None
