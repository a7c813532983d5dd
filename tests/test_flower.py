"""The apps for plain `flwr run`: what they refuse before anything is made."""

import pytest
from flwr.app import Context, RecordDict

from silotune.errors import InputError
from silotune.flower import serve
from silotune.recipe import dump_recipe


def test_silos_cannot_train_in_one_pass_on_their_own_machines(make_recipe, tmp_path):
    recipe, out = tmp_path / "recipe.toml", tmp_path / "run"
    recipe.write_text(dump_recipe(make_recipe(federation={"together": 2})), encoding="utf-8")
    context = Context(1, 1, {}, RecordDict(), {"recipe": str(recipe), "out": str(out)})
    with pytest.raises(
        InputError, match=r"federation\.together = 2: silos train in one pass on the inline engine only"
    ):
        serve(None, context)
    assert not out.exists()


@pytest.mark.parametrize("more", [{"recipe": "x.toml"}, {"out": "y"}, {"resume": True}])
def test_compare_is_of_a_run_that_has_its_recipe(make_recipe, tmp_path, more):
    context = Context(1, 1, {}, RecordDict(), {"compare": str(tmp_path), **more})
    with pytest.raises(InputError, match="leave out recipe, out and resume"):
        serve(None, context)


def test_compare_needs_a_run(tmp_path):
    context = Context(1, 1, {}, RecordDict(), {"compare": str(tmp_path)})
    with pytest.raises(InputError, match="not a run folder"):
        serve(None, context)
