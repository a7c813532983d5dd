"""A run's model in a process of its own, for questions that come while the run is watched.

The process starts with the first question and loads the base once. It speaks with the run's adapter, or while the
run goes on with that of the last saved round. It ends with the process that started it.
"""

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

from silotune.errors import InputError, LengthError, RunError, SilotuneError
from silotune.federation import checkpoint
from silotune.federation.run import RunFolder, worked_on
from silotune.inference.generation import Piece, Sampling

MODELS = ("base", "tuned")
Turns = Mapping[str, Sequence[tuple[str, str]]]
"""For each model the (role, text) of a conversation: the answers before were its own."""


def speaker(run: RunFolder) -> str | None:
    """With what a run's model can speak now, in words; None if there is no round yet."""
    if run.finished():
        return "the run's adapter"
    rounds = checkpoint.last_round(run)
    return f"the adapter of round {rounds}" if rounds else None


class Busy(SilotuneError):
    """Another question is being answered."""


class Talker:
    """Has one question at a time answered."""

    def __init__(self, run: RunFolder) -> None:
        """Nothing is started yet."""
        self._run = run
        self._one = threading.Lock()
        self._process: SpawnProcess | None = None
        self._line: Connection | None = None

    def ask(self, turns: Turns, max_tokens: int) -> "Answers":
        """Both models' answers as they come; whoever asks closes them.

        Raises:
            Busy: another question is being answered.
        """
        if not self._one.acquire(blocking=False):
            raise Busy("another question is being answered; wait for it, or stop it.")
        return Answers(self, json.dumps({"turns": turns, "max_tokens": max_tokens}).encode())

    def done(self, line: Connection | None) -> None:
        """Have an answer that is still being given down a line stop, pass over what is said of it, take another."""
        try:
            if line is not None:
                line.send_bytes(json.dumps({"stop": True}).encode())
                while not {"done", "error"} & json.loads(line.recv_bytes()).keys():
                    pass
        except (EOFError, OSError):
            self.close()
        finally:
            self._one.release()

    def line(self) -> Connection:
        """To the process, which is started if it is not there."""
        if self._line is None or self._process is None or not self._process.is_alive():
            self.close()
            context = multiprocessing.get_context("spawn")
            self._line, other = context.Pipe()
            self._process = context.Process(target=_live, args=(other, str(self._run.path)), daemon=True)
            self._process.start()
            other.close()
        return self._line

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._line is not None:
            self._line.close()
        self._process = self._line = None


class Answers:
    """Yields `{"model", "text"}` for each piece of both answers as they come, and `{"done"}` or `{"error"}` last."""

    def __init__(self, talker: Talker, asked: bytes) -> None:
        """The question is sent when the first piece is wanted."""
        self._talker, self._asked = talker, asked
        self._line: Connection | None = None
        self._state = "new"

    def __iter__(self) -> "Answers":
        return self

    def __next__(self) -> dict[str, object]:
        """The next piece."""
        if self._state in ("ended", "closed"):
            raise StopIteration
        try:
            if self._state == "new":
                self._line = self._talker.line()
                self._line.send_bytes(self._asked)
                self._state = "under way"
            assert self._line is not None
            said: dict[str, object] = json.loads(self._line.recv_bytes())
        except (EOFError, OSError):
            self._talker.close()
            said = {"error": "the model's process has ended, perhaps for want of memory."}
        if "done" in said or "error" in said:
            self._state = "ended"
        return said

    def close(self) -> None:
        """Stop what is still being said, and let others ask."""
        before, self._state = self._state, "closed"
        if before != "closed":
            self._talker.done(self._line if before == "under way" else None)


# ----------------------------------------------------------------------------------- the process of the model


def _live(line: Connection, path: str) -> None:
    """Answer what comes down the line until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started this one
    os.nice(10)  # training comes first
    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    run = RunFolder(Path(path))
    while True:
        try:
            asked = json.loads(line.recv_bytes())
        except EOFError:
            return
        if "turns" not in asked:
            continue  # a stop that came when the answer had ended
        said: dict[str, object] = {"done": True}
        try:
            _answer(line, run, asked["turns"], asked["max_tokens"])
        except SilotuneError as error:
            said = {"error": str(error)}
        except Exception as error:
            said = {"error": f"unexpected {type(error).__name__}; this is a defect of silotune, please report it."}
        line.send_bytes(json.dumps(said).encode())


def _answer(line: Connection, run: RunFolder, turns: Turns, max_tokens: int) -> None:
    """Say both answers piece by piece, in turn, until they end or a stop comes."""
    streams = _streams(run, turns, max_tokens)
    while streams:
        for name, stream in list(streams.items()):
            if line.poll():
                line.recv_bytes()
                return
            piece = next(stream, None)
            if piece is None:
                del streams[name]
            elif piece.text:
                line.send_bytes(json.dumps({"model": name, "text": piece.text}).encode())


def _streams(run: RunFolder, turns: Turns, max_tokens: int) -> dict[str, Iterator[Piece]]:
    import torch

    from silotune.data.read.rows import Turn
    from silotune.inference import chat

    saved = None if run.finished() else checkpoint.latest(run)
    if not run.finished() and (saved is None or not saved.state.round):
        raise RunError("no round is saved yet, so there is no tuned model to ask.")
    if worked_on(run):
        torch.set_num_threads(1)
    speaking = chat.of(run, saved.state.adapter if saved else None)
    streams: dict[str, Iterator[Piece]] = {}
    for name in MODELS:
        said = [Turn(role, text) for role, text in turns[name]]  # type: ignore[arg-type]
        try:
            streams[name] = speaking.reply(said, Sampling(max_tokens), base=name == "base").pieces
        except LengthError:
            raise InputError("the conversation has more tokens than the model reads: start again.") from None
    return streams
