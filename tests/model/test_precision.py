"""Mixed precision: products with the factors in the base's bfloat16; factors, gradients and moments in float32."""

import pytest
import torch
from tests.conftest import make_model

from silotune.model import lora, precision
from silotune.model.adapter import initial_adapter
from silotune.model.base import Placement, place
from silotune.model.stacked import factors_like, stacked
from silotune.model.tuner import Tuner, release, tuner
from silotune.settings import LoraSettings

IDS = torch.arange(1, 25).reshape(2, 12)


def held(folder, dtype="bfloat16") -> Tuner:
    release()
    torch.set_num_threads(1)
    held = tuner(str(folder), LoraSettings(r=4), Placement("cpu", dtype))
    adapter = initial_adapter(held.spec, 5)
    generator = torch.Generator().manual_seed(6)
    lora.put(held.model, {name: (value + 0.02 * torch.randn(value.shape, generator=generator).numpy()).astype("float32")
                          for name, value in adapter.items()})  # fmt: skip
    return held


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(precision, "DEVICES", {"cpu"})


@pytest.fixture(autouse=True)
def nothing_stays():
    yield
    release()


def products(resident: Tuner) -> list[torch.dtype]:
    """The numbers of every product with a factor in one forward pass, and a backward pass over it."""
    found: list[torch.dtype] = []
    handles = [
        module.register_forward_hook(lambda _, __, output: found.append(output.dtype))
        for layer in lora.layers(resident.model).values()
        for module in (*layer.lora_A.values(), *layer.lora_B.values())
    ]
    loss_of(resident).backward()
    for handle in handles:
        handle.remove()
    return found


def loss_of(resident: Tuner) -> torch.Tensor:
    resident.model.zero_grad(set_to_none=True)
    return resident.model(input_ids=IDS, labels=IDS, use_cache=False).loss


def test_products_are_the_bases_numbers_and_gradients_are_float32(tiny_base, as_on_a_gpu):
    resident = held(tiny_base)
    assert set(products(resident)) == {torch.bfloat16}
    for tensor in lora.factors(resident.model).values():
        assert tensor.dtype == tensor.grad.dtype == torch.float32 and tensor.grad.any()


def test_it_costs_no_more_than_the_bases_rounding(tiny_base, monkeypatch):
    plain = loss_of(held(tiny_base))
    plain.backward()
    expected = {name: tensor.grad.clone() for name, tensor in lora.factors(held_model()).items()}
    monkeypatch.setattr(precision, "DEVICES", {"cpu"})
    mixed = loss_of(held(tiny_base))
    mixed.backward()
    assert mixed.item() == pytest.approx(plain.item(), rel=2**-7)
    for name, tensor in lora.factors(held_model()).items():
        assert (tensor.grad - expected[name]).norm() <= 2**-5 * expected[name].norm(), name


def held_model():
    from silotune.model import tuner as room

    (resident,) = room._RESIDENT.values()
    return resident.model


def test_a_base_in_float32_and_a_base_on_a_cpu_are_left_as_they_are(tiny_base, monkeypatch):
    assert set(products(held(tiny_base))) == {torch.float32}  # bfloat16 on a CPU: the factors' own numbers
    monkeypatch.setattr(precision, "DEVICES", {"cpu"})
    resident = held(tiny_base, "float32")
    assert not any("forward" in vars(layer) for layer in lora.layers(resident.model).values())


def test_several_adapters_at_once_are_mixed_too_and_the_layers_come_back(tiny_base, as_on_a_gpu):
    resident = held(tiny_base)
    adapter = lora.take(resident.model)
    alone = resident.model(input_ids=IDS, use_cache=False).logits
    both = [factors_like(resident.model, adapter, resident.spec.names) for _ in range(2)]
    with stacked(resident.model, both):
        together = resident.model(input_ids=IDS, use_cache=False).logits
    together.sum().backward()
    assert (together - alone).abs().max() <= 2**-5 * alone.abs().max()
    assert all(tensor.grad is None or tensor.grad.dtype == torch.float32 for tensor in both[0].values())
    assert set(products(resident)) == {torch.bfloat16}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_a_base_in_bfloat16_is_mixed(tmp_path):
    release()
    resident = tuner(str(make_model(tmp_path / "base")), LoraSettings(r=4), place("cuda", "auto"))
    assert all(precision.working_dtype(layer) == torch.bfloat16 for layer in lora.layers(resident.model).values())
