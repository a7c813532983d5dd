"""DoRA from a recipe to a result: what the federation averages, saves, resumes and lets go."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import make_model
from tests.federation.helpers import Network, client_app, run

import silotune
from silotune.federation import checkpoint
from silotune.federation.server import federate
from silotune.model.adapter import AdapterSpec, initial_adapter
from silotune.model.magnitudes import base_norms
from silotune.model.tuner import release
from silotune.settings import LoraSettings

DORA = {"kind": "dora"}
MAGNITUDE = ".lora_magnitude_vector"


def adapter_of(run):
    return load_file(run.folder.adapter / "adapter_model.safetensors")


def rounds_of(run):
    return [line for line in run.metrics() if line["silo"] is None]


@pytest.fixture
def dora(make_recipe, tmp_path):
    """Train with DoRA into a folder of that name."""

    def go(name="run", **sections):
        return silotune.train(make_recipe(lora=DORA, **sections), out=tmp_path / name)

    return go


def test_it_learns_and_all_three_roles_travel_and_move(dora, tiny_base):
    trained = dora(training={"rounds": 3, "learning_rate": 0.02})
    rounds, adapter = rounds_of(trained), adapter_of(trained)
    assert rounds[-1]["evaluation"]["loss"] < rounds[0]["evaluation"]["loss"]
    assert [line["e_agg"] for line in rounds] == [None] * 4
    settings = LoraSettings(kind="dora", r=2, alpha=4.0)
    norms = base_norms(str(tiny_base), settings)
    magnitudes = {name: value for name, value in adapter.items() if name.endswith(MAGNITUDE)}
    assert magnitudes.keys() == norms.keys()
    for name, value in magnitudes.items():
        assert 0 < np.abs(value / norms[name] - 1).max() < 1
    for entry in trained.folder.ledger():
        if entry.get("tensors"):
            assert {name for name, _ in entry["tensors"]} == adapter.keys()


def test_the_base_is_scored_as_itself_in_round_0(dora, make_recipe, tmp_path):
    plain = silotune.train(make_recipe(), out=tmp_path / "plain")
    expected, found = (rounds_of(each)[0]["evaluation"]["loss"] for each in (plain, dora()))
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_state_holds_magnitudes_relative_to_the_base(dora, tiny_base):
    trained = dora()
    state = checkpoint.latest(trained.folder).state.adapter
    norms, written = base_norms(str(tiny_base), LoraSettings(kind="dora", r=2, alpha=4.0)), adapter_of(trained)
    for name, value in state.items():
        assert ((value + norms[name] if name in norms else value) == written[name]).all()


def test_a_round_of_one_silo_at_rate_1_is_that_silo_alone(make_recipe, tmp_path):
    silos = [{"name": "ash", "train": str(tmp_path / "silos" / "ash" / "train.jsonl"),
              "test": str(tmp_path / "silos" / "ash" / "test.jsonl")}]  # fmt: skip
    recipe = make_recipe(lora=DORA, data={"silos": silos}, federation={"minimum": 1}, training={"rounds": 1})
    seen = []
    folder, _ = run(recipe, tmp_path / "one", client_app(lambda _, reply, __: seen.append(reply)))
    assert seen

    from silotune.data.seeds import derive
    from silotune.data.silos.corpus import load_corpus, options_of
    from silotune.federation import local
    from silotune.model.base import place
    from silotune.model.tuner import tuner
    from silotune.training.forward import forward_plan_of
    from silotune.training.kept import Keep
    from silotune.training.local_run import TrainingTask
    from silotune.training.loop import train_round

    (silo,) = local.prepare_silos(recipe).silos
    resident = tuner(recipe.model.base, recipe.lora, place("cpu", "float32"))
    corpus = load_corpus(silo, resident.tokenizer, recipe.data.max_length, recipe.seed, options_of(recipe))
    plan = forward_plan_of(resident.model, "cpu", 0.0, Keep())
    start = initial_adapter(resident.spec, derive(recipe.seed, "adapter"))
    task = TrainingTask("ash", corpus.train, start, resident.spec.names)
    (_, alone), federated = (
        train_round(resident, plan, task, recipe.training, recipe.seed, 1),
        checkpoint.latest(folder).state.adapter,
    )
    assert AdapterSpec.of(federated) == resident.spec
    assert all(np.abs(federated[name] - value).max() < 1e-7 for name, value in alone.items())


def test_the_mean_of_a_round_is_that_of_the_silos_magnitudes(make_recipe, tmp_path):
    """Each tensor apart: with weights 9, 6 and 4 of 19."""
    from silotune.federation.messages import envelope
    from silotune.model.adapter import unflatten

    updates = {}

    def note(_, reply, silo):
        if reply.metadata.message_type == "train":
            told = envelope(reply, "up", "train", 1 << 30)
            updates[silo] = unflatten(told.vector.copy(), told.manifest.spec)

    recipe = make_recipe(lora=DORA, training={"rounds": 1}, federation={"max_share": 1.0})
    folder, _ = run(recipe, tmp_path / "run", client_app(note))
    state = checkpoint.latest(folder).state.adapter
    weights = {"ash": 9 / 19, "birch": 6 / 19, "cedar": 4 / 19}
    assert updates.keys() == weights.keys()
    for name, value in state.items():
        if name.endswith(MAGNITUDE):
            mean = sum(weight * updates[silo][name].astype(np.float64) for silo, weight in weights.items())
            assert np.abs(value - mean).max() < 1e-9


def test_the_result_loads_in_plain_peft_and_says_the_same(dora, tiny_base):
    trained = dora()
    from silotune.inference import samples

    resident = samples.load(trained.folder)
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        expected = resident.model(input_ids=torch.arange(1, 20).reshape(1, -1)).logits
    code = (
        "import sys, torch, json; torch.set_num_threads(1); from transformers import AutoModelForCausalLM; from peft import PeftModel\n"
        f"m = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({str(tiny_base)!r}), {str(trained.folder.adapter)!r})\n"
        "assert 'silotune' not in sys.modules\n"
        "print(json.dumps(m(input_ids=torch.arange(1, 20).reshape(1, -1)).logits.tolist()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert torch.equal(torch.tensor(json.loads(done.stdout.splitlines()[-1])), expected)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"federation": {"algorithm": "scaffold"}, "training": {"rounds": 2, "moments": "keep"}},
        {"wire": {"codec": "int8"}, "federation": {"server_optimizer": "momentum"}},
        {"federation": {"robust": "clip", "minimum": 3}, "wire": {"codec": "bfloat16"}},
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(make_recipe, tmp_path, sections):
    recipe = make_recipe(lora=DORA, evaluation={"every": 0}, **sections)
    whole = silotune.train(recipe, out=tmp_path / "whole")

    def stop(event):
        if event.kind == "round" and event.fields["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, silotune.errors.Interrupted)):
        silotune.train(recipe, out=tmp_path / "cut", watch=stop)
    release()  # as in a new process
    again = silotune.train(recipe, resume=tmp_path / "cut")
    one, other = adapter_of(whole), adapter_of(again)
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    states = [checkpoint.latest(each.folder).state for each in (whole, again)]
    assert states[0].slots.keys() == states[1].slots.keys()
    assert all(value.tobytes() == states[1].slots[name].tobytes() for name, value in states[0].slots.items())


def test_codecs_round_what_magnitudes_changed_by_and_not_the_magnitudes(dora, tiny_base):
    """The norms themselves, rounded to 8 bits, would move every row of the base."""
    exact, rounded = (adapter_of(dora(codec, wire={"codec": codec})) for codec in ("float32", "bfloat16"))
    norms = base_norms(str(tiny_base), LoraSettings(kind="dora", r=2, alpha=4.0))
    for name, norm in norms.items():
        change = np.abs(exact[name] - norm).max()
        assert 0 < np.abs(rounded[name] - exact[name]).max() < 0.1 * change


def test_the_result_is_exported_scored_and_answers(dora, tmp_path):
    trained = dora(report={"samples": 1})
    assert (trained.export("adapter", tmp_path / "adapter") / "adapter_model.safetensors").is_file()
    merged = trained.export("merged", tmp_path / "merged")
    assert "a DoRA adapter merged into the weights" in (merged / "README.md").read_text(encoding="utf-8")
    assert "A DoRA adapter" in (trained.folder.adapter / "README.md").read_text(encoding="utf-8")
    assert "DoRA adapters leaves out" in trained.folder.report_file.read_text(encoding="utf-8")
    found = trained.evaluate(tmp_path / "silos" / "ash" / "test.jsonl", base=True)
    assert {cell.model for cell in found.matrix} == {"base", "federated"}
    prompts = ["Where is the red key ?", "Ask for the old door ."]
    sampling = silotune.Sampling(max_tokens=8)
    one_by_one = [trained.answer(prompt, sampling=sampling) for prompt in prompts]
    assert list(trained.answers(prompts, sampling=sampling)) == one_by_one
    compared = trained.compare()
    base = next(cell for cell in compared.everybody if cell.model == "base")
    assert base.loss == pytest.approx(rounds_of(trained)[0]["evaluation"]["loss"], rel=1e-5)
    assert all(math.isfinite(gain.own) for gain in compared.gains)


# ------------------------------------------------------------------------------------- whose base it starts at


def test_silos_must_hold_the_base_whose_norms_the_server_writes(make_recipe, tmp_path, tiny_base):
    from silotune.federation import local
    from silotune.federation import run as run_folder
    from silotune.federation.events import RunContext
    from silotune.federation.result import adapter_spec

    other = make_model(tmp_path / "other", seed=8)
    recipe = make_recipe(lora=DORA)
    silos = local.prepare_silos(make_recipe(lora=DORA, model={"base": str(other)})).silos
    folder = run_folder.create(recipe, tmp_path / "run")
    context = RunContext(len(silos), fixed=True, watch=lambda _: None)
    with pytest.raises(silotune.errors.FederationError, match="its base model is not the one that the server holds"):
        federate(Network(client_app(), silos), recipe, folder, context, adapter_spec(recipe))


def test_a_fingerprint_that_is_not_the_servers_own_base_is_told_at_the_start(make_recipe, tmp_path):
    recipe = make_recipe(lora=DORA, model={"fingerprint": "0" * 32})
    with pytest.raises(silotune.errors.ModelError, match=r"the server's base .* and model\.fingerprint says 0{32}"):
        silotune.train(recipe, out=tmp_path / "run")


def test_a_base_without_weights_is_told_before_a_run_is_made(make_recipe, tmp_path, tiny_base):
    import shutil

    bare = shutil.copytree(tiny_base, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(silotune.errors.ModelError, match="holds no weights"):
        silotune.train(make_recipe(lora=DORA, model={"base": str(bare)}), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
