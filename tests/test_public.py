"""The public names, and what importing them costs."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import silotune
import silotune.errors

PUBLIC = {
    "AdmissionError", "LengthError", "DataError", "DivergedError", "Event", "FederationError", "InputError", "Interrupted", "ModelError", "OutputError",
    "Recipe", "RecipeError", "Run",
    "RunError", "Sampling", "SilotuneError", "check", "load_recipe", "open_run", "train",
}  # fmt: skip


def test_all_is_exactly_the_public_names():
    assert set(silotune.__all__) == PUBLIC
    assert len(silotune.__all__) == len(PUBLIC)
    for name in PUBLIC:
        assert getattr(silotune, name).__doc__, f"{name} has no docstring"


def test_every_error_is_public():
    for name, value in vars(silotune.errors).items():
        if isinstance(value, type) and issubclass(value, silotune.SilotuneError):
            assert name in PUBLIC, name


def test_what_benchmarks_use_is_there():
    """They are run by hand, and seldom."""
    root = Path(__file__).parents[1]
    files = [path for path in (root / "benchmarks").rglob("*.py") if path.name != "__init__.py"]
    assert len(files) > 5
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("silotune"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), (
                        f"{path}: {node.module}.{alias.name}"
                    )


def test_importing_silotune_loads_no_torch():
    code = "import silotune, silotune.cli, sys; assert not {'torch', 'flwr', 'ray', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["app", "carrier", "superlink"])
def test_what_flower_starts_on_a_members_machine_loads_no_torch(module):
    code = f"import silotune.federation.{module}, sys; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
