"""What a silo's policy allows, looked up in its worker before anything is loaded for a job."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from silotune import atomic
from silotune.data.silos.sources import SiloConfig
from silotune.errors import InputError
from silotune.settings import Job
from silotune.settings.silo import Policy
from silotune.silo.answer import answer, guarded
from silotune.silo.house import APPROVED
from silotune.silo.memory import SPENT, Memory, hash_of, writing
from silotune.silo.work import job_of
from silotune.wire.envelope import Envelope


def answered(request: Envelope, silo: SiloConfig, policy: Policy, folder: Path) -> Envelope:
    """Answer a message if the policy allows it; a refusal says which line of it does not.

    Args:
        request: to answer.
        silo: what the silo holds.
        policy: its own.
        folder: the silo's, where approvals are kept.
    """

    def work() -> Envelope:
        job, text = job_of(request), str(request.fields["job"])
        require(job, policy)
        if policy.approve:
            require_approved(text, folder)
        if request.kind in ("train", "alone"):
            assert silo.memory is not None
            Memory(silo.memory, job.run, silo.files.name).require(text)
            asked = int(request.fields.get("round", request.fields.get("rounds", 0)))
            if not 1 <= asked <= job.training.rounds:
                raise InputError(f"the server asks for round {asked}; the run has {job.training.rounds}")
            spend(silo.memory, asked if request.kind == "alone" else 1, policy)
        return answer(request, silo)

    return guarded(request.kind, work, silo)


def require(job: Job, policy: Policy) -> None:
    """Refuse a job that the policy does not allow.

    Raises:
        InputError: naming the line of the policy.
    """
    named: tuple[tuple[str, object, list[str] | None], ...] = (
        ("algorithms", job.algorithm, list(policy.algorithms) if policy.algorithms else None),
        ("codecs", job.codec, list(policy.codecs) if policy.codecs else None),
    )
    for key, asked, allowed in named:
        if allowed is not None and asked not in allowed:
            raise InputError(_refused(f"{key} = {json.dumps(allowed)}", f"the job asks for {json.dumps(asked)}"))
    if policy.targets == "attention" and job.lora.targets != "attention":
        raise InputError(_refused('targets = "attention"', f"the job's adapter sits on {json.dumps(job.lora.targets)}"))
    if job.lora.r > policy.max_rank:
        raise InputError(_refused(f"max_rank = {policy.max_rank}", f"the job's adapter has rank {job.lora.r}"))
    if job.training.rounds > policy.rounds_per_run:
        raise InputError(_refused(f"rounds_per_run = {policy.rounds_per_run}", f"the job has {job.training.rounds}"))


def require_base(policy: Policy, fingerprint: str) -> None:
    """Refuse to start with a base that the policy does not name.

    Raises:
        InputError: with its fingerprint.
    """
    if policy.bases is not None and fingerprint not in policy.bases:
        raise InputError(_refused(f"bases = {json.dumps(policy.bases)}", f"the base here is {fingerprint}"))


def require_approved(job: str, folder: Path) -> None:
    """Refuse a job that nobody has approved.

    Raises:
        InputError: saying how to approve it.
    """
    try:
        approved = (folder / APPROVED).read_text(encoding="ascii").split()
    except FileNotFoundError:
        approved = []
    except (OSError, UnicodeDecodeError):
        raise InputError(f"{folder / APPROVED}: cannot be read by the worker.") from None
    if hash_of(job) not in approved:
        raise InputError(_refused("approve = true", f"nobody here has approved the job {hash_of(job)}"))


def approve(folder: Path, job_hash: str) -> None:
    """Approve a job by its hash.

    Raises:
        InputError: it is no hash, or cannot be written down.
    """
    if len(job_hash) != 64 or set(job_hash) - set("0123456789abcdef"):
        raise InputError(f"{job_hash[:80]}: a job's hash has 64 hexadecimal digits; the refusal of a job tells it.")
    place, owner = folder / APPROVED, folder.stat()
    try:
        known = place.read_text(encoding="ascii") if place.exists() else ""
        if job_hash not in known.split():
            atomic.write_text(place, known + job_hash + "\n")
        place.chmod(0o600)
        if os.geteuid() == 0:  # it is the worker that reads it
            os.chown(place, owner.st_uid, owner.st_gid, follow_symlinks=False)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{place}: cannot be written ({error}).") from None


def spend(memory: Path, rounds: int, policy: Policy) -> None:
    """Count rounds of today, and refuse those beyond what the policy allows for a day.

    Raises:
        InputError: there are too many, or they cannot be counted.
    """
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    with writing(memory):
        try:
            told = json.loads((memory / SPENT).read_text(encoding="utf-8"))
            spent = int(told["rounds"]) if told["day"] == today else 0
        except FileNotFoundError:
            spent = 0
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{memory / SPENT}: cannot be read. Delete it, and today's rounds count from 0.") from None
        if spent + rounds > policy.rounds_per_day:
            raise InputError(_refused(f"rounds_per_day = {policy.rounds_per_day}", f"{spent} were trained today"))
        atomic.write_text(memory / SPENT, json.dumps({"day": today, "rounds": spent + rounds}) + "\n")


def _refused(line: str, why: str) -> str:
    return f"this silo's policy says {line}, and {why}"
