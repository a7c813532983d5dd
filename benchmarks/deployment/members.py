"""A consortium of many silos on this machine, and what its processes take."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from tests.conftest import make_model, write_silo
from tests.real.consortium import RealConsortium

from silotune.recipe import check_recipe, dump_recipe
from silotune.recipe.paths import absolute


@contextmanager
def consortium_of(count: int, base: Path | None = None, rows: int = 20, **model: object) -> Iterator[RealConsortium]:
    """A server and so many silos of a random small model, or of a base, all up; they end with the block."""
    with tempfile.TemporaryDirectory(prefix="silotune-benchmark-") as made:
        folder = Path(made)
        place = base or make_model(folder / "base", **model)
        consortium = RealConsortium(folder / "consortium")
        try:
            consortium.up()
            for number in range(count):
                name = f"silo-{number:02d}"
                write_silo(folder / "silos" / name, rows, 100 * number)
                consortium.silo(consortium.join(name, folder / "silos" / name, place))
            yield consortium
        finally:
            consortium.end()


def write_recipe(consortium: RealConsortium, base: Path | None = None, **sections: dict[str, object]) -> Path:
    """A recipe of these sections beside a consortium."""
    folder = consortium.folder.parent
    document = {"model": {"base": str(base or folder / "base")}, "data": {"silos": "silos/*"}, **sections}
    place = folder / "recipe.toml"
    place.write_text(dump_recipe(absolute(check_recipe(document, "benchmark"), folder)), encoding="utf-8")
    return place


def parts(consortium: RealConsortium) -> dict[str, psutil.Process]:
    """The processes of a consortium, by what they are: `gateway`, `superlink`, `train`, `silo-00 worker` ..."""
    found = {}
    for name, started in consortium.started.items():
        own = psutil.Process(started.pid)
        if name == "train":
            found[name] = own
        for process in own.children(recursive=True):
            line = " ".join(process.cmdline())
            for mark, kind in ((" gateway ", "gateway"), ("flower_superlink", "superlink"), (" silo worker ", "worker"),
                               (" silo carrier ", "carrier")):  # fmt: skip
                if mark in line:
                    found[kind if name == "server" else f"{name.removeprefix('house-')} {kind}"] = process
    return found


def taken(process: psutil.Process) -> dict[str, float]:
    """Resident MiB, CPU seconds and open files of a process."""
    with process.oneshot():
        times = process.cpu_times()
        return {"mib": round(process.memory_info().rss / 2**20, 1), "cpu": round(times.user + times.system, 2),
                "files": process.num_fds()}  # fmt: skip


def state_mib(consortium: RealConsortium) -> float:
    """MiB of the SuperLink's database."""
    return round(sum(path.stat().st_size for path in consortium.folder.rglob("state.db*")) / 2**20, 2)
