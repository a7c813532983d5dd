"""`silotune watch RUN`."""

import json
from typing import Annotated

import typer

from silotune.commands.options import AsJson, RunPath


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
    from silotune.report.website import serve

    def ready(url: str) -> None:
        typer.echo(json.dumps({"event": "serving", "url": url}) if as_json else f"{url}  (Ctrl-C ends it)")

    serve(RunFolder(run.resolve()), host, port, ready)
