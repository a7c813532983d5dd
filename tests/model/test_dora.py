"""DoRA on a base: where magnitudes start, what they do to a layer, and PEFT's own file."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from silotune.errors import ModelError
from silotune.model import lora, merging
from silotune.model.adapter import AdapterSpec, absolute, initial_adapter, relative
from silotune.model.base import Placement, load_model, load_skeleton, place
from silotune.model.magnitudes import base_norms, row_norms
from silotune.model.stacked import stacked
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings
from silotune.training.forward import forward_plan_of
from silotune.training.kept import Keep
from silotune.training.together import can_stack

CPU = place("cpu", "float32")
DORA = LoraSettings(kind="dora", r=3, targets="all")
IDS = torch.arange(1, 20).reshape(1, -1)


def tuned_of(base, settings=DORA):
    return lora.attach(load_model(str(base), CPU), settings, base_norms(str(base), settings))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def moved(spec, seed=0):
    """An adapter that changes every layer in every way."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(scale=0.1, size=shape).astype(np.float32) for name, shape in spec.shapes}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A base of Conv1D layers, whose weights are stored transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("gpt2") / "base"
    torch.manual_seed(3)
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=60, n_positions=64)).save_pretrained(folder)
    return folder


@pytest.fixture(params=["llama", "gpt2"])
def base(request, tiny_base, gpt2):
    return {"llama": tiny_base, "gpt2": gpt2}[request.param]


def test_magnitudes_start_where_pefts_own_do(base):
    import peft

    model = load_model(str(base), CPU)
    own = lora.factors(peft.get_peft_model(model, lora.peft_config(model, DORA)))
    found = base_norms(str(base), DORA)
    assert found.keys() == {name for name in own if name.endswith(".lora_magnitude_vector")} and found
    for name, norms in found.items():
        assert norms.dtype == np.float32
        assert np.allclose(norms, own[name].detach().numpy(), rtol=1e-6, atol=0)


def test_at_the_start_the_logits_are_those_of_the_base(base):
    expected = logits(load_model(str(base), CPU))
    tuned = tuned_of(base)
    assert torch.allclose(logits(tuned), expected, rtol=0, atol=1e-5 * expected.abs().max())
    lora.put(tuned, initial_adapter(lora.spec_of(tuned), 5))
    assert torch.allclose(logits(tuned), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_row_norms_are_summed_in_an_order_that_is_written_down():
    matrix = np.random.default_rng(0).normal(size=(7, 1000)).astype(np.float32)
    expected = np.sqrt(np.sum(matrix.astype(np.float64) ** 2, axis=1))
    assert np.abs(row_norms(matrix) / expected - 1).max() < 1e-7
    assert all(row_norms(row[None])[0] == norm for row, norm in zip(matrix, row_norms(matrix), strict=True))


def test_an_adapted_layer_is_the_papers(tiny_base):
    """W' = m (W + s B A) / ||W + s B A||, row by row (equation 5)."""
    tuned = tuned_of(tiny_base)
    spec = lora.spec_of(tuned)
    adapter = moved(spec)
    lora.put(tuned, adapter)
    whole = absolute(adapter, base_norms(str(tiny_base), DORA))
    module, name_a, name_b = next(iter(spec.pairs()))
    layer = tuned.get_submodule(module)
    direction = layer.base_layer.weight.numpy() + 16 / 3 * whole[name_b] @ whole[name_a]
    magnitude = whole[f"{module}.lora_magnitude_vector"]
    weight = magnitude[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    x = torch.randn(5, weight.shape[1])
    assert torch.allclose(layer(x), x @ torch.from_numpy(weight).T, atol=1e-5)


def test_put_and_take_are_inverse_to_the_bit_once_an_adapter_has_been_in_the_model(tiny_base):
    tuned = tuned_of(tiny_base)
    spec = lora.spec_of(tuned)
    assert spec == lora.spec_of(lora.attach(load_skeleton(str(tiny_base)), DORA))
    assert len(spec.with_role("magnitude")) == len(spec.with_role("A")) == len(spec.with_role("B"))
    adapter = {name: value / 100 for name, value in moved(spec).items()}
    lora.put(tuned, adapter)
    once = lora.take(tuned)
    assert all(np.abs(once[name] - value).max() < 1e-7 for name, value in adapter.items())
    lora.put(tuned, once)
    assert all(value.tobytes() == once[name].tobytes() for name, value in lora.take(tuned).items())
    assert all(tensor.dtype == torch.float32 and tensor.requires_grad for tensor in lora.factors(tuned).values())


def test_a_base_in_bfloat16_gets_the_same_bits(tiny_base):
    settings = Placement("cpu", "bfloat16")
    tuned = lora.attach(load_model(str(tiny_base), settings), DORA, base_norms(str(tiny_base), DORA))
    whole, norms = lora.factors(tuned), base_norms(str(tiny_base), DORA)
    assert all((whole[name].detach().numpy() == norm).all() for name, norm in norms.items())


def test_absolute_and_relative_want_the_norms_of_all_magnitudes(tiny_base):
    norms = base_norms(str(tiny_base), DORA)
    adapter = initial_adapter(lora.spec_of(tuned_of(tiny_base)), 0)
    assert all((relative(absolute(adapter, norms), norms)[name] == value).all() for name, value in adapter.items())
    for wrong in ({}, dict(list(norms.items())[1:])):
        with pytest.raises(ValueError, match="norms"):
            absolute(adapter, wrong)
        with pytest.raises(ValueError, match="norms"):
            lora.attach(load_model(str(tiny_base), CPU), DORA, wrong)


def saved(base, folder, settings=DORA):
    """An adapter's folder, its tensors and its logits."""
    tuned = tuned_of(base, settings)
    adapter = moved(lora.spec_of(tuned))
    lora.put(tuned, adapter)
    config = lora.peft_config(load_skeleton(str(base)), settings)
    folder.mkdir()
    lora.save(adapter, config, folder, "tiny", base_norms(str(base), settings))
    return tuned, adapter


def test_a_saved_adapter_gives_the_same_logits_in_plain_peft(base, tmp_path):
    torch.set_num_threads(1)
    tuned, _ = saved(base, tmp_path / "adapter")
    code = (
        "import sys, torch, json; torch.set_num_threads(1); from transformers import AutoModelForCausalLM; from peft import PeftModel\n"
        f"m = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(base)!r}), {str(tmp_path / 'adapter')!r})\n"
        "assert 'silotune' not in sys.modules\n"
        "print(json.dumps(m(input_ids=torch.arange(1, 20).reshape(1, -1)).logits.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert torch.equal(torch.tensor(json.loads(done.stdout.splitlines()[-1])), logits(tuned))


def test_load_gives_what_was_saved(tiny_base, tmp_path):
    tuned, adapter = saved(tiny_base, tmp_path / "adapter")
    norms, spec = base_norms(str(tiny_base), DORA), lora.spec_of(tuned)
    loaded = lora.load(tmp_path / "adapter", spec, DORA, "tiny", norms)
    assert AdapterSpec.of(loaded) == spec
    assert all(np.abs(loaded[name] - value).max() < 1e-7 for name, value in adapter.items())
    expected = logits(tuned)
    lora.put(tuned, loaded)
    assert torch.equal(logits(tuned), expected)


def test_lora_and_dora_are_not_taken_for_each_other(tiny_base, tmp_path):
    tuned, _ = saved(tiny_base, tmp_path / "adapter")
    spec, norms = lora.spec_of(tuned), base_norms(str(tiny_base), DORA)
    plain = DORA.model_copy(update={"kind": "lora"})
    with pytest.raises(ModelError, match="use_dora is True, the run was made with False"):
        lora.load(tmp_path / "adapter", spec, plain, "tiny")
    path = tmp_path / "adapter" / "adapter_config.json"
    told = json.loads(path.read_text())
    for without in (told | {"use_dora": False}, {key: value for key, value in told.items() if key != "use_dora"}):
        path.write_text(json.dumps(without))
        with pytest.raises(ModelError, match=r"use_dora is (False|None), the run was made with True"):
            lora.load(tmp_path / "adapter", spec, DORA, "tiny", norms)


def test_the_merged_model_says_the_same(tiny_base, tmp_path):
    tuned, adapter = saved(tiny_base, tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    checked = merging.write_merged(str(tiny_base), DORA, adapter, tmp_path / "merged")
    assert checked.difference <= checked.limit < checked.effect
    found = logits(load_model(str(tmp_path / "merged"), CPU))
    assert torch.allclose(found, logits(tuned), atol=1e-4)


# ----------------------------------------------------------------------------------------- what cannot be had


def changed_base(tiny_base, folder, change):
    """The tiny base with other stored weights."""
    import shutil

    shutil.copytree(tiny_base, folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


PROJECTION = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weight: np.where(np.arange(len(weight))[:, None] == 2, 0, weight), r"k_proj\.weight has a row without"),
        (lambda weight: weight[:, :-1].copy(), r"k_proj\.weight is stored with shape \(16, 31\)"),
        (lambda weight: weight.astype(np.int8), r"k_proj\.weight is stored as torch\.int8, which is scaled"),
        (lambda weight: weight * np.nan, r"k_proj\.weight has a row without"),
    ],
)
def test_weights_that_give_no_norms_are_refused(tiny_base, tmp_path, change, says):
    base = changed_base(tiny_base, tmp_path / "base", lambda all_: all_ | {PROJECTION: change(all_[PROJECTION])})
    with pytest.raises(ModelError, match=says):
        base_norms(str(base), DORA)
    assert base_norms(str(base), LoraSettings()) == {}


def test_other_weights_at_the_same_place_have_other_norms(tiny_base, tmp_path):
    base = changed_base(tiny_base, tmp_path / "base", lambda stored: stored)
    before, file = base_norms(str(base), DORA), base / "model.safetensors"
    stored = load_file(file)
    file.unlink()
    save_file({name: 2 * weight for name, weight in stored.items()}, file, metadata={"format": "pt"})
    assert all((norms == 2 * before[name]).all() for name, norms in base_norms(str(base), DORA).items())


def test_a_weight_that_is_stored_under_another_name_is_refused(tiny_base, tmp_path):
    def rename(stored):
        return {name.replace("k_proj", "key"): value for name, value in stored.items()}

    with pytest.raises(ModelError, match=r'lora.kind = "dora": the base stores no model.layers.0.self_attn.k_proj'):
        base_norms(str(changed_base(tiny_base, tmp_path / "base", rename)), DORA)


def test_a_weight_that_the_model_makes_something_else_of_is_found(tiny_base):
    norms = {name: 2 * norm for name, norm in base_norms(str(tiny_base), DORA).items()}
    with pytest.raises(ModelError, match="have other norms than those of the stored one"):
        lora.attach(load_model(str(tiny_base), CPU), DORA, norms)


def test_four_bits_are_refused_before_anything_is_loaded():
    with pytest.raises(ModelError, match=r'model\.dtype = "nf4": lora\.kind = "dora" starts at the row norms'):
        tuner("/no/such/place", DORA, Placement("cuda", "nf4"))


# --------------------------------------------------------------------------------------------- the short ways


def test_the_short_ways_are_exact_and_stacks_are_not_taken(tiny_base):
    settings = DORA.model_copy(update={"layers": "upper-half"})
    resident = tuner(str(tiny_base), settings, CPU)
    lora.put(resident.model, moved(resident.spec))
    plan = forward_plan_of(resident.model, "cpu", 0.0, Keep())
    assert plan.head and plan.start and plan.kept is not None
    assert not can_stack(resident.model)
    with pytest.raises(ValueError, match="cannot be stacked"), stacked(resident.model, [lora.factors(resident.model)]):
        pass


def test_losses_and_gradients_on_the_short_ways_are_those_of_the_plain_one(tiny_base):
    from silotune.data.silos.batches import Batch
    from silotune.training.forward import ForwardPlan, losses

    settings = DORA.model_copy(update={"layers": "upper-half"})
    resident = tuner(str(tiny_base), settings, CPU)
    lora.put(resident.model, moved(resident.spec))
    ids = torch.randint(100, (3, 30), generator=torch.Generator().manual_seed(0))
    ids[:, :12] = ids[0, :12]
    mask = torch.ones_like(ids)
    predicts = (torch.arange(30) >= 15).expand(3, 30) & (torch.arange(30) < 29)
    batch = Batch(ids, mask, predicts, shared=12)
    whole = forward_plan_of(resident.model, "cpu", 0.0, Keep())
    plans = [ForwardPlan(False, False), ForwardPlan(True, False), ForwardPlan(True, True), whole]
    found = []
    for plan in plans:
        with lora.trainable(resident.model, resident.spec.names) as tensors:
            loss = losses(resident.model, batch, plan).sum()
            found.append((loss.item(), torch.autograd.grad(loss, list(tensors.values()))))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for one, other in zip(gradients, found[0][1], strict=True):
            assert torch.allclose(one, other, atol=1e-4 * other.abs().max())
