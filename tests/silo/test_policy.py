"""A silo's policy: what it does not allow is refused with the line that says so, before anything is loaded."""

import json
from dataclasses import replace

import pytest

from silotune.data.silos.sources import SiloConfig, SiloFiles
from silotune.errors import InputError
from silotune.federation.server import _job
from silotune.settings.silo import Policy
from silotune.silo import policy
from silotune.silo.memory import MARK, SPENT, Memory, forget, hash_of
from silotune.wire.envelope import Envelope, failure

DEFAULT = Policy()


@pytest.fixture
def job(make_recipe):
    def go(**changes):
        return _job(make_recipe(**changes), "1" * 16)

    return go


@pytest.fixture
def silo(tmp_path):
    return SiloConfig(
        SiloFiles("ash", (str(tmp_path / "nothing.jsonl"),)), memory=tmp_path / "memory", own_machine=True
    )


def asked(job, kind="join", **fields):
    return Envelope("down", kind, {"job": job.model_dump_json(), **fields})


@pytest.mark.parametrize(
    ("changes", "given", "words"),
    [
        (
            {"federation": {"algorithm": "ffa"}},
            {"algorithms": ["fedavg"]},
            r'algorithms = \["fedavg"\], and the job asks for "ffa"',
        ),
        ({"wire": {"codec": "int8"}}, {"codecs": ["float32"]}, r'codecs = \["float32"\]'),
        ({"lora": {"targets": "all"}}, {"targets": "attention"}, 'targets = "attention"'),
        ({"lora": {"r": 17}}, {"max_rank": 16}, "max_rank = 16, and the job's adapter has rank 17"),
        ({"training": {"rounds": 4}}, {"rounds_per_run": 3}, "rounds_per_run = 3, and the job has 4"),
    ],
)
def test_what_a_policy_does_not_allow_is_refused_by_its_line(job, silo, tmp_path, monkeypatch, changes, given, words):
    policy.require(job(**changes), DEFAULT)
    with pytest.raises(InputError, match=words):
        policy.require(job(**changes), Policy(**given))
    monkeypatch.setattr(policy, "answer", lambda *_: pytest.fail("it was answered"))
    reply = policy.answered(asked(job(**changes)), silo, Policy(**given), tmp_path)
    assert reply.failure.startswith("this silo's policy says")


def test_a_base_that_a_policy_does_not_name_is_refused():
    policy.require_base(DEFAULT, "a" * 32)
    policy.require_base(Policy(bases=["a" * 32]), "a" * 32)
    with pytest.raises(InputError, match=r"bases = .*, and the base here is aaaa"):
        policy.require_base(Policy(bases=["b" * 32]), "a" * 32)


def test_an_approval_is_the_workers_to_read(tmp_path):
    policy.approve(tmp_path, "a" * 64)
    status = (tmp_path / "approved.txt").stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o600, tmp_path.stat().st_uid)
    (tmp_path / "approved.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read by the worker"):
        policy.require_approved("{}", tmp_path)


def test_a_job_waits_for_somebody_to_approve_it(job, silo, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "answer", lambda request, _: failure(request.kind, "answered"))
    request, strict = asked(job()), Policy(approve=True)
    told = policy.answered(request, silo, strict, tmp_path).failure
    number = hash_of(str(request.fields["job"]))
    assert told == f"this silo's policy says approve = true, and nobody here has approved the job {number}"
    for wrong in ("", "x" * 64, number[:-1]):
        with pytest.raises(InputError, match="a job's hash has 64"):
            policy.approve(tmp_path, wrong)
    policy.approve(tmp_path, number), policy.approve(tmp_path, number)
    assert policy.answered(request, silo, strict, tmp_path).failure == "answered"
    assert (tmp_path / "approved.txt").read_text() == number + "\n"
    assert "nobody here" in policy.answered(asked(job(seed=3)), silo, strict, tmp_path).failure


def test_rounds_of_a_day_are_counted_over_all_runs_and_begin_anew(job, silo, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "answer", lambda request, _: failure(request.kind, "answered"))
    few = Policy(rounds_per_day=3)
    alone = Envelope("down", "alone", {"job": job().model_dump_json(), "rounds": 2})
    train = asked(job(), "train", round=1, held="0" * 64, counted=0)
    refused = policy.answered(train, silo, few, tmp_path).failure
    assert "does not remember that it joined" in refused and not (silo.memory / SPENT).exists(), "that costs no round"
    Memory(silo.memory, "1" * 16, "ash").join(str(train.fields["job"]))
    beyond = asked(job(), "train", round=3, held="0" * 64, counted=0)
    assert "asks for round 3; the run has 2" in policy.answered(beyond, silo, few, tmp_path).failure
    said = [policy.answered(one, silo, few, tmp_path).failure for one in (train, alone, train)]
    assert said[:2] == ["answered"] * 2 and "rounds_per_day = 3, and 3 were trained today" in said[2]
    assert policy.answered(asked(job()), silo, few, tmp_path).failure == "answered", "to join is no round"
    spent = silo.memory / SPENT
    spent.write_text(json.dumps({"day": "2001-01-01", "rounds": 3}))
    assert policy.answered(train, silo, few, tmp_path).failure == "answered"
    spent.write_text("{")
    assert "cannot be read" in policy.answered(train, silo, few, tmp_path).failure
    assert forget(silo.memory) == 1 and not (silo.memory / MARK).exists()


def test_a_silo_that_tells_no_losses_announces_none_and_scores_none(make_recipe, silos, tmp_path, tiny_base):
    from silotune.federation.nodes import silo_of
    from silotune.silo.answer import answer

    config = replace(silo_of({"data": str(silos / "ash"), "base": str(tiny_base), "memory": str(tmp_path / "m"), "min-rows": 1}), losses=False)  # fmt: skip
    job = _job(make_recipe(), "1" * 16)
    said = answer(asked(job), config).fields
    assert (said["test_rows"], said["test_loss_tokens"], said["train_rows"]) == (0, 0, 9)
    assert (
        "tells no losses"
        in answer(Envelope("down", "alone", {"job": job.model_dump_json(), "rounds": 1}), config).failure
    )
    few = replace(config, losses=True, min_steps=3)
    start = Envelope("down", "train", {"job": job.model_dump_json(), "round": 1, "held": "0" * 64, "counted": 0})
    assert "a round would have 2 steps, and this silo takes at least 3" in answer(start, few).failure
