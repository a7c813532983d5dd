"""Which layers of a model carry an adapter: found from its architecture, not from a table of families."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from silotune.errors import ModelError
from silotune.model.protocols import Config, Model
from silotune.settings import LoraSettings

if TYPE_CHECKING:
    from torch import nn

Block = tuple[str, ...]
"""Names of the modules of one block: one, but for models that keep attention and feed-forward in lists of their own."""


def blocks(model: Model) -> tuple[list[Block], bool]:
    """Find the blocks of the language model, from input to output, and whether they are certainly all of them.

    They are the outermost lists of modules as long as the configuration's `num_hidden_layers`, and then it is certain.
    In a model of several towers it is the list in the part that has the language model's own configuration. Where no
    list fits, it is the longest one, which may be one of several (an encoder of bytes beside the main stack, say).
    Both are empty or false where the model has no list with linear layers in it.
    """
    from torch.nn import ModuleList

    lists = {
        name: len(module)
        for name, module in model.named_modules()
        if isinstance(module, ModuleList) and next(linear_layers(module, ""), None) is not None
    }
    count = getattr(text_config(model), "num_hidden_layers", None)
    fitting = [name for name, length in lists.items() if length == count]
    outermost = [name for name in fitting if not any(name.startswith(other + ".") for other in fitting)]
    own = [name for name in outermost if _in_language_model(model, name)] or outermost
    if not own:
        longest = max(lists, key=lambda name: lists[name], default=None)
        return [(f"{longest}.{index}",) for index in range(lists[longest])] if longest else [], False
    siblings = [name for name in own if name.rpartition(".")[0] == own[0].rpartition(".")[0]]
    return [tuple(f"{name}.{index}" for name in siblings) for index in range(lists[own[0]])], True


def text_config(model: Model) -> Config | None:
    """The configuration of a model's language model; None where it has several."""
    try:
        return model.config.get_text_config()
    except ValueError:  # several of them
        return None


def longest_input(model: Model) -> int | None:
    """Tokens that a model can read at most, where its configuration says so."""
    longest = getattr(text_config(model), "max_position_embeddings", None)
    return longest if isinstance(longest, int) and longest > 0 else None


def _in_language_model(model: Model, name: str) -> bool:
    """Whether the nearest part around a module that has a configuration has the language model's."""
    own = {getattr(config, "model_type", None) for config in (model.config, text_config(model))}
    while name:
        name = name.rpartition(".")[0]
        config = getattr(model.get_submodule(name), "config", None)
        if config is not None and hasattr(config, "model_type"):
            return config.model_type in own
    return False


def target_modules(model: Model, settings: LoraSettings) -> list[str]:
    """Full names of the linear layers that carry an adapter, from the architecture itself.

    They lie in the blocks that `layers` chooses. Where it is `all` and the blocks are not certain, they may lie
    anywhere but in the output layer. `attention` takes those in modules that call themselves attention; `all` takes
    all. What PEFT does not adapt is left out, and so are experts that are one tensor and no linear layers.

    Raises:
        ModelError: nothing fits, or a layer number or a module name does not exist.
    """
    refused = _redirected(model)
    linear = [(name, block) for name, block in _candidates(model, settings) if not _past_peft(model, name, refused)]
    found = [name for name, block in linear if _wanted(model, block, name, settings.targets)]
    have = ", ".join(sorted({last_part(name) for name, _ in linear})) or "none"
    if isinstance(settings.targets, list):
        for target in settings.targets:
            if not any(_named(name, target) for name in found):
                raise ModelError(
                    f"lora.targets: no linear layer {target!r} that PEFT adapts in the blocks; there are {have}."
                )
    if not found:
        raise ModelError(
            f"lora.targets: no linear layer in the model's blocks fits {settings.targets!r}. Name some of those that "
            f'there are ({have}), or take "all".'
        )
    return found


def _candidates(model: Model, settings: LoraSettings) -> list[tuple[str, str]]:
    """The linear layers that `layers` leaves to choose from: (name, the block that it lies in)."""
    stack, certain = blocks(model)
    if settings.layers == "all" and not certain:
        head = model.get_output_embeddings()
        return [(name, "") for name in linear_layers(model, "") if model.get_submodule(name) is not head]
    if not stack:
        raise ModelError('lora.layers: the model has no list of blocks to choose from; take "all".')
    chosen = [block for index in _layer_numbers(settings, len(stack)) for block in stack[index]]
    return [(name, block) for block in chosen for name in linear_layers(model.get_submodule(block), block)]


def _wanted(model: Model, block: str, name: str, targets: str | list[str]) -> bool:
    """Whether a linear layer in a block is one of the targets."""
    if targets == "attention":
        return _in_attention(model, block, name)
    return targets == "all" or any(_named(name, target) for target in targets)


def _redirected(model: Model) -> set[str]:
    """Last parts of names of linear layers that PEFT takes for experts, which are one tensor in transformers now.

    In such models it would put the factors on the experts instead, in other shapes than the linear layer's.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    found = set()
    for name in {last_part(name) for name in linear_layers(model, "")}:
        config = LoraConfig(target_modules=[name])
        try:
            convert_peft_config_for_transformers(config, model, None)
        except ValueError:  # it is one of several that were fused
            found.add(name)
        if name not in config.target_modules:
            found.add(name)
    return found


def _past_peft(model: Model, name: str, redirected: set[str]) -> bool:
    """Whether an adapter on a linear layer would not be heard: PEFT redirects it, or the model goes past it.

    State-space mixers (Mamba) compute with the weights of `out_proj` and `dt_proj`, not with the layers.
    """
    around, last = model.get_submodule(name.rpartition(".")[0]), last_part(name)
    mixer = hasattr(around, "conv1d") and hasattr(around, "D")
    return last in redirected or (mixer and last in ("out_proj", "dt_proj"))


def _layer_numbers(settings: LoraSettings, count: int) -> list[int]:
    if settings.layers == "all":
        return list(range(count))
    if settings.layers == "upper-third":
        return list(range(count - max(1, count // 3), count))
    if settings.layers == "upper-half":
        return list(range(count - max(1, count // 2), count))
    for index in settings.layers:
        if not 0 <= index < count:
            raise ModelError(f"lora.layers: {index} is out of range; the model has blocks 0 to {count - 1}.")
    return sorted(settings.layers)


def linear_layers(module: "Model | nn.Module", prefix: str) -> Iterator[str]:
    """Names of the linear layers in a module, with `prefix` before them (GPT-2's own kind, Conv1D, included)."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    for name, child in module.named_modules():
        if isinstance(child, (Linear, Conv1D)):
            yield f"{prefix}.{name}" if prefix else name


def _in_attention(model: Model, block: str, name: str) -> bool:
    """Whether a layer lies in a module, within its block, whose class or attribute name speaks of attention."""
    around = name.rpartition(".")[0]
    while around.startswith(block) and around:
        # a decoder layer that has attention among other things is not attention (JambaAttentionDecoderLayer)
        of_class = type(model.get_submodule(around)).__name__.lower()
        if "attention" in of_class and not of_class.endswith("layer"):
            return True
        if around != block and "attn" in last_part(around).lower():
            return True
        around = around.rpartition(".")[0]
    return False


def last_part(name: str) -> str:
    """What comes after the last point of a module's name."""
    return name.rpartition(".")[2]


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)
