"""A server in a thread on a free port, and OpenAI's own client for it."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import openai
import uvicorn

from silotune.inference.app import Service, build_app
from silotune.inference.generation import Piece, Reply


@contextmanager
def serving(service: Service) -> Iterator[int]:
    """Serve until the block ends; gives the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(build_app(service), log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def client(port: int, key: str = "any") -> openai.OpenAI:
    """OpenAI's client, without second tries."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=60)


class Scripted:
    """Answers that go on until they are stopped, and tell what happens to them."""

    def __init__(self, step: Callable[[str], None] = lambda _: None) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.one_ended = threading.Event()
        self._step = step

    def ask(self, model: str, said: object, sampling: object) -> Reply:
        name = said if isinstance(said, str) else said[-1].content  # type: ignore[index]

        def pieces():
            self.begun.append(name)
            try:
                for number in range(1, 1_000_000):
                    self._step(name)
                    yield Piece("a ", number)
            finally:
                self.ended.append(name)
                self.one_ended.set()

        return Reply(3, pieces())

    @property
    def service(self) -> Service:
        return Service({"tuned": 0, "base": 0}, self.ask, 100)
