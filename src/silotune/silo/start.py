"""What a silo's part of a round starts from: what the server sent, and what the silo remembers."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from silotune import algorithms
from silotune.algorithms.interface import Arrays
from silotune.data.seeds import derive
from silotune.errors import AdmissionError
from silotune.model.adapter import NO_TENSORS, AdapterState
from silotune.silo.held import held
from silotune.silo.memory import Remembered
from silotune.silo.work import Work, memory_of
from silotune.wire import codecs, manifest
from silotune.wire.envelope import NOT_HELD, Envelope

MOMENTS = "moments/"
"""Before what an optimizer has come to, in a silo's memory."""


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
    found, memory = received(request, work), memory_of(work)
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
