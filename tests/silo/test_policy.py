"""A silo's policy: what it does not allow is refused with the line that says so, before anything is loaded."""

import json
import os
from dataclasses import replace
from functools import partial

import pytest
from tests.silo.helpers import answer, own_silo

from silotune.data.silos.sources import SiloConfig, SiloFiles
from silotune.errors import InputError
from silotune.federation.server import _job
from silotune.settings.silo import Policy
from silotune.silo import policy
from silotune.silo.memory import MARK, SPENT, Memory, forget, hash_of
from silotune.silo.worker import Worker
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


def said(request, silo, given, folder):
    """What a worker of this policy answers, which loads nothing."""
    answers = dict.fromkeys(
        ("join", "train", "evaluate", "alone"), lambda request, _: failure(request.kind, "answered")
    )
    return Worker(silo, partial(policy.allow, policy=given, folder=folder), answers).answer(request)


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
        ({"federation": {"minimum": 2}}, {"min_silos": 3}, "min_silos = 3, and the job's rounds may have 2"),
        ({"federation": {"max_share": 0.5}}, {"max_share": 0.4}, "max_share = 0.4, and the job allows 0.5"),
    ],
)
def test_what_a_policy_does_not_allow_is_refused_by_its_line(job, silo, tmp_path, changes, given, words):
    policy.require(job(**changes), DEFAULT)
    with pytest.raises(InputError, match=words):
        policy.require(job(**changes), Policy(**given))
    reply = said(asked(job(**changes)), silo, Policy(**given), tmp_path)
    assert reply.failure.startswith("this silo's policy says")


def test_a_base_that_a_policy_does_not_name_is_refused():
    policy.require_base(DEFAULT, "a" * 32)
    policy.require_base(Policy(bases=["a" * 32]), "a" * 32)
    with pytest.raises(InputError, match=r"bases = .*, and the base here is aaaa"):
        policy.require_base(Policy(bases=["b" * 32]), "a" * 32)


def test_an_approval_is_the_workers_to_read_and_not_to_write(tmp_path):
    policy.approve(tmp_path, "a" * 64)
    status = (tmp_path / "approved.txt").stat()
    assert (status.st_mode & 0o777, status.st_uid) == (0o640, os.geteuid())
    (tmp_path / "approved.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot be read by the worker"):
        policy.require_approved("{}", tmp_path)


def test_a_job_waits_for_somebody_to_approve_it(job, silo, tmp_path):
    request, strict = asked(job()), Policy(approve=True)
    told = said(request, silo, strict, tmp_path).failure
    number = hash_of(str(request.fields["job"]))
    assert told == f"this silo's policy says approve = true, and nobody here has approved the job {number}"
    for wrong in ("", "x" * 64, number[:-1]):
        with pytest.raises(InputError, match="a job's hash has 64"):
            policy.approve(tmp_path, wrong)
    assert policy.pending(tmp_path) == {number: job()}, "whoever approves can read what it asks for"
    policy.approve(tmp_path, number), policy.approve(tmp_path, number)
    assert said(request, silo, strict, tmp_path).failure == "answered"
    assert (tmp_path / "approved.txt").read_text() == number + "\n"
    for seed in range(1, 30):
        assert "nobody here" in said(asked(job(seed=seed)), silo, strict, tmp_path).failure
    assert len(policy.pending(tmp_path)) == policy.MOST_PENDING, "a server cannot fill the disk with jobs"


def test_a_silo_that_is_paused_answers_nothing(job, silo, tmp_path):
    policy.rule(tmp_path, "paused", "")
    assert said(asked(job()), silo, DEFAULT, tmp_path).failure == "this silo is paused by whoever runs it"
    (tmp_path / "paused").unlink()
    assert said(asked(job()), silo, DEFAULT, tmp_path).failure == "answered"


def test_what_a_day_may_have_is_counted_over_all_runs_and_begins_anew(job, silo, tmp_path):
    few = Policy(rounds_per_day=3, joins_per_day=2, scores_per_day=2)
    alone = Envelope("down", "alone", {"job": job().model_dump_json(), "rounds": 2})
    train = asked(job(), "train", round=1, held="0" * 64, counted=0)
    refused = said(train, silo, few, tmp_path).failure
    assert "does not remember that it joined" in refused and not (silo.memory / SPENT).exists(), "that costs no round"
    Memory(silo.memory, "1" * 16, "ash").join(str(train.fields["job"]))
    beyond = asked(job(), "train", round=3, held="0" * 64, counted=0)
    assert "asks for round 3; the run has 2" in said(beyond, silo, few, tmp_path).failure
    told = [said(one, silo, few, tmp_path).failure for one in (train, alone, train)]
    assert told[:2] == ["answered"] * 2 and "rounds_per_day = 3, and there were 3 today" in told[2]
    told = [said(asked(job()), silo, few, tmp_path).failure for _ in range(3)]
    assert told[:2] == ["answered"] * 2 and "joins_per_day = 2, and there were 2 today" in told[2]
    one = Policy(scores_per_day=2)
    told = [said(alone, silo, one, tmp_path).failure for _ in range(2)]
    assert told[0] == "answered" and "scores_per_day = 2, and there were 2 today" in told[1]
    spent = silo.memory / SPENT
    spent.write_text(json.dumps({"day": "2001-01-01", "rounds": 3, "scores": 2, "joins": 2}))
    assert said(train, silo, few, tmp_path).failure == "answered"
    spent.write_text("{")
    assert "cannot be read" in said(train, silo, few, tmp_path).failure
    assert forget(silo.memory) == 1 and not (silo.memory / MARK).exists()


def test_a_silo_that_tells_no_losses_announces_none_and_scores_none(make_recipe, silos, tmp_path, tiny_base):
    config = own_silo(tmp_path / "ash", silos / "ash", tiny_base, "min_rows = 1\nlosses = false\n")
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
