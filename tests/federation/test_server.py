"""The round loop on the inline engine: who is left out and why, and what stops a run."""

import json
import shutil

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from tests.conftest import write_silo
from tests.federation.helpers import Network, adapter_bytes, client_app, run, serve

import silotune
from silotune.errors import FederationError, Interrupted, ModelError, RunError
from silotune.federation import checkpoint, cohort, exchange, local, messages
from silotune.federation.messages import ADAPTER, ARRAY, FIELDS, MANIFEST, VERSION
from silotune.wire.codecs.bfloat16 import CODEC as BFLOAT16
from silotune.wire.codecs.float32 import CODEC as FLOAT32
from silotune.wire.manifest import pack, unpack


def lines(folder, round_=None):
    return [line for line in folder.metrics() if round_ is None or line["round"] == round_]


def test_a_run_gets_better_and_says_so(make_recipe, tmp_path):
    folder, events = run(
        make_recipe(training={"rounds": 3, "steps": 4, "learning_rate": 0.05}, lora={"targets": "all"}),
        tmp_path / "run",
    )
    total = [line for line in lines(folder) if line["silo"] is None]
    assert [line["round"] for line in total] == [0, 1, 2, 3]
    assert total[3]["evaluation"]["loss"] < total[0]["evaluation"]["loss"] - 0.1
    assert total[0]["e_agg"] is None and all(0 < line["e_agg"] < 1 for line in total[1:])
    silos = [line for line in lines(folder, 2) if line["silo"]]
    assert [line["silo"] for line in silos] == ["ash", "birch", "cedar"]
    assert [line["weight"] for line in silos] == [9, 6, 4]
    assert all(line["evaluation"]["rows"] == 3 and line["train"]["steps"] == 4 for line in silos)
    mean = sum(line["evaluation"]["loss"] * line["evaluation"]["tokens"] for line in silos)
    assert total[2]["evaluation"]["loss"] == pytest.approx(mean / sum(line["evaluation"]["tokens"] for line in silos))
    assert [event.fields["silo"] for event in events if event.kind == "asked"][:3] == ["ash", "birch", "cedar"]


def test_same_recipe_same_bits(make_recipe, tmp_path):
    one, _ = run(make_recipe(), tmp_path / "one")
    two, _ = run(make_recipe(), tmp_path / "two")
    other, _ = run(make_recipe(seed=1), tmp_path / "other")
    assert adapter_bytes(one) == adapter_bytes(two) != adapter_bytes(other)


def npy(shape, dtype="<f4"):
    """A NumPy file of 8 bytes of data with a header of one's own."""
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)


def broken(records):
    """Ways to send something inadmissible: name -> (change of the honest content, what is said of it)."""
    vector = records[ADAPTER][ARRAY].numpy()
    spec = messages.Manifest.from_json(records[MANIFEST]["json"]).spec
    arrays = {
        name: value.copy()
        for name, value in unpack(vector, messages.Manifest.from_json(records[MANIFEST]["json"]), spec, FLOAT32).items()
    }
    first = next(iter(arrays))

    def repacked(changed, dtype=None, codec=FLOAT32):
        new, described = pack(changed, codec)
        return {
            ADAPTER: ArrayRecord({ARRAY: Array(new.astype(dtype or new.dtype))}),
            MANIFEST: ConfigRecord({"json": described.to_json()}),
        }

    def array(value):
        return {ADAPTER: ArrayRecord({ARRAY: value})}

    def named(name):
        described = json.loads(records[MANIFEST]["json"])
        described["tensors"][0][0] = name
        return {MANIFEST: ConfigRecord({"json": json.dumps(described)})}

    fields = dict(records[FIELDS])
    return {
        "nan": (repacked(arrays | {first: arrays[first] + np.nan}), "NaN"),
        "inf": (repacked(arrays | {first: arrays[first] + np.inf}), "infinite"),
        "names": (repacked({name + "x": value for name, value in arrays.items()}), "missing"),
        "shape": (repacked(arrays | {first: arrays[first][:1]}), "has shape"),
        "dtype": (repacked(arrays, np.float64), "numbers that are sent"),
        "half": (repacked(arrays, np.float16), "numbers that are sent"),
        "size": (array(Array(np.zeros(vector.size * 9, np.float32))), "bytes, at most"),
        "short": (array(Array(vector[:-1])), "has shape"),
        "changed": (array(Array(vector + 1)), "digest"),
        "half a pair": (named("\ud800"), "the manifest cannot be read"),
        "a bell": (named("\a"), "the manifest cannot be read"),
        "other codec": (repacked(arrays, codec=BFLOAT16), "its codec is 'bfloat16', and that of this run float32"),
        "bytes of another codec": (repacked(arrays, np.uint16), "dtype uint16"),
        "object": (array(Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY junk")), "cannot be read"),
        "header that lies": (array(Array("float32", (1 << 50,), "numpy.ndarray", npy(f"({1 << 50},)"))), "header"),
        "header that lies little": (array(Array("float32", (2,), "numpy.ndarray", npy("(3,)"))), "header"),
        "header of objects": (array(Array("float32", (1,), "numpy.ndarray", npy("(1,)", "|O"))), "header"),
        "header of code": (array(Array("float32", (1,), "numpy.ndarray", npy("(" * 4000))), "cannot be read"),
        "stype": (array(Array("float32", (2,), "pickle", b"x")), "not one of NumPy's"),
        "two arrays": ({ADAPTER: ArrayRecord({ARRAY: Array(vector), "b": Array(vector)})}, "one array"),
        "no examples": ({FIELDS: ConfigRecord(fields | {"examples": 0})}, "it says it holds 0 rows"),
        "no steps": ({FIELDS: ConfigRecord(fields | {"steps": 0})}, "trained on nothing"),
        "extra field": ({FIELDS: ConfigRecord(fields | {"text": "x"})}, "not the declared ones: text"),
        "field type": ({FIELDS: ConfigRecord(fields | {"loss": "x"})}, "field loss must be float"),
        "nan loss": ({FIELDS: ConfigRecord(fields | {"loss": float("nan")})}, "field loss is not finite"),
        "negative loss": ({FIELDS: ConfigRecord(fields | {"loss": -0.5})}, "field loss is out of range"),
        "endless": ({FIELDS: ConfigRecord(fields | {"seconds": float("inf")})}, "field seconds is not finite"),
        "more loss tokens": ({FIELDS: ConfigRecord(fields | {"loss_tokens": 10**6})}, "more response tokens"),
        "other schema": ({VERSION: ConfigRecord({"version": 99})}, "both sides need the same release of silotune"),
        "extra record": ({"more": ConfigRecord({"a": 1})}, "not of this schema"),
    }


SCORES = [({"correct": 10**6}, "tokens were right"), ({"loss": -1.0}, "field loss is out of range"), ({"rows": 99}, "other rows"),
          ({"loss": 1e300}, "field loss is out of range"), ({"seconds": -1.0}, "out of range"), ({"tokens": 1}, "other rows")]  # fmt: skip


@pytest.mark.parametrize(("fields", "says"), SCORES)
def test_scores_that_cannot_be_are_not_taken(make_recipe, tmp_path, fields, says):
    def change(request, reply, silo):
        if silo != "birch" or request.metadata.message_type != "evaluate":
            return None
        records = {FIELDS: ConfigRecord(dict(reply.content[FIELDS]) | fields)}
        return Message(RecordDict({**reply.content, **records}), reply_to=request)

    folder, events = run(make_recipe(training={"rounds": 1, "steps": 1}), tmp_path / "run", client_app(change))
    assert all(says in event.fields["reason"] for event in events if event.kind == "left_out")
    text = folder.metrics_file.read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert {line["silo"] for line in lines(folder, 1) if line["evaluation"]} == {"ash", "cedar", None}


def test_what_a_silo_says_of_its_failure_cannot_play_with_a_terminal_or_flood_it(make_recipe, tmp_path):
    said = {"birch": "no\x1b[2J\nway " + "x" * 400, "cedar": "y" * 100_000}

    def change(request, reply, silo):
        if silo == "ash" or request.metadata.message_type != "train":
            return None
        return Message(
            RecordDict({VERSION: reply.content[VERSION], FIELDS: ConfigRecord({"failure": said[silo]})}),
            reply_to=request,
        )

    with pytest.raises(FederationError) as error:
        run(make_recipe(), tmp_path / "run", client_app(change))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000
    assert "birch: no\\x1b[2J\\nway xxx" in str(error.value)
    assert "cedar: a failure's reason has 100000 characters, at most 500 are taken" in str(error.value)


PLAN = ["nan", "inf", "names", "shape", "dtype", "half", "size", "short", "changed", "object", "header that lies", "header that lies little", "header of objects", "header of code", "stype", "two arrays",
        "no examples", "no steps", "extra field", "field type", "nan loss", "negative loss", "endless", "more loss tokens", "extra record"]  # fmt: skip


@pytest.mark.parametrize("way", PLAN)
def test_inadmissible_updates_leave_their_silo_out_of_that_round(make_recipe, tmp_path, way):
    said = {}

    def change(request, reply, silo):
        if silo != "birch" or request.metadata.message_type != "train" or request.content[FIELDS]["round"] != 1:
            return None
        parts, said["reason"] = broken(reply.content)[way]
        return Message(RecordDict({**reply.content, **parts}), reply_to=request)

    folder, events = run(make_recipe(), tmp_path / "run", client_app(change))
    left_out = [event.fields for event in events if event.kind == "left_out"]
    assert len(left_out) == 1 and left_out[0]["silo"] == "birch" and left_out[0]["round"] == 1
    assert said["reason"] in left_out[0]["reason"]
    total = [line for line in lines(folder) if line["silo"] is None]
    assert total[1]["left_out"] == ["birch"] and total[1]["silos"] == 2 and total[2]["silos"] == 3
    entries = [entry for entry in folder.ledger() if entry["silo"] == "birch" and entry["direction"] == "up"]
    assert len([entry for entry in entries if entry["kind"] == "train"]) == 2


def test_the_round_without_a_silo_is_the_round_of_the_others(make_recipe, tmp_path):
    """What a left-out silo sent has no influence: the adapter is that of a federation without it."""

    def change(request, reply, silo):
        if silo == "cedar" and request.metadata.message_type == "train":
            return Message(RecordDict({**reply.content, **broken(reply.content)["nan"][0]}), reply_to=request)
        return None

    with_bad, _ = run(make_recipe(), tmp_path / "bad", client_app(change))
    without, _ = run(make_recipe(data={"silos": ["silos/ash", "silos/birch"]}), tmp_path / "without")
    assert adapter_bytes(with_bad) == adapter_bytes(without)


def test_a_silo_that_fails_is_named_with_its_reason(make_recipe, tmp_path, monkeypatch):
    from silotune.training import loop

    honest = loop.train_round

    def fail(*arguments):
        if (arguments[2].silo, arguments[5]) == ("ash", 2):
            raise ValueError("private words")
        return honest(*arguments)

    monkeypatch.setattr(loop, "train_round", fail)
    _, events = run(make_recipe(), tmp_path / "run")
    (left_out,) = [event.fields for event in events if event.kind == "left_out"]
    assert left_out["silo"] == "ash" and "unexpected ValueError in test_server.py" in left_out["reason"]
    assert "private" not in left_out["reason"]


def test_errors_of_flower_do_not_show_an_exceptions_text(make_recipe, tmp_path):
    def change(request, reply, silo):
        if silo == "ash" and request.metadata.message_type == "train":
            return Message(Error(2, "private words"), reply_to=request)
        return None

    folder, events = run(make_recipe(), tmp_path / "run", client_app(change))
    reasons = {event.fields["reason"] for event in events if event.kind == "left_out"}
    assert reasons == {"the silo's app raised an exception (Flower error 2)"}
    assert "private" not in folder.metrics_file.read_text()


def test_too_few_updates_save_the_state_and_stop(make_recipe, tmp_path):
    def change(request, reply, silo):
        late = request.metadata.message_type == "train" and request.content[FIELDS]["round"] == 2
        return Message(Error(0, ""), reply_to=request) if late and silo != "ash" else None

    recipe = make_recipe()
    with pytest.raises(
        FederationError, match=r"round 2: 1 of 3 updates could be used, federation\.minimum asks for 2"
    ) as error:
        run(recipe, tmp_path / "run", client_app(change))
    assert error.value.exit_code == 3 and "birch: " in str(error.value)
    folder, _ = run(recipe, tmp_path / "run")
    whole, _ = run(recipe, tmp_path / "whole")
    assert adapter_bytes(folder) == adapter_bytes(whole)
    assert [(line["round"], line["silo"]) for line in folder.metrics()] == [
        (line["round"], line["silo"]) for line in whole.metrics()
    ]


@pytest.fixture
def clock(monkeypatch):
    """The server's clock: it stands still unless somebody waits or a test moves it."""
    now = [0.0]
    for module in ("exchange", "members"):
        monkeypatch.setattr(f"silotune.federation.{module}.time.monotonic", lambda: now[0])
        monkeypatch.setattr(f"silotune.federation.{module}.time.sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def test_inline_each_silo_has_the_whole_time_for_itself(make_recipe, tmp_path, clock):
    def change(request, reply, silo):
        if request.metadata.message_type == "train":
            clock[0] += 100 if silo == "birch" else 40
        return

    recipe = make_recipe(federation={"round_timeout": 50.0}, training={"rounds": 1})
    folder, events = run(recipe, tmp_path / "run", client_app(change))
    late = {event.fields["silo"]: event.fields["reason"] for event in events if event.kind == "left_out"}
    assert late == {"birch": "no answer within 50 s"}
    entries = [(entry["silo"], entry["late"]) for entry in folder.ledger()
               if entry["kind"] == "train" and entry["direction"] == "up"]  # fmt: skip
    assert entries == [("ash", False), ("birch", True), ("cedar", False)]


def test_two_silos_of_one_name_and_another_base_are_refused_at_the_door(make_recipe, tmp_path, silos):
    write_silo(silos / "dune", 4, 300)

    def change(request, reply, silo):
        if request.metadata.message_type != "query":
            return None
        fields = dict(reply.content[FIELDS])
        if silo == "birch":
            fields["silo"] = "ash"
        if silo == "ash":  # which joins first
            fields["fingerprint"] = "another"
        return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)

    with pytest.raises(FederationError, match=r"2 silos are here, federation\.minimum asks for 3 .* no round is saved"):
        run(make_recipe(federation={"minimum": 3}), tmp_path / "run", client_app(change))
    _, events = run(make_recipe(), tmp_path / "two", client_app(change))
    left_out = {event.fields["silo"]: event.fields["reason"] for event in events if event.kind == "left_out"}
    assert set(left_out.values()) == {
        "a silo called 'ash' is here already", "its base model is not the one that 'cedar', 'dune' hold"
    }  # fmt: skip
    assert "ash" in left_out


def test_silos_that_do_not_agree_on_a_base_are_named(make_recipe, tmp_path):
    def change(request, reply, silo):
        if request.metadata.message_type != "query":
            return None
        fields = dict(reply.content[FIELDS]) | {"fingerprint": {"ash": "a", "birch": "b", "cedar": "b"}[silo]}
        return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)

    recipe = make_recipe(data={"silos": ["silos/ash", "silos/birch"]})
    with pytest.raises(ModelError, match=r"different base models, none of them most of the silos: ash [|] birch"):
        run(recipe, tmp_path / "run", client_app(change))
    _, events = run(make_recipe(), tmp_path / "three", client_app(change))
    assert [event.fields["silo"] for event in events if event.kind == "left_out"] == ["ash"]


def test_a_silo_whose_name_would_play_with_a_terminal_is_refused(make_recipe, tmp_path):
    def change(request, reply, silo):
        if request.metadata.message_type == "query" and silo == "birch":
            fields = dict(reply.content[FIELDS]) | {"silo": "x\x1b[2J"}
            return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)
        return None

    _, events = run(make_recipe(), tmp_path / "run", client_app(change))
    left_out = next(e for e in events if e.kind == "left_out").fields
    assert "characters that cannot be shown" in left_out["reason"] and left_out["silo"] == "x\\x1b[2J"


def test_stopping_saves_and_resuming_gives_the_same_bits(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 3})
    with pytest.raises(Interrupted) as error:
        run(recipe, tmp_path / "run", stop_after="answered")
    assert error.value.exit_code == 130
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "run", stop_after="round")
    folder, _ = run(recipe, tmp_path / "run")
    whole, _ = run(recipe, tmp_path / "whole")
    assert adapter_bytes(folder) == adapter_bytes(whole)


def test_a_silo_whose_rows_changed_is_refused_on_resume(make_recipe, tmp_path, silos):
    recipe = make_recipe(training={"rounds": 3})
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "run", stop_after="round")
    train = silos / "ash" / "train.jsonl"
    train.write_text("\n".join(train.read_text().splitlines()[:-1]) + "\n")
    with pytest.raises(RunError, match="'ash' holds other rows"):
        run(recipe, tmp_path / "run")


def test_a_saved_adapter_of_another_kind_is_refused_before_it_becomes_the_result(make_recipe, tmp_path):
    from safetensors.numpy import load_file, save_file

    run = silotune.train(make_recipe(training={"rounds": 1}), out=tmp_path / "run")
    shutil.rmtree(run.path / "adapter")
    (state,) = run.path.glob("state/round-0001/state.safetensors")
    save_file({name: value.astype("float64") for name, value in load_file(state).items()}, state)
    with pytest.raises(RunError, match=r"the adapter of round 1 cannot be used: .* is of dtype float64"):
        silotune.train(resume=run.path)
    assert not (run.path / "adapter").exists()


def test_another_recipe_is_refused_on_resume_with_the_difference(make_recipe, tmp_path):
    run(make_recipe(), tmp_path / "run")
    with pytest.raises(RunError, match=r"another recipe: training\.rounds: 2 -> 5"):
        run(make_recipe(training={"rounds": 5}), tmp_path / "run")


def test_cohorts_are_drawn_from_the_seed_and_respect_the_minimum(make_recipe, tmp_path):
    names = [f"s{i}" for i in range(10)]
    drawn = [cohort.choose_cohort(names, 0.35, 2, 0, round_) for round_ in range(1, 40)]
    assert {len(cohort) for cohort in drawn} == {4}
    assert drawn[0] == cohort.choose_cohort(names[::-1], 0.35, 2, 0, 1)
    assert {name for cohort in drawn for name in cohort} == set(names)
    assert len(cohort.choose_cohort(names, 0.1, 3, 0, 1)) == 3
    assert len(cohort.choose_cohort(names[:2], 1.0, 3, 0, 1)) == 2
    folder, _ = run(make_recipe(federation={"cohort": 0.5}), tmp_path / "run")
    for round_ in (1, 2):
        assert len([line for line in lines(folder, round_) if line["silo"] and line["train"]]) == 2
        assert len([line for line in lines(folder, round_) if line["silo"] and line["evaluation"]]) == 3


@pytest.mark.parametrize(("how", "weights"), [("uniform", [1, 1, 1]), ("examples", [9, 6, 4])])
def test_weights(make_recipe, tmp_path, how, weights):
    folder, _ = run(make_recipe(federation={"weights": how}, training={"rounds": 1}), tmp_path / "run")
    assert [line["weight"] for line in lines(folder, 1) if line["silo"]] == weights


def test_weights_by_tokens_are_the_announced_ones(make_recipe, tmp_path):
    folder, _ = run(make_recipe(federation={"weights": "tokens"}, training={"rounds": 1}), tmp_path / "run")
    profiles = checkpoint.latest(folder).profiles
    assert [line["weight"] for line in lines(folder, 1) if line["silo"]] == [
        profiles[n].train_loss_tokens for n in ("ash", "birch", "cedar")
    ]


@pytest.mark.parametrize(("every", "rounds"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (0, [0, 3])])
def test_evaluation_is_due_when_the_recipe_says(make_recipe, tmp_path, every, rounds):
    folder, _ = run(make_recipe(evaluation={"every": every}, training={"rounds": 3, "steps": 1}), tmp_path / "run")
    assert [line["round"] for line in lines(folder) if line["silo"] is None and line["evaluation"]] == rounds


def test_order_of_arrival_changes_no_bit(make_recipe, tmp_path, monkeypatch):
    from silotune.federation.inline import InlineGrid

    first, _ = run(make_recipe(), tmp_path / "first")
    honest = InlineGrid.pull_messages
    monkeypatch.setattr(InlineGrid, "pull_messages", lambda self, ids: honest(self, list(ids)[::-1]))
    second, _ = run(make_recipe(), tmp_path / "second")
    assert adapter_bytes(first) == adapter_bytes(second)


def test_many_silos_and_epochs(make_recipe, tmp_path):
    for index in range(8):
        write_silo(tmp_path / "many" / f"s{index}", 3 + index, 7 * index)
    recipe = make_recipe(data={"silos": "many/*"}, training={"epochs": 1, "steps": None, "rounds": 1})
    folder, _ = run(recipe, tmp_path / "run")
    assert [line["train"]["steps"] for line in lines(folder, 1) if line["silo"]] == [2, 2, 2, 3, 4, 4, 4, 5]


def test_nodes_that_register_after_the_start_are_waited_for(make_recipe, tmp_path, monkeypatch):
    """Flower's simulation engine starts the ServerApp before its nodes are there."""
    from silotune.federation.inline import InlineGrid

    honest, looks = InlineGrid.get_node_ids, []

    def slow(self):
        looks.append(1)
        return list(honest(self))[: len(looks) - 1]

    monkeypatch.setattr(InlineGrid, "get_node_ids", slow)
    _, events = run(make_recipe(training={"rounds": 1, "steps": 1}), tmp_path / "run")
    assert sorted(event.fields["silo"] for event in events if event.kind == "joined") == ["ash", "birch", "cedar"]
    assert next(event for event in events if event.kind == "round_start").fields["cohort"] == ["ash", "birch", "cedar"]


@pytest.mark.parametrize("where", ["pulled", "read", "weighed"])
@pytest.mark.parametrize("error", [MemoryError, RecursionError, ValueError, KeyError, AssertionError])
def test_whatever_goes_wrong_with_one_answer_is_that_answers_fault(make_recipe, tmp_path, monkeypatch, where, error):
    """One silo cannot end a run: whichever exception its answer raises, wherever, it alone is left out."""
    recipe, once = make_recipe(training={"rounds": 2, "steps": 1}), []

    def hostile(message):
        kind, node = message.metadata.message_type, message.metadata.src_node_id
        if message.has_error() or kind != "train" or node != 2 or once:
            return False
        once.append(node)
        return True

    class Hostile(Network):
        def pull_messages(self, message_ids):
            (identifier,) = message_ids
            message = self.inner._pending.get(identifier)
            asked = message and (message.metadata.message_type, message.metadata.dst_node_id, message.metadata.group_id)
            if where == "pulled" and asked == ("train", 2, "1"):
                once.append(2)
                raise error("private text")
            return super().pull_messages(message_ids)

    if where != "pulled":
        module, name = {"read": (exchange, "envelope"), "weighed": (exchange, "ledger_entry")}[where]
        honest = getattr(module, name)

        def raising(*arguments):
            messages_given = [each for each in arguments if isinstance(each, Message)]
            if messages_given and messages_given[0].metadata.reply_to_message_id and hostile(messages_given[0]):
                raise error("private text")
            return honest(*arguments)

        monkeypatch.setattr(module, name, raising)
    grid = Hostile(client_app(), local.prepare_silos(recipe).silos)
    folder = serve(grid, recipe, tmp_path / "run", 3)
    first = {line["silo"]: line for line in lines(folder, 1) if line["silo"]}
    assert once and [name for name, line in first.items() if line["status"] != "ok"] == ["birch"]
    assert "private" not in first["birch"]["reason"] and "cannot be read" in first["birch"]["reason"]
    assert all(line["status"] == "ok" for line in lines(folder, 2) if line["silo"])


def test_a_message_of_another_that_cannot_be_pulled_costs_an_honest_silo_nothing(make_recipe, tmp_path):
    """What is pulled with a silo's answer may be somebody else's: the silo is asked for again."""
    recipe, failed = make_recipe(training={"rounds": 1}), set()

    class Disturbed(Network):
        def pull_messages(self, message_ids):
            (identifier,) = message_ids
            if identifier in self.inner._pending and identifier not in failed:
                failed.add(identifier)
                raise ValueError("of another node")
            return super().pull_messages(message_ids)

    folder = serve(Disturbed(client_app(), local.prepare_silos(recipe).silos), recipe, tmp_path / "run", 3)
    assert failed and all(line["status"] == "ok" for line in lines(folder) if line["silo"])


def test_an_answer_in_anothers_name_is_passed_over(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 1})

    class Forged(Network):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            if replies and replies[0].metadata.message_type == "train" and replies[0].metadata.src_node_id == 2:
                others = [i for i, m in self.inner._pending.items() if m.metadata.dst_node_id == 3]
                replies[0].metadata.__dict__["_reply_to_message_id"] = others[0]
            return replies

    recipe = recipe.model_copy(update={"federation": recipe.federation.model_copy(update={"round_timeout": 5.0})})
    folder = serve(Forged(client_app(), local.prepare_silos(recipe).silos), recipe, tmp_path / "run", 3)
    said = {line["silo"]: line["reason"] for line in lines(folder, 1) if line["silo"]}
    assert said == {"ash": None, "birch": "no answer within 5 s", "cedar": None}


def test_an_update_that_leads_beyond_what_silos_take_is_left_out(make_recipe, tmp_path):
    def change(request, reply, silo):
        if silo != "birch" or request.metadata.message_type != "train":
            return None
        return with_numbers(reply, request, 128.0)

    folder, _ = run(make_recipe(training={"rounds": 2, "steps": 1}), tmp_path / "run", client_app(change))
    said = {line["silo"]: line["reason"] for line in lines(folder, 1) if line["silo"]}
    assert said == {"ash": None, "birch": "its update holds a number beyond 64", "cedar": None}


def with_numbers(reply, request, number):
    """An answer in which every number of the update is this one."""
    vector, described = reply.content[ADAPTER][ARRAY].numpy(), reply.content[MANIFEST]["json"]
    manifest = messages.Manifest.from_json(described)
    arrays = unpack(vector, manifest, manifest.spec, FLOAT32)
    new, told = pack({name: np.full_like(value, number) for name, value in arrays.items()}, FLOAT32)
    records = {ADAPTER: ArrayRecord({ARRAY: Array(new)}), MANIFEST: ConfigRecord({"json": told.to_json()})}
    return Message(RecordDict({**reply.content, **records}), reply_to=request)


def test_a_connection_that_is_lost_is_no_answers_fault(make_recipe, tmp_path):
    recipe = make_recipe()

    class Lost(Network):
        def pull_messages(self, message_ids):
            raise ConnectionError("no route")

    with pytest.raises(ConnectionError):
        serve(Lost(client_app(), local.prepare_silos(recipe).silos), recipe, tmp_path / "run", 3)


def test_one_answer_is_held_at_a_time(make_recipe, tmp_path):
    """However many answers have arrived, each is asked for by itself."""
    recipe, asked = make_recipe(training={"rounds": 1}), []

    class Counting(Network):
        def pull_messages(self, message_ids):
            asked.append(list(message_ids))
            return super().pull_messages(asked[-1])

    serve(Counting(client_app(), local.prepare_silos(recipe).silos), recipe, tmp_path / "run", 3)
    assert asked and all(len(identifiers) == 1 for identifiers in asked)


@pytest.mark.parametrize(
    ("weights", "most", "expected"),
    [
        ({"a": 9, "b": 6, "c": 4}, 0.5, {"a": 9, "b": 6, "c": 4}),
        ({"a": 2**52, "b": 6, "c": 4}, 0.5, {"a": 10, "b": 6, "c": 4}),
        ({"a": 100, "b": 100, "c": 1, "d": 1}, 0.4, {"a": 4, "b": 4, "c": 1, "d": 1}),
        ({"a": 1000, "b": 10, "c": 10, "d": 10}, 0.25, {"a": 10, "b": 10, "c": 10, "d": 10}),
        ({"a": 5, "b": 1}, 0.5, {"a": 5, "b": 1}),
        ({"a": 2**53 - 1, "b": 500}, 0.5, {"a": 99 * 500, "b": 500}),
        ({"a": 2**53 - 1}, 0.5, {"a": 2**53 - 1}),
        ({"a": 2**53 - 1, "b": 14_000_000, "c": 7_000_000}, 1 / 3, dict.fromkeys("abc", 7_000_000)),
        ({"a": 2**53 - 1, "b": 100, "c": 100}, 0.3, dict.fromkeys("abc", 100)),
        ({"a": 7, "b": 3, "c": 2}, 1.0, {"a": 7, "b": 3, "c": 2}),
    ],
)
def test_no_silo_holds_more_than_its_greatest_share(weights, most, expected):
    found = cohort.bounded(weights, most)
    assert found == expected
    if len(weights) > 2 and most * len(weights) >= 1:
        assert max(found.values()) <= most * sum(found.values())


def test_a_silo_that_declares_more_rows_than_the_others_is_clipped_and_that_is_said(make_recipe, tmp_path, silos):
    for path in (silos / "ash").glob("train.jsonl"):
        path.write_text("".join(path.read_text().replace("room", f"room {number}") for number in range(9)))
    folder, events = run(make_recipe(training={"rounds": 2, "steps": 1}), tmp_path / "run")
    assert {line["silo"]: line["weight"] for line in lines(folder, 1) if line["silo"]} == {
        "ash": 10,
        "birch": 6,
        "cedar": 4,
    }
    (told,) = [event.fields["text"] for event in events if event.kind == "remark"]
    assert told == "silo ash declares a weight of 81; it counts as 10, for federation.max_share is 0.5"


def test_the_adapter_is_kept_where_every_silo_takes_it(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 1, "steps": 1}, federation={"server_rate": 100.0, "threads": 1})

    def change(request, reply, silo):
        if request.metadata.message_type != "train":
            return None
        return with_numbers(reply, request, 2.0)

    folder, events = run(recipe, tmp_path / "run", client_app(change))
    (told,) = [event.fields["text"] for event in events if event.kind == "remark"]
    assert "would be beyond 64 and are brought back to it" in told
    adapter = checkpoint.latest(folder).state.adapter
    assert max(abs(value).max() for value in adapter.values()) == 64
    assert not [event for event in events if event.kind == "left_out"]


@pytest.mark.parametrize("federation", [{}, {"algorithm": "scaffold"}], ids=str)
def test_no_silo_ends_a_run_by_the_numbers_that_it_sends(make_recipe, tmp_path, federation):
    """It pushes one number of each tensor to the bound, round after round: the others are taken to the end."""
    recipe = make_recipe(training={"rounds": 12, "steps": 1}, evaluation={"every": 0},
                         federation={"threads": 1, "weights": "uniform", **federation})  # fmt: skip

    def change(request, reply, silo):
        if silo != "cedar" or request.metadata.message_type != "train":
            return None
        described = messages.Manifest.from_json(reply.content[MANIFEST]["json"])
        pushed = {name: np.zeros(shape, np.float32) for name, shape in described.spec.shapes}
        for name, value in pushed.items():
            value.flat[0] = 16.0 if name.startswith("control/") else 64.0
        vector, made = pack(pushed, FLOAT32)
        records = {ADAPTER: ArrayRecord({ARRAY: Array(vector)}), MANIFEST: ConfigRecord({"json": made.to_json()})}
        return Message(RecordDict({**reply.content, **records}), reply_to=request)

    folder, events = run(recipe, tmp_path / "run", client_app(change))
    left = [event.fields for event in events if event.kind == "left_out" and "finite" not in event.fields["reason"]]
    assert not left and checkpoint.last_round(folder) == 12


def test_variates_beyond_what_can_be_are_left_out(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 1, "steps": 1}, federation={"algorithm": "scaffold", "minimum": 2})

    def change(request, reply, silo):
        if silo != "cedar" or request.metadata.message_type != "train":
            return None
        described = messages.Manifest.from_json(reply.content[MANIFEST]["json"])
        vector, made = pack({name: np.full(shape, 17.0, np.float32) for name, shape in described.spec.shapes}, FLOAT32)
        records = {ADAPTER: ArrayRecord({ARRAY: Array(vector)}), MANIFEST: ConfigRecord({"json": made.to_json()})}
        return Message(RecordDict({**reply.content, **records}), reply_to=request)

    _, events = run(recipe, tmp_path / "run", client_app(change))
    (left,) = [event.fields["reason"] for event in events if event.kind == "left_out"]
    assert left == "its update holds a number beyond 16"


def test_no_silo_owns_what_is_told_of_a_round(make_recipe, tmp_path):
    def change(request, reply, silo):
        fields = dict(reply.content[FIELDS])
        kind = request.metadata.message_type
        if silo != "cedar" or kind == "train":
            return None
        fields |= {"test_loss_tokens": 2**50} if kind == "query" else {"tokens": 2**50, "correct": 2**50, "loss": 1.0}
        return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)

    folder, _ = run(make_recipe(training={"rounds": 1, "steps": 1}), tmp_path / "run", client_app(change))
    told = {line["silo"]: line["evaluation"]["loss"] for line in lines(folder, 1)}
    assert told["cedar"] < 1e-9
    assert told[None] >= 0.49 * min(told["ash"], told["birch"])
