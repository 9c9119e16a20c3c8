"""Arguments of the wrong kind, options in other libraries' words, shapes that do not fit: what the error says."""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import segfuse as sf
from segfuse._core.options import ELSEWHERE

LOGITS, TARGET = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.int64)


@dataclasses.dataclass
class Output:
    """As transformers' model outputs."""

    logits: Tensor


@dataclasses.dataclass
class Other:
    masks: Tensor


WRONG: dict[str, tuple[Any, str]] = {
    "torchvision": (OrderedDict(out=LOGITS, aux=LOGITS), r'OrderedDict: pass its \["out"\]$'),
    "dict of logits": ({"aux": 1, "logits": LOGITS}, r'dict: pass its \["logits"\]$'),
    "dict of masks": ({"masks": LOGITS}, r'dict: pass its \["masks"\]$'),
    "empty dict": ({}, "dict$"),
    "transformers": (Output(LOGITS), r"Output: pass its \.logits$"),
    "dataclass": (Other(LOGITS), "Other$"),
    "list": ([LOGITS], "list$"),
    "tuple": ((LOGITS, LOGITS), "tuple$"),
    "None": (None, "NoneType$"),
    "array": (LOGITS.numpy(), "ndarray$"),
    "number": (0.5, "float$"),
}
MULTICLASS: dict[str, Any] = {"mode": "multiclass"}
# What takes logits and a target.
CALLS: dict[str, Callable[[Any, Any], object]] = {
    "module": sf.DiceLoss("multiclass"),
    "compound": torch.tensor(0.5) * sf.DiceCELoss(class_weight=[1, 2, 3]) + sf.FocalLoss("multiclass"),
    "function": lambda x, y: sf.dice_loss(x, y, **MULTICLASS),
    "function of tables": lambda x, y: sf.cross_entropy_loss(x, y, class_weight=[1, 2, 3]),
    "statistics": lambda x, y: sf.region_stats(x, y, **MULTICLASS),
    "counts": lambda x, y: sf.region_stats(x, y, hard=True, **MULTICLASS),
    "region_loss": lambda x, y: sf.region_loss(x, y, lambda tp, fp, fn, tn: tp.sum(), **MULTICLASS),
    "pointwise_loss": lambda x, y: sf.pointwise_loss(x, y, lambda z, t: z * t, **MULTICLASS),
    "check_target": lambda x, y: sf.check_target(x, y, **MULTICLASS),
    "metrics": lambda x, y: sf.metrics.SegmentationMetrics("multiclass").update(x, y),
    "tiles": lambda x, y: sf.TiledLoss(sf.DiceCELoss()).add(x, y),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_tensor(kind: str, call: str) -> None:
    value, message = WRONG[kind]
    with pytest.raises(TypeError, match=rf"^logits must be a tensor; got {message}"):
        CALLS[call](value, TARGET)
    with pytest.raises(TypeError, match=rf"^target must be a tensor; got {message}"):
        CALLS[call](LOGITS, value)
    CALLS[call](LOGITS, TARGET)


# -------------------------------------------------------------------------------------------------------------- options

COMPOUNDS: dict[str, Callable[..., sf.Loss]] = {
    "DiceCELoss": sf.DiceCELoss,
    "DiceBCELoss": lambda **o: sf.DiceBCELoss("binary", **o),
    "DiceFocalLoss": lambda **o: sf.DiceFocalLoss("binary", **o),
    "ComboLoss": lambda **o: sf.ComboLoss("binary", **o),
    "UnifiedFocalLoss": lambda **o: sf.UnifiedFocalLoss("binary", **o),
}
SINGLE: dict[str, Callable[..., sf.Loss]] = {
    "DiceLoss": lambda **o: sf.DiceLoss("multiclass", **o),
    "FocalLoss": lambda **o: sf.FocalLoss("binary", **o),
    "CrossEntropyLoss": sf.CrossEntropyLoss,
}


@pytest.mark.parametrize("name", [*COMPOUNDS, *SINGLE])
def test_the_class_that_was_written_is_blamed(name: str) -> None:
    make = {**COMPOUNDS, **SINGLE}[name]
    with pytest.raises(TypeError, match=rf"^{name} has no option 'foo'; it knows .*reduction"):
        make(foo=1)

    class Mine(sf.DiceCELoss):
        pass

    with pytest.raises(TypeError, match=r"^Mine has no option 'softmax'"):
        Mine(softmax=True)


@pytest.mark.parametrize("option", ELSEWHERE)
def test_options_of_other_libraries(option: str) -> None:
    for name, make in {**COMPOUNDS, **SINGLE}.items():
        known = inspect.signature(getattr(sf, name)).parameters
        for given in [option] if option not in known else []:
            with pytest.raises(TypeError, match=rf"^{name} has no option '{given}' \(here: ") as info:
                make(**{given: 1})
            assert ELSEWHERE[given] in str(info.value)


def test_the_words_that_were_reported() -> None:
    monai = "include_background to_onehot_y smooth_nr smooth_dr softmax sigmoid squared_pred batch jaccard other_act"
    nnunet = "batch_dice do_bg apply_nonlin weight_ce weight_dice ignore_label"
    assert {*monai.split(), *nnunet.split(), "log_loss", "mode", "average"} <= ELSEWHERE.keys()


def test_limits() -> None:
    dice = [sf.DiceLoss("binary", smooth=s) for s in range(1, 10)]
    focal = [sf.FocalLoss("binary", gamma=g) for g in range(1, 6)]
    sum([*dice[:8], *focal[:4]])
    with pytest.raises(ValueError, match="at most 8 region losses, got 9"):
        sum(dice)
    with pytest.raises(ValueError, match="at most 4 pointwise losses, got 5"):
        sum(focal)
    assert "4 pointwise and 8 region" in " ".join((sf.Loss.__doc__ or "").split())


# --------------------------------------------------------------------------------------------------------------- shapes

SHAPES = (  # mode, logits, target, what the message says beside both shapes
    ("multiclass", (2, 3, 4, 5), (2, 4, 4, 5), "the logits have 3 channels, the target 4"),
    ("multilabel", (2, 3, 4, 5), (2, 4, 4, 5), "the logits have 3 channels, the target 4"),
    ("binary", (2, 3, 4, 5), (2, 2, 4, 5), "the logits have 3 channels, the target 2"),
    ("multiclass", (2, 3, 4, 5), (4, 5), r"no batch dimension in the target\? target.unsqueeze\(0\)"),
    ("multiclass", (3, 4, 5), (4, 5), r"no batch dimension\? logits.unsqueeze\(0\), target.unsqueeze\(0\)"),
    ("multilabel", (2, 3, 4, 5), (3, 4, 5), r"no batch dimension\? "),
    ("multiclass", (2, 3, 4, 5), (3, 4, 5), r"$"),
    ("multilabel", (2, 3, 4, 5), (4, 3, 4, 5), "the batch dimensions differ"),
    ("binary", (2, 1, 4, 5), (3, 1, 4, 5), "the batch dimensions differ"),
    ("multiclass", (2, 3, 4, 5), (2, 8, 10), "resize the logits or the target"),
    ("multilabel", (2, 3, 4, 5), (2, 3, 8, 10), "resize the logits or the target"),
    ("binary", (2, 1, 4, 5), (2, 1, 8, 10), "resize the logits or the target"),
)


@pytest.mark.parametrize(("mode", "logits", "target", "message"), SHAPES)
def test_shapes_that_do_not_fit(mode: Any, logits: tuple[int, ...], target: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        sf.DiceLoss(mode)(torch.zeros(logits), torch.zeros(target, dtype=torch.int64))
    assert str(logits) in str(info.value)
    assert str(target) in str(info.value)
    assert ("resize" in message) == ("resize" in str(info.value))


# --------------------------------------------------------------------------------------------------------- large labels


def test_labels_beyond_int64_are_named() -> None:
    target = torch.full((2, 4, 5), 2**63 + 5, dtype=torch.uint64)
    message = rf"{2**63 + 5} .*is outside \[0, 3\)"
    for loss in (
        sf.DiceLoss("multiclass"),
        sf.CrossEntropyLoss(),
        sf.FocalLoss("multiclass", ignore_index=-(2**63) + 5),
    ):
        with pytest.raises(IndexError, match=message):
            loss(LOGITS, target)
    with pytest.raises(IndexError, match=message):
        sf.region_stats(LOGITS, target, hard=True, mode="multiclass")
    with pytest.raises(IndexError, match=message):
        sf.reference.dice_loss(LOGITS, target, mode="multiclass")


@pytest.mark.parametrize("index", [2**63, -(2**63) - 1, np.uint64(2**63)])
def test_an_ignore_index_beyond_int64(index: Any) -> None:
    for make in (sf.CrossEntropyLoss, lambda **o: sf.DiceLoss("binary", **o)):
        with pytest.raises(ValueError, match=rf"^ignore_index must lie in .*{2**63 - 1}.*{int(index)}"):
            make(ignore_index=index)
    assert sf.CrossEntropyLoss(ignore_index=2**63 - 1)(LOGITS, TARGET).isfinite()
    labels = torch.full((2, 4, 5), 2**63 - 1)
    assert sf.CrossEntropyLoss(ignore_index=2**63 - 1)(LOGITS, labels) == 0
