"""A silo on a machine of its own, and its answers."""

from pathlib import Path
from typing import Any

from silotune.data.silos.sources import SiloConfig
from silotune.silo.house import open_house
from silotune.silo.worker import Worker
from silotune.wire.envelope import Envelope

SUPERLINK = '[superlink]\naddress = "127.0.0.1:1"\n'


def own_silo(folder: Path, data: Path, base: Path, policy: str = "", **settings: Any) -> SiloConfig:
    """What the worker of a silo holds, whose folder is made here."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {"name": data.name, "data": str(data), "base": str(base), "threads": 1, **settings}
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}" for key, value in given.items()
    ]
    (folder / "silo.toml").write_text("\n".join(lines) + "\n" + SUPERLINK)
    (folder / "policy.toml").write_text(policy)
    return open_house(folder).config()


def answer(request: Envelope, silo: SiloConfig) -> Envelope:
    """What a silo without a policy answers."""
    return Worker(silo).answer(request)
