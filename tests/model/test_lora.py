"""LoRA on a base model: layers, swapping by copy, PEFT's own file."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from silotune.errors import ModelError
from silotune.model import lora
from silotune.model.adapter import initial_adapter
from silotune.model.base import load_model, load_skeleton, place
from silotune.model.targets import target_modules
from silotune.settings import LoraSettings

CPU = place("cpu", "float32")


def skeleton_of(config):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def llama():
    from transformers import LlamaConfig

    return skeleton_of(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                                   num_key_value_heads=2, vocab_size=50))  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "expected"), [("all", {0, 1, 2}), ("upper-third", {2}), ("upper-half", {2}), ([0, 2], {0, 2})]
)
def test_layers(layers, expected):
    model = llama()
    found = target_modules(model, LoraSettings(layers=layers))
    assert {int(name.split(".")[2]) for name in found} == expected
    attached = lora.attach(model, LoraSettings(layers=layers))
    assert {int(name.split(".")[4]) for name, _ in lora.spec_of(attached).shapes} == expected


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"targets": ["q_proj", "nope"]}, "no linear layer 'nope'"),
        ({"layers": [3]}, "3 is out of range; the model has blocks 0 to 2"),
    ],
)
def test_what_does_not_exist_is_refused(settings, says):
    with pytest.raises(ModelError, match=says):
        target_modules(llama(), LoraSettings(**settings))


def test_put_and_take_are_inverse_and_the_skeleton_knows_the_spec(tiny_base):
    tuned = lora.attach(load_model(str(tiny_base), CPU), LoraSettings(r=3))
    spec = lora.spec_of(tuned)
    assert spec == lora.spec_of(lora.attach(load_skeleton(str(tiny_base)), LoraSettings(r=3)))
    adapter = initial_adapter(spec, 1)
    tensors = lora.factors(tuned)
    lora.put(tuned, adapter)
    assert all((value == adapter[name]).all() for name, value in lora.take(tuned).items())
    assert all(tensors[name] is tensor for name, tensor in lora.factors(tuned).items())
    with pytest.raises(ValueError, match="names"):
        lora.put(tuned, {})
    with pytest.raises(ValueError, match="shape"):
        lora.put(tuned, {name: value[:1] for name, value in adapter.items()})


def test_a_saved_adapter_gives_the_same_logits_in_plain_peft(tiny_base, tmp_path):
    torch.set_num_threads(1)  # here and below: another number of threads may round otherwise
    ids, expected = torch.arange(1, 20).reshape(1, -1), {}
    for number, changes in enumerate(({}, {"layers": "upper-half", "targets": "all"}, {"rslora": True, "alpha": 7.5})):
        settings, folder = LoraSettings(r=3, **changes), tmp_path / str(number)
        tuned = lora.attach(load_model(str(tiny_base), CPU), settings)
        rng = np.random.default_rng(0)
        adapter = {n: rng.normal(size=s).astype(np.float32) for n, s in lora.spec_of(tuned).shapes}
        lora.put(tuned, adapter)
        with torch.no_grad():
            expected[str(folder)] = tuned(input_ids=ids).logits
        folder.mkdir()
        lora.save(adapter, lora.peft_config(load_skeleton(str(tiny_base)), settings), folder, "tiny")
        again = lora.load(folder, lora.spec_of(tuned), settings, "tiny")
        assert all((again[name] == value).all() for name, value in adapter.items())
        # the file itself must not depend on the order of a set
        modules = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        assert modules == sorted(modules)
    code = (
        "import sys, torch, json; torch.set_num_threads(1); from transformers import AutoModelForCausalLM; from peft import PeftModel\n"
        "def logits(folder):\n"
        f"    m = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(tiny_base)!r}), folder)\n"
        "    return m(input_ids=torch.arange(1, 20).reshape(1, -1)).logits.tolist()\n"
        f"found = {{folder: logits(folder) for folder in {list(expected)!r}}}\n"
        "assert 'silotune' not in sys.modules\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(torch.equal(torch.tensor(found[folder]), logits) for folder, logits in expected.items())
    assert not torch.equal(*list(expected.values())[:2])


@pytest.fixture
def saved(tiny_base, tmp_path):
    """A whole adapter folder, and how to load it."""
    settings = LoraSettings(r=3)
    skeleton = load_skeleton(str(tiny_base))
    spec = lora.spec_of(lora.attach(skeleton, settings))
    adapter = {name: np.full(shape, 0.5, np.float32) for name, shape in spec.shapes}
    lora.save(adapter, lora.peft_config(load_skeleton(str(tiny_base)), settings), tmp_path, "tiny")
    return tmp_path, adapter, lambda: lora.load(tmp_path, spec, settings, "tiny")


def changed(adapter, **how):
    name = min(adapter)
    value = adapter[name].copy()
    if "number" in how:
        value[0, 0] = how["number"]
    if "shape" in how:
        value = value[:, :-1].copy()
    return {name: value.astype(how.get("dtype", np.float32)), **{key: adapter[key] for key in adapter if key != name}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"number": np.nan}, "holds numbers that are not finite"),
        ({"number": np.inf}, "holds numbers that are not finite"),
        ({"dtype": np.float16}, "is of dtype float16, expected float32"),
        ({"shape": 1}, r"does not fit the base model and its settings: .* has shape \(3, 31\), expected \(3, 32\)"),
    ],
)
def test_an_adapter_that_is_another_one_is_refused_wherever_it_is_read(saved, change, says):
    from safetensors.numpy import save_file

    folder, adapter, load = saved
    assert load().keys() == adapter.keys()
    save_file(changed(adapter, **change), folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=says) as error:
        load()
    assert "Put back the adapter that the run wrote, or train again." in str(error.value)


def test_tensors_that_are_missing_or_unknown_are_told_before_any_is_read(saved):
    from safetensors.numpy import save_file

    folder, adapter, load = saved
    save_file(
        {name: value for name, value in adapter.items() if name != min(adapter)}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match="1 tensors are missing"):
        load()
    save_file({**adapter, "zebra": np.zeros(1, np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="1 tensors are unknown, zebra first"):
        load()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"r": 8}, "r is 8, the run was made with 3"),
        ({"lora_alpha": 1}, "lora_alpha is 1, the run was made with 16"),
        ({"use_rslora": True}, "use_rslora is True, the run was made with False"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', the run was made with 'LORA'"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]}, "target_modules are not the modules"),
        ({"target_modules": ["q_proj"]}, "target_modules are not the modules"),
        ({"alpha_pattern": {"q_proj": 64}}, "alpha_pattern is "),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all', the run was made with 'none'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is "),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        (
            {"base_model_name_or_path": "other/base"},
            "base_model_name_or_path is 'other/base', the run was made with 'tiny'",
        ),
        ({"unheard_of": 1}, "unheard_of is 1"),
        (None, r"cannot be read \(JSONDecodeError\)"),
    ],
)
def test_a_configuration_that_would_make_something_else_of_the_factors_is_refused(saved, change, says):
    folder, _, load = saved
    path = folder / "adapter_config.json"
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=says):
        load()
    path.unlink()
    with pytest.raises(ModelError, match=r"cannot be read \(FileNotFoundError\)"):
        load()
