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
from typing import Any

import numpy as np
from pydantic import ValidationError

import silotune
from silotune import algorithms
from silotune.data.batches import plan_round
from silotune.data.corpus import Corpus, leaks_of, load_corpus, reading_of
from silotune.data.files import printable
from silotune.data.seeds import derive
from silotune.data.silos import SiloConfig, find_silos
from silotune.data.tokens import ChatOptions
from silotune.errors import InputError, SilotuneError
from silotune.federation.local import cores, crew_of
from silotune.model.adapter import AdapterState, initial_adapter
from silotune.model.base import LOCAL, public_name
from silotune.model.embedded import NAME as EMBEDDED
from silotune.recipe import check_recipe, load_recipe, looks_like_path
from silotune.settings import HUB, Job
from silotune.silo.memory import Memory, Remembered, default_root, own_split
from silotune.silo.outbound import written
from silotune.wire import codecs, manifest
from silotune.wire.envelope import Envelope, Kind, Scalar, failure
from silotune.wire.profile import Alone, Profile

logger = logging.getLogger(__name__)

SILOS_VARIABLE, SCRATCH_VARIABLE = "SILOTUNE_SILOS", "SILOTUNE_SCRATCH"
"""In a simulation: the recipe on this machine that names the virtual silos, and the folder of their progress."""


MIN_ROWS = 8
"""On a member's machine, where its node says nothing else: a loss, or an update, of fewer rows tells of single ones."""
MOMENTS = "moments/"
"""Before what an optimizer has come to, in a silo's memory."""
TRAINED: ContextVar[Mapping[tuple[str, int], Callable[[], tuple[Any, Any, Any]]]] = ContextVar("trained")
"""Silos of this process that have been trained in a round already, beside others (`together`): by name and round, what
gives totals, adapter and moments, or raises why there are none."""


def silo_of(node_config: Mapping[str, Any]) -> SiloConfig:
    """The silo's configuration: from its node's configuration, or by its partition in a simulation.

    Node configuration of a SuperNode: `data` (a silo's folder or its NAME.train.*) and optionally `silo` (its name),
    `base` (where the base model lies), `threads`, `device`, `dtype`, `holdout`, `ledger`, `memory` (a folder),
    `fields` (what the fields of rows are: "prompt=q,response=a"), `text-rows`, `drop-leaks`, `keep`, `keep-mib`,
    `min-rows`.

    Raises:
        InputError: neither is there, or a key is unknown or of the wrong type.
    """
    if "silotune" in node_config:
        return SiloConfig.from_json(str(node_config["silotune"]))
    if "data" in node_config:
        return _from_node(node_config)
    recipe = os.environ.get(SILOS_VARIABLE)
    if recipe and "partition-id" in node_config:
        return _virtual_silos(recipe, os.environ.get(SCRATCH_VARIABLE))[int(node_config["partition-id"])]
    raise InputError(
        "this node does not say where its text lies: start the SuperNode with --node-config "
        f"'data=\"/path/of/the/silo\"', or in a simulation set {SILOS_VARIABLE} to a recipe's path"
    )


@functools.lru_cache(maxsize=1)
def _virtual_silos(recipe: str, scratch: str | None) -> tuple[SiloConfig, ...]:
    crew = crew_of(load_recipe(Path(recipe)))
    if scratch:
        return crew.showing(Path(scratch)).silos
    return tuple(replace(silo, memory=default_root()) for silo in crew.silos)


NODE_KEYS: Mapping[str, type] = {
    "data": str, "silo": str, "base": str, "threads": int, "device": str, "dtype": str, "holdout": float, "ledger": str,
    "memory": str, "fields": str, "text-rows": str, "drop-leaks": bool, "keep": str, "keep-mib": int, "min-rows": int,
}  # fmt: skip


def _from_node(node_config: Mapping[str, Any]) -> SiloConfig:
    given = {key: value for key, value in node_config.items() if key not in ("partition-id", "num-partitions")}
    for key, value in given.items():
        if key not in NODE_KEYS:
            raise InputError(f"node configuration: unknown key {key!r}; there are {', '.join(NODE_KEYS)}")
        if type(value) is not NODE_KEYS[key]:
            raise InputError(f"node configuration: {key} must be {NODE_KEYS[key].__name__}")
    if given.get("min-rows", 0) < 0:
        raise InputError("node configuration: min-rows must be 0 or more")
    found = find_silos(given.pop("data"))
    if len(found) != 1:
        raise InputError(f"node configuration: data must be one silo's, it holds {len(found)}")
    files = replace(found[0], name=given.pop("silo", found[0].name))
    settings = check_recipe(_sections(given), "node configuration")
    return SiloConfig(
        files=files,
        base=_own_place(given.get("base")),
        holdout=settings.data.holdout if "holdout" in given else None,
        reading=reading_of(settings.data),
        drop_leaks=settings.data.drop_leaks,
        device=settings.model.device,
        dtype=settings.model.dtype,
        keep=settings.model.keep,
        keep_mib=settings.model.keep_mib,
        threads=settings.federation.threads or 0,
        min_rows=given.get("min-rows", MIN_ROWS),
        ledger=Path(given["ledger"]) if "ledger" in given else None,
        memory=Path(given["memory"]).absolute() if "memory" in given else default_root(),
        own_machine=True,
    )


def _own_place(base: str | None) -> str | None:
    """Where a node's base lies, as a whole path where it is one."""
    return str(Path(base).absolute()) if base and Path(base).exists() else base


def _sections(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A node's settings where a recipe has them, so that they have the same bounds."""
    sections: dict[str, dict[str, Any]] = {"data": {}, "model": {}, "federation": {}}
    for section, keys in (
        ("data", ("holdout", "text-rows", "drop-leaks")),
        ("model", ("device", "dtype", "keep", "keep-mib")),
        ("federation", ("threads",)),
    ):
        sections[section] = {key.replace("-", "_"): given[key] for key in keys if key in given}
    if "fields" in given:
        pairs = [pair.partition("=") for pair in given["fields"].split(",")]
        sections["data"]["fields"] = {meaning.strip(): name.strip() for meaning, _, name in pairs}
    return sections


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
    tuner: Any
    ways: Any
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
    from silotune.training.forward import ways_of
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
    ways = ways_of(resident.model, resident.device, job.lora.dropout, keep)
    return Work(
        job, silo, round_, resident, ways, corpus, Progress(silo.scratch, silo.files.name, round_, request.kind)
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
        (memory.join if request.kind == "hello" else memory.require)(text)
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


def _hello(request: Envelope, silo: SiloConfig) -> Envelope:
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
    )
    return Envelope("up", "hello", asdict(profile))


def received(request: Envelope, work: Work) -> AdapterState:
    """The whole adapter of which a request brings what the silo cannot draw itself.

    Raises:
        AdmissionError: it is not of the job's names and shapes.
    """
    assert request.vector is not None and request.manifest is not None
    spec, method = work.tuner.spec, algorithms.find(work.job.algorithm)
    sent = manifest.unpack(request.vector, request.manifest, method.sent(spec), codecs.find(work.job.codec))
    return method.whole(sent, spec, derive(work.job.seed, "adapter"))


def _train(request: Envelope, silo: SiloConfig) -> Envelope:
    work = prepare(request, silo)
    if not 1 <= work.round <= work.job.training.rounds:
        raise InputError(f"the server asks for round {work.round}; the run has {work.job.training.rounds}")
    if silo.min_rows:
        plan = plan_round(work.job.training, work.corpus.train.lengths, work.job.seed, silo.files.name, work.round)
        chosen = [example for step in plan for examples in step for example in examples]
        _require_rows(len(np.unique(work.corpus.train.row_of[chosen])), "a round would train on", silo)
    before = received(request, work)
    memory, remembered = _memory(work), recalled(work)
    already = TRAINED.get({}).get((silo.files.name, work.round))
    trainable = trainable_in(work)
    totals, after, moments = already() if already else _trained(work, before, trainable, moments_in(work, remembered))
    update = {name: after[name] - before[name] for name in trainable}
    draw = np.random.Generator(np.random.Philox(derive(work.job.seed, "codec", silo.files.name, work.round)))
    leaving = written(update, codecs.find(work.job.codec), draw, remembered, before)
    if memory is not None:
        sound = leaving.usable and all(np.isfinite(value).all() for value in (moments or {}).values())
        kept = {MOMENTS + name: value for name, value in (moments or {}).items()} if sound else {}
        memory.keep(work.round, {**leaving.remembered, **kept})
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


def recalled(work: Work) -> Remembered:
    """What a silo remembers as a round begins; nothing where the job asks for nothing to be remembered.

    Raises:
        InputError: it cannot be had.
    """
    memory = _memory(work)
    return memory.begin(work.round) if memory is not None else {}


def moments_in(work: Work, remembered: Remembered) -> Remembered | None:
    """Of what a silo remembers, where its optimizer goes on; None: it starts anew each round."""
    if work.job.training.moments == "reset":
        return None
    return {name.removeprefix(MOMENTS): value for name, value in remembered.items() if name.startswith(MOMENTS)}


def trainable_in(work: Work) -> frozenset[str]:
    """Names of the tensors that the method trains in this round."""
    return algorithms.find(work.job.algorithm).trainable(work.tuner.spec, work.round)


def _trained(
    work: Work, adapter: AdapterState, trainable: frozenset[str], moments: Remembered | None
) -> tuple[Any, AdapterState, Remembered | None]:
    """Train these tensors of an adapter on the silo's rows: totals, and what adapter and moments have become."""
    from silotune.model import lora
    from silotune.training.loop import train_round

    lora.put(work.tuner.model, adapter)
    totals = train_round(
        work.tuner, work.ways, work.corpus.train, work.job.training, work.job.seed, work.silo.files.name, work.round,
        lambda step: work.progress(**asdict(step)), trainable, moments,
    )  # fmt: skip
    return totals, lora.take(work.tuner.model), moments


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
    lora.put(work.tuner.model, received(request, work))
    score = evaluate(work.tuner, work.ways, work.corpus.test, lambda: work.progress())
    fields: dict[str, Scalar] = {
        "rows": score.rows,
        "tokens": score.tokens,
        "loss": score.loss,
        "correct": score.correct,
        "seconds": score.seconds,
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
        totals, adapter, moments = _trained(replace(work, round=round_), adapter, work.tuner.spec.names, moments)
        steps, tokens, loss_tokens = steps + totals.steps, tokens + totals.tokens, loss_tokens + totals.loss_tokens
    score = evaluate(work.tuner, work.ways, work.corpus.test, lambda: work.progress())
    told = Alone(score.rows, score.tokens, score.loss, score.correct, steps, tokens, loss_tokens,
                 time.monotonic() - began)  # fmt: skip
    return Envelope("up", "alone", asdict(told))


ANSWERS: Mapping[Kind, Callable[[Envelope, SiloConfig], Envelope]] = {
    "hello": _hello,
    "train": _train,
    "evaluate": _evaluate,
    "alone": _alone,
}
