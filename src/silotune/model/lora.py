"""LoRA and DoRA on a base model through PEFT: attaching, swapping by copy, and PEFT's own file.

LoRA adds s B A to a weight W (d_out, d_in). DoRA takes the sum's direction, row by row, and a magnitude m of its own:
W' = m (W + s B A) / ||W + s B A||, with norms over rows of d_in numbers, which gradients take for constants. Shih-Yang
Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, arXiv 2402.09353. m starts at ||W||: then W' = W.
"""

import json
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from silotune.atomic import tensor_errors
from silotune.errors import ModelError
from silotune.model.adapter import NO_NORMS, AdapterSpec, AdapterState, absolute, fault_of, parsed_name, relative
from silotune.model.protocols import LoraLinear, Model, TunedModel
from silotune.model.targets import last_part, target_modules
from silotune.settings import LoraSettings

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor


def peft_config(model: Model, settings: LoraSettings) -> "LoraConfig":
    """The LoraConfig of these settings for this model."""
    names = target_modules(model, settings)
    return _config(settings, _short(model, names), _conv1d(model, names[0]))


def _config(settings: LoraSettings, names: list[str], conv1d: bool = False) -> "LoraConfig":
    from peft import LoraConfig, TaskType

    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=settings.alpha if settings.alpha != int(settings.alpha) else int(settings.alpha),
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        use_dora=settings.kind == "dora",
        target_modules=names,
        fan_in_fan_out=conv1d,
    )


def _short(model: Model, names: list[str]) -> list[str]:
    """The last parts of the names where those alone mean the same modules, else the full names."""
    last = sorted({last_part(name) for name in names})
    meant = {name for name, _ in model.named_modules() if last_part(name) in last}
    return last if meant == set(names) else sorted(names)


def _conv1d(model: Model, name: str) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(model.get_submodule(name), Conv1D)


def attach(model: Model, settings: LoraSettings, norms: AdapterState = NO_NORMS) -> TunedModel:
    """Put an adapter on a base model, in place, and return PEFT's model around it.

    Its tensors are float32 whatever the base is. On a skeleton (meta device) they have shapes only.

    Args:
        model: the base.
        settings: of the adapter.
        norms: where DoRA's magnitudes start (`magnitudes.base_norms`); a skeleton needs none.

    Raises:
        ModelError: the settings do not fit the model, PEFT refuses it, or the norms are not those of its weights.
    """
    import peft

    config, on_meta = peft_config(model, settings), _on_meta(model)
    with warnings.catch_warnings():
        # PEFT reads an attribute that transformers renames, and warns of Conv1D layers though fan_in_fan_out is set.
        warnings.filterwarnings("ignore", message=".*(is_gradient_checkpointing|fan_in_fan_out).*")
        try:
            tuned: TunedModel = peft.get_peft_model(
                model, config, autocast_adapter_dtype=True, low_cpu_mem_usage=on_meta
            )
        except ValueError as error:
            raise ModelError(f"lora.targets: PEFT cannot adapt that ({str(error).splitlines()[0]}).") from None
    if not on_meta:
        _start_magnitudes(tuned, norms)
    return tuned


def _on_meta(model: Model) -> bool:
    return bool(next(iter(model.parameters())).is_meta)


def layers(tuned: TunedModel) -> dict[str, LoraLinear]:
    """The adapted layers of PEFT's model by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in tuned.named_modules() if isinstance(module, LoraLayer)}


SAME_NORM = 0.03
"""A norm of a stored weight and that of the loaded one differ by at most this share: bfloat16 rounds to 8 bits."""


def _start_magnitudes(tuned: TunedModel, norms: AdapterState) -> None:
    """Set magnitudes to the norms of the stored rows, to the same bits whatever numbers the base is computed in.

    Raises:
        ModelError: they are not what PEFT has computed from the loaded weights.
        ValueError: there is not one vector of norms for each magnitude.
    """
    import torch

    magnitudes = {tensor.name for tensor in spec_of(tuned).tensors if tensor.role == "magnitude"}
    if magnitudes != norms.keys():
        raise ValueError(f"norms of {len(norms)} weights, and {len(magnitudes)} magnitudes")
    tuned.base_norms, tensors = norms, factors(tuned)
    for name in sorted(magnitudes):
        tensor, norm = tensors[name], torch.from_numpy(norms[name].copy()).to(tensors[name].device)
        if not bool(((tensor - norm).abs() <= SAME_NORM * norm).all()):
            raise ModelError(
                f'lora.kind = "dora": {name}: the rows of the loaded weight have other norms than those of the stored '
                'one; the model makes something else of it. Take lora.kind = "lora".'
            )
        tensor.data.copy_(norm)


def factors(tuned: TunedModel) -> "dict[str, Tensor]":
    """The adapter's tensors in PEFT's model by the names of PEFT's file, sorted; they are the tensors themselves."""
    named = {_name_in_file(name): parameter for name, parameter in tuned.named_parameters()}
    return {name: named[name] for name in sorted(named) if parsed_name(name)}


def _name_in_file(name: str) -> str:
    """The name in PEFT's file of a parameter of PEFT's model; a magnitude's has no `.weight` at its end."""
    module = name.removesuffix(".default.weight")
    return module if module.endswith(".lora_magnitude_vector") else name.replace(".default.weight", ".weight")


@contextmanager
def trainable(tuned: TunedModel, names: Set[str]) -> "Iterator[dict[str, Tensor]]":
    """While it lasts, gradients flow into these of the adapter's tensors and into no others; yields them by name."""
    tensors = factors(tuned)
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in names)
    try:
        yield {name: tensor for name, tensor in tensors.items() if name in names}
    finally:
        for tensor in tensors.values():
            tensor.requires_grad_(True)


def spec_of(tuned: TunedModel) -> AdapterSpec:
    """Names and shapes of the adapter that PEFT's model carries."""
    return AdapterSpec.of({name: tuple(parameter.shape) for name, parameter in factors(tuned).items()})


def put(tuned: TunedModel, adapter: AdapterState) -> None:
    """Copy an adapter into the model, in place; names and shapes must be the model's own."""
    import torch

    tensors = factors(tuned)
    if set(tensors) != set(adapter):
        raise ValueError("the adapter's names are not those of the model")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != adapter[name].shape:
            raise ValueError(f"{name}: shape {adapter[name].shape}, the model has {tuple(tensor.shape)}")
    whole = absolute(adapter, tuned.base_norms)
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(torch.from_numpy(np.array(whole[name], np.float32)))


def take(tuned: TunedModel) -> dict[str, NDArray[np.float32]]:
    """Copy the adapter out of the model, as float32 on the CPU."""
    whole = {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in factors(tuned).items()}
    return dict(relative(whole, tuned.base_norms))


def merged(tuned: TunedModel) -> Model:
    """The base with the adapter added into its weights, in place; PEFT's model is used up.

    Raises:
        ModelError: the sum is not finite.
    """
    try:
        return tuned.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelError(f"the adapter cannot be merged ({str(error).splitlines()[0]}).") from None


def save(adapter: AdapterState, config: "LoraConfig", folder: Path, base: str, norms: AdapterState = NO_NORMS) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, as PEFT itself would.

    Args:
        adapter: its tensors by PEFT's names.
        config: from `peft_config`.
        folder: exists already.
        base: what `base_model_name_or_path` says.
        norms: that its magnitudes are relative to.
    """
    from safetensors.numpy import save_file

    whole = {name: np.ascontiguousarray(value) for name, value in absolute(adapter, norms).items()}
    with tensor_errors():
        save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.base_model_name_or_path = base
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set: its order would differ from run to run
    config.save_pretrained(str(folder))


def load(
    folder: Path, spec: AdapterSpec, settings: LoraSettings, base: str, norms: AdapterState = NO_NORMS
) -> AdapterState:
    """Read the tensors of an adapter folder, if they are those of a base with these settings.

    Args:
        folder: as `save` wrote it.
        spec: names and shapes that the base has places for.
        settings: of the adapter.
        base: as `save` was told it.
        norms: that its magnitudes are made relative to.

    Raises:
        ModelError: a file is not there or not whole, or the adapter is another one, or not finite.
    """
    _require_config(folder / "adapter_config.json", spec, settings, base)
    path = folder / "adapter_model.safetensors"
    adapter = _factors_in(path, spec)
    if fault := fault_of(adapter, spec):
        raise ModelError(f"{path}: {fault}. {AGAIN}")
    return relative(adapter, norms)


AGAIN = "Put back the adapter that the run wrote, or train again."


def _factors_in(path: Path, spec: AdapterSpec) -> dict[str, NDArray[np.float32]]:
    """The tensors of a file; of one that has others than `spec`, none is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if difference := AdapterSpec.of(shapes).difference(spec):
                raise ModelError(
                    f"{path}: the adapter does not fit the base model and its settings: {difference}. {AGAIN}"
                )
            return {name: file.get_tensor(name) for name in sorted(shapes)}
    except (OSError, SafetensorError, TypeError) as error:  # NumPy has no word for some numbers
        raise ModelError(f"{path}: the adapter cannot be read ({error}). {AGAIN}") from None


ANY = {"peft_version", "revision", "inference_mode", "auto_mapping", "fan_in_fan_out"}
"""Keys of a configuration that change nothing: PEFT sets the last of them by the layer that it finds."""


def _require_config(path: Path, spec: AdapterSpec, settings: LoraSettings, base: str) -> None:
    """Refuse a configuration with which PEFT would make something else of the factors than this run did."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read ({type(error).__name__}). {AGAIN}") from None
    if not isinstance(told, dict):
        raise ModelError(f"{path}: not a configuration of PEFT. {AGAIN}")
    modules = [module for module, _, _ in spec.pairs()]
    targets = told.get("target_modules")
    if not isinstance(targets, list) or not _are_adapted(targets, modules):
        raise ModelError(f"{path}: target_modules are not the modules that have factors. {AGAIN}")
    written = json.dumps(
        _config(settings, targets).to_dict(), default=sorted
    )  # as a file has it: no enumerations, no sets
    expected = json.loads(written) | {"base_model_name_or_path": base}
    for key in sorted({*expected, *told} - ANY - {"target_modules"}):
        found, value = told.get(key), expected.get(key)
        if found != value and (found or key in ESSENTIAL):  # an older PEFT writes fewer keys
            raise ModelError(f"{path}: {key[:40]} is {found!r:.40}, the run was made with {value!r:.40}. {AGAIN}")


ESSENTIAL = {"peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias", "task_type"}
"""Keys that must be there."""


def _are_adapted(targets: list[object], modules: list[str]) -> bool:
    """Whether PEFT finds these modules by these names, and no name stands for nothing."""

    def finds(target: object, module: str) -> bool:
        return isinstance(target, str) and (module == target or module.endswith(f".{target}"))

    return all(any(finds(target, module) for target in targets) for module in modules) and all(
        any(finds(target, module) for module in modules) for target in targets
    )
