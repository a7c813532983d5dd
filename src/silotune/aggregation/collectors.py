"""Which collector a recipe means."""

from silotune.aggregation import robust
from silotune.aggregation.interface import Collector
from silotune.aggregation.mean import plain
from silotune.settings import FederationSettings


def collector_of(settings: FederationSettings) -> Collector:
    """The collector that a recipe names."""
    if settings.robust == "trimmed":
        return robust.trimmed(settings.trimmed_share)
    return robust.clip if settings.robust == "clip" else plain
