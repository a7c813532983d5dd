"""One generation at a time; the others wait in the order in which they came."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple

from silotune.inference.errors import ApiError
from silotune.inference.generation import Piece, Reply

MOST_WAITING = 64
"""Requests that may wait; one more is told to come back."""


T = TypeVar("T")
Given = TypeVarTuple("Given")


class GenerationQueue:
    """Where requests wait for the model. All that touches the model runs in one thread of its own."""

    def __init__(self) -> None:
        """Nobody waits."""
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "model")
        self._here = 0

    def require_room(self) -> None:
        """Refuse one request too many.

        Raises:
            ApiError: `MOST_WAITING` wait already.
        """
        if self._here > MOST_WAITING:
            raise ApiError(503, "too many requests wait for the model; try again later.", code="overloaded")

    async def do(self, call: Callable[[*Given], T], *args: *Given) -> T:
        """Call something that uses the model or its tokenizer."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *args)

    async def pieces(self, reply: Reply) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of an answer when its turn has come. Who stops reading, or is cancelled, stops the model."""
        self._here += 1
        try:
            async with self._turn:
                while (piece := await self.do(next, reply.pieces, None)) is not None:
                    yield piece
        finally:
            self._here -= 1
            self._thread.submit(reply.pieces.close)  # in its thread: a step that was cancelled may still be running
