"""Fixtures: a random two-layer model with a real tokenizer and chat template, and silos with invented rows."""

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markupsafe import Markup

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach a hub
if beside := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // beside))  # read when torch is imported

import silotune
import silotune.federation  # settles Flower's switches before anything imports flwr
from silotune.recipe import absolute, check_recipe
from silotune.report import plots
from silotune.report.svg import Plot
from silotune.settings import Recipe

WORDS = [
    "red",
    "blue",
    "green",
    "seven",
    "eleven",
    "north",
    "south",
    "lamp",
    "river",
    "window",
    "paper",
    "bread",
    "engine",
    "garden",
    "doctor",
    "ticket",
    "Where",
    "is",
    "the",
    "key",
    "of",
    "room",
    "number",
    "?",
    "It",
    "lies",
    "under",
    "a",
    "stone",
    "beside",
    "old",
    "door",
    ".",
    "Ask",
    "for",
    "and",
    "we",
    "will",
    "answer",
]

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer(template: str | None = TEMPLATE) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>")
    fast.chat_template = template
    return fast


def make_model(folder: Path, **changes: Any) -> Path:
    """Save a random Llama of two layers with its tokenizer (without a pad token) in Hugging Face format."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(changes.pop("template", TEMPLATE))
    torch.manual_seed(changes.pop("seed", 7))
    settings = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(settings | changes))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes: many small ones then fill what is left of the time on every worker."""
    long = {item.path for item in items if item.get_closest_marker("real")}
    items.sort(key=lambda item: item.path not in long)


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of each test's own; those on the embedded model share the user's."""
    if request.node.get_closest_marker("real") is None:
        monkeypatch.setenv("SILOTUNE_HOME", str(tmp_path / "home"))


DRAW = plots.plot


def _blank(_: Any, words: str) -> Plot:
    empty = Markup('<svg viewBox="0 0 1 1" aria-hidden="true"></svg>')
    return Plot(empty, empty, words)


@pytest.fixture(autouse=True)
def blank_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose plots are blank, but where a test is marked to look at them: drawing is most of a tiny run's time."""
    if not any(request.node.get_closest_marker(name) for name in ("real", "drawn")):
        monkeypatch.setattr(plots, "plot", _blank)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def loud_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights so large that every token of a prompt is heard in the answer."""
    return make_model(tmp_path_factory.mktemp("base") / "loud", initializer_range=0.6)


def write_silo(folder: Path, rows: int, offset: int, extra: str = "") -> None:
    folder.mkdir(parents=True)
    for split, count, shift in (("train", rows, 0), ("test", 3, 1000)):
        lines = []
        for index in range(count):
            number = offset + index + shift
            a, b, c = WORDS[number % 17], WORDS[(number * 5) % 19], WORDS[(number * 11) % 23]
            question = f"Where is the {a} {b} of room {number} ? {extra}".strip()
            lines.append(
                json.dumps({"instruction": question, "response": f"It lies under the {c} {a} {extra}".strip()})
            )
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_silos(folder: Path) -> Path:
    """Three silos of 9, 6 and 4 training rows."""
    for index, (name, rows) in enumerate((("ash", 9), ("birch", 6), ("cedar", 4))):
        write_silo(folder / name, rows, 100 * index)
    return folder


def tiny_recipe(base: Path, folder: Path, **changes: dict[str, Any] | Any) -> Recipe:
    """A recipe on the tiny model, inline, one thread, two rounds of two steps; sections may be changed."""
    document: dict[str, Any] = {
        "name": "test",
        "model": {"base": str(base)},
        "lora": {"r": 2, "alpha": 4},
        "training": {"rounds": 2, "steps": 2, "batch": 2, "learning_rate": 0.01},
        "federation": {"engine": "inline", "threads": 1},
    }
    for section, values in changes.items():
        if isinstance(values, dict):
            document[section] = {**document.get(section, {}), **values}
        else:
            document[section] = values
    return absolute(check_recipe(document, "test"), folder)


@pytest.fixture
def silos(tmp_path: Path) -> Path:
    return write_silos(tmp_path / "silos")


@pytest.fixture
def make_recipe(tmp_path: Path, tiny_base: Path, silos: Path) -> Callable[..., Recipe]:
    """Recipes on the silos of this test, as `tiny_recipe` makes them."""
    return functools.partial(tiny_recipe, tiny_base, tmp_path)


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[..., Path]:
    """Folders with silos, a finished run and the cache that it left, trained once for each change of the recipe."""
    folders: dict[str, Path] = {}

    def folder_of(**changes: Any) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in folders:
            folder = tmp_path_factory.mktemp("trained")
            write_silos(folder / "silos")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SILOTUNE_HOME", str(folder / "home"))
                patch.setattr(plots, "plot", DRAW)  # tests of both kinds use it
                silotune.train(tiny_recipe(tiny_base, folder, **changes), out=folder / "run")
            folders[key] = folder
        return folders[key]

    return folder_of


@pytest.fixture
def finished_run(trained_once: Callable[..., Path], silos: Path, tmp_path: Path) -> Callable[..., silotune.Run]:
    """Finished runs on the silos of this test, for it to change as it likes."""

    def make(name: str = "run", **changes: Any) -> silotune.Run:
        made = trained_once(**changes)
        shutil.copytree(made / "home", tmp_path / "home", dirs_exist_ok=True)
        run = shutil.copytree(made / "run", tmp_path / name)
        recipe = run / "recipe.toml"
        recipe.write_text(recipe.read_text(encoding="utf-8").replace(str(made), str(tmp_path)), encoding="utf-8")
        return silotune.open_run(run)

    return make
