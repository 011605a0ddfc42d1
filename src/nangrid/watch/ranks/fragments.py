"""The parts of parameters that one rank of DeepSpeed's ZeRO trains, with their gradients and optimizer state.

ZeRO trains flat partitions in float32, one per rank. The module holds the whole parameters in the model's dtype. After
each step, every rank copies them from all partitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from nangrid.watch.state.tensors import trainables


class Fragment(nn.Parameter):
    """The part of one parameter that this rank trains: a view of its flat partition."""

    of: nn.Parameter
    """The parameter of the module."""
    group: int
    """Index of its group in the optimizer."""
    place: slice
    """Where it is in the flat partition."""
    _read: Tensor | None = None

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        """What the optimizer reads while it runs; before that the exchanged gradient, or else this rank's own."""
        if self._read is not None:
            return self._read
        mapping: Any = self.of._hp_mapping  # type: ignore[attr-defined]
        if mapping.gradient_dict.get(self.group) is not None:
            reduced: Tensor = mapping.get_lp_grad_fragment(self.of._index_in_param_group)  # type: ignore[attr-defined]
            return reduced.flatten()
        own, address = self.of.grad, mapping.lp_fragment_address
        return None if own is None else own.flatten().narrow(0, address.start, address.numel)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._read = value


def fragments(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parts that this rank trains of the module's parameters, by their names."""
    return {name: _fragment(p) for name, p in trainables(module).items() if getattr(p, "_hp_mapping", None) is not None}


def _fragment(parameter: nn.Parameter) -> Fragment:
    mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
    address = mapping.hp_fragment_address
    fragment = Fragment(mapping.hp_fragment.detach())
    fragment.of, fragment.group = parameter, mapping.param_group_index
    fragment.place = slice(address.start, address.start + address.numel)
    return fragment


class States(Mapping[Tensor, Any]):
    """The optimizer state of fragments, as views of that of the flat partitions."""

    def __init__(self, fragments: Iterable[nn.Parameter], zero: Any) -> None:
        """`zero`: the optimizer of DeepSpeed."""
        self._fragments = list(fragments)
        self._zero = zero

    def __getitem__(self, fragment: Tensor) -> dict[str, Any]:
        if not isinstance(fragment, Fragment):
            raise KeyError(fragment)
        partition = self._zero.single_partition_of_fp32_groups[fragment.group]
        state = self._zero.optimizer.state.get(partition, {})
        return {
            key: value[fragment.place] if isinstance(value, Tensor) and value.shape == partition.shape else value
            for key, value in state.items()
        }

    def values(self) -> Any:
        """The whole state of this rank, of padding too."""
        return self._zero.optimizer.state.values()

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._fragments)

    def __len__(self) -> int:
        return len(self._fragments)
