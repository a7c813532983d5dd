"""What a silo's policy allows, looked up in its worker before anything is loaded for a job."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from silotune import atomic
from silotune.data.silos.sources import SiloConfig
from silotune.errors import InputError
from silotune.settings import Job
from silotune.settings.silo import Policy
from silotune.silo.house import APPROVED, OWN, PAUSED, PENDING
from silotune.silo.memory import SPENT, Memory, hash_of, writing
from silotune.silo.work import job_of
from silotune.wire.envelope import Envelope

MOST_PENDING = 20
"""Jobs that wait for somebody's approval."""


def allow(request: Envelope, silo: SiloConfig, policy: Policy, folder: Path) -> None:
    """Refuse a request that the policy does not allow, and count what it does.

    Args:
        request: to be answered.
        silo: what the silo holds.
        policy: its own.
        folder: the silo's, where approvals are kept.

    Raises:
        InputError: saying which line of the policy does not allow it.
    """
    if (folder / PAUSED).exists():
        raise InputError("this silo is paused by whoever runs it")
    job, text = job_of(request), str(request.fields["job"])
    require(job, policy)
    if policy.approve:
        require_approved(text, folder)
    assert silo.memory is not None
    rounds = 0
    if request.kind != "join":
        Memory(silo.memory, job.run, silo.files.name).require(text)
    if request.kind in ("train", "alone"):
        asked = int(request.fields.get("round", request.fields.get("rounds", 0)))
        if not 1 <= asked <= job.training.rounds:
            raise InputError(f"the server asks for round {asked}; the run has {job.training.rounds}")
        rounds = asked if request.kind == "alone" else 1
    spend(silo.memory, policy, {"rounds": rounds, "scores": int(request.kind in ("evaluate", "alone")),
                                "joins": int(request.kind == "join")})  # fmt: skip


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
    if job.minimum < policy.min_silos:
        raise InputError(_refused(f"min_silos = {policy.min_silos}", f"the job's rounds may have {job.minimum}"))
    if job.max_share > policy.max_share:
        raise InputError(_refused(f"max_share = {policy.max_share:g}", f"the job allows {job.max_share:g}"))
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
        keep_pending(job, folder / OWN / PENDING)
        raise InputError(_refused("approve = true", f"nobody here has approved the job {hash_of(job)}"))


def keep_pending(job: str, folder: Path) -> None:
    """Keep a job that nobody has approved, for whoever is to decide; the latest few of them."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = folder / f"{hash_of(job)}.json"
    if not place.exists():
        atomic.write_text(place, job, durable=False)
    for old in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-MOST_PENDING]:
        old.unlink(missing_ok=True)


def pending(folder: Path) -> dict[str, Job]:
    """The jobs that this silo has refused because nobody had approved them, by hash; the latest last.

    Raises:
        InputError: they cannot be read.
    """
    try:
        found = sorted((folder / OWN / PENDING).glob("*.json"), key=lambda path: path.stat().st_mtime)
        texts = [path.read_text(encoding="utf-8") for path in found]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    return {hash_of(text): Job.model_validate_json(text) for text in texts}


def approve(folder: Path, job_hash: str) -> None:
    """Approve a job by its hash.

    Raises:
        InputError: it is no hash, or cannot be written down.
    """
    if len(job_hash) != 64 or set(job_hash) - set("0123456789abcdef"):
        raise InputError(f"{job_hash[:80]}: a job's hash has 64 hexadecimal digits; the refusal of a job tells it.")
    place = folder / APPROVED
    try:
        known = place.read_text(encoding="ascii") if place.exists() else ""
        if job_hash not in known.split():
            rule(folder, APPROVED, known + job_hash + "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{place}: cannot be read ({error}).") from None


def rule(folder: Path, name: str, text: str) -> None:
    """Write a file that the worker reads and only whoever runs the silo writes.

    Raises:
        InputError: it cannot be written.
    """
    place, own = folder / name, folder / OWN
    try:
        atomic.write_text(place, text)
        place.chmod(0o640)
        if os.geteuid() == 0 and own.exists():  # it is the worker that reads it
            os.chown(place, 0, own.stat().st_gid, follow_symlinks=False)
    except OSError as error:
        raise InputError(f"{place}: cannot be written ({error.strerror}).") from None


def spend(memory: Path, policy: Policy, asked: Mapping[str, int]) -> None:
    """Count what is asked of a silo today, and refuse what is beyond what its policy allows for a day.

    Args:
        memory: the silo's.
        policy: its own.
        asked: how many `rounds`, `scores` and `joins`.

    Raises:
        InputError: there are too many, or they cannot be counted.
    """
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    with writing(memory):
        try:
            told = json.loads((memory / SPENT).read_text(encoding="utf-8"))
            spent = {what: int(told[what]) if told["day"] == today else 0 for what in asked}
        except FileNotFoundError:
            spent = dict.fromkeys(asked, 0)
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{memory / SPENT}: cannot be read. Delete it, and today's count begins at 0.") from None
        for what, number in asked.items():
            most = getattr(policy, f"{what}_per_day")
            if number and spent[what] + number > most:
                raise InputError(_refused(f"{what}_per_day = {most}", f"there were {spent[what]} today"))
        counted = {what: spent[what] + number for what, number in asked.items()}
        atomic.write_text(memory / SPENT, json.dumps({"day": today, **counted}) + "\n")


def _refused(line: str, why: str) -> str:
    return f"this silo's policy says {line}, and {why}"
