"""Kernel calls: from plain tensors of a device to addresses, sizes and strides."""

from __future__ import annotations

from contextvars import ContextVar
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from segfuse import _C
from segfuse._checks import is_soft
from segfuse._native import DTYPE_CODE, cuda_module
from segfuse._plan import Plan

_Native: TypeAlias = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def _native(tensor: Tensor) -> _Native:
    return tensor.data_ptr(), DTYPE_CODE[tensor.dtype], tensor.shape, tensor.stride()


def _optional(tensor: Tensor | None) -> _Native | None:
    return None if tensor is None else _native(tensor)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _sized(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())


class Engine(Protocol):
    """The kernels of a device. ``inputs``: logits, target, weight, softness; ``constants``: addresses."""

    def forward(
        self,
        plan: Plan,
        inputs: tuple[_Native, _Native, _Native | None, bool],
        constants: tuple[int, int],
        outputs: tuple[Tensor, Tensor, Tensor, Tensor | None],
        differentiated: Tensor | None,
    ) -> Tensor | None:
        """Fill loss, terms, slopes and, if asked, the sums.

        Perhaps give the gradient in the differentiated logits, for `backward`.
        """

    def backward(
        self,
        plan: Plan,
        inputs: tuple[_Native, _Native, _Native | None, bool],
        tables: int,
        slopes: Tensor,
        upstream: tuple[int, _Native | None],
        gradient: Tensor,
        ahead: bool,
    ) -> None:
        """Fill the gradient; ``ahead``: it is what `forward` gave."""

    def warmup(self, device: torch.device) -> None:
        """Load what a first call would load."""


class CpuEngine:
    """segfuse._C."""

    def warmup(self, device: torch.device) -> None:
        """See `Engine`."""

    def forward(self, plan: Plan, inputs: Any, constants: Any, outputs: Any, differentiated: Any) -> Tensor | None:
        """See `Engine`."""
        loss, terms, slopes, sums = outputs
        unreduced = _native(loss) if plan.unreduced else None
        addresses = loss.data_ptr(), terms.data_ptr(), slopes.data_ptr(), slopes.numel() - 1, *_sized(sums)
        arguments: Any = *inputs, *constants, unreduced, *addresses, torch.get_num_threads()
        _C.forward(plan.native, *arguments)
        return None

    def backward(
        self, plan: Plan, inputs: Any, tables: int, slopes: Tensor, upstream: Any, gradient: Tensor, ahead: bool
    ) -> None:
        """See `Engine`."""
        addresses = slopes.data_ptr(), slopes.numel() - 1
        arguments: Any = *inputs, tables, *addresses, *upstream, _native(gradient), torch.get_num_threads()
        _C.backward(plan.native, *arguments)


class CudaEngine:
    """segfuse._cuda, on the tensors' device and its current stream."""

    def __init__(self, module: ModuleType) -> None:
        self.module: Any = module
        # Per plan and device: the native plan, and the address of its lists of classes there.
        self._plans: dict[tuple[str, torch.device], tuple[Any, Tensor | None]] = {}

    def _plan(self, plan: Plan, device: torch.device) -> tuple[Any, Tensor | None]:
        found = self._plans.get((plan.spec, device))
        if found is None:
            native = self.module.Plan(plan.lowered)
            classes = torch.tensor(native.classes, dtype=torch.int64, device=device) if native.classes else None
            found = self._plans[plan.spec, device] = native, classes
        return found

    def forward(self, plan: Plan, inputs: Any, constants: Any, outputs: Any, differentiated: Any) -> Tensor | None:
        """See `Engine`. The workspace is torch's, of the current stream: freed on return, used until then."""
        loss, terms, slopes, sums = outputs
        device = slopes.device
        native, classes = self._plan(plan, device)
        count = self.module.workspace_size(native, inputs[0][2])
        workspace = torch.empty(count, dtype=torch.float64, device=device)
        wanted = scheme.get()
        # Whether a gradient written ahead may be of use; csrc/cuda/policy.cu decides.
        ahead = differentiated is not None and not plan.unreduced and not (wanted == "auto" and plan.regions)
        gradient = torch.empty_like(differentiated) if ahead else None
        with _on(device):
            written: bool = self.module.forward(
                native,
                *inputs,
                *constants,
                _address(classes),
                _native(loss) if plan.unreduced else _optional(gradient),
                loss.data_ptr(),
                terms.data_ptr(),
                slopes.data_ptr(),
                slopes.numel() - 1,
                *_sized(sums),
                _last(slopes),
                workspace.data_ptr(),
                count,
                SCHEMES.index(wanted),
                _stream(device),
            )
        return gradient if written else None

    def backward(
        self, plan: Plan, inputs: Any, tables: int, slopes: Tensor, upstream: Any, gradient: Tensor, ahead: bool
    ) -> None:
        """See `Engine`."""
        device = slopes.device
        native, classes = self._plan(plan, device)
        arguments = slopes.data_ptr(), slopes.numel() - 1, *upstream, _native(gradient), _last(slopes) if ahead else 0
        with _on(device):
            self.module.backward(native, *inputs, tables, _address(classes), *arguments, _stream(device))

    def warmup(self, device: torch.device) -> None:
        """See `Engine`."""
        with _on(device):
            self.module.warmup()


def _last(slopes: Tensor) -> int:
    """The address of the number after the slopes: whether a gradient that was written ahead is right as it is."""
    return slopes.data_ptr() + (slopes.numel() - 1) * slopes.element_size()


# How the gradient comes about on CUDA (csrc/cuda/steps.h), for tests and benches: `segfuse._native.scheme`.
SCHEMES = ("auto", "two_pass", "gradient_in_forward", "sample_serial")
scheme: ContextVar[str] = ContextVar("scheme", default="auto")


class _Nowhere:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_nowhere = _Nowhere()


def _on(device: torch.device) -> Any:
    """A raw launch goes to the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return _nowhere
    return torch.cuda.device(device)


_raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def _stream(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    if _raw_stream is None:
        return int(torch.cuda.current_stream(device).cuda_stream)
    return int(_raw_stream(device.index))


# By device, each GPU its own, made with the first tensor there. And why there is none, where there is none.
engines: dict[str, Engine | None] = {"cpu": CpuEngine()}
reasons: dict[str, str] = {}


def engine_of(device: torch.device) -> Engine | None:
    """The engine of a device, None where there are no kernels for it."""
    key = device.type if device.type != "cuda" else str(device)
    if key not in engines:
        engines[key] = _new_cuda_engine(device) if device.type == "cuda" and torch.version.hip is None else None
    return engines[key]


def _new_cuda_engine(device: torch.device) -> CudaEngine | None:
    module = cuda_module()
    with _on(device):
        reason = "this build holds no CUDA kernels" if module is None else module.unusable()
    if module is None or reason:
        reasons[str(device)] = reason
        return None
    return CudaEngine(module)


@torch.compiler.assume_constant_result
def has_kernels(device: str) -> bool:
    """Whether there are kernels for a device. A constant to Dynamo."""
    return engine_of(torch.device(device)) is not None


def required_engine(device: torch.device) -> Engine:
    """The engine of a device, or an error that says why there is none."""
    engine = engine_of(device)
    if engine is None:
        raise RuntimeError(f"segfuse has no kernels for {device}: {reasons.get(str(device), 'not a CUDA device')}")
    return engine


def _inputs(
    plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None
) -> tuple[_Native, _Native, _Native | None, bool]:
    soft = plan.mode == "multiclass" and is_soft(logits, target)
    return _native(logits), _native(target), _optional(weight), soft


def forward(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    tables: Tensor | None,
    coefficients: Tensor | None,
    wants_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Loss, terms and slopes; and the gradient if it is wanted and came with them: `backward` takes it once."""
    shape = logits.shape
    dtype = plan.loss_dtype(logits)
    loss_shape = plan.loss_shape(shape)
    device = logits.device  # named, for `with torch.device(...)` would put them elsewhere
    loss = torch.empty(loss_shape, dtype=dtype, device=device)
    terms = torch.empty([len(plan.terms), *(() if plan.unreduced else loss_shape)], dtype=torch.float64, device=device)
    slopes = torch.empty(plan.slope_count(shape), dtype=dtype, device=device)
    if tables is not None:
        tables = tables.contiguous()
    if coefficients is not None:
        coefficients = coefficients.contiguous()
    gradient = required_engine(device).forward(
        plan,
        _inputs(plan, logits, target, weight),
        (_address(tables), _address(coefficients)),
        (loss, terms, slopes, None),
        logits if wants_gradient else None,
    )
    return loss, terms, slopes, gradient


def backward(
    plan: Plan,
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    tables: Tensor | None,
    slopes: Tensor,
    ahead: Tensor | None = None,
) -> Tensor:
    """The gradient in the logits, of their dtype and layout; ``ahead``: what `forward` gave of it."""
    gradient = torch.empty_like(logits) if ahead is None else ahead
    if not plan.unreduced:
        grad_loss = grad_loss.contiguous()
    if tables is not None:
        tables = tables.contiguous()
    required_engine(logits.device).backward(
        plan,
        _inputs(plan, logits, target, weight),
        _address(tables),
        slopes,
        (0, _native(grad_loss)) if plan.unreduced else (grad_loss.data_ptr(), None),
        gradient,
        ahead is not None,
    )
    return gradient


def statistics(plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """tp, fp, fn, tn of every sample and class, (N, C, 4), of a plan with one sensitivity_specificity_loss alone."""
    shape = logits.shape
    dtype, device = plan.loss_dtype(logits), logits.device
    classes = 1 if plan.mode == "binary" else shape[1]
    joint = plan.mode == "multiclass"
    # Of a sample: its weight, then four sums per class; of a row: its weight and four sums (csrc/problem.h).
    layout = (shape[0], 1 + 4 * classes) if joint else (shape[0], classes, 5)
    sums = torch.zeros(layout, dtype=torch.float64, device=device)
    loss = torch.empty([], dtype=dtype, device=device)
    terms = torch.empty([1], dtype=torch.float64, device=device)
    slopes = torch.empty(plan.slope_count(shape), dtype=dtype, device=device)
    if sums.numel():
        engine, inputs = required_engine(device), _inputs(plan, logits, target, weight)
        engine.forward(plan, inputs, (0, 0), (loss, terms, slopes, sums), None)
    if joint:
        total, rows = sums[:, :1], sums[:, 1:].reshape(shape[0], classes, 4)
    else:
        total, rows = sums[..., 0], sums[..., 1:]
    tp, fp, fn, negatives = rows.unbind(-1)
    positives = tp + fn
    if joint and not is_soft(logits, target):  # a label map: of the other classes, added without cancellation
        nothing = positives.new_zeros(shape[0], 1)
        before = torch.cat([nothing, positives[:, :-1]], 1).cumsum(1)
        after = torch.cat([nothing, positives.flip(1)[:, :-1]], 1).cumsum(1).flip(1)
        negatives = before + after
    else:
        negatives = torch.where(positives <= total / 2, total - positives, negatives)
    tn = torch.where(negatives < fp, 0.0, negatives - fp)  # rounding leaves no less than nothing; NaN stays
    return torch.stack([tp, fp, fn, tn], -1).to(dtype)


def statistics_slopes(plan: Plan, grad: Tensor, slope_count: int) -> Tensor:
    """The slopes (csrc/problem.h) of a function of the statistics, from its gradient in them, (N, C, 4)."""
    tp, fp, fn, tn = grad.unbind(-1)
    zero = torch.zeros_like(tp)
    slopes = torch.stack([tp - fn, fp - tn, zero, zero, zero, zero], -1).flatten()
    return torch.cat([slopes, slopes.new_zeros(slope_count - slopes.numel())])


def coefficient_gradient(grad_loss: Tensor, terms: Tensor) -> Tensor:
    """The gradient in the coefficients, from the terms (one row per term)."""
    return (terms * grad_loss).reshape(terms.shape[0], -1).sum(1)
