"""Seeds for one purpose each, derived from the run's seed so that no two purposes share a stream."""

import hashlib


def derive(seed: int, *purpose: object) -> int:
    """A 63-bit seed for a purpose, the same on every machine: SHA-256 of the seed and the purpose's parts."""
    text = "/".join([str(seed), *(str(part) for part in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1
