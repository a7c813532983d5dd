"""What a silo on its own machine holds and allows, from the configuration of its SuperNode."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, cast

from silotune.data.silos.corpus import reading_of
from silotune.data.silos.sources import SiloConfig, find_silos
from silotune.errors import InputError
from silotune.recipe import check_recipe
from silotune.silo.memory import default_root
from silotune.wire.envelope import Scalar

MIN_ROWS = 8
"""On a member's machine, where its node says nothing else: a loss, or an update, of fewer rows tells of single ones."""
NodeConfig = TypedDict("NodeConfig", {
    "data": str, "silo": str, "base": str, "threads": int, "device": str, "dtype": str, "holdout": float, "ledger": str,
    "memory": str, "fields": str, "text-rows": str, "drop-leaks": bool, "keep": str, "keep-mib": int, "min-rows": int,
}, total=False)  # fmt: skip
NODE_KEYS: Mapping[str, type] = NodeConfig.__annotations__


def from_node(node_config: Mapping[str, Scalar]) -> SiloConfig:
    """The silo's configuration from that of its SuperNode.

    Keys are `data` (a silo's folder or its NAME.train.*) and optionally `silo` (its name), `base` (where the base model
    lies), `threads`, `device`, `dtype`, `holdout`, `ledger`, `memory` (a folder), `fields` (what the fields of rows
    are: "prompt=q,response=a"), `text-rows`, `drop-leaks`, `keep`, `keep-mib`, `min-rows`.

    Raises:
        InputError: a key is unknown or of the wrong type, or what it names cannot be used.
    """
    told = {key: value for key, value in node_config.items() if key not in ("partition-id", "num-partitions")}
    for key, value in told.items():
        if key not in NODE_KEYS:
            raise InputError(f"node configuration: unknown key {key!r}; there are {', '.join(NODE_KEYS)}")
        if type(value) is not NODE_KEYS[key]:
            raise InputError(f"node configuration: {key} must be {NODE_KEYS[key].__name__}")
    given = cast(NodeConfig, told)
    if given.get("min-rows", 0) < 0:
        raise InputError("node configuration: min-rows must be 0 or more")
    found = find_silos(given.pop("data"))
    if len(found) != 1:
        raise InputError(f"node configuration: data must be one silo's, it holds {len(found)}")
    files = replace(found[0], name=given.pop("silo", found[0].name))
    settings = check_recipe(_sections(given), "node configuration")
    return SiloConfig(
        files=files,
        base=_own_place(given.get("base")),
        holdout=settings.data.holdout if "holdout" in given else None,
        reading=reading_of(settings.data),
        drop_leaks=settings.data.drop_leaks,
        device=settings.model.device,
        dtype=settings.model.dtype,
        keep=settings.model.keep,
        keep_mib=settings.model.keep_mib,
        threads=settings.federation.threads or 0,
        min_rows=given.get("min-rows", MIN_ROWS),
        ledger=Path(given["ledger"]) if "ledger" in given else None,
        memory=Path(given["memory"]).absolute() if "memory" in given else default_root(),
        own_machine=True,
    )


def _own_place(base: str | None) -> str | None:
    """Where a node's base lies, as a whole path where it is one."""
    return str(Path(base).absolute()) if base and Path(base).exists() else base


def _sections(given: NodeConfig) -> dict[str, dict[str, object]]:
    """A node's settings where a recipe has them, so that they have the same bounds."""
    values: Mapping[str, object] = given
    sections: dict[str, dict[str, object]] = {"data": {}, "model": {}, "federation": {}}
    for section, keys in (
        ("data", ("holdout", "text-rows", "drop-leaks")),
        ("model", ("device", "dtype", "keep", "keep-mib")),
        ("federation", ("threads",)),
    ):
        sections[section] = {key.replace("-", "_"): values[key] for key in keys if key in values}
    if "fields" in given:
        pairs = [pair.partition("=") for pair in given["fields"].split(",")]
        sections["data"]["fields"] = {meaning.strip(): name.strip() for meaning, _, name in pairs}
    return sections
