"""The result of a run: an adapter folder that plain PEFT loads."""

import shutil
import tempfile
from pathlib import Path

from silotune.errors import ModelError
from silotune.federation.run import RunFolder
from silotune.model import base, lora
from silotune.model.adapter import AdapterSpec, AdapterState
from silotune.model.magnitudes import base_norms
from silotune.model.stopping import stopping
from silotune.model.stored import describe
from silotune.settings import Recipe


def adapter_spec(recipe: Recipe) -> AdapterSpec:
    """Names and shapes of a recipe's adapter, from the base model's configuration; no model is loaded.

    Raises:
        ModelError: the base cannot be had, or the settings do not fit it; of DoRA, its weights' norms cannot be had,
            without which the result could not be written.
    """
    location = base.locate(recipe.model.base)
    base_norms(location, recipe.lora)
    return lora.spec_of(lora.attach(base.load_skeleton(location), recipe.lora))


def required_base(recipe: Recipe, before: str | None) -> str | None:
    """The fingerprint of the only base that silos may hold; None: the one that most of them hold.

    Magnitudes are relative to the row norms of a base, and the server writes the result with those of its own: where
    there are any, silos must hold that one.

    Args:
        recipe: of the run.
        before: fingerprint of the base that the silos of a run that goes on have held.

    Raises:
        ModelError: the server's own base is needed, and is not the one that the recipe or the run says.
    """
    wanted = recipe.model.fingerprint or before
    if recipe.lora.kind != "dora":
        return wanted
    location = base.locate(recipe.model.base)
    own = describe(location, base.load_tokenizer(location)).fingerprint
    if wanted not in (None, own):
        whose = "model.fingerprint says" if recipe.model.fingerprint else "the run began with"
        raise ModelError(
            f'lora.kind = "dora": the server\'s base {recipe.model.base} has fingerprint {own}, and {whose} {wanted}. '
            "Its row norms are written into the result: put that base there."
        )
    return own


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
    norms = base_norms(location, recipe.lora)
    lora.save(adapter, config, unfinished, base.published_name(recipe.model.base), norms)
    tokenizer = base.load_tokenizer(location)
    stopping(base.generation_settings(location), tokenizer).save_pretrained(unfinished)
    tokenizer.save_chat_templates(unfinished, {}, filename_prefix=None, save_jinja_files=True)
    if run.adapter.exists():
        shutil.rmtree(run.adapter)
    unfinished.rename(run.adapter)
