"""Recipes: what is refused, and in which words."""

from pathlib import Path

import pytest

from silotune.data.silos import find_silos
from silotune.errors import RecipeError
from silotune.recipe import absolute, check_recipe, difference, dump_recipe, load_recipe
from silotune.settings import Recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[training]\nlerning_rate = 1e-3", "training.lerning_rate: unknown key; did you mean 'learning_rate'?"),
        ("[trainin]\nrounds = 1", "trainin: unknown key; did you mean 'training'?"),
        ("[lora]\nzebra = 1", "lora.zebra: unknown key; remove it"),
        ("[training]\nrounds = 0", "training.rounds: input should be greater than or equal to 1 (given: 0)"),
        ("[training]\nrounds = -2", "training.rounds"),
        ("[training]\nrounds = 2.5", "training.rounds"),
        ('[training]\nrounds = "3"', "training.rounds: input should be a valid integer (given: '3')"),
        ("[training]\nrounds = true", "training.rounds"),
        ("[training]\nlearning_rate = nan", "training.learning_rate"),
        ("[training]\nlearning_rate = inf", "training.learning_rate"),
        ("[training]\nsteps = 3\nepochs = 1", "training: give `steps` or `epochs`, not both"),
        ("[federation]\ncohort = 1.5", "federation.cohort"),
        ('[federation]\nalgorithm = "magic"', "federation.algorithm"),
        ('[lora]\ntargets = "everything"', "lora.targets"),
        ("[lora]\ntargets = []", "lora.targets"),
        ('name = "../up"', "name"),
        ("seed = -1", "seed"),
        ("seed = 1\nseed = 2", "not valid TOML"),
        ("rounds = [", "not valid TOML"),
    ],
)
def test_refusals_name_the_key_and_the_reason(tmp_path, text, says):
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path / "recipe.toml", text))
    assert says in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "recipe.toml"))
    assert "\n" not in str(error.value)


def test_missing_folder_and_encoding(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "no.toml")
    with pytest.raises(RecipeError, match="a folder"):
        load_recipe(tmp_path)
    (tmp_path / "latin.toml").write_bytes("name = 'é'".encode("latin-1"))
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(tmp_path / "latin.toml")


def test_overrides(tmp_path):
    path = write(tmp_path / "r.toml", "[training]\nrounds = 3")
    recipe = load_recipe(
        path, ["training.rounds=9", "lora.alpha=32", "federation.engine=inline", 'lora.targets=["q_proj"]']
    )
    assert (recipe.training.rounds, recipe.lora.alpha, recipe.federation.engine) == (9, 32.0, "inline")
    assert recipe.lora.targets == ["q_proj"]
    for wrong in ("training.rounds", "=3", "training..x=1", "training.round=3", "training.rounds.x=3"):
        with pytest.raises(RecipeError):
            load_recipe(path, [wrong])


def test_paths_are_the_recipes_own(tmp_path):
    recipe = load_recipe(write(tmp_path / "r.toml", '[data]\nsilos = "here/*"'))
    assert recipe.data.silos == [str(tmp_path / "here/*")]
    odd = tmp_path / "a [1] *"
    (odd / "here" / "x").mkdir(parents=True)
    (odd / "here" / "x" / "train.jsonl").write_text('{"prompt": "q", "completion": "a"}')
    recipe = load_recipe(write(odd / "r.toml", '[data]\nsilos = "here/*"'))
    assert [silo.name for silo in find_silos(recipe.data.silos)] == ["x"]
    assert [silo.name for silo in find_silos(str(odd / "here"))] == ["x"]
    (tmp_path / "base").mkdir()
    assert load_recipe(write(tmp_path / "r.toml", '[model]\nbase = "base"')).model.base == str(tmp_path / "base")
    assert absolute(Recipe(), tmp_path).model.base == "smollm2-135m"


def test_a_dumped_recipe_reads_back(tmp_path):
    recipe = absolute(
        check_recipe({"lora": {"targets": ["a", "b"], "layers": [0, 1]}, "training": {"epochs": 1}}, "x"), tmp_path
    )
    again = load_recipe(write(tmp_path / "r.toml", dump_recipe(recipe)))
    assert again == recipe
    assert difference(recipe, again) == []


def test_differences_are_named():
    other = Recipe().model_copy(update={"seed": 3})
    assert difference(Recipe(), other) == ["seed: 0 -> 3"]
