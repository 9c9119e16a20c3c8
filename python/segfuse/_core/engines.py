"""The kernels of a device: tensors become addresses, sizes and strides (csrc/binding.h)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from types import ModuleType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from segfuse import _C
from segfuse._core.calls import NOTHING, Buffers, Call, Constants, Memory, MemorySizes, NativeTensor, Results
from segfuse._core.native import DTYPE_CODE, chosen_scheme, cuda_module
from segfuse._core.plan import Data, Plan


def _native(tensor: Tensor) -> NativeTensor:
    return tensor.data_ptr(), DTYPE_CODE[tensor.dtype], tensor.shape, tensor.stride()


def _memory(tensor: Tensor) -> Memory:
    return tensor.data_ptr(), tensor.numel()


def _doubles(count: int, device: torch.device) -> Tensor:
    return torch.empty(count, dtype=torch.float64, device=device)


class Engine:
    """The kernels of a native module, ``segfuse._C`` or ``segfuse._cuda``, for tensors of one device."""

    joins_samples = False
    """Whether the samples are read as one sample if no term tells them apart (`Plan.joined`)."""
    needs_workspace = False
    """Whether `forward` needs memory beside its results."""

    def __init__(self, module: ModuleType) -> None:
        for kind, fields in ((Call, module.CALL), (Buffers, module.BUFFERS)):
            if kind._fields != fields:
                raise ImportError(f"{module.__name__} is of another version: {kind.__name__} has the fields {fields}")
        self.module: Any = module

    def constant(self, numbers: Tensor, device: torch.device) -> Tensor:
        """Bring a few numbers of the widest type to where the kernels read them. The numbers may be on the host."""
        raise NotImplementedError

    def may_prefill(self, plan: Plan, logits: Tensor) -> bool:
        """Whether `forward` may write into the gradient's place. The native module makes the decision."""
        raise NotImplementedError

    def warmup(self, device: torch.device) -> None:
        """Load all kernels now; else the first call loads them."""

    def executor(self, device: torch.device) -> int:
        """The number of threads (CPU), or the stream (CUDA), that runs the kernels."""
        raise NotImplementedError

    def classes(self, plan: Plan, device: torch.device) -> Tensor | None:
        """The lists of classes of all terms, on the device. None: the kernels read the lists of the plan."""
        return None

    def call(self, plan: Plan, data: Data, constants: Constants, classes: Tensor | None = None) -> Call:
        """The call of the plan on the data."""
        logits, target, weight, soft = data
        class_values, coefficients = constants
        return Call(
            plan.native_of(self.module),
            _native(logits),
            _native(target),
            None if weight is None else _native(weight),
            soft,
            class_values=0 if class_values is None else class_values.data_ptr(),
            coefficients=0 if coefficients is None else coefficients.data_ptr(),
            classes=0 if classes is None else classes.data_ptr(),
            executor=self.executor(logits.device),
        )

    def call_of_sizes(
        self,
        device: torch.device,
        plan: Plan,
        shape: Sequence[int],
        soft: bool,
        dtype: torch.dtype,
        constants: Constants,
        classes: Tensor | None = None,
    ) -> Call:
        """The call of the head, which needs only the shape of the logits. ``dtype`` is that of the loss."""
        class_values, coefficients = constants
        return Call(
            plan=plan.native_of(self.module),
            logits=(0, DTYPE_CODE[dtype], shape, ()),
            target=None,
            weight=None,
            soft=soft,
            class_values=0 if class_values is None else class_values.data_ptr(),
            coefficients=0 if coefficients is None else coefficients.data_ptr(),
            classes=0 if classes is None else classes.data_ptr(),
            executor=self.executor(device),
        )

    def sizes(self, call: Call) -> MemorySizes:
        """How much memory the steps of a call need."""
        return MemorySizes(*self.module.sizes(call))

    def forward(
        self,
        device: torch.device,
        plan: Plan,
        data: Data,
        constants: Constants,
        results: Results,
        gradient: Tensor | None,
    ) -> bool:
        """Fill the results. True: also filled the gradient, or left there what `backward` needs.

        Memory that only this call needs comes from torch, on the current stream. It is freed on return; torch gives it
        to later work of the same stream only.
        """
        loss, terms, slopes = results
        classes = self.classes(plan, device) if plan.listed_classes else None
        call = self.call(plan, data, constants, classes)
        workspace = _doubles(self.sizes(call).workspace, device) if self.needs_workspace else None
        output = loss if plan.unreduced else gradient
        buffers = Buffers(
            (loss.data_ptr(), loss.numel()),
            (terms.data_ptr(), terms.numel()),
            (slopes.data_ptr(), slopes.numel()),
            None if output is None else _native(output),
            workspace=NOTHING if workspace is None else _memory(workspace),
        )
        written: bool = self.module.forward(call, buffers, chosen_scheme.get())
        return written

    def statistics(self, device: torch.device, plan: Plan, data: Data, constants: Constants) -> Tensor:
        """The first step of `forward` alone: the sums of every domain (csrc/problem.h), float64 and flat."""
        call = self.call(plan, data, constants)
        sizes = self.sizes(call)
        sums, partial = _doubles(sizes.sums, device), _doubles(sizes.partial, device)
        self.module.statistics(call, Buffers(sums=_memory(sums), partial=_memory(partial)))
        return sums

    def head(
        self,
        device: torch.device,
        plan: Plan,
        shape: torch.Size,
        soft: bool,
        constants: Constants,
        sums: Tensor,
        results: Results,
        between: Callable[[Tensor], None],
    ) -> None:
        """The second step of `forward`: fill the results from the sums, for logits of a shape.

        It has two halves. ``between`` is called after the first one with a vector, and may add it over ranks. The
        vector is short for any number of samples.
        """
        classes = self.classes(plan, device) if plan.listed_classes else None
        call = self.call_of_sizes(device, plan, shape, soft, results.loss.dtype, constants, classes)
        sizes = self.sizes(call)
        workspace, vector = _doubles(sizes.head_workspace, device), _doubles(sizes.vector, device)
        buffers = Buffers(
            loss=_memory(results.loss),
            terms=_memory(results.terms),
            slopes=_memory(results.slopes),
            sums=_memory(sums),
            workspace=_memory(workspace),
            vector=_memory(vector),
        )
        self.module.head(call, buffers, self.module.GATHER)
        between(vector)
        self.module.head(call, buffers, self.module.FINISH)

    def backward(
        self,
        device: torch.device,
        plan: Plan,
        data: Data,
        constants: Constants,
        slopes: Tensor,
        upstream: Tensor,
        gradient: Tensor,
        prefilled: bool,
    ) -> None:
        """Fill the gradient. ``prefilled``: it already holds what `forward` wrote there."""
        classes = self.classes(plan, device) if plan.listed_classes and plan.reduction == "none" else None
        call = self.call(plan, data, constants, classes)
        buffers = Buffers(slopes=_memory(slopes), output=_native(gradient))
        self.module.backward(call, buffers, _native(upstream), prefilled)


class CpuEngine(Engine):
    """The kernels of segfuse._C."""

    def __init__(self) -> None:
        super().__init__(_C)

    def constant(self, numbers: Tensor, device: torch.device) -> Tensor:
        return numbers.contiguous()

    def may_prefill(self, plan: Plan, logits: Tensor) -> bool:  # csrc/cpu/steps.cpp decides
        return not plan.unreduced and logits.dtype == torch.float32 and chosen_scheme.get() != "two_pass"

    def executor(self, device: torch.device) -> int:
        return torch.get_num_threads()


Step = TypeVar("Step", bound=Callable[..., Any])


def _on_device(step: Step) -> Step:
    """Makes the tensors' device the current one during a step, because a raw launch goes to the current device."""

    @wraps(step)
    def run(self: Engine, device: torch.device, *arguments: Any) -> Any:
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            return step(self, device, *arguments)
        with torch.cuda.device(device):
            return step(self, device, *arguments)

    return cast(Step, run)


class CudaEngine(Engine):
    """The kernels of segfuse._cuda, on the tensors' device and its current stream.

    It keeps no memory on the device. A call allocates what it needs, so a CUDA graph may own that memory, and frees it
    on the stream that used it.
    """

    joins_samples = True
    needs_workspace = True

    forward = _on_device(Engine.forward)
    statistics = _on_device(Engine.statistics)
    head = _on_device(Engine.head)
    backward = _on_device(Engine.backward)

    def constant(self, numbers: Tensor, device: torch.device) -> Tensor:
        # Numbers from the host travel as arguments of a kernel, because a copy would wait for the device.
        numbers = numbers.detach()
        if not numbers.is_cpu:
            return numbers.contiguous()
        return self._from_host(device, numbers.double().contiguous())

    @_on_device
    def _from_host(self, device: torch.device, numbers: Tensor) -> Tensor:
        found = torch.empty_like(numbers, device=device)
        self.module.write_words(found.data_ptr(), numbers.data_ptr(), numbers.numel(), self.executor(device))
        return found

    def may_prefill(self, plan: Plan, logits: Tensor) -> bool:  # csrc/cuda/policy.cu decides
        return not plan.unreduced and not (chosen_scheme.get() == "automatic" and plan.regions)

    @_on_device
    def warmup(self, device: torch.device) -> None:
        self.module.warmup()

    @_on_device
    def unusable(self, device: torch.device) -> str:
        """The reason why no kernel can run on the device; "" if they can."""
        return str(self.module.unusable())

    def executor(self, device: torch.device) -> int:
        if device.type != "cuda":
            return 0
        if _raw_stream is None:
            return int(torch.cuda.current_stream(device).cuda_stream)
        return int(_raw_stream(device.index))

    def classes(self, plan: Plan, device: torch.device) -> Tensor | None:
        found = torch.empty(plan.listed_classes, dtype=torch.int64, device=device)
        self.module.write_classes(plan.native_of(self.module), found.data_ptr(), self.executor(device))
        return found

    def workspace(self, call: Call, device: torch.device) -> Tensor | None:
        return _doubles(self.sizes(call).workspace, device)


_raw_stream: Any = getattr(torch._C, "_cuda_getCurrentRawStream", None)


# One engine per device, each GPU has its own. The first tensor on a device makes it; `reasons` says why there is none.
engines: dict[str, Engine | None] = {"cpu": CpuEngine()}
reasons: dict[str, str] = {}


def engine_of(device: torch.device) -> Engine | None:
    """The engine of a device, or None if there are no kernels for it."""
    key = device.type
    if key == "cuda":
        key = str(device)
    if key not in engines:
        engines[key] = _new_cuda_engine(device) if device.type == "cuda" and torch.version.hip is None else None
    return engines[key]


def _new_cuda_engine(device: torch.device) -> CudaEngine | None:
    module = cuda_module()
    if module is None:
        reasons[str(device)] = "this build holds no CUDA kernels"
        return None
    engine = CudaEngine(module)
    reason = engine.unusable(device)
    if reason:
        reasons[str(device)] = reason
        return None
    return engine


@torch.compiler.assume_constant_result
def has_kernels(device: str) -> bool:
    """Whether there are kernels for a device. For Dynamo the result is a constant."""
    return engine_of(torch.device(device)) is not None


def required_engine(device: torch.device) -> Engine:
    """The engine of a device, or an error that says why there is none."""
    engine = engine_of(device)
    if engine is None:
        raise RuntimeError(f"segfuse has no kernels for {device}: {reasons.get(str(device), 'not a CUDA device')}")
    return engine
