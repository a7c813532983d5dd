"""A silo's units of systemd: worker and carrier as two users, each started by itself, or both as one by `silo up`."""

from collections.abc import Sequence
from pathlib import Path

from silotune import units
from silotune.silo.house import MEET, House
from silotune.silo.up import carried
from silotune.units import NETWORK, Unit


def write_units(house: House) -> Sequence[Path]:
    """Write a silo's units into its folder; returns their paths, the one that is started first before the other.

    Raises:
        InputError: a user of the silo is not on this machine, or they cannot be written.
    """
    worker, carrier = house.users()
    name, folder = f"silotune-silo-{house.silo.name}", house.folder
    memory, ledger = Path(house.silo.memory), Path(house.silo.ledger).parent
    if worker.number == carrier.number:
        both = Unit(name, f"silotune silo {house.silo.name}", ("silo", "up", folder), worker.name,
                    _outermost((folder, memory, ledger)))  # fmt: skip
        return units.write([both], folder)
    apart, closed = ("silo", "prepare", folder), _outermost((Path(house.silo.data), house.own, memory, ledger))
    parts = [
        Unit(
            f"{name}-worker", f"silotune silo {house.silo.name}: the worker, which reads the text",
            ("silo", "worker", folder), worker.name, _outermost((house.own, folder / MEET, memory, ledger)),
            first=apart, order=(), home=house.own,
            # Its devices stay its own: one of them may be the GPU that it computes on.
            more=("PrivateNetwork=yes", "ProtectProc=invisible"),
        ),
        Unit(
            f"{name}-carrier", f"silotune silo {house.silo.name}: the carrier, which reaches the network",
            ("silo", "carrier", *carried(house)), carrier.name, (house.carrier_folder,), first=apart,
            order=(*NETWORK, f"Wants={name}-worker.service", f"After={name}-worker.service"), home=house.carrier_folder,
            more=("PrivateDevices=yes", "ProtectProc=invisible", f"InaccessiblePaths={units.paths(closed, '-')}"),
        ),
    ]  # fmt: skip
    return units.write(parts, folder)


def _outermost(places: Sequence[Path]) -> list[Path]:
    """Folders without those that lie in others of them."""
    return [place for place in dict.fromkeys(places) if not any(other in place.parents for other in places)]
