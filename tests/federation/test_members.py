"""Silos that come, go, come back, hesitate and fail while a federation goes on, as on the members' machines."""

from dataclasses import replace

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from tests.federation.helpers import Network, client_app, serve

import silotune
from silotune.errors import FederationError, InputError
from silotune.federation import local
from silotune.federation.messages import FIELDS, content
from silotune.silo.identity import proof, public_key
from silotune.wire.envelope import failure


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """The server's clock: it goes on while the server waits."""
    now = [0.0]
    for module in ("exchange", "members"):
        monkeypatch.setattr(f"silotune.federation.{module}.time.monotonic", lambda: now[0])
        monkeypatch.setattr(f"silotune.federation.{module}.time.sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


class Story:
    """What happened, and a chance to do something when it does."""

    def __init__(self, grid):
        self.events, self.grid, self.then = [], grid, {}

    def __call__(self, event):
        self.events.append(event)
        if act := self.then.pop((event.kind, event.fields.get("round")), None):
            act()

    def all(self, kind, *names):
        return [tuple(event.fields.get(name) for name in names) for event in self.events if event.kind == kind]


def network(recipe, change=lambda *_: None):
    """Nodes 1, 2 and 3 for the silos ash, birch and cedar, and what happens on it."""
    grid = Network(client_app(change), local.prepare_silos(recipe).silos)
    return grid, Story(grid)


def is_join_request(message):
    return message.metadata.message_type == "query"


@pytest.fixture
def recipe(make_recipe):
    return make_recipe(training={"rounds": 4, "steps": 1}, federation={"minimum": 2, "round_timeout": 60.0})


def test_a_silo_that_is_started_again_takes_part_again(recipe, tmp_path):
    """Its new node comes while Flower still lists the old one, which holds its name."""
    grid, story = network(recipe)
    grid.as_asked[4] = 2

    def started_again():
        grid.here.add(4)

    story.then = {("round", 1): started_again, ("round", 2): lambda: grid.here.discard(2)}
    grid.slow = lambda message: message.metadata.dst_node_id == 2 and 4 in grid.here  # the old one is dead
    serve(grid, recipe, tmp_path / "run", 3, story)
    assert story.all("joined", "silo") == [("ash",), ("birch",), ("cedar",), ("birch",)]
    assert ("node 4", "a silo called 'birch' is here already") in story.all("left_out", "silo", "reason")
    assert story.all("round_start", "round", "cohort")[-1] == (4, ["ash", "birch", "cedar"])


def test_a_join_that_failed_is_tried_again_after_a_while_and_told_once(recipe, tmp_path, clock):
    times = []

    def change(request, reply, silo):
        if is_join_request(request) and silo == "cedar":
            times.append(clock[0])
            return Message(Error(ErrorCode.CLIENT_APP_CRASHED, ""), reply_to=request) if len(times) < 3 else None
        return None

    grid, story = network(recipe, change)
    serve(grid, recipe, tmp_path / "run", 3, story)
    assert len(times) == 3 and 5 <= times[1] < 10 <= times[2] - times[1] < 20
    assert story.all("left_out", "silo", "reason") == [
        ("node 3", f"the silo's process died (Flower error {ErrorCode.CLIENT_APP_CRASHED})")
    ]
    assert len(story.all("joined")) == 3 and story.all("round_start", "cohort")[0] == (["ash", "birch", "cedar"],)


def test_a_silo_that_comes_back_with_other_rows_is_left_out_and_the_others_go_on(recipe, tmp_path):
    def change(request, reply, silo):
        if is_join_request(request) and request.metadata.dst_node_id == 4:
            fields = dict(reply.content[FIELDS]) | {"train_rows": 77}
            return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)
        return None

    grid, story = network(recipe, change)
    grid.as_asked[4] = 2
    story.then = {("round", 1): lambda: grid.here.symmetric_difference_update({2, 4})}
    folder = serve(grid, recipe, tmp_path / "run", 3, story)
    said = ("birch", "it holds other rows or another base model than when it joined first")
    assert said in story.all("left_out", "silo", "reason")
    assert [line["silos"] for line in folder.metrics() if line["silo"] is None] == [0, 3, 2, 2, 2]


def test_a_member_that_refuses_is_called_by_its_name(recipe, tmp_path):
    """A silo whose policy does not allow a job says no name: whose node it is, the consortium knows."""

    def change(request, reply, silo):
        if silo == "birch":
            return Message(content(failure("join", "this silo is paused by whoever runs it")), reply_to=request)
        return None

    grid, story = network(recipe, change)
    serve(grid, recipe, tmp_path / "run", 2, story, called=lambda node: "birch" if node == 2 else "")
    assert ("birch", "this silo is paused by whoever runs it") in story.all("left_out", "silo", "reason")


def test_at_the_start_of_a_resumed_run_a_silo_with_other_rows_is_refused_and_ends_nothing(recipe, tmp_path):
    grid, story = network(recipe)
    story.then = {("round", 1): grid.here.clear}
    with pytest.raises(FederationError, match=r"0 silos are here, federation\.minimum asks for 2; round 1 is saved"):
        serve(grid, recipe, tmp_path / "run", 3, story)

    def change(request, reply, silo):
        if is_join_request(request) and silo == "birch":
            fields = dict(reply.content[FIELDS]) | {"train_rows": 77}
            return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)
        return None

    grid, story = network(recipe, change)
    folder = serve(grid, recipe, tmp_path / "run", 3, story)
    rounds = [line for line in folder.metrics() if line["silo"] is None]
    assert [line["silos"] for line in rounds] == [0, 3, 2, 2, 2]
    assert {line["silo"] for line in folder.metrics() if line["round"] == 2} == {"ash", "cedar", None}


def test_a_new_node_that_hesitates_keeps_nobody_waiting(recipe, tmp_path, clock):
    grid, story = network(recipe)
    grid.here.discard(3)
    came = []

    def comes():
        grid.here.add(3)
        came.append(clock[0])

    story.then = {("round", 1): comes, ("round", 3): lambda: setattr(grid, "slow", lambda _: False)}
    grid.slow = lambda message: is_join_request(message) and message.metadata.dst_node_id == 3
    serve(grid, recipe, tmp_path / "run", 2, story)
    assert clock[0] - came[0] < 1
    assert [cohort for (cohort,) in story.all("round_start", "cohort")] == [["ash", "birch"]] * 3 + [
        ["ash", "birch", "cedar"]
    ]


def test_a_tie_of_base_models_waits_for_whoever_has_been_asked(recipe, tmp_path, clock):
    def change(request, reply, silo):
        if not is_join_request(request):
            return None
        fields = dict(reply.content[FIELDS]) | {"fingerprint": "wrong" if silo == "ash" else "right"}
        return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)

    grid, story = network(recipe, change)
    grid.slow = lambda message: is_join_request(message) and message.metadata.dst_node_id == 3 and clock[0] < 100
    serve(grid, recipe, tmp_path / "run", 2, story)
    assert story.all("left_out", "silo", "reason") == [
        ("ash", "its base model is not the one that 'birch', 'cedar' hold")
    ]
    assert story.all("round_start", "cohort")[0] == (["birch", "cedar"],)


def test_a_node_with_an_invented_base_ends_no_run_that_others_may_still_join(recipe, tmp_path, clock):
    def change(request, reply, silo):
        if not is_join_request(request):
            return None
        fields = dict(reply.content[FIELDS]) | {"fingerprint": "wrong" if silo == "ash" else "right"}
        return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)

    grid, story = network(recipe, change)
    everybody, honest = set(grid.here), grid.get_node_ids
    grid.get_node_ids = lambda: sorted(everybody if clock[0] >= 100 else everybody - {3}) if grid.here else honest()
    serve(grid, recipe, tmp_path / "run", 2, story)
    assert ("ash", "its base model is not the one that 'birch', 'cedar' hold") in story.all(
        "left_out", "silo", "reason"
    )
    assert story.all("round_start", "cohort")[0] == (["birch", "cedar"],)


def test_late_answers_are_entered_as_late_and_not_used(recipe, tmp_path):
    grid, story = network(recipe)

    def slow(message):
        return message.metadata.message_type == "train" and message.metadata.dst_node_id == 2 and late()

    def late():
        return not [1 for (round_,) in story.all("round_start", "round") if round_ == 2]

    grid.slow = slow
    folder = serve(grid, recipe, tmp_path / "run", 3, story)
    assert story.all("left_out", "silo", "reason", "round") == [("birch", "no answer within 60 s", 1)]
    entries = [(entry["round"], entry["late"]) for entry in folder.ledger()
               if entry["silo"] == "birch" and entry["kind"] == "train" and entry["direction"] == "up"]  # fmt: skip
    assert sorted(entries) == [(1, True), (2, False), (3, False), (4, False)]
    assert [line["silos"] for line in folder.metrics() if line["silo"] is None] == [0, 2, 3, 3, 3]


def test_what_comes_after_the_last_round_is_entered_too(make_recipe, tmp_path):
    recipe = make_recipe(training={"rounds": 1, "steps": 1}, federation={"round_timeout": 60.0})
    grid, story = network(recipe)
    grid.slow = lambda m: (
        m.metadata.message_type == "train" and m.metadata.dst_node_id == 2 and not story.all("round")[1:]
    )
    folder = serve(grid, recipe, tmp_path / "run", 3, story)
    assert [entry["silo"] for entry in folder.ledger() if entry["late"]] == ["birch"]


def test_flower_keeps_messages_longer_than_the_server_waits(make_recipe, tmp_path):
    day = 86_400.0
    recipe = make_recipe(training={"rounds": 1, "steps": 1}, federation={"round_timeout": day, "join_timeout": 2 * day})
    grid, story = network(recipe)
    serve(grid, recipe, tmp_path / "run", 3, story)
    assert {m.metadata.ttl > (2 if is_join_request(m) else 1) * day for m in grid.sent} == {True}


# ----------------------------------------------------------------------------------------- names and keys


@pytest.fixture
def keyed(tmp_path):
    """A network of silos on machines of their own, each with its key, and what node 4 shows in birch's name."""

    def make(recipe, thief=None):
        def change(request, reply, silo):
            if not is_join_request(request) or request.metadata.dst_node_id != 4 or thief is None:
                return None
            fields = dict(reply.content[FIELDS]) | thief(request)
            return Message(RecordDict({**reply.content, FIELDS: ConfigRecord(fields)}), reply_to=request)

        local_silos = [replace(silo, own_machine=True, memory=tmp_path / "memories" / silo.files.name)
                for silo in local.prepare_silos(recipe).silos]  # fmt: skip
        grid = Network(client_app(change), local_silos)
        grid.as_asked[4] = 2
        return grid, Story(grid)

    return make


def key_of(tmp_path, silo):
    return public_key(tmp_path / "memories" / silo)


def another_key(tmp_path):
    """Of somebody who knows birch's rows, and has a key of their own."""

    def show(request):
        root = tmp_path / "thief"
        return {"key": public_key(root), "proof": proof(root, request.content[FIELDS]["job"])}

    return show


def test_a_silo_that_comes_back_with_its_key_takes_part_again_and_keys_are_told(keyed, recipe, tmp_path):
    grid, story = keyed(recipe)
    story.then = {("round", 1): lambda: grid.here.symmetric_difference_update({2, 4})}
    folder = serve(grid, recipe, tmp_path / "run", 3, story)
    assert dict(story.all("joined", "silo", "key")) == {
        name: key_of(tmp_path, name) for name in ("ash", "birch", "cedar")
    }
    assert [line["silos"] for line in folder.metrics() if line["silo"] is None] == [0, 3, 3, 3, 3]


def test_a_node_with_another_key_cannot_take_a_silos_name(keyed, recipe, tmp_path):
    """Not while the silo is away, and not in the resumed run either."""
    grid, story = keyed(recipe, another_key(tmp_path))
    story.then = {
        ("round", 1): lambda: grid.here.symmetric_difference_update({2, 4}),
        ("round", 2): grid.here.clear,
    }
    with pytest.raises(FederationError, match="0 silos are here"):
        serve(grid, recipe, tmp_path / "run", 3, story)
    key = public_key(tmp_path / "thief")
    said = ("node 4", f"its key, {key}, is not the one with which that name joined this run")
    assert [(name, reason) for name, reason in story.all("left_out", "silo", "reason") if "key" in reason] == [
        ("birch", said[1])
    ]
    grid, story = keyed(recipe, another_key(tmp_path))
    grid.here.symmetric_difference_update({2, 4})
    folder = serve(grid, recipe, tmp_path / "run", 3, story)
    assert said[1] in [reason for (reason,) in story.all("left_out", "reason")]
    assert [line["silos"] for line in folder.metrics() if line["silo"] is None] == [0, 3, 2, 2, 2]


@pytest.mark.parametrize("lie", [{"proof": "00" * 64}, {"key": "11" * 32}, {"key": ""}, {"proof": ""}])
def test_a_key_that_signed_nothing_is_none(keyed, recipe, tmp_path, lie):
    grid, story = keyed(recipe, lambda _: lie)
    grid.here.symmetric_difference_update({2, 4})
    serve(grid, recipe, tmp_path / "run", 3, story)
    assert ("birch", "its signature of the job is not that of the key that it shows") in story.all(
        "left_out", "silo", "reason"
    )
    assert sorted(story.all("joined", "silo")) == [("ash",), ("cedar",)]


def test_a_name_is_not_taken_without_any_key(keyed, recipe, tmp_path):
    grid, story = keyed(recipe, lambda _: {"key": "", "proof": ""})
    story.then = {("round", 1): lambda: grid.here.symmetric_difference_update({2, 4})}
    serve(grid, recipe, tmp_path / "run", 3, story)
    assert ("birch", "its key, none, is not the one with which that name joined this run") in story.all(
        "left_out", "silo", "reason"
    )


def test_a_recipe_names_who_may_take_part_and_with_which_key(keyed, make_recipe, tmp_path):
    members = {"ash": key_of(tmp_path, "ash"), "birch": public_key(tmp_path / "other")}
    recipe = make_recipe(training={"rounds": 1}, federation={"minimum": 1, "members": members})
    grid, story = keyed(recipe)
    serve(grid, recipe, tmp_path / "run", 3, story)
    assert sorted(story.all("left_out", "silo", "reason")) == [
        ("birch", f"its key, {key_of(tmp_path, 'birch')}, is not the one that federation.members names"),
        ("cedar", "federation.members does not name it"),
    ]
    assert story.all("joined", "silo") == [("ash",)]


def test_a_recipe_may_pin_the_base(keyed, make_recipe, tmp_path):
    training = {"rounds": 1}
    with pytest.raises(FederationError, match=r"its base model is not the one of model\.fingerprint"):
        serve(*keyed_with(keyed, make_recipe(training=training, model={"fingerprint": "0" * 32}), tmp_path / "other"))
    grid, story = keyed(recipe := make_recipe(training=training))
    serve(grid, recipe, tmp_path / "run", 3, story)
    ((pinned,),) = set(story.all("joined", "base"))
    again = make_recipe(training=training, model={"fingerprint": pinned})
    folder = serve(*keyed_with(keyed, again, tmp_path / "pinned"))
    assert [line["silos"] for line in folder.metrics() if line["silo"] is None] == [0, 3]


def keyed_with(keyed, recipe, out):
    grid, story = keyed(recipe)
    return grid, recipe, out, 3, story


def test_a_key_or_a_fingerprint_that_is_none_is_told_with_what_it_should_be(make_recipe):
    with pytest.raises(InputError, match="the key of 'ash' must have 64 hexadecimal digits, as `silotune silo key`"):
        make_recipe(federation={"members": {"ash": "zz"}})
    with pytest.raises(InputError, match="a fingerprint has 32 hexadecimal digits"):
        make_recipe(model={"fingerprint": "abc"})


@pytest.mark.parametrize("members", [{"ash": "0" * 63}, {"": ""}, ["ash"], {"ash": 3}])
def test_members_that_are_none_are_refused(make_recipe, members):
    with pytest.raises(InputError, match=r"federation\.members"):
        make_recipe(federation={"members": members})


@pytest.mark.parametrize(
    ("federation", "says"),
    [
        ({"members": {"ash": ""}, "minimum": 2}, "`minimum = 2` waits for more silos than the 1 that `members` names"),
        ({"members": {"ash": "", "birch": ""}, "silos": 3}, "`silos = 3` waits for more silos than the 2"),
        ({"members": {"ash": "0a" * 32, "birch": "0a" * 32}}, "two of the silos have the same key"),
    ],
)
def test_members_that_can_never_come_together_are_refused(make_recipe, federation, says):
    with pytest.raises(InputError, match=says):
        make_recipe(federation=federation)


def test_a_recipe_that_names_keys_runs_on_one_machine_too(make_recipe, tmp_path):
    """There are no keys there: all silos are the recipe's own."""
    members = dict.fromkeys(("ash", "birch", "cedar"), "")
    recipe = make_recipe(training={"rounds": 1, "steps": 1}, federation={"members": members | {"ash": "0a" * 32}})
    run = silotune.train(recipe, out=tmp_path / "run")
    assert {line["silo"] for line in run.metrics()} == {"ash", "birch", "cedar", None}
