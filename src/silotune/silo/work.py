"""A job on a silo: what it asks for, and what the silo makes ready for it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from silotune import algorithms
from silotune.data.silos.corpus import Corpus, leaks_of, load_corpus
from silotune.data.silos.sources import SiloConfig
from silotune.data.tokenize.tokens import ChatOptions
from silotune.errors import InputError
from silotune.model.base import LOCAL, cores, public_name
from silotune.model.embedded import NAME as EMBEDDED
from silotune.settings import Job
from silotune.silo.memory import Memory, own_split
from silotune.silo.progress import Progress
from silotune.wire import codecs
from silotune.wire.envelope import Envelope

if TYPE_CHECKING:  # they load torch
    from silotune.model.tuner import Tuner
    from silotune.training.forward import ForwardPlan

logger = logging.getLogger(__name__)


@dataclass
class Work:
    """A job on a silo: the resident model, the silo's text, and where progress goes."""

    job: Job
    silo: SiloConfig
    round: int
    tuner: "Tuner"
    forward_plan: "ForwardPlan"
    corpus: Corpus
    progress: Callable[..., None] = field(default=lambda **_: None)


def prepare(request: Envelope, silo: SiloConfig) -> Work:
    """Read a job and make ready what it needs.

    Raises:
        InputError: the job, the base model or the silo's text cannot be used.
    """
    import torch

    from silotune.model.base import place
    from silotune.model.tuner import tuner
    from silotune.training.forward import forward_plan_of
    from silotune.training.kept import Keep

    job = _job_in(request, silo)
    torch.set_num_threads(silo.threads or cores())
    resident = tuner(_base(job, silo), job.lora, place(silo.device, silo.dtype))
    silo = _with_split(silo, job)
    assert silo.holdout is not None
    if silo.leaks is None:
        seed = job.seed if silo.seed is None else silo.seed
        silo = replace(silo, leaks=leaks_of([silo.files], silo.reading, silo.holdout, seed))
    options = ChatOptions(job.system, job.training.loss_on)
    corpus = load_corpus(silo, resident.tokenizer, job.max_length, job.seed, options)
    round_ = int(request.fields.get("round", 0))
    keep = Keep(silo.keep, silo.keep_mib << 20)  # type: ignore[arg-type]
    forward_plan = forward_plan_of(resident.model, resident.device, job.lora.dropout, keep)
    return Work(
        job, silo, round_, resident, forward_plan, corpus, Progress(silo.scratch, silo.files.name, round_, request.kind)
    )


def job_of(request: Envelope) -> Job:
    """The job of a message.

    Raises:
        InputError: it cannot be used.
    """
    try:
        return Job.model_validate_json(str(request.fields["job"]))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"the server's job cannot be used ({'.'.join(map(str, first['loc'])) or 'job'}: {first['msg']}): this "
            "machine's silotune may be of another release than the server's"
        ) from None


def _job_in(request: Envelope, silo: SiloConfig) -> Job:
    """The job of a message; on a machine of the silo's own, the one with which it joined the run and no other."""
    job, text = job_of(request), str(request.fields["job"])
    if silo.own_machine and silo.memory is not None:
        memory = Memory(silo.memory, job.run, silo.files.name)
        (memory.join if request.kind == "join" else memory.require)(text)
    return job


def _with_split(silo: SiloConfig, job: Job) -> SiloConfig:
    """The silo with what it holds out settled: its own on its own machine, else the job's."""
    share = job.holdout if silo.holdout is None else silo.holdout
    if silo.files.test or not silo.own_machine or silo.memory is None:
        return replace(silo, holdout=share)
    seed, fixed = own_split(silo.memory, silo.files.name, share)
    if silo.holdout is None and fixed != job.holdout:
        logger.warning("held out is %g of the rows, as for every job; this one says %g", fixed, job.holdout)
    return replace(silo, seed=seed, holdout=fixed if silo.holdout is None else silo.holdout)


def _base(job: Job, silo: SiloConfig) -> str:
    """The silo's own place of the base model, or an embedded name; never a path or hub id that the server chose."""
    if silo.base is not None:
        return silo.base
    if job.base == LOCAL or public_name(job.base) != job.base:
        raise InputError("the job's base model is a local one: name its place here as `base` in silo.toml")
    if job.base != EMBEDDED:
        raise InputError(
            "the job's base model is one of the Hugging Face hub, and no server may choose what is fetched to this "
            "machine: if it is to be, name it as `base` in silo.toml"
        )
    return job.base


def memory_of(work: Work) -> Memory | None:
    """Where a silo remembers what the job asks it to; None where there is nothing to remember.

    Raises:
        InputError: there is something, and nowhere to keep it.
    """
    asked = [
        setting
        for setting, remembers in (
            (f'wire.codec = "{work.job.codec}"', codecs.find(work.job.codec).feedback),
            ('training.moments = "keep"', work.job.training.moments == "keep"),
            (f'algorithm = "{work.job.algorithm}"', algorithms.find(work.job.algorithm).control is not None),
        )
        if remembers
    ]
    if not asked:
        return None
    if work.silo.memory is None:
        raise InputError(
            f"{asked[0]} has a silo remember from round to round, and this one has no place for that: name a folder "
            "with `memory` in silo.toml"
        )
    return Memory(work.silo.memory, work.job.run, work.silo.files.name)


def scored_rows(work: Work) -> int:
    """Held-out rows of which at least one token is scored: a job's `max_length` may leave few."""
    return len(np.unique(work.corpus.test.row_of))


def require_rows(rows: int, what: str, silo: SiloConfig) -> None:
    """Refuse to tell of so few rows that a figure, or an update, would be one of single rows."""
    if rows < silo.min_rows:
        raise InputError(f"{what} {rows} rows, and this silo tells nothing of fewer than {silo.min_rows} (min_rows)")


def require_losses(work: Work) -> None:
    """Refuse to tell a loss over held-out rows where the silo tells none, or they are too few.

    Raises:
        InputError: saying which.
    """
    if not work.silo.losses:
        raise InputError("this silo tells no losses (losses = false)")
    require_rows(scored_rows(work), "held out are", work.silo)
