"""DTensors: each rank computes on its own part; one collective gives the loss of the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from segfuse._core.plan import Plan

Apply = Callable[..., tuple[Tensor, Tensor]]


def is_dtensor(tensor: object) -> bool:
    """By its name, so that users without DTensors need not import them."""
    return type(tensor).__name__ == "DTensor" and type(tensor).__module__.startswith("torch.distributed")


def apply_to_parts(
    apply: Apply,
    plan: Plan,
    logits: Any,
    target: Any,
    weight: Any,
    class_values: Tensor | None,
    coefficients: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`routes.apply` for DTensors on one mesh: replicated, or sharded along the batch or a spatial dimension.

    Target and weight have the placements of the logits, and so has the gradient. The loss is replicated. The gradient
    is that of the whole loss; it is not scaled for averaging over ranks.
    """
    try:
        from torch.distributed.tensor import DTensor, Replicate, Shard
    except ImportError:  # torch before 2.5
        from torch.distributed._tensor import DTensor, Replicate, Shard  # type: ignore[attr-defined]

    mesh, placements = logits.device_mesh, logits.placements
    for name, tensor in (("target", target), ("weight", weight)):
        if isinstance(tensor, Tensor) and not (isinstance(tensor, DTensor) and tensor.device_mesh == mesh):
            raise ValueError(f"logits are a DTensor, so {name} must be a DTensor on the same mesh too")
    sharded = [(i, p) for i, p in enumerate(placements) if not p.is_replicate()]
    if len(sharded) > 1 or any(type(p) is not Shard for _, p in sharded):
        raise ValueError(f"logits must be replicated or sharded along one dimension; got placements {placements}")
    whole: list[Any] = [Replicate()] * mesh.ndim
    if sharded:
        mesh_dim, placement = sharded[0]
        dim = placement.dim % logits.ndim
        channel = 1 if plan.mode != "binary" or (logits.ndim > 1 and logits.shape[1] == 1) else None
        if dim == channel:
            raise ValueError("logits are sharded along their classes: redistribute them along the batch or space")
        if plan.reduction in ("none", "sample"):
            raise ValueError(f'reduction={plan.reduction!r} does not work with sharded logits: use "mean" or "sum"')
        for name, tensor in (("target", target), ("weight", weight)):
            if tensor is None:
                continue
            without_channel = tensor.ndim == logits.ndim - 1 and channel is not None
            expected = list(whole)
            expected[mesh_dim] = Shard(dim - (dim > 1 and without_channel))
            found = [p if p.is_replicate() else Shard(p.dim % tensor.ndim) for p in tensor.placements]
            if found != expected:
                raise ValueError(f"{name} must have the placements of the logits, {expected}; got {found}")
        plan = plan.sharded(mesh.get_group(mesh_dim).group_name, "batch" if dim == 0 else "space")
    local = [None if t is None else t.to_local() for t in (logits, target, weight)]
    loss, terms = apply(plan, *local, class_values, coefficients)
    return DTensor.from_local(loss, mesh, whole, run_check=False), terms
