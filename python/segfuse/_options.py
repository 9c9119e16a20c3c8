"""The options that losses share, and their checks: a wrong value is an error that names the option and the value."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor, distributed

Mode: TypeAlias = Literal["binary", "multilabel", "multiclass"]
Reduction: TypeAlias = Literal["mean", "sum", "none", "sample"]
PerClass: TypeAlias = "float | Sequence[float] | Tensor"

MODES = ("binary", "multilabel", "multiclass")


class DataOptions(TypedDict, total=False):
    """How the data is read and the loss reduced; terms of a compound share these."""

    from_logits: bool
    ignore_index: int | None
    reduction: Reduction
    process_group: distributed.ProcessGroup | str | None
    shard: Literal["batch", "space"]


DATA_DEFAULTS: DataOptions = {
    "from_logits": True,
    "ignore_index": None,
    "reduction": "mean",
    "process_group": None,
    "shard": "batch",
}


class RegionOptions(TypedDict, total=False):
    """Options of every region loss."""

    smooth: float | tuple[float, float]
    eps: float
    pool_batch: bool
    pool_classes: bool
    squared: bool
    soft_label: bool
    absent: Literal["score", "zero", "skip"]
    class_weight: Sequence[float] | Tensor | None
    classes: Sequence[int] | None
    shape: Literal["linear", "log", "log_cosh"]


REGION_DEFAULTS: RegionOptions = {
    "smooth": 1e-5,
    "eps": 0.0,
    "pool_batch": False,
    "pool_classes": False,
    "squared": False,
    "soft_label": False,
    "absent": "score",
    "class_weight": None,
    "classes": None,
    "shape": "linear",
}


def check_choice(name: str, value: object, allowed: Collection[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}]; got {value!r}")
    return float(value)


def check_bool(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value


def check_table(name: str, value: object) -> Tensor:
    """One number per class, as a float tensor of its own."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name} must not require grad: a loss gives it no gradient")
    try:
        table = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers, one per class; got {value!r}") from error
    if table.dim() != 1 or table.numel() == 0 or table.is_complex():
        raise ValueError(f"{name} must be a vector with one number per class; got shape {tuple(table.shape)}")
    return (table if table.is_floating_point() else table.to(torch.float64)).clone()


def scalar_or_table(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float | Tensor:
    """A number for all classes, or one per class."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad:
        value = value.item()
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return check_number(name, value, low, high)
    return check_table(name, value)


def named_group(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with a process group under its name, which a plan can hold."""
    group = options.get("process_group")
    if distributed.is_available() and isinstance(group, distributed.ProcessGroup):
        return {**options, "process_group": group.group_name}
    return dict(options)


def check_data(options: Mapping[str, Any]) -> None:
    if "from_logits" in options:
        check_bool("from_logits", options["from_logits"])
    if "reduction" in options:
        check_choice("reduction", options["reduction"], ("mean", "sum", "none", "sample"))
    if "shard" in options:
        check_choice("shard", options["shard"], ("batch", "space"))
    group = options.get("process_group")
    if group is not None and not isinstance(group, str):
        raise TypeError(f"process_group must be a process group of torch.distributed or None; got {group!r}")
    ignore = options.get("ignore_index")
    if ignore is not None and (isinstance(ignore, bool) or not isinstance(ignore, int)):
        raise TypeError(f"ignore_index must be an int or None; got {ignore!r}")


def check_region(options: RegionOptions) -> dict[str, Any]:
    """All region options, defaults filled in."""
    given: dict[str, Any] = {**REGION_DEFAULTS, **options}
    smooth = given["smooth"]
    numerator, denominator = smooth if isinstance(smooth, (tuple, list)) and len(smooth) == 2 else (smooth, smooth)
    given["smooth"] = (check_number("smooth", numerator, 0), check_number("smooth", denominator, 0))
    check_number("eps", given["eps"], 0)
    for name in ("pool_batch", "pool_classes", "squared", "soft_label"):
        check_bool(name, given[name])
    check_choice("absent", given["absent"], ("score", "zero", "skip"))
    check_choice("shape", given["shape"], ("linear", "log", "log_cosh"))
    if given["squared"] and given["soft_label"]:
        raise ValueError("squared=True and soft_label=True exclude each other")
    if given["class_weight"] is not None:
        if given["pool_classes"]:
            raise ValueError("class_weight has no meaning with pool_classes=True: all classes make one row")
        given["class_weight"] = check_table("class_weight", given["class_weight"])
    if given["classes"] is not None:
        classes = list(given["classes"]) if isinstance(given["classes"], (list, tuple, range)) else []
        if not classes or any(isinstance(c, bool) or not isinstance(c, int) or c < 0 for c in classes):
            raise ValueError(f"classes must be class indices, at least one; got {given['classes']!r}")
        if len(set(classes)) != len(classes):
            raise ValueError(f"classes must be unique; got {given['classes']!r}")
        given["classes"] = classes
    return given
