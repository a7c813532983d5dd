"""Recipes: what is refused, and in which words."""

from pathlib import Path

import pytest

from silotune.data.silos.sources import find_silos
from silotune.errors import DataError, RecipeError
from silotune.recipe import absolute, check_recipe, difference, dump_recipe, load_recipe
from silotune.settings import Recipe


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


DORA = '[lora]\nkind = "dora"\n'


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
        ("a = " + "[" * 100_000, "not valid TOML: nested too deeply"),
        (
            "seed = 0x" + "f" * 5000,
            "seed: input should be less than 9223372036854775808 (given: a number of absurd size)",
        ),
        ("model = 3", "model: must be a table of keys"),
        ("[[training]]\nrounds = 3", "training: must be a table of keys"),
        (
            "[lora]\ntargets = [3]",
            "lora.targets: input should be 'attention' or 'all', or lora.targets[0]: input should be a valid string",
        ),
        ("[lora]\nlayers = [-1]", "lora.layers[0]: input should be greater than or equal to 0"),
        ("[data]\nsilos = 3", "data.silos: input should be a valid list (given: 3)"),
        ('[[data.silos]]\nname = "a"', "data.silos[0].train: this key is missing"),
        (
            '[[data.silos]]\nname = "a"\ntrain = "x"\ntset = "y"',
            "data.silos[0].tset: unknown key; did you mean 'test'?",
        ),
        (
            '[[data.silos]]\nname = "\\u001b[31m"\ntrain = "x"',
            "data.silos[0].name: a silo's name must have characters that can be shown",
        ),
        ('[data]\nfields = {promt = "q"}', "data.fields: input should be 'messages'"),
        ('[data]\nfields = {prompt = "q"}', "`fields` names prompt: give messages"),
        ('[data]\nsilos = ""', "data.silos: string should have at least 1 character"),
        ("[lora]\nlayers = [0, 0]", "lora.layers: one of them stands there twice"),
        ('[lora]\ntargets = ["a", "a"]', "lora.targets: one of them stands there twice"),
        ("[data]\nholdout = 1e-320", "data.holdout: input should be greater than or equal to"),
        (
            "[training]\nlearning_rate = 1e-320",
            "training.learning_rate: input should be greater than or equal to",
        ),
        ('[data]\nfields = {prompt = "a", response = "a"}', "`fields` gives one field two meanings"),
        ("[data]\nmax_length = 8", "data.max_length: input should be greater than or equal to 16 (given: 8)"),
        ('[data.pool]\ntrain = "x"\nlaw = "idd"', "data.pool.law: input should be 'field', 'iid'"),
    ],
)
def test_refusals_name_the_key_and_the_reason(tmp_path, text, says):
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path / "recipe.toml", text))
    assert says in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "recipe.toml"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[training]\nsteps = 3\nepochs = 1", "training: give `steps` or `epochs`, not both"),
        ('[model]\ndevice = "cpu"\ndtype = "nf4"', 'model.device = "cpu" and model.dtype = "nf4" contradict each other'),
        ("[federation]\nsilos = 2\nminimum = 3", "federation.silos = 2 and federation.minimum = 3 contradict each other"),
        ("[federation]\ntogether = 2", 'federation.together = 2 and federation.engine = "simulation" contradict each other'),
        ('[federation]\ntogether = 2\nengine = "inline"\n[lora]\ndropout = 0.1', "federation.together = 2 and lora.dropout = 0.1 contradict"),
        ('[data]\nsilos = "a"\n[data.pool]\ntrain = "x"\nlaw = "iid"\nsilos = 3', "data: give `silos` or `pool`, not both"),
        ('[data.pool]\ntrain = "x"\nlaw = "iid"\nsilos = 3\nalpha = 1.0', '`alpha` and `law = "iid"` do not go together'),
        ('[data.pool]\ntrain = "x"\nlaw = "iid"', 'data.pool: `law = "iid"` needs `silos`'),
        ('[data.pool]\ntrain = "x"\nlaw = "field"', 'data.pool: `law = "field"` needs `field`'),
        (f'{DORA}[federation]\nalgorithm = "ffa"', 'lora.kind = "dora" and federation.algorithm = "ffa" do not go together'),
        (f'{DORA}[federation]\nalgorithm = "alternating"\nweights = "uniform"\nrobust = "trimmed"\nminimum = 5',
         'lora.kind = "dora" and federation.algorithm = "alternating" do not go together'),
        (f'{DORA}[federation]\ntogether = 2\nengine = "inline"', 'federation.together = 2 and lora.kind = "dora" contradict'),
        (f"{DORA}[training]\nweight_decay = 0.01", 'training.weight_decay = 0.01 and lora.kind = "dora" do not go together'),
        (f'{DORA}[model]\ndtype = "nf4"', 'model.dtype = "nf4": lora.kind = "dora" starts at the row norms'),
        ('[data.pool]\ntrain = "x"\nlaw = "iid"\nsilos = 1', "data.pool.silos = 1 and federation.minimum = 2 contradict"),
        ('[data]\nfields = {messages = "m", input = "s"}', "`fields`: input and messages do not go together"),
        ('[data]\nfields = {text = "t", system = "s"}', "`fields`: system and text do not go together"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused_together(tmp_path, text, says):
    with pytest.raises(RecipeError) as error:
        load_recipe(write(tmp_path / "recipe.toml", text))
    assert says in str(error.value)


@pytest.mark.parametrize("text", ['[data]\nsilos = "../x"', '[data]\nsilos = "a/../../x"', '[model]\nbase = "../m"',
                                  '[[data.silos]]\nname = "a"\ntrain = "../x"', '[data.pool]\ntrain = "../x"\nlaw = "iid"\nsilos = 2'])  # fmt: skip
def test_relative_paths_that_leave_the_recipes_folder_are_told_apart_from_missing_ones(tmp_path, text):
    with pytest.raises(RecipeError, match=r"leads out of the recipe's folder .* give the absolute path"):
        load_recipe(write(tmp_path / "recipe.toml", text))
    inside = load_recipe(write(tmp_path / "recipe.toml", '[data]\nsilos = "none/*"'))
    with pytest.raises(DataError, match="nothing matches"):
        find_silos(inside.data.silos)


@pytest.mark.parametrize("text", ['silos = "silos/*"', 'silos = "silos/b"', 'silos = "silos"', 'silos = "c[1]"',
                                  '[[data.silos]]\nname = "b"\ntrain = "silos/b/train.jsonl"',
                                  '[data.pool]\ntrain = "all.jsonl"\nlaw = "iid"\nsilos = 2'])  # fmt: skip
def test_a_relative_path_that_a_link_leads_out_of_the_recipes_folder_is_refused(tmp_path, text):
    folder = tmp_path / "recipes"
    (folder / "silos").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    rows = write(tmp_path / "out" / "train.jsonl", '{"prompt": "a", "response": "b"}\n')
    (folder / "silos" / "a").symlink_to(folder / "silos" / "a")  # leads nowhere, and hides nothing
    (folder / "silos" / "b").symlink_to(tmp_path / "out")
    (folder / "c[1]").symlink_to(tmp_path / "out")
    (folder / "all.jsonl").symlink_to(rows)
    with pytest.raises(
        RecipeError, match=r"'(silos/b|c\[1\]|silos/b/train.jsonl|all.jsonl)' is a link, .*leads out of"
    ):
        load_recipe(write(folder / "recipe.toml", text if text.startswith("[") else f"[data]\n{text}"))
    meant = f'[[data.silos]]\nname = "b"\ntrain = "{folder}/all.jsonl"'
    assert load_recipe(write(folder / "recipe.toml", meant)).data.silos[0].train == [f"{folder}/all.jsonl"]


def test_a_relative_base_is_the_recipes_own_even_where_the_working_folder_has_one(tmp_path, monkeypatch):
    (tmp_path / "cwd" / "base").mkdir(parents=True)
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    recipe = load_recipe(write(tmp_path / "recipes" / "r.toml", '[model]\nbase = "./base"'))
    assert recipe.model.base == str(tmp_path / "recipes" / "base")


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
