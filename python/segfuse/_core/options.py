"""The options that losses share, and their checks. A wrong value is an error that names the option and the value."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np
import torch
from torch import Tensor, distributed

from segfuse._core.native import functorch_active, number_dtype

if TYPE_CHECKING or distributed.is_available():
    from torch.distributed import ProcessGroup
else:  # torch was built without it, but type hints must still resolve
    ProcessGroup = object

Mode: TypeAlias = Literal["binary", "multilabel", "multiclass"]
TwoSided: TypeAlias = Literal["binary", "multilabel"]
Reduction: TypeAlias = Literal["mean", "sum", "none", "sample"]
Shard: TypeAlias = Literal["batch", "space"]
Absent: TypeAlias = Literal["score", "zero", "skip"]
RowShape: TypeAlias = Literal["linear", "log", "log_cosh"]
Table: TypeAlias = Sequence[float] | Tensor
PerClass: TypeAlias = float | Sequence[float] | Tensor
Coefficient: TypeAlias = float | Tensor

MODES, TWO_SIDED, REDUCTIONS, SHARDS = map(get_args, (Mode, TwoSided, Reduction, Shard))
ABSENTS, ROW_SHAPES = get_args(Absent), get_args(RowShape)

# The options that losses share: name, type and meaning. `describe` copies the meaning into the documentation of each
# loss. A loss takes one of these sets, and options of its own.

SoftLabel: TypeAlias = Annotated[
    bool, "I = Σ w min(p, t), FP = Σ w max(p - t, 0), FN = Σ w max(t - p, 0), so the minimum is at p = t."
]
Shape: TypeAlias = Annotated[
    RowShape,
    'what is made of the loss L of a row: "linear" is L, "log" is -log max(1 - L, 1e-12), "log_cosh" is log cosh L.',
]


class AnyOptions(TypedDict, total=False):
    """How the data is read. The terms of a compound share these options."""

    from_logits: Annotated[bool, "False: the logits are already probabilities, in [0, 1]."]
    ignore_index: Annotated[int | None, "pixels with this label do not count."]
    process_group: Annotated[
        ProcessGroup | str | None,
        "a group of torch.distributed, or its name. The loss is that of the data of all its ranks together.",
    ]
    shard: Annotated[
        Shard,
        'what each rank holds: "batch" means other samples, "space" means other parts of the same samples.',
    ]


class DataOptions(AnyOptions, total=False):
    """How the data is read and the loss reduced."""

    reduction: Annotated[
        Reduction,
        '"mean" is the weighted mean over the valid elements (0 where their weights add to 0). "sum" is the weighted '
        'sum. "sample" is the mean of each sample, shape (N,). "none" is the weighted loss of each element. In '
        '"multiclass" an element is a pixel (for MSE, L1 and Huber it is one class of a pixel).',
    ]


class RowOptions(AnyOptions, total=False):
    """Options of every region loss."""

    smooth: Annotated[
        float | tuple[float, float],
        "a number >= 0, added to numerator and denominator; or a pair, one number for each.",
    ]
    eps: Annotated[float, "smallest value of the denominator, >= 0."]
    pool_batch: Annotated[bool, "sum over the batch before the ratio."]
    class_weight: Annotated[Table | None, "weights of the rows, one per class, >= 0. Not with pool_classes."]
    classes: Annotated[
        Sequence[int] | None, 'indices of the classes that count; the softmax still runs over all. Not in "binary".'
    ]
    reduction: Annotated[
        Reduction,
        'class_weight gives each row its weight. "mean" is the weighted mean over rows. "sum" is the weighted sum. '
        '"sample" is the mean over the rows of each sample, shape (N,). "none" is the weighted loss of each row, shape '
        "(N, C); (C,) with pool_batch, (N,) with pool_classes, () with both.",
    ]


class GeneralizedDiceOptions(RowOptions, total=False):
    """Options of the generalized Dice loss. All its classes make one row."""

    soft_label: SoftLabel


class ScoredOptions(RowOptions, total=False):
    """Options of losses that score each row."""

    pool_classes: Annotated[bool, "sum over the classes before the ratio."]
    absent: Annotated[
        Absent,
        'what a row counts if none of its pixels has its class as label: "score" is the formula (0/0 scores 1), '
        '"zero" is a loss of 0, "skip" leaves the row out of the mean.',
    ]


class ShapedOptions(ScoredOptions, total=False):
    """Options of the sensitivity-specificity loss."""

    shape: Shape


class OverlapOptions(ScoredOptions, total=False):
    """Options of the focal Tversky loss."""

    squared: Annotated[bool, "sums of squares: P = Σ w p², T = Σ w t², FP = P - I, FN = T - I."]
    soft_label: SoftLabel


class RegionOptions(OverlapOptions, total=False):
    """Options of the other region losses: all of them."""

    shape: Shape


DATA_DEFAULTS: DataOptions = {
    "from_logits": True,
    "ignore_index": None,
    "reduction": "mean",
    "process_group": None,
    "shard": "batch",
}
REGION_DEFAULTS: RegionOptions = {
    "smooth": (1e-5, 1e-5),
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


def defaults_of(taken: type) -> dict[str, Any]:
    """Name and default of each option in a set."""
    every = {**REGION_DEFAULTS, **DATA_DEFAULTS}
    return {name: value for name, value in every.items() if name in taken.__annotations__}


# The name of an option in other libraries, and what to write here.
ELSEWHERE = {
    "act": "from_logits=False takes probabilities of any activation",
    "apply_nonlin": "from_logits=False takes probabilities",
    "average": 'pool_classes=True is "micro"',
    "batch": "pool_batch=True",
    "batch_dice": "pool_batch=True",
    "do_bg": "classes=range(1, C) leaves out the background",
    "ignore_label": "ignore_index",
    "include_background": "classes=range(1, C) leaves out the background",
    "jaccard": "JaccardLoss is a loss of its own",
    "lambda_ce": "ce_weight, or a factor: 0.5 * CrossEntropyLoss()",
    "lambda_dice": "dice_weight, or a factor: 0.5 * DiceLoss(...)",
    "lambda_focal": "focal_weight, or a factor: 0.5 * FocalLoss(...)",
    "log_loss": 'shape="log"',
    "loss_weight": "multiply the loss by a number",
    "mode": "this loss is always multiclass, so leave it out",
    "normalized": 'reduction="sum", divided by what you like',
    "other_act": "from_logits=False takes probabilities of any activation",
    "sigmoid": 'mode="binary" or "multilabel" is a sigmoid',
    "size_average": 'reduction="mean" or "sum"',
    "smooth_dr": "smooth=(smooth_nr, smooth_dr)",
    "smooth_factor": "label_smoothing",
    "smooth_nr": "smooth=(smooth_nr, smooth_dr)",
    "softmax": 'mode="multiclass" is a softmax',
    "squared_pred": "squared=True",
    "to_onehot_y": 'mode="multiclass" reads label maps as they are',
    "use_sigmoid": 'mode="binary" or "multilabel" is a sigmoid',
    "weight": "class_weight has a value per class; one per pixel is given at the call, loss(logits, target, weight)",
    "weight_ce": "ce_weight, or a factor: 0.5 * CrossEntropyLoss()",
    "weight_dice": "dice_weight, or a factor: 0.5 * DiceLoss(...)",
}


def refuse_unknown(loss: Any, options: Collection[str]) -> None:
    """A TypeError if the class of the loss does not have the option. The message names that class and its options."""
    for option in options:
        if option not in loss._hidden_defaults:
            hint = f" (here: {ELSEWHERE[option]})" if option in ELSEWHERE else ""
            names = ", ".join(inspect.signature(type(loss)).parameters)
            raise TypeError(f"{type(loss).__name__} has no option {option!r}{hint}; it knows {names}")


def check_choice(name: str, value: object, allowed: Collection[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def plain(value: Any) -> Any:
    """A numpy number, or an array without dimensions, becomes a Python number. Other values stay."""
    is_number = isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0)
    return value.item() if is_number else value


def check_number(name: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}]; got {value!r}")
    if math.isinf(value):
        raise ValueError(f"{name} must be finite; got {value!r}")
    return float(value)


def check_int(name: str, value: object, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}]; got {value!r}")
    return value


def check_ints(name: str, values: object, low: int, high: int = 2**63 - 1) -> list[int]:
    """The integers in a list, a tuple, a range, an array or a tensor."""
    found = values.tolist() if isinstance(values, (np.ndarray, Tensor)) else values
    if not isinstance(found, (list, tuple, range)) or len(found) == 0:
        raise ValueError(f"{name} must be integers, at least one; got {values!r}")
    try:
        return [check_int(name, value, low, high) for value in found]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be integers in [{low}, {high}]; got {values!r}") from error


def check_bool(name: str, value: object) -> bool:
    value = plain(value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value


def check_table(name: str, value: object) -> Tensor:
    """One weight per class, as a new float tensor.

    Values on a GPU or in a tracer are not checked, because reading them would wait. If they are not finite, they reach
    the loss.
    """
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name} must not require grad: a loss gives it no gradient")
    try:
        # Dynamo cannot read the default device.
        dtype = torch.float64 if torch.compiler.is_compiling() else number_dtype(torch.get_default_device())
        table = value.detach() if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers, one per class; got {value!r}") from error
    if table.dim() != 1 or table.numel() == 0 or table.is_complex():
        raise ValueError(f"{name} must be a vector with one number per class; got shape {tuple(table.shape)}")
    if not torch.compiler.is_compiling() and type(table) is Tensor and table.is_cpu and not functorch_active():
        for number in table.tolist():
            if not 0 <= number < math.inf:
                raise ValueError(f"{name} must be finite and >= 0; got {number!r} among {table.tolist()}")
    return (table if table.is_floating_point() else table.to(number_dtype(table.device))).clone()


def scalar_or_table(name: str, value: object) -> float | Tensor:
    """One weight for all classes, or one per class. A number on a GPU stays there: reading it would wait."""
    if isinstance(value, Tensor) and value.dim() == 0 and not value.requires_grad:
        if not value.is_cpu:
            return check_table(name, value.reshape(1)).reshape(())
        value = value.item()
    value = plain(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return check_number(name, value, 0)
    return check_table(name, value)


def named_group(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with the name of the process group in place of the group: a plan holds text only."""
    group = options.get("process_group")
    if distributed.is_available() and isinstance(group, distributed.ProcessGroup):
        return {**options, "process_group": group.group_name}
    return dict(options)


def check_reads_logits(name: str, data: DataOptions) -> None:
    if not data.get("from_logits", True):
        raise ValueError(f"{name} needs logits: it cannot be used with from_logits=False")


def check_data(options: Mapping[str, Any]) -> dict[str, Any]:
    """The data options that the user gave, with Python numbers."""
    given = named_group(options)
    if "from_logits" in options:
        given["from_logits"] = check_bool("from_logits", options["from_logits"])
    if "reduction" in options:
        check_choice("reduction", options["reduction"], REDUCTIONS)
    if "shard" in options:
        check_choice("shard", options["shard"], SHARDS)
    group = given.get("process_group")
    if group is not None and not isinstance(group, str):
        raise TypeError(f"process_group must be a process group of torch.distributed or None; got {group!r}")
    if given.get("ignore_index") is not None:
        given["ignore_index"] = check_int("ignore_index", given["ignore_index"])
    return given


def check_region(options: Mapping[str, Any]) -> dict[str, Any]:
    """All region options, with defaults for those not given."""
    given: dict[str, Any] = {**REGION_DEFAULTS, **options}
    smooth = given["smooth"]
    smooth = smooth.tolist() if isinstance(smooth, np.ndarray) else smooth
    is_pair = isinstance(smooth, (tuple, list)) and len(smooth) == 2
    numerator, denominator = smooth if is_pair else (smooth, smooth)
    given["smooth"] = (check_number("smooth", numerator, 0), check_number("smooth", denominator, 0))
    given["eps"] = check_number("eps", given["eps"], 0)
    for name in ("pool_batch", "pool_classes", "squared", "soft_label"):
        given[name] = check_bool(name, given[name])
    check_choice("absent", given["absent"], ABSENTS)
    check_choice("shape", given["shape"], ROW_SHAPES)
    if given["squared"] and given["soft_label"]:
        raise ValueError("squared=True and soft_label=True cannot be combined")
    if given["class_weight"] is not None:
        if given["pool_classes"]:
            raise ValueError("class_weight cannot be combined with pool_classes=True: all classes make one row")
        given["class_weight"] = check_table("class_weight", given["class_weight"])
    if given["classes"] is not None:
        classes = check_ints("classes", given["classes"], 0)
        if len(set(classes)) != len(classes):
            raise ValueError(f"classes must be unique; got {given['classes']!r}")
        given["classes"] = classes
    return given
