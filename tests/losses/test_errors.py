"""Bad input: the type of the error, the argument and the value it names, and that the next call works as before."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

import segfuse as sf
from cases import CLASS_NAME, CLASSES, REGIONS, TWO_SIDED, Case

# Name, what to call, the error (or errors), a regular expression for its message.
Bad: TypeAlias = tuple[str, Callable[[], object], Any, str]

LOGITS = torch.linspace(-2, 3, 2 * CLASSES * 12).reshape(2, CLASSES, 3, 4)
LABELS = torch.arange(24).reshape(2, 3, 4) % CLASSES
MASKS = (torch.arange(2 * CLASSES * 12).reshape(2, CLASSES, 3, 4) % 3 == 0).to(torch.uint8)
WEIGHT = torch.ones(2, 3, 4)
BINARY = [name for name in CLASS_NAME if name != "cross_entropy_loss"]  # binary and multilabel
MULTICLASS = [name for name in CLASS_NAME if name not in TWO_SIDED]
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def make(name: str, mode: Any = "binary", **options: Any) -> sf.Loss:
    own: dict[str, Any] = {"base": "dice_loss"} if name == "adaptive_log_loss" else {}
    if name == "unified_focal_loss" and mode == "multiclass":
        own["num_classes"] = CLASSES
    return Case(name, mode, own).module(**options)


def normal_call() -> Tensor:
    """A loss with its gradient, the same at every call."""
    logits = LOGITS.clone().requires_grad_()
    loss = (sf.DiceLoss("multiclass") + 0.3 * sf.CrossEntropyLoss())(logits, LABELS)
    (gradient,) = torch.autograd.grad(loss, logits, torch.tensor(1.7))
    return torch.cat((loss.detach().reshape(1), gradient.flatten()))


EXPECTED = normal_call()


def check(call: Callable[[], object], error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as info:
        call()
    assert info.type in (error if isinstance(error, tuple) else (error,))  # and no subclass of it
    assert torch.equal(normal_call(), EXPECTED)


def replaced(tensor: Tensor, value: int, *positions: tuple[int, ...]) -> Tensor:
    tensor = tensor.clone()
    for position in positions:
        tensor[position] = value
    return tensor


# -------------------------------------------------------------------------------------------------------- constructors

ANY = (  # option, value, error, message; of every loss
    ("reduction", "avg", ValueError, r"^reduction .*'mean', 'sum', 'none', 'sample'.*'avg'$"),
    ("reduction", None, ValueError, r"^reduction .*None$"),
    ("from_logits", 1, TypeError, r"^from_logits .*True or False.* 1$"),
    ("ignore_index", 1.5, TypeError, r"^ignore_index .*1\.5$"),
    ("ignore_index", True, TypeError, r"^ignore_index .*True$"),
    ("smoothh", 1.0, TypeError, r"^\w+Loss has no option 'smoothh'"),
)
REGION = (
    ("absent", "ignore", ValueError, r"^absent .*'score', 'zero', 'skip'.*'ignore'$"),
    ("smooth", -1.0, ValueError, r"^smooth .*-1\.0$"),
    ("smooth", (1.0, -2.0), ValueError, r"^smooth .*-2\.0$"),
    ("smooth", (1.0, 2.0, 3.0), TypeError, r"^smooth .*\(1\.0, 2\.0, 3\.0\)$"),
    ("smooth", "1", TypeError, r"^smooth .*'1'$"),
    ("smooth", float("nan"), ValueError, r"^smooth .*nan$"),
    ("eps", -1e-7, ValueError, r"^eps .*-1e-07$"),
    ("pool_batch", 1, TypeError, r"^pool_batch .*True or False.* 1$"),
    ("pool_classes", "yes", TypeError, r"^pool_classes .*True or False.*'yes'$"),
    ("squared", None, TypeError, r"^squared .*None$"),
    ("soft_label", 0, TypeError, r"^soft_label .* 0$"),
    ("class_weight", 2.0, ValueError, r"^class_weight .*\(\)$"),
    ("class_weight", [[1.0, 2.0]], ValueError, r"^class_weight .*\(1, 2\)$"),
    ("class_weight", ["a", "b"], TypeError, r"^class_weight .*\['a', 'b'\]$"),
    ("class_weight", torch.ones(5, requires_grad=True), ValueError, r"^class_weight .*grad"),
    ("classes", [1, 3, 1], ValueError, r"^classes .*unique.*\[1, 3, 1\]$"),
    ("classes", [2, -1], ValueError, r"^classes .*\[2, -1\]$"),
    ("classes", [], ValueError, r"^classes .*\[\]$"),
    ("classes", [1.0], (TypeError, ValueError), r"^classes .*\[1\.0\]$"),
    ("classes", 3, (TypeError, ValueError), r"^classes .*3"),
)
NUMBERS = (  # loss, option, a value out of its range
    ("focal_loss", "gamma", -0.5),
    ("focal_tversky_loss", "gamma", -0.5),
    ("tversky_loss", "alpha", -0.3),
    ("tversky_loss", "beta", -0.7),
    ("focal_tversky_loss", "alpha", -0.3),
    ("focal_tversky_loss", "beta", -0.7),
    ("bce_with_logits_loss", "label_smoothing", 1.5),
    ("bce_with_logits_loss", "label_smoothing", -0.1),
    ("cross_entropy_loss", "label_smoothing", 1.5),
    ("cross_entropy_loss", "label_smoothing", -0.1),
    ("polynomial_loss", "asymmetry", -0.1),
    ("sigmoid_free_loss", "asymmetry", -0.1),
    ("broken_loss", "asymmetry", -0.1),
    ("huber_loss", "delta", -0.1),
    ("sensitivity_specificity_loss", "sensitivity_weight", 1.1),
    ("combo_loss", "alpha", 1.1),
    ("combo_loss", "beta", -0.1),
    ("unified_focal_loss", "focal_weight", 1.1),
    ("unified_focal_loss", "delta", -0.1),
    ("unified_focal_loss", "gamma", 1.1),
)
TOGETHER = (  # losses, mode, options that do not go together, message
    (["bce_with_logits_loss"], "binary", {"pos_weight": 2.0, "balanced": True}, "balanced=True .*pos_weight"),
    (TWO_SIDED, "multiclass", {}, "^mode .*'multiclass'$"),
    (["focal_loss"], "multiclass", {"alpha": 0.25}, r"^alpha .*per class.*multiclass.*0\.25$"),
    (["focal_tversky_loss", "background_tversky_loss"], "binary", {"shape": "log"}, "^shape .*TverskyLoss"),
    (["generalized_dice_loss"], "binary", {"absent": "skip"}, "^absent .*GeneralizedDiceLoss"),
    (["generalized_dice_loss"], "binary", {"pool_classes": True}, "^pool_classes .*GeneralizedDiceLoss"),
    (["sensitivity_specificity_loss"], "binary", {"squared": True}, "^squared .*SensitivitySpecificityLoss"),
    (["polynomial_loss"], "binary", {"exponents": (2, 0)}, r"^exponents .*\[1, 64\].*\(2, 0\)$"),
    (["polynomial_loss"], "binary", {"exponents": (1, 2, 3, 4, 5)}, r"^exponents .*one to four.*5\)$"),
    (["polynomial_loss"], "binary", {"exponents": (1.5,)}, r"^exponents .*integers.*1\.5"),
    (["polynomial_loss"], "binary", {"exponents": 6}, r"^exponents .*6$"),
    (["sigmoid_free_loss", "hinge_loss"], "binary", {"from_logits": False}, "from_logits=False"),
    (["huber_loss"], "binary", {"delta": 0}, "^delta must be > 0; got 0"),
    (["unified_focal_loss"], "binary", {"gamma": 1.0}, "^gamma must be < 1; got 1"),
    (["unified_focal_loss"], "binary", {"num_classes": 2}, "^num_classes .*None.*got 2$"),
    (REGIONS, "binary", {"classes": [0]}, '^classes .*mode="binary"'),
    (REGIONS, "multilabel", {"squared": True, "soft_label": True}, "squared=True .*soft_label=True"),
    (REGIONS, "multiclass", {"class_weight": [1] * 5, "pool_classes": True}, "class_weight .*pool_classes=True"),
    (REGIONS, "binary", {"reduction": "sample", "pool_batch": True}, 'reduction="sample" .*pool_batch=True'),
)


def constructors() -> Iterator[Bad]:
    for name in CLASS_NAME:
        mode = "multiclass" if name in MULTICLASS else "multilabel"
        for option, value, error, message in ANY + (REGION if name in REGIONS else ()):
            yield f"{name}-{option}={value}", partial(make, name, mode, **{option: value}), error, message
        if name in BINARY and name != "adaptive_log_loss":
            yield f"{name}-mode", partial(make, name, "multi"), ValueError, r"^mode .*'binary', 'multilabel'.*'multi'$"
            yield f"{name}-no-mode", getattr(sf, CLASS_NAME[name]), TypeError, "'mode'"
        if name in REGIONS and name != "focal_tversky_loss":
            message = r"^shape .*'linear', 'log', 'log_cosh'.*'cosh'$"
            yield f"{name}-shape", partial(make, name, shape="cosh"), ValueError, message
    for name, option, value in NUMBERS:
        for wrong, error in ((value, ValueError), (float("nan"), ValueError), ("2", TypeError), (True, TypeError)):
            call = partial(make, name, **{option: wrong})
            yield f"{name}-{option}={wrong}", call, error, rf"^{option} .*{wrong!r}$"
    for names, mode, options, message in TOGETHER:
        for name in names:
            yield f"{name}-{'-'.join(options)}", partial(make, name, mode, **options), ValueError, message
    yield "bce-balanced=1", partial(sf.BCEWithLogitsLoss, "binary", balanced=1), TypeError, "^balanced .* 1$"
    yield "unified-classes", partial(sf.UnifiedFocalLoss, "multiclass"), ValueError, "^num_classes .*got None$"
    dice = sf.DiceLoss("binary")
    for wrong in (dice + dice, sf.HingeLoss("binary"), "dice", sf.AdaptiveLogLoss(dice)):
        call = partial(sf.AdaptiveLogLoss, wrong)  # type: ignore[arg-type]
        yield f"adaptive-{type(wrong).__name__}", call, ValueError, "^base must be one region loss.*got"
    for option in ("omega", "gamma", "epsilon"):
        call = partial(sf.AdaptiveLogLoss, dice, **{option: 0})
        yield f"adaptive-{option}", call, ValueError, f"^{option} must be > 0; got 0"
    yield "ce-mode", partial(sf.CrossEntropyLoss, mode="binary"), TypeError, "CrossEntropyLoss has no option 'mode'"
    yield "dice-ce-reduction", partial(sf.DiceCELoss, reduction="avg"), ValueError, r"^reduction .*'avg'$"
    yield "dice-bce-option", partial(sf.DiceBCELoss, "binary", gama=1.0), TypeError, "has no option 'gama'"


# --------------------------------------------------------------------------------------------------------------- calls

SHAPE = r"\(2, 5, 3, 4\).*"
MAPS = (  # logits, label map, error, message
    ("height", LOGITS, LABELS[:, :1], ValueError, SHAPE + r"\(2, 1, 4\)"),
    ("batch", LOGITS, LABELS[:1], ValueError, SHAPE + r"\(1, 3, 4\)"),
    ("flat", LOGITS, LABELS.flatten(), ValueError, SHAPE + r"\(24,\)"),
    ("classes of soft labels", LOGITS, MASKS[:, :3].float(), ValueError, SHAPE + r"\(2, 3, 3, 4\)"),
    ("complex target", LOGITS, LABELS + 0j, TypeError, r"^target .*torch\.complex64"),
    ("integer logits", LOGITS.long(), LABELS, TypeError, r"^logits .*floating.*torch\.int64$"),
    ("complex logits", LOGITS + 0j, LABELS, TypeError, r"^logits .*floating.*torch\.complex64$"),
    ("one class", LOGITS[:, :1], LABELS, ValueError, r'\(2, 1, 3, 4\).*mode="binary"'),
    ("no class", LOGITS[:, :0], LABELS, ValueError, r"^logits .*no classes.*\(2, 0, 3, 4\)$"),
    ("no channel", LOGITS[:, 0, 0, 0], LABELS[:, 0, 0], ValueError, r'mode="multiclass" .*\(2,\)$'),
    ("another device", LOGITS, LABELS.to("meta"), ValueError, r"^target .*meta.*cpu$"),
    ("array", LOGITS, LABELS.numpy(), TypeError, r"^target .*tensor.*ndarray$"),
    ("sparse", LOGITS.to_sparse(), LABELS, TypeError, r"^logits .*dense.*sparse_coo$"),
    ("grad", LOGITS, LOGITS.softmax(1).requires_grad_(), ValueError, r"^target requires grad"),
)
WEIGHTS = (  # weight, error, message
    ("shape", WEIGHT[:, :2], ValueError, r"^weight .*\(2, 2, 4\).*\(2, 5, 3, 4\)"),
    ("per class", torch.ones(2, 5, 3, 4), ValueError, r"^weight .*\(2, 5, 3, 4\) .*\(2, 1, 3, 4\)"),
    ("dimensions", torch.ones(1, 1, 1, 1, 1), ValueError, r"^weight .*\(1, 1, 1, 1, 1\).*\(2, 5, 3, 4\)"),
    ("grad", WEIGHT.clone().requires_grad_(), ValueError, r"^weight requires grad"),
    ("complex", WEIGHT + 0j, TypeError, r"^weight .*torch\.complex64$"),
    ("another device", WEIGHT.to("meta"), ValueError, r"^weight .*meta.*cpu$"),
    ("list", WEIGHT.tolist(), TypeError, r"^weight .*tensor.*list$"),
)
GRIDS = (  # mode, logits, target, message
    ("multilabel", LOGITS, LABELS, r"\(2, 5, 3, 4\).*\(2, 3, 4\).*multiclass"),
    ("multilabel", LOGITS, MASKS[:, :, :1], r"\(2, 5, 3, 4\).*\(2, 5, 1, 4\)"),
    ("multilabel", LOGITS[:, :0], MASKS[:, :0], r"^logits .*no classes.*\(2, 0, 3, 4\)"),
    ("multilabel", LOGITS[:, 0, 0, 0], MASKS[:, 0, 0, 0], r'mode="multilabel" .*\(2,\)$'),
    ("binary", LOGITS, LABELS, r"\(2, 5, 3, 4\).*\(2, 3, 4\).*multiclass"),
    ("binary", LOGITS[:, :1], MASKS[:1, :1], r"\(2, 1, 3, 4\).*\(1, 1, 3, 4\)"),
    ("binary", LOGITS[:, 0], MASKS[:, 0, :, :1], r"\(2, 3, 4\).*\(2, 3, 1\)"),
    ("binary", LOGITS.sum(), MASKS.sum(), r"^logits .*0-d"),
)
LENGTHS = (  # values per class of the wrong number, message
    (sf.CrossEntropyLoss(class_weight=[0.5, 1, 2]), LABELS, "class_weight .*3 .*5"),
    (sf.DiceLoss("multiclass", class_weight=[0.5, 1, 2]), LABELS, "class_weight .*3 .*5"),
    (sf.DiceLoss("multiclass", class_weight=[0.5, 1], classes=[1, 3]), LABELS, "class_weight .*2 .*5"),
    (sf.FocalLoss("multiclass", alpha=torch.tensor([0.3, 0.7])), LABELS, "alpha .*2 .*5"),
    (sf.BCEWithLogitsLoss("multilabel", pos_weight=[0.5, 1, 2]), MASKS, "pos_weight .*3 .*5"),
    (sf.BCEWithLogitsLoss("binary", pos_weight=[0.5, 1]), MASKS, "pos_weight .*2 .*1"),
)


def calls() -> Iterator[Bad]:
    for name in MULTICLASS:
        loss = make(name, "multiclass")
        for label, logits, target, error, message in MAPS:
            yield f"{name}-{label}", partial(loss, logits, target), error, message
        for label, weight, error, message in WEIGHTS:
            yield f"{name}-weight-{label}", partial(loss, LOGITS, LABELS, weight), error, message
        call = partial(make(name, "multiclass", ignore_index=255), LOGITS, LOGITS.softmax(1))
        message = r"^ignore_index=255 .*label map.*\(2, 5, 3, 4\).*weight"
        yield f"{name}-soft-ignore_index", call, ValueError, message
    for name in BINARY:
        for i, (mode, logits, target, message) in enumerate(GRIDS):
            yield f"{name}-{mode}-{i}", partial(make(name, mode), logits, target), ValueError, message
    for name in REGIONS:
        for mode, target in (("multiclass", LABELS), ("multilabel", MASKS)):
            call = partial(make(name, mode, classes=[1, 7]), LOGITS, target)
            yield f"{name}-{mode}-classes", call, (IndexError, ValueError), "classes.*7.*5"
    for i, (loss, target, message) in enumerate(LENGTHS):
        yield f"length-{i}", partial(loss, LOGITS, target), ValueError, message


BAD = [*constructors(), *calls()]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad[0].replace(" ", "-"))
def test_bad_input(bad: Bad) -> None:
    check(*bad[1:])


def test_an_unknown_option_is_answered_with_the_known_ones() -> None:
    for name, options in (
        ("bce_with_logits_loss", "(?=.*pos_weight)(?=.*balanced)(?=.*label_smoothing)"),
        ("cross_entropy_loss", "(?=.*class_weight)(?=.*label_smoothing)"),
        ("focal_loss", "(?=.*alpha)(?=.*gamma)"),
        ("dice_loss", "(?=.*smooth,)(?=.*pool_batch)(?=.*classes)"),
    ):
        check(partial(make, name, foo=1), TypeError, rf"'foo'{options}.*reduction")


def test_functions_check_as_their_modules() -> None:
    # True, 1 and 1.0 compare equal; what was seen first must not stand for the others.
    sf.dice_loss(LOGITS, LABELS, mode="multiclass", pool_batch=True, ignore_index=1)
    call = partial(sf.dice_loss, LOGITS, LABELS, mode="multiclass")
    check(partial(call, pool_batch=1, ignore_index=1), TypeError, r"^pool_batch .* 1$")
    check(partial(call, pool_batch=True, ignore_index=True), TypeError, r"^ignore_index .*True$")
    check(partial(call, pool_batch=True, ignore_index=1.0), TypeError, r"^ignore_index .*1\.0$")
    check(partial(call, gama=1), TypeError, "no option 'gama'")


def test_a_scalar_weight_may_stay_on_the_cpu() -> None:
    for name in MULTICLASS:
        assert make(name, "multiclass")(LOGITS.to("meta"), LABELS.to("meta"), torch.tensor(0.5)).is_meta


# -------------------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", MULTICLASS)
def test_label_out_of_range(name: str, dtype: torch.dtype) -> None:
    call = partial(make(name, "multiclass", ignore_index=77), LOGITS)
    low, high = torch.iinfo(dtype).min, min(torch.iinfo(dtype).max, 2**63 - 1)
    for value in {5, 78, 255, high, 2**32 + 1, -1, -100, low}:  # the lower half of 2**32 + 1 is a label
        if low <= value <= high and not 0 <= value < CLASSES:
            target = replaced(LABELS, value, (1, 0, 3), (1, 2, 1), (1, 2, 3))
            target = replaced(target, 77, (0, 0, 0)).to(dtype)
            hint = rf".*ignore_index={value}\b" if value in (255, -100) else "[^;?]*$"
            message = rf"^target.* {value} .*\[0, 5\).* 3 .*sample 1 .*position 3\b{hint}"
            check(partial(call, target), IndexError, message)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_mask_out_of_range(name: str, dtype: torch.dtype) -> None:
    value = 127 if dtype == torch.int8 else 255
    hint = r".*ignore_index=255\b.*0/255" if value == 255 else "[^;?]*$"
    target = replaced(MASKS.long(), value, (0, 3, 2, 0), (1, 0, 0, 0)).to(dtype)
    message = rf"^target.* {value} .*\[0, 2\).* 2 .*sample 0, channel 3 .*position 8\b"
    check(partial(make(name, "multilabel"), LOGITS, target), IndexError, message + hint)
    if name in MULTICLASS:  # one-hot labels
        check(partial(make(name, "multiclass"), LOGITS, target), IndexError, message)
    message = rf"^target.* {value} .*\[0, 2\).* 1 .*sample 0\b.*position 8\b{hint}"
    check(partial(make(name), LOGITS[:, 3], target[:, 3]), IndexError, message)


def test_label_minus_100_is_ignored_by_cross_entropy_alone() -> None:
    target = replaced(LABELS, -100, (0, 1, 2))
    assert sf.CrossEntropyLoss()(LOGITS, target).isfinite()
    for loss in (sf.DiceLoss("multiclass"), sf.FocalLoss("multiclass"), sf.CrossEntropyLoss(ignore_index=None)):
        check(partial(loss, LOGITS, target), IndexError, r" -100 .* 1 .*sample 0 .*position 6\b.*ignore_index=-100\b")


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_label_of_many_chunks(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    logits = torch.zeros(1, 1, 1, 1).expand(3, 2, 600, 500)
    try:
        for target in (torch.zeros(3, 600, 500, dtype=torch.int16), torch.zeros(600, 500, 3).byte().movedim(2, 0)):
            target[1, 311, 7], target[1, 312:, 3:], target[2] = 9, 200, 31
            message = rf" 9 .*\[0, 2\).* {1 + 288 * 497 + 600 * 500} .*sample 1 .*position {311 * 500 + 7}\b"
            check(partial(sf.CrossEntropyLoss(), logits, target), IndexError, message)
    finally:
        torch.set_num_threads(before)


def test_labels_that_change_before_backward() -> None:
    for change, error, message in (
        (lambda t: t.fill_(77), RuntimeError, "modified by an inplace operation"),
        (lambda t: t.data.fill_(77), IndexError, r" 77 .*\[0, 5\).* 24 "),
    ):
        target, logits = LABELS.clone(), LOGITS.clone().requires_grad_()
        loss = (sf.DiceLoss("multiclass") + sf.CrossEntropyLoss())(logits, target)
        change(target)
        check(loss.backward, error, message)


@pytest.mark.parametrize("mode", ["binary", "multilabel", "multiclass"])
def test_check_target_says_what_the_kernels_cannot(mode: str) -> None:
    logits = torch.randn(2, 1 if mode == "binary" else 3, 4, 5)
    target = torch.ones((2, 4, 5) if mode == "multiclass" else logits.shape, dtype=torch.uint8)
    assert sf.check_target(logits, target, mode=mode) is None
    target.flatten()[7] = 255
    with pytest.raises(
        IndexError, match=r"label 255 is outside .* 1 such label.* position 7; did you mean ignore_index"
    ):
        sf.check_target(logits, target, mode=mode)
    assert sf.check_target(logits, target, mode=mode, ignore_index=255) is None
    with pytest.raises(ValueError, match="shape"):
        sf.check_target(logits, target[:1], mode=mode)
    with pytest.raises(ValueError, match="target is on meta"):
        sf.check_target(logits, target.to("meta"), mode=mode)
