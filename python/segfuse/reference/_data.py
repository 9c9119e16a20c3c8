"""Every reference loss starts with `prepare` (checks, canonical shapes, link) and ends with `reduce_pixels`.

Canonical shapes: logits and target are (N, C, M), with C = 1 in binary; weight is (N, 1, M) in multiclass, else
(N, C, M). Ignored pixels are replaced before the link, and factors of 0 are handled before every product, because
0 times inf is NaN. p and 1 - p are computed apart, so value and gradient keep their digits where one of them is tiny.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Values: TypeAlias = float | Sequence[float] | Tensor

if TYPE_CHECKING:
    from typing import TypedDict

    class DataOptions(TypedDict, total=False):
        weight: Tensor | None
        from_logits: bool
        ignore_index: int | None
        reduction: str


# ---------------------------------------------------------------------------------------------------------- checks


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def require_one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    require(value in choices, f"{name} must be one of {choices}, got {value!r}")


def vector(name: str, values: Values, count: int, like: Tensor, *, scalar: bool = False) -> Tensor:
    """`values` as a (C, 1) column that lines up with (N, C, M); `scalar` also allows one value for all."""
    column = torch.as_tensor(values, dtype=like.dtype, device=like.device).reshape(-1, 1)
    sizes = (1, count) if scalar else (count,)
    require(column.numel() in sizes, f"{name} must have {count} values (one per class), got {column.numel()}")
    return column


def _index_error(name: str, values: Tensor, bad: Tensor, limits: str, wraps: bool) -> IndexError:
    where = tuple(bad.nonzero()[0].tolist())
    value = values[where].item()
    shown = f"{value:.9g}" if values.is_floating_point() else str(value % 2**64 if wraps else value)
    hint = f"; did you mean ignore_index={shown}?" if name == "target" and shown in ("255", "-100") else ""
    return IndexError(f"{name}: value {shown} at {where} is outside {limits}, {int(bad.sum())} in all{hint}")


def _is_probability(x: Tensor) -> Tensor:
    """Whether x is in [0, 1], up to a rounding error of interpolation. False for NaN."""
    return (x >= -1e-4) & (x <= 1.0001)


# ------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class Data:
    """The data of a call, in canonical shapes."""

    z: Tensor  # the logits; the probabilities with from_logits=False
    p: Tensor
    q: Tensor  # 1 - p
    log_p: Tensor
    log_q: Tensor
    t: Tensor
    w: Tensor  # 0 exactly where ignored
    is_map: bool  # True: the target was a label map, not one-hot or soft labels
    shape: torch.Size  # of the logits as given
    reduction: str


def _graft(value: Tensor, slope: Tensor) -> Tensor:
    """A tensor with the value of `value` and the derivatives (of every order) of `slope`."""
    return slope + (value - slope).detach()


def _log(p: Tensor) -> Tensor:
    """log p of a probability, as in torch's BCE: the value is at least -100, the derivative is 1 / max(p, 1e-12)."""
    slope = torch.where(p > 1e-12, p.clamp_min(1e-12).log(), p / 1e-12)
    return _graft(p.clamp_min(0.0).log().clamp_min(-100.0), slope)


def _link(z: Tensor, mode: str, from_logits: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p, q = 1 - p, log p, log q."""
    if not from_logits:  # z may be outside [0, 1] by a rounding error
        return _graft(z.clamp_min(0.0), z), _graft((1 - z).clamp_min(0.0), 1 - z), _log(z), _log(1 - z)
    if mode != "multiclass":
        log_p, log_q = functional.logsigmoid(z), functional.logsigmoid(-z)
        # autograd's slope of sigmoid is p (1 - p), which loses digits of 1 - p. The slope of exp(log p) is p q.
        return _graft(z.sigmoid(), log_p.exp()), _graft((-z).sigmoid(), log_q.exp()), log_p, log_q
    log_p = functional.log_softmax(z, 1)
    p = log_p.exp()
    # Only the largest p can be near 1. Its q is the sum of the other p; for the others 1 - p loses no digits.
    top = torch.zeros_like(p, dtype=torch.bool).scatter(1, z.argmax(1, keepdim=True), True)
    others = torch.where(top, 0.0, p)
    rest = others.sum(1, keepdim=True)
    q = torch.where(top, rest, 1 - others)
    log_q = torch.where(top, rest.clamp_min(torch.finfo(p.dtype).tiny).log(), torch.log1p(-others))
    return p, q, torch.where(top, torch.log1p(-rest), log_p), log_q


def _pixel_weight(weight: Tensor | None, logits: Tensor, mode: str) -> Tensor:
    shape = logits.shape
    grid = (shape[0], 1, *shape[2:]) if mode == "multiclass" else shape
    if weight is None:
        return torch.ones(grid, device=logits.device)
    w = weight
    if w.ndim == 1 and logits.ndim > (1 if mode == "binary" else 2) and w.shape[0] != 1:  # one per sample
        require(
            w.shape[0] == shape[0], f"weight of shape {tuple(w.shape)} must have {shape[0]} numbers, one per sample"
        )
        w = w.reshape(-1, *[1] * (logits.ndim - 1))
    elif w.ndim == logits.ndim - 1 and (
        mode != "binary" or shape[1:2] == (1,)
    ):  # logits (N, H, W) have no channel axis
        w = w.unsqueeze(1)
    elif mode == "binary" and w.ndim == logits.ndim + 1 and w.shape[1] == 1:
        w = w.squeeze(1)
    try:
        return w.expand(grid)
    except RuntimeError:
        message = f"weight of shape {tuple(weight.shape)} does not broadcast to {tuple(grid)}"
        raise ValueError(f"{message} (logits {tuple(shape)}, mode {mode!r})") from None


def prepare(
    logits: Tensor,
    target: Tensor,
    *,
    mode: str,
    weight: Tensor | None = None,
    from_logits: bool = True,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Data:
    require_one_of("mode", mode, ("binary", "multilabel", "multiclass"))
    require_one_of("reduction", reduction, ("mean", "sum", "none", "sample"))
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    for name, x in (("target", target), ("weight", weight)):
        if x is not None:
            if x.is_complex():
                raise TypeError(f"{name} must be real, got {x.dtype}")
            require(not x.requires_grad, f"{name} must not require grad")
            near = x.device == logits.device or x.ndim == 0
            require(near, f"{name} is on {x.device}, logits are on {logits.device}")

    shape, binary = logits.shape, mode == "binary"
    require(logits.ndim >= (1 if binary else 2), f"logits of shape {tuple(shape)} do not fit mode {mode!r}")
    n, c, m = (shape[0], 1, math.prod(shape[1:])) if binary else (shape[0], shape[1], math.prod(shape[2:]))
    require(c >= (2 if mode == "multiclass" else 1), f"mode {mode!r} got {c} classes (for one class use 'binary')")
    squeezed, column = (n, *shape[2:]), (n, 1, *shape[2:])
    is_map = mode == "multiclass" and target.shape in (squeezed, column)
    fits = is_map or target.shape == shape
    if binary:
        fits = fits or target.shape == (n, 1, *shape[1:]) or (shape[1:2] == (1,) and target.shape == squeezed)
    require(fits, f"target of shape {tuple(target.shape)} does not fit logits {tuple(shape)} in mode {mode!r}")
    if mode == "multiclass" and not is_map:
        require(ignore_index in (None, -100), f"ignore_index={ignore_index} needs a label map; use weight instead")
        ignore_index = None

    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    values = target if target.is_floating_point() else target.long()
    wraps = target.dtype == torch.uint64  # values from 2^63 on become negative
    if wraps and ignore_index is not None and ignore_index < 0:
        ignore_index = None
    ignored = torch.zeros_like(values, dtype=torch.bool) if ignore_index is None else values == ignore_index
    limit = c if is_map else 2
    channels, grid = 1 if is_map else c, 1 if mode == "multiclass" else c
    values, ignored = values.reshape(n, channels, m), ignored.reshape(n, channels, m)
    w = _pixel_weight(weight, logits, mode).to(logits.device, dtype).reshape(n, grid, m)
    valid = ~ignored[:, :grid] & (w != 0)
    given = logits.reshape(n, c, m).to(dtype)
    in_range = (values >= 0) & (values < limit)
    checks = [("target", values, ~ignored & ~in_range, f"[0, {limit})")]
    if is_map and target.is_floating_point():
        checks.append(("target", values, ~ignored & (values != values.floor()), f"the whole numbers of [0, {limit})"))
    elif target.is_floating_point():
        checks = [("target", values, valid & ~_is_probability(values), "[0, 1]")]
    if not from_logits:  # NaN is no error: it reaches the loss
        checks.append(("logits", given.detach(), valid & ~_is_probability(given) & ~given.isnan(), "[0, 1]"))
    reads = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    for name, numbers, bad, limits in checks if reads else ():
        if bool(bad.any()):
            raise _index_error(name, numbers, bad, limits, wraps)
    if is_map:
        values = values == torch.arange(c, device=values.device)[:, None]
    z = torch.where(valid, given, 0.0)
    if not reads:  # reading `bad` would wait for a device or break a graph, so here a bad value makes everything NaN
        for _, _, bad, _ in checks:
            z = z * torch.where(bad.any(), math.nan, 1.0).to(dtype)
    p, q, log_p, log_q = _link(z, mode, from_logits)
    t = torch.where(valid, values.to(dtype), 0.0)
    return Data(z, p, q, log_p, log_q, t, torch.where(valid, w, 0.0), is_map, shape, reduction)


# ------------------------------------------------------------------------------------------------------- reducers


def ratio(num: Tensor, den: Tensor) -> Tensor:
    """num / den. Where den is 0 the value and the gradient are 0."""
    empty = den == 0
    return torch.where(empty, 0.0, num / torch.where(empty, 1.0, den))


def reduce(values: Tensor, weights: Tensor, reduction: str) -> Tensor:
    """The loss from `values`, which are already multiplied by their weights. Dimension 0 is the sample."""
    if reduction == "sum":
        return values.sum()
    if reduction == "sample":
        return ratio(values.flatten(1).sum(1), weights.flatten(1).sum(1))
    return ratio(values.sum(), weights.sum()) if reduction == "mean" else values


def reduce_pixels(data: Data, loss: Tensor, class_weight: Tensor | float = 1.0) -> Tensor:
    """Reduces a loss (N, C, M), or (N, 1, M) if the classes are summed. class_weight is only in the denominator."""
    values = data.w * loss
    if data.reduction == "none":
        per_class = values.shape[1] == data.p.shape[1]
        return values.reshape(data.shape if per_class else data.shape[:1] + data.shape[2:])
    return reduce(values, (data.w * class_weight).expand_as(values), data.reduction)
