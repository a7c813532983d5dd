"""The result of a run: an adapter folder that plain PEFT loads."""

import shutil
import tempfile
from pathlib import Path

from silotune.federation.run import RunFolder
from silotune.model import base, lora
from silotune.model.adapter import AdapterSpec, AdapterState
from silotune.model.stopping import stopping
from silotune.settings import Recipe


def adapter_spec(recipe: Recipe) -> AdapterSpec:
    """Names and shapes of a recipe's adapter, from the base model's configuration; no weight is loaded.

    Raises:
        ModelError: the base cannot be had, or the settings do not fit it.
    """
    return lora.spec_of(lora.attach(base.load_skeleton(base.locate(recipe.model.base)), recipe.lora))


def write_adapter(run: RunFolder, recipe: Recipe, adapter: AdapterState) -> None:
    """Write `adapter/`, whole or not at all; one that is there is replaced, and what a kill has left is removed.

    Beside PEFT's files there are the chat template that was trained with and the base's generation settings, saying
    all that ends an answer: the base may have none, or not know the end of turn that answers were trained to say.
    """
    for leftover in run.path.glob(".adapter-*"):
        shutil.rmtree(leftover)
    location = base.locate(recipe.model.base)
    skeleton = base.load_skeleton(location)
    config = lora.peft_config(skeleton, recipe.lora)
    unfinished = Path(tempfile.mkdtemp(prefix=".adapter-", dir=run.path))
    unfinished.chmod(0o755)
    lora.save(adapter, config, unfinished, base.published_name(recipe.model.base))
    tokenizer = base.load_tokenizer(location)
    stopping(base.generation_settings(location), tokenizer).save_pretrained(unfinished)
    tokenizer.save_chat_templates(unfinished, {}, filename_prefix=None, save_jinja_files=True)
    if run.adapter.exists():
        shutil.rmtree(run.adapter)
    unfinished.rename(run.adapter)
