"""What the commands share that answer over HTTP: a socket, and an end by Ctrl-C."""

import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import silotune

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any that is free.

    Raises:
        InputError: it cannot be had.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise silotune.InputError(
            f"{host}:{port}: cannot listen there ({error.strerror}). Choose another --host or --port."
        ) from None


def address(host: str, listener: socket.socket) -> str:
    """`http://HOST:PORT` of a socket."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"


def until_stopped(app: "ASGIApp", listener: socket.socket, patience: int, tell: Callable[[], None]) -> None:
    """Answer requests until Ctrl-C, which is the way to end a server and no error.

    Args:
        app: ASGI's.
        listener: a socket that listens.
        patience: seconds that answers under way get at the end.
        tell: says that there is a server. From here on Ctrl-C ends well at whatever moment it comes.
    """
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, lifespan="off", server_header=False,
                       timeout_graceful_shutdown=patience)
    )  # fmt: skip
    before = signal.signal(signal.SIGINT, server.handle_exit)  # uvicorn itself asks for it only when its loop runs
    try:
        tell()
        server.run(sockets=[listener])
    finally:
        signal.signal(signal.SIGINT, before)
