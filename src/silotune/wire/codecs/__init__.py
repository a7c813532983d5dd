"""How numbers travel: a file per codec, with its `CODEC`. `find` returns one by its name in a recipe."""

from silotune import named
from silotune.wire.codecs.interface import Codec


def find(name: str) -> Codec:
    """Return the codec of the module of that name.

    Raises:
        LookupError: no module here defines such a codec.
    """
    return named.found(__name__, name, "CODEC", Codec)
