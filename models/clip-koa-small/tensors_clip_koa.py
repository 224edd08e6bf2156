"""What can be asked of tensors: whether modules still read the same, and whether their values are in order."""

import operator
from collections.abc import Iterable

import torch
from torch import nn

# Modules whose output follows from their tensors and their input alone. Adapters, quantised layers and the like keep
# state of other kinds.
_PLAIN_MODULES = ("torch.nn.modules.", "transformers.models.clip.", "transformers.activations")
_PROBES = 16  # values of each tensor


class Snapshot:
    """What modules compute from, as it is now; `holds` tells whether it still is.

    Told are: another tensor, module or hook in the place of the earlier one; a change in place that PyTorch counts
    (`Tensor._version`: optimizer steps, `copy_`, `load_state_dict`); other memory behind a tensor; and, of writes
    that PyTorch does not count (through `.data` or NumPy), those that change one of sixteen values of each tensor,
    spread evenly: merging adapters, moving averages and scaling do, an edit of a few values may not.
    """

    def __init__(self, modules: list[nn.Module], tensors: list[torch.Tensor]):
        self._modules, self._tensors, self._versions = modules, tensors, _versions(tensors)
        self._probes = [_probe(tensor) for tensor in tensors if tensor.is_floating_point()]
        self._values = torch.cat(self._probes)

    def holds(self, roots: Iterable[nn.Module], others: Iterable[torch.Tensor]) -> bool:
        """Whether modules and other tensors are those of the snapshot, with the same values."""
        modules, tensors = plain_parts(roots, others)
        if not _same(modules, self._modules) or not _same(tensors, self._tensors):
            return False
        if _versions(tensors) != self._versions:
            return False
        return truth(torch.cat(self._probes) == self._values) is not False


def take_snapshot(roots: Iterable[nn.Module], others: Iterable[torch.Tensor]) -> Snapshot | None:
    """A snapshot; None where what the modules compute does not follow from tensors that can be watched."""
    modules, tensors = plain_parts(roots, others)
    if not modules or not all(map(_can_be_watched, tensors)) or len({tensor.device for tensor in tensors}) > 1:
        return None
    with torch.inference_mode(False), torch.no_grad():
        return Snapshot(modules, tensors)


def plain_parts(roots: Iterable[nn.Module], others: Iterable[torch.Tensor]) -> tuple[list[nn.Module], list]:
    """Modules with all below them, and their tensors with `others`; nothing where one is unknown or has a hook."""
    modules, tensors, pending = [], list(others), list(roots)
    while pending:  # as quick as can be: every inference asks
        module = pending.pop()
        state = module.__dict__
        if state["_forward_pre_hooks"] or state["_forward_hooks"] or "forward" in state:
            return [], []
        if "_is_replica" in state:  # of nn.DataParallel, whose parameters are plain attributes
            return [], []
        if not type(module).__module__.startswith(_PLAIN_MODULES):
            return [], []
        modules.append(module)
        tensors += state["_parameters"].values()
        tensors += state["_buffers"].values()
        pending += state["_modules"].values()
    return modules, [tensor for tensor in tensors if tensor is not None]


def truth(conditions: torch.Tensor) -> bool | None:
    """Whether all conditions are true; None where values can't be read: compiled, traced, in `vmap`, without data."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or conditions.is_meta:
        return None
    if conditions.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    try:
        return bool(conditions.all())
    except RuntimeError:  # vmap and fake tensors say so
        return None


def all_finite(tensor: torch.Tensor) -> bool | None:
    """Whether no value is NaN or infinite; None where values can't be read."""
    # The sum first, for it takes a fortieth of the time; it may be too large for its type.
    finite = truth(tensor.detach().sum(dtype=torch.float32).isfinite())
    return truth(tensor.isfinite()) if finite is False else finite


def _can_be_watched(tensor: torch.Tensor) -> bool:
    """Whether it is a tensor of its own: not a transform's or another library's, and with a version."""
    kind = type(tensor) in (nn.Parameter, torch.Tensor)
    if not kind or tensor.is_meta or tensor.is_inference() or not tensor.is_contiguous():
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:  # a wrapped tensor of vmap and grad
        return False
    return True


def _same(one: list, other: list) -> bool:
    return len(one) == len(other) and all(map(operator.is_, one, other))


def _versions(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [(tensor._version, tensor.data_ptr()) for tensor in tensors]


def _probe(tensor: torch.Tensor) -> torch.Tensor:
    """A view of values spread over a contiguous tensor."""
    return tensor.detach().view(-1)[:: max(1, tensor.numel() // _PROBES)]
