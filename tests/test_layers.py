"""A module imports only from layers below its own, and each outside library only where it belongs."""

import ast
import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import silotune

ROOT = Path(silotune.__file__).parent
LAYERS = {
    "errors": 0, "streams": 0, "settings": 0, "recipe": 0, "reference": 0, "cache": 0, "atomic": 0, "named": 0, "supervision": 0, "units": 0, "data": 1, "model": 1, "training": 2, "wire": 2, "privacy": 2, "algorithms": 2, "aggregation": 2,
    "silo": 3, "federation": 3, "compare": 4, "inference": 4, "consortium": 4, "report": 5, "demo": 5, "launch": 6, "api": 6, "commands": 6, "cli": 6, "__init__": 6, "": 6,
}  # fmt: skip
INSIDE_A_LAYER = {
    ("privacy", "wire"),
    ("recipe", "settings"),
    ("recipe", "errors"),
    ("streams", "errors"),
    ("cache", "errors"),
    ("units", "errors"),
    ("units", "supervision"),
    ("reference", "settings"),
    ("cli", "commands"),
    ("api", "launch"),
    ("model", "data"),
    ("federation", "silo"),
    ("compare", "inference"),
}
"""Rooms of one layer that may know each other, one way."""
ONLY = {"flwr": {"federation"}, "ray": {"federation"}, "peft": {"model"}, "typer": {"cli", "commands"}}


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [
                f"{node.module}.{alias.name}" if node.module == "silotune" else str(node.module) for alias in node.names
            ]
    return found


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def modules() -> list[Path]:
    return list(ROOT.rglob("*.py"))


def test_imports_go_down_only():
    assert len(modules()) > 40
    for path in modules():
        own = room(path)
        for name in imports(path):
            if not name.startswith("silotune") or own == "__init__":
                continue
            other = ([*name.split("."), ""])[1]
            if other == own or (name == "silotune" and own in ("cli", "commands", "silo")):
                continue
            allowed = LAYERS[other] < LAYERS[own] or (own, other) in INSIDE_A_LAYER or (own, other) == ("cli", "demo")
            assert allowed or (own == "cli" and other == "api"), f"{path}: {own} must not import {name}"


def test_data_goes_from_reading_to_tokens_to_silos():
    order = ["seeds", "read", "tokenize", "silos"]
    for path in (ROOT / "data").rglob("*.py"):
        own = path.relative_to(ROOT / "data").parts[0].removesuffix(".py")
        for name in imports(path):
            if name.startswith("silotune.data."):
                assert order.index(name.split(".")[2]) <= order.index(own), f"{path}: {own} must not import {name}"


def test_the_table_for_contributors_is_that_of_the_tree():
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| L(\d) \| (.*) \|$", text, re.M)
    rooms = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    told = {name: int(layer) for layer, words in rows for name in re.findall(r"`(\w+)`", words)}
    assert told == {room: LAYERS[room] for room in rooms}


def test_outside_libraries_stay_in_their_rooms():
    for path in modules():
        for name in imports(path):
            library = name.split(".")[0]
            assert library not in ONLY or room(path) in ONLY[library], f"{path} imports {name}"


def test_every_installed_package_has_its_exact_version_in_the_constraints():
    """What a fresh machine installs is what was tested: nothing that silotune needs is left to the day's newest."""
    root = Path(__file__).parents[1]
    pinned = {canonicalize_name(line.partition("==")[0]) for line in (root / "constraints.txt").read_text().split("\n") if "==" in line}  # fmt: skip
    needed, seen = ["silotune"], set()
    while needed:
        name = canonicalize_name(needed.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or an extra that is not installed
        for line in requires:
            requirement = Requirement(line)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": e}) for e in ("", "simulation")):
                needed.append(requirement.name)
    installed = {canonicalize_name(found.metadata["Name"]) for found in metadata.distributions()}
    assert not (seen & installed) - pinned - {"silotune", "pip", "setuptools"}
