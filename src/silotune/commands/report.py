"""`silotune report RUN`."""

import json

import typer

from silotune.commands.options import AsJson, RunPath


def report(run: RunPath, as_json: AsJson = False) -> None:
    """Write the HTML page of a run again; of one that has not come to its end, with what is saved so far."""
    from silotune.federation.run import RunFolder
    from silotune.report import page

    folder = RunFolder(run.resolve())
    folder.recipe()
    path = str(page.write(folder))
    typer.echo(json.dumps({"report": path}) if as_json else path)
