"""A method is a file: found by its name, and only what is one."""

from typing import get_args

import pytest

from silotune import algorithms
from silotune.algorithms import fedavg
from silotune.settings import FederationSettings


def test_every_name_that_a_recipe_may_ask_for_is_a_file_of_that_name():
    names = get_args(FederationSettings.model_fields["algorithm"].annotation)
    assert "fedavg" in names and algorithms.find("fedavg") is fedavg.METHOD
    assert all(algorithms.find(name).name == name for name in names)


@pytest.mark.parametrize("name", ["nothing", "interface", "server_optimizers"])
def test_other_names_and_files_are_none(name):
    with pytest.raises(LookupError, match="no method is called"):
        algorithms.find(name)


def test_a_method_whose_own_imports_fail_says_so(monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        algorithms.find("broken")
