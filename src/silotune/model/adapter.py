"""An adapter outside a model: named float32 arrays, one flat vector, and the file that PEFT loads.

Names are those of PEFT's own file, for example `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`
with shape (r, d_in), and `...lora_B.weight` with shape (d_out, r). DoRA has `...lora_magnitude_vector` too, (d_out,).

PEFT's file holds whole magnitudes, which are about the norms of the base's rows. Outside that file and PEFT's model, an
adapter holds by how much they differ from those norms (`relative`, `absolute`). So an adapter of zeros but for A is the
base, whatever the base is; what travels is small and rounds as finely as the factors; and no message depends on how a
machine has summed a norm.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

AdapterState = Mapping[str, NDArray[np.float32]]

Role = Literal["A", "B", "magnitude"]
"""What a tensor is to its module: the factor that narrows, the one that widens again, or DoRA's lengths of rows."""
SUFFIXES: Mapping[Role, str] = {
    "A": ".lora_A.weight",
    "B": ".lora_B.weight",
    "magnitude": ".lora_magnitude_vector",
}
"""What PEFT's names end with."""


def tensor_name(module: str, role: Role) -> str:
    """The name of a module's tensor in PEFT's file."""
    return module + SUFFIXES[role]


def parsed_name(name: str) -> tuple[str, Role] | None:
    """(module, role) of a tensor by its name in PEFT's file; None if it is no part of an adapter."""
    for role, suffix in SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), role
    return None


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of an adapter."""

    name: str
    """In PEFT's file."""
    shape: tuple[int, ...]
    module: str
    """The adapted module."""
    role: Role


@dataclass(frozen=True)
class AdapterSpec:
    """Names and shapes of an adapter, in the order in which they lie in the flat vector (sorted by name)."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, adapter: "AdapterState | Mapping[str, tuple[int, ...]]") -> "AdapterSpec":
        """Describe an adapter, or a mapping from names to shapes."""
        return cls(
            tuple(
                (name, tuple(value.shape if isinstance(value, np.ndarray) else value))
                for name, value in sorted(adapter.items())
            )
        )

    @property
    def size(self) -> int:
        """How many numbers the adapter has."""
        return sum(int(np.prod(shape)) for _, shape in self.shapes)

    @functools.cached_property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What each tensor is.

        Raises:
            ValueError: one has no role.
        """
        found = []
        for name, shape in self.shapes:
            parsed = parsed_name(name)
            if parsed is None:
                raise ValueError(f"{name} is no tensor of an adapter")
            found.append(TensorSpec(name, shape, *parsed))
        return tuple(found)

    @property
    def names(self) -> frozenset[str]:
        """The names of all tensors."""
        return frozenset(name for name, _ in self.shapes)

    def with_role(self, role: Role) -> frozenset[str]:
        """Names of the tensors of a role."""
        return frozenset(tensor.name for tensor in self.tensors if tensor.role == role)

    def only(self, names: Set[str]) -> "AdapterSpec":
        """The part that these tensors make up."""
        return AdapterSpec(tuple((name, shape) for name, shape in self.shapes if name in names))

    def plus(self, other: "AdapterSpec") -> "AdapterSpec":
        """Both together, in the order of their names."""
        return AdapterSpec(tuple(sorted((*self.shapes, *other.shapes))))

    def difference(self, expected: "AdapterSpec") -> str:
        """In what it differs from another, in words; empty if it does not."""
        names, wanted = dict(self.shapes), dict(expected.shapes)
        if len(names) != len(self.shapes):
            return "a tensor stands twice"
        missing, extra = sorted(wanted.keys() - names.keys()), sorted(names.keys() - wanted.keys())
        if missing:
            return f"{len(missing)} tensors are missing, {missing[0]} first"
        if extra:
            return f"{len(extra)} tensors are unknown, {extra[0][:120]} first"
        for name, shape in expected.shapes:
            if names[name] != shape:
                return f"{name} has shape {names[name]}, expected {shape}"
        return "" if self == expected else "the tensors are not in order"

    def pairs(self) -> Iterator[tuple[str, str, str]]:
        """Yield (module, name of A, name of B) for every adapted module."""
        for tensor in self.tensors:
            if tensor.role == "A":
                yield tensor.module, tensor.name, tensor_name(tensor.module, "B")


NO_TENSORS = AdapterSpec(())
"""The specification of an adapter without tensors."""
NO_NORMS: AdapterState = {}
"""The row norms that an adapter without magnitudes is relative to."""


def absolute(adapter: AdapterState, norms: AdapterState) -> AdapterState:
    """An adapter as PEFT's file has it: to its magnitudes the norms of the base's rows are added.

    Args:
        adapter: with its magnitudes relative to the norms.
        norms: by the magnitudes' names, float32 (d_out,) each (`model.magnitudes.base_norms`).

    Raises:
        ValueError: there is not one vector of norms for each magnitude.
    """
    _require_norms(adapter, norms)
    return {name: value + norms[name] if name in norms else value for name, value in adapter.items()}


def relative(adapter: AdapterState, norms: AdapterState) -> AdapterState:
    """The inverse of `absolute`, to the bit where a magnitude is between half and twice its norm (Sterbenz).

    Raises:
        ValueError: there is not one vector of norms for each magnitude.
    """
    _require_norms(adapter, norms)
    return {name: value - norms[name] if name in norms else value for name, value in adapter.items()}


def _require_norms(adapter: AdapterState, norms: AdapterState) -> None:
    magnitudes = {name for name in adapter if name.endswith(SUFFIXES["magnitude"])}
    if magnitudes != norms.keys():
        raise ValueError(f"{len(magnitudes)} magnitudes, and norms of {len(norms)} weights that are not theirs")


def fault_of(adapter: AdapterState, spec: AdapterSpec) -> str:
    """Why an adapter must not be used, in words; empty if it may be."""
    for name, value in adapter.items():
        if value.dtype != np.float32:
            return f"{name[:120]} is of dtype {value.dtype}, expected float32"
    if difference := AdapterSpec.of(adapter).difference(spec):
        return difference
    for name, value in adapter.items():
        if not np.isfinite(value).all():
            return f"{name} holds numbers that are not finite"
    return ""


def flatten(adapter: AdapterState) -> NDArray[np.float32]:
    """One vector (size,) of float32 with the arrays in the order of their names."""
    return np.concatenate([np.asarray(adapter[name], np.float32).ravel() for name in sorted(adapter)])


def unflatten(vector: NDArray[np.float32], spec: AdapterSpec) -> dict[str, NDArray[np.float32]]:
    """The inverse of `flatten`: views into `vector`, which has shape (spec.size,)."""
    if vector.shape != (spec.size,):
        raise ValueError(f"expected a vector of {spec.size} numbers, got shape {vector.shape}")
    arrays, start = {}, 0
    for name, shape in spec.shapes:
        count = int(np.prod(shape))
        arrays[name] = vector[start : start + count].reshape(shape)
        start += count
    return arrays


def initial_adapter(spec: AdapterSpec, seed: int) -> dict[str, NDArray[np.float32]]:
    """A new adapter that changes nothing: A uniform in +-1/sqrt(d_in) as PEFT draws it, all else 0.

    Drawn with NumPy's Philox generator from the seed and each array's name, so every machine gets the same bits
    and no weight of the base is needed.
    """
    adapter = {}
    for tensor in spec.tensors:
        if tensor.role == "A":
            key = hashlib.sha256(f"{seed}/{tensor.name}".encode()).digest()
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
            drawn = generator.random(tensor.shape, dtype=np.float32)
            adapter[tensor.name] = ((2 * drawn - 1) / np.float32(np.sqrt(tensor.shape[1]))).astype(np.float32)
        else:
            adapter[tensor.name] = np.zeros(tensor.shape, np.float32)
    return adapter
