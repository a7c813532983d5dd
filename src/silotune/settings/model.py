"""The base model and the adapter."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from silotune.settings.section import Section

Block = Annotated[int, Field(ge=0, le=10_000)]


Keep = Literal["float32", "bfloat16", "off"]
KeepMib = Annotated[int, Field(ge=0, le=1 << 20)]


class ModelSettings(Section):
    """The base model, which stays frozen."""

    base: Annotated[str, Field(min_length=1)] = "smollm2-135m"
    """An embedded name, a folder in Hugging Face format, a GGUF file, or a hub id."""
    fingerprint: str | None = None
    """The only base that a silo may hold, by its fingerprint, which `train` tells of each silo that joins
    from a machine of its own; else the one that most hold."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a silo computes; `auto` takes CUDA where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "nf4"] = "auto"
    """Number format of the frozen weights; `auto` is float32 on CPU and bfloat16 on CUDA. LoRA factors are always
    float32."""
    keep: Keep = "float32"
    """Where no adapter sits in the lower blocks (`lora.layers`), what those give for an example is computed once and
    kept: exactly, rounded to half the memory, or not."""
    keep_mib: KeepMib = 1024
    """MiB that a process keeps at most; what is over it is computed each time."""

    @field_validator("fingerprint")
    @classmethod
    def _a_fingerprint(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{32}", value):
            raise ValueError(
                "a fingerprint has 32 hexadecimal digits; a run tells that of each silo's base as it joins"
            )
        return value


NOT_NF4 = (
    'lora.kind = "dora" starts at the row norms of the stored weights, and 4-bit ones have others: take "bfloat16", or '
    'lora.kind = "lora"'
)
"""Why DoRA does not go with 4-bit weights."""


class LoraSettings(Section):
    """The adapter (Hu et al., LoRA, ICLR 2022, arXiv 2106.09685)."""

    kind: Literal["lora", "dora"] = "lora"
    """`lora`: the product BA is added to a layer's weights. `dora`: it turns their rows, and a magnitude for each
    row is trained beside it (Liu et al., DoRA, ICML 2024, arXiv 2402.09353). With `fedavg` and `scaffold`."""
    r: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of every factor pair."""
    alpha: Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] = 16.0
    """The product BA is scaled by alpha / r, or alpha / sqrt(r) with `rslora`."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)] = 0.0
    """Share of an adapted layer's inputs that training drops."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)."""
    targets: Literal["attention", "all"] | Annotated[list[str], Field(min_length=1)] = "attention"
    """`attention`: the linear layers inside attention; `all`: every linear layer of a block; or module names."""
    layers: Literal["all", "upper-third", "upper-half"] | Annotated[list[Block], Field(min_length=1)] = "all"
    """Which blocks carry an adapter, counted from 0 at the input."""

    @field_validator("targets", "layers")
    @classmethod
    def _each_once(cls, value: str | list[str] | list[int]) -> str | list[str] | list[int]:
        if isinstance(value, list) and len(set(value)) < len(value):
            raise ValueError("one of them stands there twice")
        return value
