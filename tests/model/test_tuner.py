"""One base is resident at a time, and what was found out about it goes with it; memory that runs out is told."""

import gc
import weakref

import pytest
import torch
from tests.conftest import make_model

from silotune.errors import ModelError
from silotune.model import base, trial
from silotune.model.base import place
from silotune.model.tuner import release, tuner
from silotune.settings import LoraSettings
from silotune.training.forward import forward_plan_of
from silotune.training.kept import Keep
from silotune.training.together import can_stack

PLACE = place("cpu", "auto")
TRULY = torch.OutOfMemoryError("CUDA out of memory.")
OF_THE_CPU = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried ...")
OF_CUBLAS = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def test_a_base_is_freed_before_the_next_is_loaded(tiny_base, tmp_path, monkeypatch):
    other = make_model(tmp_path / "other", seed=8)
    first = tuner(str(tiny_base), LoraSettings(r=2), PLACE)
    assert tuner(str(tiny_base), LoraSettings(r=2), PLACE) is first
    forward_plan_of(first.model, "cpu", 0.0, Keep())
    can_stack(first.model)
    gone = weakref.ref(first.model.get_base_model())
    del first
    loaded = []

    def load(*arguments, honest=base.load_model):
        loaded.append(gone())
        return honest(*arguments)

    monkeypatch.setattr(base, "load_model", load)
    tuner(str(other), LoraSettings(r=2), PLACE)
    assert loaded == [None]


def test_a_model_that_is_let_go_is_loaded_anew(tiny_base):
    first = tuner(str(tiny_base), LoraSettings(r=2), PLACE)
    release()
    assert tuner(str(tiny_base), LoraSettings(r=2), PLACE) is not first
    del first
    gc.collect()


@pytest.mark.parametrize("error", [TRULY, OF_THE_CPU, OF_CUBLAS, MemoryError()])
def test_memory_that_runs_out_is_no_outcome_of_a_trial(error):
    def fail():
        raise error

    with pytest.raises(type(error)):
        trial.succeeds(fail)


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes of tensors must match"), AttributeError("layers"), KeyError("x")]
)
def test_parts_that_do_not_fit_are_one(error):
    def fail():
        raise error

    assert trial.succeeds(fail) is False and trial.succeeds(lambda: True)


@pytest.mark.parametrize("error", [TRULY, OF_THE_CPU])
def test_no_trial_of_a_way_swallows_it(tiny_base, monkeypatch, error):
    """Every short way of a resident model, tried on a machine whose memory has run out."""
    release()
    resident = tuner(str(tiny_base), LoraSettings(r=2, layers="upper-half"), PLACE)

    def full(*_, **__):
        raise error

    monkeypatch.setattr(type(resident.model.get_base_model().model), "forward", full)
    monkeypatch.setattr(type(resident.model.get_base_model()), "forward", full)
    for find_out in (lambda: forward_plan_of(resident.model, "cpu", 0.0, Keep()), lambda: can_stack(resident.model)):
        with pytest.raises(type(error)):
            find_out()
    release()


def test_a_base_that_does_not_fit_is_told_as_that(tiny_base, monkeypatch):
    import transformers

    def full(*_, **__):
        raise TRULY

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(ModelError, match=r"does not fit into the memory that is left\. Take a smaller base"):
        base.load_model(str(tiny_base), PLACE)
