"""`silotune watch RUN`."""

import json
from contextlib import closing
from typing import Annotated

import typer

import silotune
from silotune.commands import answering
from silotune.commands.options import AsJson, RunPath

HOSTS = ("127.0.0.1", "localhost", "::1")
PATIENCE = 1
"""Seconds that answers under way get when it is ended."""


def watch(
    run: RunPath,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8765,
    host: Annotated[str, typer.Option("--host", help="An address of this machine's own: 127.0.0.1 or ::1.")] = (
        "127.0.0.1"
    ),
    as_json: AsJson = False,
) -> None:
    """Show a run's page in a browser while it goes on, with a box to ask its model; Ctrl-C ends it."""
    from silotune.federation.run import RunFolder
    from silotune.inference.talking import Talker
    from silotune.report.website import application

    folder = RunFolder(run.resolve())
    folder.recipe()  # one that cannot be read is told here
    if host not in HOSTS:
        raise silotune.InputError(
            f"--host {host}: this page has no password, so it is served on this machine only (127.0.0.1 or ::1). From "
            f"another one: ssh -L {port}:127.0.0.1:{port} THIS_MACHINE"
        )
    with answering.listening(host, port) as listener, closing(Talker(folder)) as talker:
        url = f"{answering.address(host, listener)}/"

        def tell() -> None:
            typer.echo(json.dumps({"event": "serving", "url": url}) if as_json else f"{url}  (Ctrl-C ends it)")

        answering.until_stopped(application(folder, listener.getsockname()[1], talker), listener, PATIENCE, tell)
