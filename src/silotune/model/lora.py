"""LoRA on a base model through PEFT: which modules, attaching, swapping by copy, and PEFT's own file.

The only module that imports peft.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from silotune.errors import ModelError
from silotune.model.adapter import AdapterSpec, AdapterState
from silotune.settings import LoraSettings


def blocks(model: Any) -> tuple[str, list[str]]:
    """Find the stack of transformer blocks: (its name, the names of its blocks).

    It is the longest list of modules of one class, which holds for every decoder that transformers ships.

    Raises:
        ModelError: the model has no such list.
    """
    from torch.nn import ModuleList

    best_name, best = "", 0
    for name, module in model.named_modules():
        if isinstance(module, ModuleList) and len({type(block) for block in module}) == 1 and len(module) > best:
            best_name, best = name, len(module)
    if not best:
        raise ModelError(
            "lora: the model has no list of blocks to choose layers from; name the modules in lora.targets."
        )
    return best_name, [f"{best_name}.{index}" for index in range(best)]


def target_modules(model: Any, settings: LoraSettings) -> list[str]:
    """Full names of the linear layers that carry an adapter, from the architecture itself.

    Raises:
        ModelError: nothing fits, or a layer number or a module name does not exist.
    """
    stack, names = blocks(model)
    found: list[str] = []
    for block in (names[index] for index in _layer_numbers(settings, len(names))):
        for name in _linear_layers(model.get_submodule(block), block):
            if _wanted(model, block, name.removeprefix(block + "."), settings.targets):
                found.append(name)
    if isinstance(settings.targets, list):
        for target in settings.targets:
            if not any(_named(name, target) for name in found):
                have = sorted({name.rsplit(".", 1)[-1] for name in _linear_layers(model.get_submodule(names[0]), "")})
                raise ModelError(f"lora.targets: no linear layer {target!r} in {stack}; there are {', '.join(have)}.")
    if not found:
        raise ModelError(f'lora.targets: no linear layer of {stack} fits {settings.targets!r}; try "all" or names.')
    return found


def _wanted(model: Any, block: str, inside: str, targets: str | list[str]) -> bool:
    """Whether the linear layer `inside` a block is one of the targets."""
    if targets == "attention":
        return _in_attention(model, block, inside)
    return targets == "all" or any(_named(inside, target) for target in targets)


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
    if len(set(settings.layers)) != len(settings.layers):
        raise ModelError("lora.layers: a number stands there twice.")
    return sorted(settings.layers)


def _linear_layers(module: Any, prefix: str) -> Iterator[str]:
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    for name, child in module.named_modules():
        if isinstance(child, (Linear, Conv1D)):
            yield f"{prefix}.{name}" if prefix else name


def _in_attention(model: Any, block: str, inside: str) -> bool:
    """Whether a layer lies in a module whose class or attribute name speaks of attention."""
    parts = inside.split(".")[:-1]
    for end in range(1, len(parts) + 1):
        module = model.get_submodule(".".join([block, *parts[:end]]))
        if "attention" in type(module).__name__.lower() or "attn" in parts[end - 1].lower():
            return True
    return False


def _named(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def peft_config(model: Any, settings: LoraSettings) -> Any:
    """The LoraConfig of these settings for this model."""
    from peft import LoraConfig, TaskType

    names = target_modules(model, settings)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=settings.alpha if settings.alpha != int(settings.alpha) else int(settings.alpha),
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        target_modules=_short(model, names),
        fan_in_fan_out=_conv1d(model, names[0]),
    )


def _short(model: Any, names: list[str]) -> list[str]:
    """The last parts of the names where those alone mean the same layers, else the full names."""
    last = sorted({name.rsplit(".", 1)[-1] for name in names})
    meant = {name for name in _linear_layers(model, "") if name.rsplit(".", 1)[-1] in last}
    return last if meant == set(names) else sorted(names)


def _conv1d(model: Any, name: str) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(model.get_submodule(name), Conv1D)


def attach(model: Any, settings: LoraSettings) -> Any:
    """Put LoRA factors on a base model, in place, and return PEFT's model around it.

    Factors are float32 whatever the base is. On a skeleton (meta device) they have shapes only.
    """
    import peft

    config = peft_config(model, settings)
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers renames, and warns of Conv1D layers though fan_in_fan_out is set.
        warnings.filterwarnings("ignore", message=".*(is_gradient_checkpointing|fan_in_fan_out).*")
        return peft.get_peft_model(model, config, autocast_adapter_dtype=True, low_cpu_mem_usage=_on_meta(model))


def _on_meta(model: Any) -> bool:
    return bool(next(iter(model.parameters())).is_meta)


def factors(tuned: Any) -> dict[str, Any]:
    """The trainable tensors of PEFT's model by the names of PEFT's file, sorted; they are the tensors themselves."""
    named = {
        name.replace(".default.weight", ".weight"): parameter
        for name, parameter in tuned.named_parameters()
        if parameter.requires_grad
    }
    return dict(sorted(named.items()))


def spec_of(tuned: Any) -> AdapterSpec:
    """Names and shapes of the adapter that PEFT's model carries."""
    return AdapterSpec.of({name: tuple(parameter.shape) for name, parameter in factors(tuned).items()})


def put(tuned: Any, adapter: AdapterState) -> None:
    """Copy an adapter into the model, in place; names and shapes must be the model's own."""
    import torch

    tensors = factors(tuned)
    if set(tensors) != set(adapter):
        raise ValueError("the adapter's names are not those of the model")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tuple(tensor.shape) != adapter[name].shape:
                raise ValueError(f"{name}: shape {adapter[name].shape}, the model has {tuple(tensor.shape)}")
            tensor.copy_(torch.from_numpy(np.array(adapter[name], np.float32)))


def take(tuned: Any) -> dict[str, NDArray[np.float32]]:
    """Copy the adapter out of the model, as float32 on the CPU."""
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in factors(tuned).items()}


def save(adapter: AdapterState, config: Any, folder: Path, base: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, as PEFT itself would.

    Args:
        adapter: the factors by PEFT's names.
        config: from `peft_config`.
        folder: exists already.
        base: what `base_model_name_or_path` says.
    """
    from safetensors.numpy import save_file

    save_file(
        {name: np.ascontiguousarray(value) for name, value in adapter.items()},
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set: its order would differ from run to run
    config.save_pretrained(str(folder))


def load(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Read the factors of an adapter folder."""
    from safetensors.numpy import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))
