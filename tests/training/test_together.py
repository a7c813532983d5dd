"""Silos trained in one pass: each comes to what it comes to alone, whoever is beside it and whatever they do."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.data.helpers import example, split_of
from tests.federation.helpers import run
from tests.training.test_forward import MODELS, adapted, make

import silotune
from silotune.data.read.rows import Row, Turn
from silotune.errors import DivergedError, SilotuneError
from silotune.federation import checkpoint
from silotune.federation import together as federation_together
from silotune.model import lora
from silotune.model.adapter import initial_adapter
from silotune.model.base import place
from silotune.model.tuner import tuner
from silotune.settings import LoraSettings, TrainingSettings
from silotune.training import together
from silotune.training.forward import ForwardPlan, forward_plan_of
from silotune.training.kept import Keep
from silotune.training.local_run import Step, TrainingTask
from silotune.training.loop import train_round
from silotune.training.together import can_stack, in_one_pass, train_together

PLAIN = ForwardPlan(head=True, start=False)
SETTINGS = TrainingSettings(rounds=2, epochs=2, batch=2, learning_rate=0.01, clip=1.0, weight_decay=0.1)
"""Silos of 9, 6 and 4 rows take 9, 6 and 4 steps."""
SILOS = {"ash": 9, "birch": 6, "cedar": 4}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """All silos in every pass, as where a pass is dear."""
    monkeypatch.setitem(together.PASS, "cpu", 1 << 20)


def rows(count, offset):
    """Rows of a silo, of lengths that differ within it and between silos."""

    def row(i):
        question = "red lamp " * (1 + (offset + 3 * i) % count)
        return Row(
            (
                Turn("system", "we will answer"),
                Turn("user", question),
                Turn("assistant", "blue stone " * (1 + (i + offset) % 4)),
            ),
            i,
        )

    return [row(i) for i in range(count)]


def load(base, **settings):
    torch.set_num_threads(1)
    return tuner(str(base), LoraSettings(r=2, **settings), place("cpu", "auto"))


@pytest.fixture
def resident(tiny_base):
    return load(tiny_base)


def splits(resident):
    return {name: split_of(resident.tokenizer, rows(count, 2 * count), 200) for name, count in SILOS.items()}


def starts(resident):
    """An adapter for each silo to begin with, no two alike."""
    drawn = np.random.default_rng(1)
    return {
        name: {key: value + drawn.normal(0, 0.05, value.shape).astype(np.float32)
               for key, value in initial_adapter(resident.spec, 0).items()}
        for name in SILOS
    }  # fmt: skip


def parts(resident, trainable=None, **reports):
    adapters, texts = starts(resident), splits(resident)
    chosen = resident.spec.names if trainable is None else trainable
    return {
        name: TrainingTask(name, texts[name], adapters[name], chosen, reports.get(name, lambda _: None))
        for name in SILOS
    }


def alone(resident, forward_plan, settings, part):
    return train_round(resident, forward_plan, part, settings, 0, 2)


def beside(resident, forward_plan, settings, given):
    return dict(
        zip((p.silo for p in given), train_together(resident, forward_plan, given, settings, 0, 2), strict=True)
    )


def apart(one, other):
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def assert_as_alone(resident, forward_plan, settings=SETTINGS, within=1e-5, trainable=None):
    """Train the three silos in one pass and each alone, and hold the results and the totals against each other."""
    given = list(parts(resident, trainable).values())
    outcomes = beside(resident, forward_plan, settings, given)
    for part in given:
        totals, adapter = outcomes[part.silo].result()
        expected, theirs = alone(resident, forward_plan, settings, part)
        assert apart(adapter, theirs) < within, part.silo
        assert apart(adapter, part.adapter) > 100 * within, "it has learned something"
        assert replace(totals, seconds=0.0, loss=0.0) == replace(expected, seconds=0.0, loss=0.0)
        assert totals.loss == pytest.approx(expected.loss, rel=1e-5)
    return outcomes


def test_moments_are_kept_as_for_each_alone(resident):
    started = [replace(part, moments={}) for part in parts(resident).values()]
    beside(resident, PLAIN, SETTINGS, started)
    again = [replace(part, moments={**part.moments}) for part in started]
    outcomes = beside(resident, PLAIN, SETTINGS, again)
    for part, one in zip(started, again, strict=True):
        _, adapter = train_round(resident, PLAIN, part, SETTINGS, 0, 2)
        assert apart(one.moments, part.moments) < 1e-4 and apart(outcomes[part.silo].adapter, adapter) < 1e-4
        assert {float(value[0]) for name, value in part.moments.items() if name.startswith("t/")} == {
            2.0 * outcomes[part.silo].totals.steps
        }


def test_each_silo_has_a_drift_of_its_own_as_alone(resident):
    drawn = np.random.default_rng(4)
    given = [
        replace(part, drift={name: drawn.normal(0, 1.0, value.shape).astype(np.float32)
                             for name, value in part.adapter.items()})
        for part in parts(resident).values()
    ]  # fmt: skip
    outcomes = beside(resident, PLAIN, SETTINGS, given)
    for part in given:
        totals, adapter = train_round(resident, PLAIN, part, SETTINGS, 0, 2)
        assert apart(outcomes[part.silo].adapter, adapter) < 1e-5
        assert outcomes[part.silo].totals.rates == totals.rates > 0


def test_three_silos_of_unequal_rows_and_steps_come_to_what_each_comes_to_alone(resident):
    outcomes = assert_as_alone(resident, PLAIN)
    assert [outcomes[name].totals.steps for name in SILOS] == [9, 6, 4]
    unclipped = beside(resident, PLAIN, SETTINGS.model_copy(update={"clip": 1e6}), list(parts(resident).values()))
    assert all(apart(outcomes[name].adapter, unclipped[name].adapter) > 1e-4 for name in SILOS), "clipping was active"


def test_in_float64_they_are_nearer_still(resident):
    assert_as_alone(replace(resident, model=copy.deepcopy(resident.model).double()), PLAIN, within=1e-7)


@pytest.mark.parametrize("forward_plan", [ForwardPlan(head=True, start=True), ForwardPlan(head=False, start=False)])
def test_by_every_way_through_the_model(resident, forward_plan):
    assert_as_alone(resident, forward_plan, SETTINGS.model_copy(update={"batch": 3, "accumulation": 2}))


@pytest.mark.parametrize("role", ["A", "B"])
def test_where_one_factor_is_trained_and_held_near_its_start(resident, role):
    trainable = resident.spec.with_role(role)
    outcomes = assert_as_alone(resident, PLAIN, SETTINGS.model_copy(update={"proximal": 0.5}), trainable=trainable)
    received = starts(resident)
    for name in SILOS:
        adapter = outcomes[name].adapter
        assert {key for key in adapter if (adapter[key] != received[name][key]).any()} == trainable


def test_with_kept_activations(tiny_base):
    resident = load(tiny_base, layers=[1])
    forward_plan = forward_plan_of(resident.model, "cpu", 0.0, Keep())
    assert forward_plan.kept is not None
    assert_as_alone(resident, forward_plan)
    assert len(forward_plan.kept.outputs) > 3


def test_a_start_is_shared_within_each_silo(resident):
    """Each silo's own start goes through the model once, with the silo's adapter."""
    seen = []
    block = resident.model.get_base_model().model.layers[0]
    handle = block.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    try:
        beside(
            resident, ForwardPlan(True, True), SETTINGS.model_copy(update={"batch": 3}), list(parts(resident).values())
        )
    finally:
        handle.remove()
    assert seen[:2] == [3, 9]


def test_a_silo_whose_rows_are_longer_waits_for_such_rows(resident, monkeypatch):
    groups = []
    honest = together.stacked
    monkeypatch.setattr(together, "stacked", lambda model, given: groups.append(len(given)) or honest(model, given))
    monkeypatch.setitem(together.PASS, "cpu", 24)
    assert_as_alone(resident, PLAIN)
    assert sum(groups) == 9 + 6 + 4 and set(groups) == {1, 2, 3}


def test_who_goes_into_a_pass():
    def steps(*lengths):
        taken = {number: [[example([1] * size, [True] * size) for size in rows] for rows in passes]
                 for number, passes in enumerate(lengths)}  # fmt: skip
        return {number: Step(1, 0.1, passes) for number, passes in taken.items()}

    one_row = steps([[50]], [[10]], [[14]], [[16]])
    assert in_one_pass(one_row, 3) == [1]
    assert in_one_pass(one_row, 4) == [1, 2, 3], "4 more for one silo, then 2 more for each of two"
    assert in_one_pass(one_row, 3 * 34 - 1) == [1, 2, 3]
    assert in_one_pass(one_row, 3 * 34) == [0, 1, 2, 3]
    two_rows = steps([[9, 4], [4, 9]], [[12, 2], [9, 9]])
    assert in_one_pass(two_rows, 2) == [0], "2 passes of 2 rows, the longest of which are 9 and 9 long, and 12 and 9"
    assert in_one_pass(two_rows, 3) == [0, 1]


def test_the_order_of_the_silos_changes_nothing(resident):
    given = list(parts(resident).values())
    one, other = (beside(resident, PLAIN, SETTINGS, order) for order in (given, given[::-1]))
    assert all(apart(one[name].adapter, other[name].adapter) < 1e-6 for name in SILOS)


def test_a_silo_that_is_done_takes_no_further_step(resident, monkeypatch):
    made = []
    honest = together.make_optimizer
    monkeypatch.setattr(together, "make_optimizer", lambda *given: made.append(honest(*given)) or made[-1])
    reports = {name: [] for name in SILOS}
    given = parts(resident, **{name: told.append for name, told in reports.items()})
    beside(resident, PLAIN, SETTINGS, list(given.values()))
    counts = [{int(state["step"]) for state in optimizer.state.values()} for optimizer in made]
    assert counts == [{9}, {6}, {4}], "no moment of Adam's goes on"
    assert [[step.step for step in told] for told in reports.values()] == [list(range(1, n + 1)) for n in (9, 6, 4)]
    for told in reports.values():
        assert [step.seconds for step in told] == sorted(step.seconds for step in told)


def test_a_silo_that_fails_leaves_the_others_alone(resident):
    def stop(step):
        if step.step == 2:
            raise SilotuneError("called off")

    given = parts(resident, birch=stop)
    broken = {name: value * np.float32("nan") for name, value in given["cedar"].adapter.items()}
    given["cedar"] = replace(given["cedar"], adapter=broken)
    outcomes = beside(resident, PLAIN, SETTINGS, list(given.values()))
    with pytest.raises(SilotuneError, match="called off"):
        outcomes["birch"].result()
    with pytest.raises(DivergedError, match="not finite at step 1"):
        outcomes["cedar"].result()
    assert apart(outcomes["ash"].result()[1], alone(resident, PLAIN, SETTINGS, given["ash"])[1]) < 1e-5


@pytest.mark.parametrize("name", MODELS)
def test_models_that_can_be_stacked(tmp_path, name):
    tuned = adapted(make(tmp_path, name))
    before = lora.take(tuned)
    assert can_stack(tuned) and tuned.training
    assert apart(before, lora.take(tuned)) == 0


def test_models_that_cannot_be_stacked_are_found(tmp_path):
    assert not can_stack(adapted(make(tmp_path / "gpt2", "GPT2", resid_pdrop=0.1))), "it draws anew each pass"
    assert not can_stack(adapted(make(tmp_path / "llama", "Llama"), dropout=0.1))
    tuned = adapted(make(tmp_path / "turned", "Llama"))
    layer = tuned.get_base_model().model.layers[0].self_attn.q_proj
    layer.register_forward_pre_hook(lambda _, given: (given[0].flip(0),))
    layer.register_forward_hook(lambda _, __, output: output.flip(0))
    assert not can_stack(tuned), "the layer sees the rows in another order than the model"


# --------------------------------------------------------------------------------------- on the inline engine


@pytest.fixture
def passes(monkeypatch):
    """The names of the silos of every pass."""
    found = []

    def noted(tuner, forward_plan, parts, *rest):
        found.append([part.silo for part in parts])
        return train_together(tuner, forward_plan, parts, *rest)

    monkeypatch.setattr(federation_together, "train_together", noted)
    return found


def final(folder):
    return checkpoint.latest(folder).state.adapter


def test_a_run_with_silos_together_is_the_run_with_silos_apart(make_recipe, tmp_path, passes):
    training = {"epochs": 1, "steps": None, "clip": 0.2}
    one, _ = run(make_recipe(training=training), tmp_path / "one")
    assert not passes
    three, _ = run(make_recipe(training=training, federation={"together": 3}), tmp_path / "three")
    assert passes == [["ash", "birch", "cedar"]] * 2
    assert apart(final(one), final(three)) < 1e-5
    for ours, theirs in zip(one.metrics(), three.metrics(), strict=True):
        assert ours.keys() == theirs.keys() and ours["silo"] == theirs["silo"]
        if ours["silo"] and ours["train"]:
            for key in ("steps", "tokens", "loss_tokens", "examples"):
                assert ours["train"][key] == theirs["train"][key]
            assert ours["train"]["loss"] == pytest.approx(theirs["train"]["loss"], rel=1e-5)
        if ours["evaluation"]:
            assert ours["evaluation"]["loss"] == pytest.approx(theirs["evaluation"]["loss"], rel=1e-5)
    entered = [[(line["direction"], line["silo"], line["kind"], line["round"]) for line in folder.ledger()]
               for folder in (one, three)]  # fmt: skip
    assert sorted(entered[0]) == sorted(entered[1])


def test_two_at_a_time_and_one_left_over(make_recipe, tmp_path, passes):
    one, _ = run(make_recipe(), tmp_path / "one")
    two, _ = run(make_recipe(federation={"together": 2}), tmp_path / "two")
    assert passes == [["ash", "birch"]] * 2, "the third trains alone"
    assert apart(final(one), final(two)) < 1e-5


def test_its_adapter_loads_in_peft(make_recipe, tmp_path, tiny_base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = silotune.train(make_recipe(federation={"together": 3}), out=tmp_path / "run")
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), found.folder.adapter)
    with torch.no_grad():
        theirs = plain(torch.arange(5, 25)[None]).logits[0, -1]
    resident = load(tiny_base, alpha=4.0)
    lora.put(resident.model, final(found.folder))
    with torch.no_grad():
        ours = resident.model(torch.arange(5, 25)[None]).logits[0, -1]
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_a_silo_that_fails_is_left_out_of_the_round_and_no_other_is(make_recipe, tmp_path, silos, passes):
    def spoil(event):
        if event.kind == "round" and event.fields["round"] == 1:
            (silos / "birch" / "train.jsonl").write_text("no row\n")

    folder, events = run(make_recipe(federation={"together": 3}), tmp_path / "run", watch=spoil)
    assert passes == [["ash", "birch", "cedar"], ["ash", "cedar"]]
    left = [event.fields for event in events if event.kind == "left_out" and event.fields["round"] == 2]
    assert [fields["silo"] for fields in left][:1] == ["birch"] and "train.jsonl:1" in left[0]["reason"]
    assert [line["status"] for line in folder.metrics() if line["round"] == 2 and line["silo"]] == [
        "ok",
        "left out",
        "ok",
    ]


def test_a_pass_that_breaks_leaves_every_silo_to_train_alone(make_recipe, tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("secret words")

    monkeypatch.setattr(federation_together, "train_together", broken)
    one, _ = run(make_recipe(), tmp_path / "one")
    three, _ = run(make_recipe(federation={"together": 3}), tmp_path / "three")
    assert apart(final(one), final(three)) == 0
    assert "RuntimeError in test_together.py" in caplog.text and "secret" not in caplog.text


def test_a_model_that_cannot_be_stacked_trains_its_silos_alone(make_recipe, tmp_path, monkeypatch, caplog, passes):
    monkeypatch.setattr(federation_together, "can_stack", lambda _: False)
    run(make_recipe(federation={"together": 3}, training={"rounds": 1}), tmp_path / "run")
    assert not passes and "each trains alone" in caplog.text
