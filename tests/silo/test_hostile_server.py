"""A server that means ill: what a silo's worker says to what it asks for, with nothing but the refusal leaving."""

import json
from functools import partial

import numpy as np
import pytest
from tests.silo.helpers import own_silo

from silotune.errors import AdmissionError
from silotune.federation.result import adapter_spec
from silotune.federation.server import _job
from silotune.model.adapter import AdapterSpec, initial_adapter
from silotune.silo.house import open_house
from silotune.silo.policy import allow
from silotune.silo.worker import Worker
from silotune.wire.codecs.float32 import CODEC
from silotune.wire.envelope import Envelope
from silotune.wire.manifest import MAX_MANIFEST_BYTES, Manifest, pack

POLICY = "min_rows = 3\nmin_steps = 2\nrounds_per_run = 5\nmax_rank = 4\n"


@pytest.fixture
def asked(make_recipe, silos, tiny_base, tmp_path):
    """Has a silo with a policy asked for one job after another: what it says."""
    recipe = make_recipe()
    config = own_silo(tmp_path / "ash", silos / "ash", tiny_base, POLICY)
    house = open_house(tmp_path / "ash")
    worker = Worker(config, partial(allow, policy=house.policy, folder=house.folder))

    def go(kind="join", identity="0" * 16, adapter=None, **changes):
        job = json.loads(_job(recipe, identity).model_dump_json())
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name:
                job[section][name] = value
            else:
                job[section] = value
        fields = {"join": {}, "train": {"round": 1, "held": "", "counted": 0}, "evaluate": {"round": 1}}[kind]
        carried = (None, None) if kind == "join" else adapter or pack(initial_adapter(adapter_spec(recipe), 0), CODEC)
        return worker.answer(Envelope("down", kind, {"job": json.dumps(job), **fields}, *carried))

    return go


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base": "someone/some-model"}, None),  # the silo's own base is taken, whatever the job calls it
        ({"training__rounds": 6}, "rounds_per_run = 5, and the job has 6"),
        ({"training__rounds": 10**12}, "the server's job cannot be used (training.rounds"),
        ({"lora__r": 8}, "max_rank = 4, and the job's adapter has rank 8"),
        ({"lora__targets": ["../../etc/passwd"]}, "lora.targets"),
        ({"minimum": 1}, "min_silos = 2, and the job's rounds may have 1"),
        ({"name": "../../x"}, "the server's job cannot be used (name"),
        ({"run": "../../../../tmp/x"}, "the server's job cannot be used (run"),
        ({"algorithm": "../evil"}, "the server's job cannot be used (algorithm"),
        ({"codec": "pickle"}, "the server's job cannot be used (codec"),
        ({"code": "print(open('/etc/passwd').read())"}, "the server's job cannot be used (code"),
    ],
)
def test_jobs_that_ask_for_more_are_refused(asked, changes, says):
    said = asked(**changes).failure
    assert (said is None) if says is None else says in said


@pytest.mark.parametrize(
    ("run", "changes", "says"),
    [
        (
            "1" * 16,
            {"training__steps": 1, "training__batch": 8},
            "a round would have 1 steps, and this silo takes at least 2",
        ),
        ("2" * 16, {"training__steps": 2, "training__batch": 1}, "a round would train on 2 rows, and this silo"),
    ],
)
def test_a_round_of_one_step_or_of_few_rows_is_refused(asked, run, changes, says):
    assert asked(identity=run, **changes).failure is None
    assert says in asked("train", identity=run, **changes).failure


def test_a_run_has_the_job_with_which_the_silo_joined(asked):
    assert asked().failure is None
    assert "another job than the one with which this silo joined this run" in asked("train", training__steps=3).failure
    assert "does not remember that it joined this run" in asked("train", identity="9" * 16).failure


def test_adapters_of_other_tensors_or_numbers_are_refused(asked, make_recipe):
    spec = adapter_spec(make_recipe())
    good = initial_adapter(spec, 0)
    first = next(iter(good))
    assert asked().failure is None

    def says(adapter):
        return asked("evaluate", adapter=pack(adapter, CODEC)).failure

    assert says(good) is None
    for number, words in ((np.nan, "NaN"), (np.inf, "infinite"), (1e9, "beyond")):
        assert words in says({**good, first: np.full_like(good[first], number)})
    assert says({**good, "../../etc/passwd": np.zeros((1, 1), np.float32)})
    assert says({name: value for name, value in good.items() if name != first})
    assert says({**good, first: np.zeros((1, 1), np.float32)})


def test_a_million_tensors_and_shapes_that_are_none_are_no_manifest():
    with pytest.raises(AdmissionError, match="larger than"):
        Manifest.from_json(json.dumps({"version": 1, "codec": "float32", "sha256": "0" * 64,
                                       "tensors": [[f"m{n}", [1]] for n in range(1_000_000)]}))  # fmt: skip
    for shape in ([-1, 4], [0], [1.5], ["4"], [True], [2**40]):
        with pytest.raises(AdmissionError):
            Manifest.from_json(
                json.dumps({"version": 1, "codec": "float32", "sha256": "0" * 64, "tensors": [["m", shape]]})
            )
    assert MAX_MANIFEST_BYTES < 5 << 20 and AdapterSpec.of({}).size == 0


def test_a_job_that_is_not_the_approved_one_waits(make_recipe, silos, tiny_base, tmp_path):
    from silotune.silo.memory import hash_of
    from silotune.silo.policy import approve

    config = own_silo(tmp_path / "ash", silos / "ash", tiny_base, "approve = true\nmin_rows = 1\n")
    house = open_house(tmp_path / "ash")
    worker = Worker(config, partial(allow, policy=house.policy, folder=house.folder))
    job = _job(make_recipe(), "0" * 16)
    approve(house.folder, hash_of(job.model_dump_json()))
    assert worker.answer(Envelope("down", "join", {"job": job.model_dump_json()})).failure is None
    other = job.model_copy(update={"max_length": 64}).model_dump_json()
    assert "nobody here has approved" in worker.answer(Envelope("down", "join", {"job": other})).failure
