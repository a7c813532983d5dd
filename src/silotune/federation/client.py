"""A silo's side: one message in, one answer out.

What the silo holds comes from its own configuration; the message brings the job and the adapter, never a path.
Whatever goes wrong is answered in words that cannot carry text: this package's own messages (files, lines,
fields), or the kind and place of an unexpected error, never what it says.
"""

import functools
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

import silotune
from silotune import algorithms
from silotune.algorithms.interface import Arrays, LocalResult
from silotune.data.read.files import printable
from silotune.data.seeds import derive
from silotune.data.silos.batches import plan_round
from silotune.data.silos.corpus import Corpus, leaks_of, load_corpus
from silotune.data.silos.sources import SiloConfig
from silotune.data.tokenize.tokens import ChatOptions
from silotune.errors import AdmissionError, InputError, SilotuneError
from silotune.federation.local import cores, local_silos_of
from silotune.model.adapter import NO_TENSORS, AdapterState, initial_adapter
from silotune.model.base import LOCAL, public_name
from silotune.model.embedded import NAME as EMBEDDED
from silotune.recipe import load_recipe, looks_like_path
from silotune.settings import HUB, Job
from silotune.silo.held import held, hold
from silotune.silo.identity import proof, public_key
from silotune.silo.memory import Memory, Remembered, default_root, own_split
from silotune.silo.node import from_node
from silotune.silo.outbound import written
from silotune.wire import codecs, manifest
from silotune.wire.envelope import NOT_HELD, Envelope, Kind, Scalar, failure
from silotune.wire.profile import Alone, Profile

if TYPE_CHECKING:  # they load torch
    from silotune.model.tuner import Tuner
    from silotune.training.forward import ForwardPlan
    from silotune.training.local_run import TrainingTotals

    Trained = tuple[TrainingTotals, AdapterState, Remembered | None]
    """Totals, adapter and moments."""

logger = logging.getLogger(__name__)

SILOS_VARIABLE, SCRATCH_VARIABLE = "SILOTUNE_SILOS", "SILOTUNE_SCRATCH"
"""In a simulation: the recipe on this machine that names the virtual silos, and the folder of their progress."""


MOMENTS = "moments/"
"""Before what an optimizer has come to, in a silo's memory."""
TRAINED: "ContextVar[Mapping[tuple[str, int], Callable[[], Trained]]]" = ContextVar("trained")
"""Silos of this process that have been trained in a round already, beside others (`together`): by name and round, what
gives totals, adapter and moments, or raises why there are none."""


def silo_of(node_config: Mapping[str, Scalar]) -> SiloConfig:
    """The silo's configuration: from its node's configuration, or by its partition in a simulation.

    Raises:
        InputError: neither is there, or the node's configuration cannot be used.
    """
    if "silotune" in node_config:
        return SiloConfig.from_json(str(node_config["silotune"]))
    if "data" in node_config:
        return from_node(node_config)
    recipe = os.environ.get(SILOS_VARIABLE)
    if recipe and "partition-id" in node_config:
        return _virtual_silos(recipe, os.environ.get(SCRATCH_VARIABLE))[int(node_config["partition-id"])]
    raise InputError(
        "this node does not say where its text lies: start the SuperNode with --node-config "
        f"'data=\"/path/of/the/silo\"', or in a simulation set {SILOS_VARIABLE} to a recipe's path"
    )


@functools.lru_cache(maxsize=1)
def _virtual_silos(recipe: str, scratch: str | None) -> tuple[SiloConfig, ...]:
    local_silos = local_silos_of(load_recipe(Path(recipe)))
    if scratch:
        return local_silos.showing(Path(scratch)).silos
    return tuple(replace(silo, memory=default_root()) for silo in local_silos.silos)


# ------------------------------------------------------------------------------------------- answering


def answer(request: Envelope, silo: SiloConfig) -> Envelope:
    """Answer one message of the server; what goes wrong becomes an answer too."""
    return guarded(request.kind, lambda: ANSWERS[request.kind](request, silo), silo)


def guarded(kind: Kind, work: Callable[[], Envelope], silo: SiloConfig | None = None) -> Envelope:
    """Run `work`; turn an exception into a failure that carries no text of a silo and no folder of its machine.

    The silo's own log has the whole message.
    """
    try:
        return work()
    except SilotuneError as error:
        logger.warning("%s not answered: %s", kind, error)
        return failure(kind, without_folders(str(error), silo))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"unexpected {type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
        logger.error("%s not answered: %s", kind, reason)
        return failure(kind, reason)


def without_folders(text: str, silo: SiloConfig | None = None) -> str:
    """Leave of the silo's own paths, and of every absolute path, the last part only."""
    if silo is not None:
        base = [silo.base] if silo.base and looks_like_path(silo.base) else []
        places = [*silo.files.train, *silo.files.test, *base]
        folders = {printable(Path(place).parent) for place in places if not place.startswith(HUB)} - {".", "/"}
        for folder in sorted(folders, key=len, reverse=True):
            text = text.replace(f"{folder}/", "").replace(folder, Path(folder).name)
    return re.sub(r"""(?<![^\s"'(=:,])/(?:[^/\n:"']+/)*(?=[^/\s:])""", "", text)


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

    from silotune.federation.progress import Progress
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


def _job_in(request: Envelope, silo: SiloConfig) -> Job:
    """The job of a message; on a machine of the silo's own, the one with which it joined the run and no other."""
    text = str(request.fields["job"])
    try:
        job = Job.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"the server's job cannot be used: {error.errors()[0]['msg']}") from None
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
        raise InputError("the job's base model is a local one: name its place here with the node's `base`")
    if job.base != EMBEDDED:
        raise InputError(
            "the job's base model is one of the Hugging Face hub, and no server may choose what is fetched to this "
            "machine: if it is to be, name it with the node's `base`"
        )
    return job.base


def _join(request: Envelope, silo: SiloConfig) -> Envelope:
    work = prepare(request, silo)
    _memory(work)
    train, test = work.corpus.train, work.corpus.test
    for file, fields in {**test.store.described.unused, **train.store.described.unused}.items():
        logger.warning("%s: fields that are not read: %s", printable(file), ", ".join(map(printable, fields)))
    tested = _scored(work) >= silo.min_rows
    if not tested:
        logger.warning("%d rows are held out, fewer than min-rows = %d: no loss is told", _scored(work), silo.min_rows)
    profile = Profile(
        silo=silo.files.name,
        fingerprint=work.tuner.fingerprint,
        base_bytes=work.tuner.base_bytes,
        train_rows=len(train),
        train_tokens=train.tokens,
        train_loss_tokens=train.loss_tokens,
        train_cut=train.shortened,
        test_rows=len(test) if tested else 0,
        test_loss_tokens=test.loss_tokens if tested else 0,
        test_cut=test.shortened if tested else 0,
        text_bytes=train.text_bytes + test.text_bytes,
        threads=silo.threads or cores(),
        version=silotune.__version__,
        key=public_key(silo.memory) if silo.own_machine and silo.memory else "",
        proof=proof(silo.memory, str(request.fields["job"])) if silo.own_machine and silo.memory else "",
    )
    return Envelope("up", "join", asdict(profile))


@dataclass(frozen=True)
class Received:
    """What a request brings."""

    adapter: AdapterState
    """The whole, with what a silo draws itself."""
    common: Arrays
    """To train: the server's control variates."""


def received(request: Envelope, work: Work) -> Received:
    """Read what a request brings.

    Raises:
        AdmissionError: it is not of the job's names and shapes.
    """
    spec, method, codec = work.tuner.spec, algorithms.find(work.job.algorithm), codecs.find(work.job.codec)
    sent, beside = method.sent(spec), method.beside(spec) if request.kind == "train" else NO_TENSORS
    digest = str(request.fields.get("held", ""))
    brought = beside if digest else sent.plus(beside)
    found: dict[str, NDArray[np.float32]] = {}
    if brought.shapes or request.vector is not None:
        if request.vector is None or request.manifest is None:
            raise AdmissionError("nothing came with the request")
        found |= manifest.unpack(request.vector, request.manifest, brought, codec)
    if digest:
        kept = held(work.silo.memory, work.job.run, digest) if work.silo.memory else None
        if kept is None:
            raise AdmissionError(NOT_HELD)
        found |= manifest.unpack(*kept, sent, codec)
    adapter = {name: found[name] for name in sent.names}
    common = {name: found[name] for name in beside.names}
    return Received(method.whole(adapter, spec, derive(work.job.seed, "adapter")), common)


def _train(request: Envelope, silo: SiloConfig) -> Envelope:
    work = prepare(request, silo)
    if not 1 <= work.round <= work.job.training.rounds:
        raise InputError(f"the server asks for round {work.round}; the run has {work.job.training.rounds}")
    if silo.min_rows:
        plan = plan_round(work.job.training, work.corpus.train.lengths, work.job.seed, silo.files.name, work.round)
        chosen = [example for step in plan for examples in step for example in examples]
        _require_rows(len(np.unique(work.corpus.train.row_of[chosen])), "a round would train on", silo)
    start, memory = begin(request, work), _memory(work)
    already = TRAINED.get({}).get((silo.files.name, work.round))
    totals, after, moments = already() if already else _trained(work, start)
    before = start.received.adapter
    update = {name: after[name] - before[name] for name in start.trainable}
    changed, own = _controls(work, start, LocalResult(start.received.common, update, totals.rates))
    draw = np.random.Generator(np.random.Philox(derive(work.job.seed, "codec", silo.files.name, work.round)))
    leaving = written({**update, **changed}, codecs.find(work.job.codec), draw, start.remembered)
    if memory is not None:
        kept = {MOMENTS + name: value for name, value in (moments or {}).items()} | own
        sound = leaving.usable and all(np.isfinite(value).all() for value in kept.values())
        memory.keep(work.round, {**leaving.remembered, **(kept if sound else {})})
    fields: dict[str, Scalar] = {
        "steps": totals.steps,
        "loss": totals.loss,
        "tokens": totals.tokens,
        "loss_tokens": totals.loss_tokens,
        "examples": len(work.corpus.train),
        "seconds": totals.seconds,
        "codec_error": leaving.codec_error,
    }
    return Envelope("up", "train", fields, leaving.array, leaving.manifest)


def _memory(work: Work) -> Memory | None:
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
            "with the node's `memory`"
        )
    return Memory(work.silo.memory, work.job.run, work.silo.files.name)


@dataclass(frozen=True)
class Start:
    """What a silo's part of a round starts from."""

    received: Received
    remembered: Remembered
    trainable: frozenset[str]
    """Names of the tensors that the method trains in this round."""
    moments: Remembered | None
    """Where the silo's optimizer goes on; None: it starts anew each round."""
    drift: AdapterState
    """What the control variates take off after each step; empty if the method has none."""


def begin(request: Envelope, work: Work) -> Start:
    """Put together what a silo's part of a round starts from.

    Raises:
        AdmissionError: what the server sent is not of the job's names and shapes.
        InputError: what the silo remembers cannot be had.
    """
    found, memory = received(request, work), _memory(work)
    remembered = memory.begin(work.round, int(request.fields["counted"])) if memory is not None else {}
    method = algorithms.find(work.job.algorithm)
    drift = method.control.drift(found.common, remembered) if method.control else {}
    return Start(found, remembered, trainable_in(work), moments_in(work, remembered), drift)


def moments_in(work: Work, remembered: Remembered) -> Remembered | None:
    """Return the remembered moments that the optimizer resumes from; None if it starts anew each round."""
    if work.job.training.moments == "reset":
        return None
    return {name.removeprefix(MOMENTS): value for name, value in remembered.items() if name.startswith(MOMENTS)}


def trainable_in(work: Work) -> frozenset[str]:
    """Names of the tensors that the method trains in this round."""
    return algorithms.find(work.job.algorithm).trainable(work.tuner.spec, work.round)


def _controls(work: Work, start: Start, result: LocalResult) -> tuple[Arrays, Remembered]:
    """By how much the silo's control variates have changed, and what they are now; nothing where there are none."""
    method = algorithms.find(work.job.algorithm)
    if not method.control:
        return {}, {}
    changed, before = method.control.change(result), start.remembered
    own = {name: before[name] + value if name in before else value for name, value in changed.items()}
    return changed, own


def _trained(work: Work, start: Start) -> "Trained":
    """Train on the silo's rows: totals, and what adapter and moments have become."""
    from silotune.model import lora
    from silotune.training.loop import train_round

    lora.put(work.tuner.model, start.received.adapter)
    totals = train_round(
        work.tuner, work.forward_plan, work.corpus.train, work.job.training, work.job.seed, work.silo.files.name,
        work.round, lambda step: work.progress(**asdict(step)), start.trainable, start.moments, start.drift,
    )  # fmt: skip
    return totals, lora.take(work.tuner.model), start.moments


def _scored(work: Work) -> int:
    """Held-out rows of which at least one token is scored: a job's `max_length` may leave few."""
    return len(np.unique(work.corpus.test.row_of))


def _require_rows(rows: int, what: str, silo: SiloConfig) -> None:
    """Refuse to tell of so few rows that a figure, or an update, would be one of single rows."""
    if rows < silo.min_rows:
        raise InputError(f"{what} {rows} rows, and this silo tells nothing of fewer than {silo.min_rows} (min-rows)")


def _evaluate(request: Envelope, silo: SiloConfig) -> Envelope:
    from silotune.model import lora
    from silotune.training.evaluation import evaluate

    work = prepare(request, silo)
    _require_rows(_scored(work), "held out are", silo)
    lora.put(work.tuner.model, received(request, work).adapter)
    score = evaluate(work.tuner, work.forward_plan, work.corpus.test, lambda: work.progress())
    assert request.vector is not None and request.manifest is not None
    kept = silo.memory is not None and hold(silo.memory, work.job.run, request.vector, request.manifest)
    fields: dict[str, Scalar] = {
        "rows": score.rows,
        "tokens": score.tokens,
        "loss": score.loss,
        "correct": score.correct,
        "seconds": score.seconds,
        "kept": int(kept),
    }
    return Envelope("up", "evaluate", fields)


def _alone(request: Envelope, silo: SiloConfig) -> Envelope:
    """Train the whole adapter as a federation of this silo would: each round goes on where the last one ended.

    Whatever the method: it is what the silo could do without the others.
    """
    from silotune.training.evaluation import evaluate

    began = time.monotonic()
    work, rounds = prepare(request, silo), int(request.fields["rounds"])
    if not 1 <= rounds <= work.job.training.rounds:
        raise InputError(f"the server asks for {rounds} rounds alone; the run has {work.job.training.rounds}")
    _require_rows(_scored(work), "held out are", silo)
    training = work.job.training.model_copy(update={"rounds": rounds, "proximal": 0.0})
    work = replace(work, job=work.job.model_copy(update={"training": training}))
    adapter: AdapterState = initial_adapter(work.tuner.spec, derive(work.job.seed, "adapter"))
    moments = moments_in(work, {})
    steps = tokens = loss_tokens = 0
    for round_ in range(1, rounds + 1):
        start = Start(Received(adapter, {}), {}, work.tuner.spec.names, moments, {})
        totals, adapter, moments = _trained(replace(work, round=round_), start)
        steps, tokens, loss_tokens = steps + totals.steps, tokens + totals.tokens, loss_tokens + totals.loss_tokens
    score = evaluate(work.tuner, work.forward_plan, work.corpus.test, lambda: work.progress())
    told = Alone(score.rows, score.tokens, score.loss, score.correct, steps, tokens, loss_tokens,
                 time.monotonic() - began)  # fmt: skip
    return Envelope("up", "alone", asdict(told))


ANSWERS: Mapping[Kind, Callable[[Envelope, SiloConfig], Envelope]] = {
    "join": _join,
    "train": _train,
    "evaluate": _evaluate,
    "alone": _alone,
}
