"""Which silo a node of Flower's is."""

import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from silotune.data.silos.sources import SiloConfig
from silotune.errors import InputError
from silotune.federation.local import local_silos_of
from silotune.recipe import load_recipe
from silotune.silo.memory import default_root
from silotune.silo.node import from_node
from silotune.wire.envelope import Scalar

SILOS_VARIABLE, SCRATCH_VARIABLE = "SILOTUNE_SILOS", "SILOTUNE_SCRATCH"
"""In a simulation: the recipe on this machine that names the virtual silos, and the folder of their progress."""


def silo_of(node_config: Mapping[str, Scalar]) -> SiloConfig:
    """The silo's configuration: from its node's configuration, or by its partition in a simulation.

    Raises:
        InputError: neither is there, or the node's configuration cannot be used.
    """
    if "silotune" in node_config:
        return SiloConfig.from_json(str(node_config["silotune"]))
    if "data" in node_config:
        return from_node(node_config)
    recipe = os.environ.get(SILOS_VARIABLE)
    if recipe and "partition-id" in node_config:
        return _virtual_silos(recipe, os.environ.get(SCRATCH_VARIABLE))[int(node_config["partition-id"])]
    raise InputError(
        "this node does not say where its text lies: start the SuperNode with --node-config "
        f"'data=\"/path/of/the/silo\"', or in a simulation set {SILOS_VARIABLE} to a recipe's path"
    )


@functools.lru_cache(maxsize=1)
def _virtual_silos(recipe: str, scratch: str | None) -> tuple[SiloConfig, ...]:
    local_silos = local_silos_of(load_recipe(Path(recipe)))
    if scratch:
        return local_silos.showing(Path(scratch)).silos
    return tuple(replace(silo, memory=default_root()) for silo in local_silos.silos)
