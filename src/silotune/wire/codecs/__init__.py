"""How numbers travel: a file per codec, with its `CODEC`. `find` returns one by its name in a recipe."""

import importlib

from silotune.wire.codecs.interface import Codec


def find(name: str) -> Codec:
    """Return the codec of the module of that name; recipes are checked, so an unknown name is a defect.

    Raises:
        LookupError: no module here defines such a codec.
    """
    try:
        found = getattr(importlib.import_module(f"{__name__}.{name}"), "CODEC", None)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        found = None
    if not isinstance(found, Codec) or found.name != name:
        raise LookupError(f"no codec is called {name!r}")
    return found
