"""The demonstration: three invented organisations, their text, and a recipe that trains in minutes on two cores.

Larkmoss Clinic, Tidewick Bank and Copperfell Insurance do not exist; names, numbers and rules are made up.
"""

import shutil
from importlib import resources
from pathlib import Path


def write_demo(folder: Path) -> Path:
    """Write the demo's recipe and silos to a folder (one that is there is replaced); return the recipe's path."""
    if folder.exists():
        shutil.rmtree(folder)
    with resources.as_file(resources.files("silotune.demo")) as source:
        shutil.copytree(source / "silos", folder / "silos")
        shutil.copy(source / "recipe.toml", folder / "recipe.toml")
    return folder / "recipe.toml"
