"""The mark of a base: of its files, so the same in every precision, and another for another model."""

import json
import shutil

import pytest
import torch
from tests.conftest import make_model

from silotune.data.tokenize.chat_template import PLAIN_TEMPLATE
from silotune.errors import ModelError
from silotune.model import base, stored, tuner
from silotune.settings import LoraSettings


def describe(location):
    return stored.describe(str(location), base.load_tokenizer(str(location)))


def changed_config(folder, into, **changes):
    shutil.copytree(folder, into)
    config = json.loads((into / "config.json").read_text())
    (into / "config.json").write_text(json.dumps(config | changes))
    return into


def test_it_tells_models_apart(tiny_base, tmp_path):
    mark = describe(tiny_base).fingerprint
    assert mark == describe(tiny_base).fingerprint == describe(make_model(tmp_path / "same")).fingerprint
    others = [
        make_model(tmp_path / "weights", seed=8),
        make_model(tmp_path / "template", template=PLAIN_TEMPLATE),
        changed_config(tiny_base, tmp_path / "config", rms_norm_eps=0.5),
    ]
    assert mark not in {describe(other).fingerprint for other in others}


def test_it_is_the_same_in_every_precision(tiny_base):
    """A silo on a CPU (float32) and one on CUDA (bfloat16) hold the same base."""
    exact, coarse = base.Placement("cpu", "float32"), base.Placement("cpu", "bfloat16")
    first, second = (tuner.tuner(str(tiny_base), LoraSettings(r=2), placement) for placement in (exact, coarse))
    dtypes = {next(one.model.get_base_model().parameters()).dtype for one in (first, second)}
    assert dtypes == {torch.float32, torch.bfloat16}
    assert (first.fingerprint, first.base_bytes) == (second.fingerprint, second.base_bytes)


def test_what_only_tells_how_to_load_does_not_count(tiny_base, tmp_path):
    other = changed_config(
        tiny_base, tmp_path / "m", transformers_version="9", dtype="bfloat16", _name_or_path="x", use_cache=False
    )
    assert describe(other) == describe(tiny_base)


def test_it_does_not_depend_on_how_the_weights_are_filed(tiny_base, tmp_path):
    from transformers import AutoModelForCausalLM

    split = shutil.copytree(tiny_base, tmp_path / "split")
    (split / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_base).save_pretrained(split, max_shard_size="20KB")
    assert len(list(split.glob("*.safetensors"))) > 1 and not (split / "model.safetensors").exists()
    assert describe(split) == describe(tiny_base)


def test_its_size_is_that_of_the_weights(tiny_base):
    parameters = base.load_model(str(tiny_base), base.place("cpu", "float32")).parameters()
    assert describe(tiny_base).bytes == sum(weight.nbytes for weight in parameters)


def test_a_hub_id_is_read_from_the_hubs_cache(tiny_base, tmp_path, monkeypatch):
    cache = tmp_path / "models--some--model"
    shutil.copytree(tiny_base, cache / "snapshots" / "abc")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    resident = tuner.tuner("some/model", LoraSettings(r=2), base.place("cpu", "float32"))
    assert resident.fingerprint == describe(tiny_base).fingerprint


def test_numbers_of_one_byte_count_too(tiny_base, tmp_path):
    """Weights that are stored quantised."""
    from safetensors.torch import load_file, save_file

    weights = load_file(tiny_base / "model.safetensors")
    marks = set()
    for number, packed in enumerate((torch.arange(64), torch.arange(64).flip(0))):
        folder = shutil.copytree(tiny_base, tmp_path / str(number))
        save_file(weights | {"packed": packed.to(torch.uint8)}, folder / "model.safetensors")
        marks.add(describe(folder).fingerprint)
    assert len(marks) == 2


def test_a_folder_without_weights_is_told(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no weights; expected one of model\.safetensors"):
        describe(folder)
