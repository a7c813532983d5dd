"""A silo's side: one message in, one answer out.

What the silo holds comes from its own configuration; the message brings the job and the adapter, never a path.
Whatever goes wrong is answered in words that cannot carry text: this package's own messages (files, lines,
fields), or the kind and place of an unexpected error, never what it says.
"""

import logging
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import silotune
from silotune.data.read.files import printable
from silotune.data.silos.sources import SiloConfig
from silotune.errors import SilotuneError
from silotune.model.base import cores
from silotune.recipe import looks_like_path
from silotune.settings import HUB
from silotune.silo.held import hold
from silotune.silo.identity import proof, public_key
from silotune.silo.start import received
from silotune.silo.train import alone, train
from silotune.silo.work import memory_of, prepare, require_losses, scored_rows
from silotune.wire.envelope import Envelope, Kind, Scalar, failure
from silotune.wire.profile import Profile

logger = logging.getLogger(__name__)


Answers = Mapping[Kind, Callable[[Envelope, SiloConfig], Envelope]]
"""What answers each kind of message."""


def guarded(kind: Kind, work: Callable[[], Envelope], silo: SiloConfig | None = None) -> Envelope:
    """Run `work`; turn an exception into a failure that carries no text of a silo and no folder of its machine.

    The silo's own log has the whole message.
    """
    try:
        return work()
    except SilotuneError as error:
        logger.warning("%s not answered: %s", kind, error)
        return failure(kind, hide_folders(str(error), silo))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"unexpected {type(error).__name__} in {Path(frame.filename).name}, line {frame.lineno}"
        logger.error("%s not answered: %s", kind, reason)
        return failure(kind, reason)


def hide_folders(text: str, silo: SiloConfig | None = None) -> str:
    """Leave of the silo's own paths, and of every absolute path, the last part only."""
    if silo is not None:
        base = [silo.base] if silo.base and looks_like_path(silo.base) else []
        places = [*silo.files.train, *silo.files.test, *base]
        folders = {printable(Path(place).parent) for place in places if not place.startswith(HUB)} - {".", "/"}
        for folder in sorted(folders, key=len, reverse=True):
            text = text.replace(f"{folder}/", "").replace(folder, Path(folder).name)
    return re.sub(r"""(?<![^\s"'(=:,])/(?:[^/\n:"']+/)*(?=[^/\s:])""", "", text)


def _join(request: Envelope, silo: SiloConfig) -> Envelope:
    work = prepare(request, silo)
    memory_of(work)
    train, test = work.corpus.train, work.corpus.test
    for file, fields in {**test.store.described.unused, **train.store.described.unused}.items():
        logger.warning("%s: fields that are not read: %s", printable(file), ", ".join(map(printable, fields)))
    scored = scored_rows(work)
    tested = silo.losses and scored >= silo.min_rows
    if silo.losses and not tested:
        logger.warning("%d rows are held out, fewer than min_rows = %d: no loss is told", scored, silo.min_rows)
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
        isolation=silo.isolation,
        version=silotune.__version__,
        key=public_key(silo.memory) if silo.own_machine and silo.memory else "",
        proof=proof(silo.memory, str(request.fields["job"])) if silo.own_machine and silo.memory else "",
    )
    return Envelope("up", "join", asdict(profile))


def _score(request: Envelope, silo: SiloConfig) -> Envelope:
    from silotune.model import lora
    from silotune.training.evaluation import evaluate

    work = prepare(request, silo)
    require_losses(work)
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


ANSWERS: Answers = {
    "join": _join,
    "train": train,
    "evaluate": _score,
    "alone": alone,
}
