"""Kernel calls: from plain tensors of a device to addresses, sizes and strides."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, distributed

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


_Inputs: TypeAlias = tuple[_Native, _Native, _Native | None, bool]

# The halves of the head (csrc/head.h): to the vector, and on from it.
GATHER, FINISH = 1, 2


class HeadMemory(NamedTuple):
    """What the head reads, keeps between its halves, and leaves in between; float64."""

    sums: Tensor
    workspace: Tensor
    vector: Tensor


class HeadSizes(NamedTuple):
    """Of `HeadMemory`, for logits of a shape."""

    sums: int
    workspace: int
    vector: int


class Engine(Protocol):
    """The kernels of a device. ``inputs``: logits, target, weight, softness; ``constants``: addresses."""

    joins_samples: bool
    """Whether samples that no term tells apart are read as one (`Plan.joined`)."""

    def constant(self, numbers: Tensor, device: torch.device) -> Tensor:
        """A few numbers of the widest type, where the kernels read them; they may lie on the host."""

    def forward(
        self,
        plan: Plan,
        inputs: _Inputs,
        constants: tuple[int, int],
        outputs: tuple[Tensor, Tensor, Tensor],
        gradient: Tensor | None,
    ) -> bool:
        """Fill loss, terms and slopes; and perhaps the gradient, or what `backward` makes it of: then say so."""

    def may_write_ahead(self, plan: Plan, logits: Tensor) -> bool:
        """Whether `forward` may have a use for the gradient's place; the native side decides."""

    def head_sizes(self, plan: Plan, shape: torch.Size) -> HeadSizes:
        """For logits of a shape."""

    def statistics(self, plan: Plan, inputs: _Inputs, tables: int, sums: Tensor) -> None:
        """The first step of `forward` alone."""

    def head(
        self,
        plan: Plan,
        shape: torch.Size,
        label_map: bool,
        constants: tuple[int, int],
        memory: HeadMemory,
        outputs: tuple[Tensor, Tensor, Tensor],
        parts: int,
    ) -> None:
        """The second step of `forward`, or a half of it."""

    def backward(
        self,
        plan: Plan,
        inputs: _Inputs,
        tables: int,
        slopes: Tensor,
        upstream: tuple[int, _Native | None],
        gradient: Tensor,
        ahead: bool,
    ) -> None:
        """Fill the gradient; ``ahead``: it is what `forward` gave."""

    def warmup(self, device: torch.device) -> None:
        """Load what a first call would load."""


def _doubles(count: int, device: torch.device) -> Tensor:
    return torch.empty(count, dtype=torch.float64, device=device)


class CpuEngine:
    """segfuse._C."""

    joins_samples = False

    def constant(self, numbers: Tensor, device: torch.device) -> Tensor:
        """See `Engine`."""
        return numbers.contiguous()

    def warmup(self, device: torch.device) -> None:
        """See `Engine`."""

    def forward(self, plan: Plan, inputs: Any, constants: Any, outputs: Any, gradient: Tensor | None) -> bool:
        """See `Engine`."""
        loss, terms, slopes = outputs
        output = _native(loss) if plan.unreduced else _optional(gradient)
        addresses = loss.data_ptr(), terms.data_ptr(), slopes.data_ptr(), slopes.numel() - 1
        arguments: Any = *inputs, *constants, output, *addresses, torch.get_num_threads()
        return bool(_C.forward(plan.native, *arguments))

    def may_write_ahead(self, plan: Plan, logits: Tensor) -> bool:
        """See `Engine`. csrc/cpu/steps.cpp decides."""
        return not plan.unreduced and scheme.get() != "two_pass" and logits.dtype == torch.float32

    def head_sizes(self, plan: Plan, shape: torch.Size) -> HeadSizes:
        """See `Engine`."""
        native = plan.native
        return HeadSizes(_C.sum_count(native, shape), _C.workspace_size(native, shape), _C.vector_size(native, shape))

    def statistics(self, plan: Plan, inputs: Any, tables: int, sums: Tensor) -> None:
        """See `Engine`."""
        arguments: Any = *inputs, tables, sums.data_ptr(), sums.numel(), torch.get_num_threads()
        _C.statistics(plan.native, *arguments)

    def head(
        self,
        plan: Plan,
        shape: torch.Size,
        label_map: bool,
        constants: Any,
        memory: HeadMemory,
        outputs: Any,
        parts: int,
    ) -> None:
        """See `Engine`."""
        wide = outputs[0].dtype == torch.float64
        arguments: Any = shape, label_map, wide, *_head_arguments(constants, memory, outputs), parts
        _C.head(plan.native, *arguments)

    def backward(
        self, plan: Plan, inputs: Any, tables: int, slopes: Tensor, upstream: Any, gradient: Tensor, ahead: bool
    ) -> None:
        """See `Engine`."""
        addresses = slopes.data_ptr(), slopes.numel() - 1
        arguments: Any = *inputs, tables, *addresses, *upstream, _native(gradient), ahead, torch.get_num_threads()
        _C.backward(plan.native, *arguments)


def _head_arguments(constants: Any, memory: HeadMemory, outputs: Any) -> tuple[int, ...]:
    loss, terms, slopes = outputs
    sums, workspace, vector = memory
    kept = workspace.data_ptr(), workspace.numel(), vector.data_ptr(), vector.numel()
    return (
        *constants,
        sums.data_ptr(),
        *kept,
        loss.data_ptr(),
        terms.data_ptr(),
        slopes.data_ptr(),
        slopes.numel() - 1,
    )


class CudaEngine:
    """segfuse._cuda, on the tensors' device and its current stream.

    It keeps nothing there: what a call needs is made in the call, so that it may lie in the memory of a graph, and is
    given back on the stream that used it.
    """

    joins_samples = True

    def __init__(self, module: ModuleType) -> None:
        self.module: Any = module

    def constant(self, numbers: Tensor, device: torch.device) -> Tensor:
        """See `Engine`. From the host they travel as the arguments of a kernel: a copy would wait for the device."""
        numbers = numbers.detach()
        if not numbers.is_cpu:
            return numbers.contiguous()
        numbers = numbers.double().contiguous()
        found = torch.empty_like(numbers, device=device)
        with _on(device):
            self.module.write_words(found.data_ptr(), numbers.data_ptr(), numbers.numel(), _stream(device))
        return found

    def _classes(self, plan: Plan, device: torch.device) -> Tensor | None:
        """The terms' lists of classes."""
        if not plan.listed_classes:
            return None
        found = torch.empty(plan.listed_classes, dtype=torch.int64, device=device)
        with _on(device):
            self.module.write_classes(plan.native_of(self.module), found.data_ptr(), _stream(device))
        return found

    def may_write_ahead(self, plan: Plan, logits: Tensor) -> bool:
        """See `Engine`. csrc/cuda/policy.cu decides."""
        return not plan.unreduced and not (scheme.get() == "auto" and plan.regions)

    def forward(self, plan: Plan, inputs: Any, constants: Any, outputs: Any, gradient: Tensor | None) -> bool:
        """See `Engine`. The workspace is torch's, of the current stream: freed on return, used until then."""
        loss, terms, slopes = outputs
        device = slopes.device
        native, classes = plan.native_of(self.module), self._classes(plan, device)
        count = self.module.workspace_size(native, inputs[0][2])
        workspace = _doubles(count, device)
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
                workspace.data_ptr(),
                count,
                SCHEMES.index(scheme.get()),
                _stream(device),
            )
        return written

    def head_sizes(self, plan: Plan, shape: torch.Size) -> HeadSizes:
        """See `Engine`."""
        module, native = self.module, plan.native_of(self.module)
        kept = module.head_workspace_size(native, shape), module.vector_size(native, shape)
        return HeadSizes(module.sum_count(native, shape), *kept)

    def statistics(self, plan: Plan, inputs: Any, tables: int, sums: Tensor) -> None:
        """See `Engine`."""
        device, native = sums.device, plan.native_of(self.module)
        partial = _doubles(self.module.partial_size(native, inputs[0][2]), device)
        sizes = sums.data_ptr(), sums.numel(), partial.data_ptr(), partial.numel()
        with _on(device):
            self.module.statistics(native, *inputs, tables, *sizes, _stream(device))

    def head(
        self,
        plan: Plan,
        shape: torch.Size,
        label_map: bool,
        constants: Any,
        memory: HeadMemory,
        outputs: Any,
        parts: int,
    ) -> None:
        """See `Engine`."""
        slopes = outputs[2]
        device, wide = slopes.device, outputs[0].dtype == torch.float64
        native, classes = plan.native_of(self.module), self._classes(plan, device)
        tables, coefficients, *rest = _head_arguments(constants, memory, outputs)
        arguments = tables, coefficients, _address(classes), *rest, parts
        with _on(device):
            self.module.head(native, shape, label_map, wide, *arguments, _stream(device))

    def backward(
        self, plan: Plan, inputs: Any, tables: int, slopes: Tensor, upstream: Any, gradient: Tensor, ahead: bool
    ) -> None:
        """See `Engine`."""
        device, native = slopes.device, plan.native_of(self.module)
        classes = self._classes(plan, device) if plan.reduction == "none" else None
        arguments = slopes.data_ptr(), slopes.numel() - 1, *upstream, _native(gradient), ahead
        with _on(device):
            self.module.backward(native, *inputs, tables, _address(classes), *arguments, _stream(device))

    def warmup(self, device: torch.device) -> None:
        """See `Engine`."""
        with _on(device):
            self.module.warmup()


# How the gradient comes about on CUDA (csrc/cuda/steps.h), for tests and benches: `segfuse._native.scheme`.
SCHEMES = ("auto", "two_pass", "gradient_in_forward")
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


def _inputs(plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None, joined: bool = False) -> _Inputs:
    soft, multilabel = plan.mode == "multiclass" and is_soft(logits, target), plan.mode == "multilabel"
    if joined:
        logits, target = _join(logits, plan.mode != "binary"), _join(target, multilabel or soft)
        weight = None if weight is None else _join(weight, multilabel)
    return _native(logits), _native(target), _optional(weight), soft


def _outputs(
    plan: Plan, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, terms and slopes, to be filled. The device is named, for `with torch.device(...)` would choose another."""
    loss_shape = plan.loss_shape(shape)
    loss = torch.empty(loss_shape, dtype=dtype, device=device)
    terms = torch.empty([len(plan.terms), *(() if plan.unreduced else loss_shape)], dtype=torch.float64, device=device)
    return loss, terms, torch.empty(plan.slope_count(shape), dtype=dtype, device=device)


def forward(
    plan: Plan,
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    tables: Tensor | None,
    coefficients: Tensor | None,
    wants_gradient: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Loss, terms and slopes; and perhaps, if the gradient is wanted, what `backward` makes it of, once."""
    group = None if plan.process_group is None or plan.unreduced else resolved_group(plan.process_group)
    if group is not None and distributed.get_world_size(group) > 1:  # a group of one is none, bit for bit
        sums = statistics(plan, logits, target, weight, tables)
        label_map = plan.mode == "multiclass" and not is_soft(logits, target)
        dtype = plan.loss_dtype(logits)
        return *head(plan, logits.shape, dtype, label_map, sums, tables, coefficients), None
    engine, device = required_engine(logits.device), logits.device
    shape = plan.joined(logits.shape) if engine.joins_samples else logits.shape
    joined = shape != logits.shape
    outputs = _outputs(plan, shape, plan.loss_dtype(logits), device)
    tables, coefficients = _constant(engine, tables, device), _constant(engine, coefficients, device)
    gradient = torch.empty_like(logits) if wants_gradient and engine.may_write_ahead(plan, logits) else None
    written = engine.forward(
        plan,
        _inputs(plan, logits, target, weight, joined),
        (_address(tables), _address(coefficients)),
        outputs,
        _join(gradient, plan.mode != "binary") if joined and gradient is not None else gradient,
    )
    return *outputs, gradient if written else None


def _constant(engine: Engine, numbers: Tensor | None, device: torch.device) -> Tensor | None:
    return None if numbers is None else engine.constant(numbers, device)


def _join(tensor: Tensor, has_classes: bool) -> Tensor:
    """A view of a tensor in which the samples of a batch are one (`Plan.joined`)."""
    return (tensor.movedim(1, 0) if has_classes else tensor).unsqueeze(0)


def statistics(
    plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None, tables: Tensor | None = None
) -> Tensor:
    """The sums of every unit (csrc/problem.h), float64 and flat: what calls over parts of the same samples add."""
    engine = required_engine(logits.device)
    tables = _constant(engine, tables, logits.device)
    sums = _doubles(engine.head_sizes(plan, logits.shape).sums, logits.device)
    engine.statistics(plan, _inputs(plan, logits, target, weight), _address(tables), sums)
    return sums


def head(
    plan: Plan,
    shape: torch.Size,
    dtype: torch.dtype,
    label_map: bool,
    sums: Tensor,
    tables: Tensor | None,
    coefficients: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, terms and slopes from the sums for logits of a shape, over all ranks of the plan's process group.

    One collective, of the sums where ranks share samples, else of a vector that is short for any number of samples.
    """
    device = sums.device
    engine, outputs = required_engine(device), _outputs(plan, shape, dtype, device)
    sizes = engine.head_sizes(plan, shape)
    memory = HeadMemory(sums, _doubles(sizes.workspace, device), _doubles(sizes.vector, device))
    tables, coefficients = _constant(engine, tables, device), _constant(engine, coefficients, device)
    constants = _address(tables), _address(coefficients)
    group = None if plan.process_group is None else resolved_group(plan.process_group)
    if group is not None and plan.shard == "space":
        distributed.all_reduce(sums, group=group)
    engine.head(plan, shape, label_map, constants, memory, outputs, GATHER)
    if group is not None and plan.shard == "batch":
        distributed.all_reduce(memory.vector, group=group)
    engine.head(plan, shape, label_map, constants, memory, outputs, FINISH)
    if group is not None and plan.averaged and (plan.shard == "space" or plan.is_global):
        outputs[2].mul_(distributed.get_world_size(group))  # what averages gradients over ranks divides by it
    return outputs


def resolved_group(name: str) -> Any:
    """The process group of a name."""
    from torch.distributed import distributed_c10d

    if not distributed.is_initialized():
        raise RuntimeError(f"process_group {name!r}: torch.distributed is not initialized in this process")
    resolve: Any = distributed_c10d._resolve_process_group  # type: ignore[attr-defined]
    return resolve(name)


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
    engine = required_engine(logits.device)
    shape = plan.joined(logits.shape) if engine.joins_samples else logits.shape
    # Slopes of one sample are those of `forward`; of all samples, those of `head`.
    joined = shape != logits.shape and slopes.numel() == plan.slope_count(shape)
    tables = _constant(engine, tables, logits.device)
    engine.backward(
        plan,
        _inputs(plan, logits, target, weight, joined),
        _address(tables),
        slopes,
        (0, _native(grad_loss)) if plan.unreduced else (grad_loss.data_ptr(), None),
        _join(gradient, plan.mode != "binary") if joined else gradient,
        ahead is not None,
    )
    return gradient


def region_stats(plan: Plan, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """tp, fp, fn, tn of every sample and class, (N, C, 4), of a plan with one sensitivity_specificity_loss alone."""
    n, classes = logits.shape[0], 1 if plan.mode == "binary" else logits.shape[1]
    joint = plan.mode == "multiclass"
    sums = statistics(plan, logits, target, weight)
    # Of a sample: its weight, then four sums per class; of a row: its weight and four sums (csrc/problem.h).
    rows = sums.reshape(n, 1 + 4 * classes)[:, 1:] if joint else sums.reshape(n, classes, 5)[..., 1:]
    tp, fp, fn, tn = rows.reshape(n, classes, 4).unbind(-1)
    if joint and not is_soft(logits, target):  # a label map: what is labelled otherwise, added without cancellation
        positives = tp + fn
        nothing = positives.new_zeros(n, 1)
        before = torch.cat([nothing, positives[:, :-1]], 1).cumsum(1)
        after = torch.cat([nothing, positives.flip(1)[:, :-1]], 1).cumsum(1).flip(1)
        negatives = before + after
        tn = torch.where(negatives < fp, 0.0, negatives - fp)  # rounding leaves no less than nothing; NaN stays
    return torch.stack([tp, fp, fn, tn], -1).to(plan.loss_dtype(logits))


def region_stats_slopes(plan: Plan, grad: Tensor, slope_count: int) -> Tensor:
    """The slopes (csrc/problem.h) of a function of the statistics, from its gradient in them, (N, C, 4)."""
    tp, fp, fn, tn = grad.unbind(-1)
    zero = torch.zeros_like(tp)
    slopes = torch.stack([tp - fn, fp - tn, zero, zero, zero, zero], -1).flatten()
    return torch.cat([slopes, slopes.new_zeros(slope_count - slopes.numel())])


def coefficient_gradient(grad_loss: Tensor, terms: Tensor, device: torch.device) -> Tensor:
    """The gradient in the coefficients, where they lie, from the terms (one row per term)."""
    return (terms * grad_loss).reshape(terms.shape[0], -1).sum(1).to(device)
