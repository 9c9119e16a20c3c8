"""Records the calls of the CUDA engine to its module. replay.py makes the same calls again, without torch.

The file is a stream of pickled events. An event is written before it happens, so a call that kills the process is in
the file too:

("sequence", name)               the calls after it share buffers
("plan", number, spec)           a Plan of the module is made
("buffer", number, size, bytes)  memory and its content; None if nothing has been written to it yet
("call", name, arguments)        Reference and PlanNumber take the place of addresses and plans
("returned", value)              or ("raised", name of the exception)
("expect", ...)                  see `Recorder.expect`
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

import torch
from replay import PlanNumber, Reference
from torch import Tensor


class Recorder:
    """Takes the place of a module, and records every call of it.

    A number is an address if it points into the memory of a tensor whose `data_ptr` was called. That memory is kept
    alive while a sequence is recorded.
    """

    def __init__(self, module: ModuleType, file: BinaryIO) -> None:
        self._module, self._file = module, file
        self._plans: dict[int, tuple[Any, PlanNumber]] = {}
        self._storages: list[torch.UntypedStorage] = []
        self._unwritten: list[Tensor] = []  # from torch.empty
        self._written: set[int] = set()  # buffers that are in the file

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return (lambda *arguments: self._call(name, arguments)) if callable(value) else value

    def Plan(self, spec: Any) -> Any:
        """Makes a plan of the module and records it."""
        plan = self._module.Plan(spec)
        number = PlanNumber(len(self._plans))
        self._plans[id(plan)] = plan, number
        # The same fields, without the classes of segfuse: replay.py does not import segfuse.
        terms = tuple(SimpleNamespace(**vars(term)) for term in spec.terms)
        self._write("plan", number, SimpleNamespace(**{**vars(spec), "terms": terms}))
        return plan

    @contextmanager
    def sequence(self, name: str) -> Iterator[None]:
        """Records the calls inside the ``with`` block as one sequence. They share buffers."""
        self._storages, self._unwritten, self._written = [], [], set()
        self._write("sequence", name)
        real: dict[str, Callable[..., Any]] = {name: getattr(torch, name) for name in ("empty", "empty_like")}
        address = torch.Tensor.data_ptr

        def unwritten(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def made(*arguments: Any, **options: Any) -> Tensor:
                self._unwritten.append(make(*arguments, **options))
                return self._unwritten[-1]

            return made

        def noted(tensor: Tensor) -> int:
            self._note(tensor.untyped_storage())
            return address(tensor)

        try:
            torch.Tensor.data_ptr = noted
            for name, make in real.items():
                setattr(torch, name, unwritten(make))
            yield
        finally:
            del torch.Tensor.data_ptr  # the inherited one is back
            for name, make in real.items():
                setattr(torch, name, make)

    def expect(self, what: str, found: Tensor, expected: Tensor, allowed: float) -> None:
        """Records that a tensor of the last sequence must hold these numbers, up to an allowed error."""
        exact = torch.float64 if found.dtype == torch.float64 else torch.float32
        values = expected.to("cpu", exact).numpy()
        strides = tuple(stride * found.element_size() for stride in found.stride())
        place = self._encoded(found.data_ptr())
        if not isinstance(place, Reference):
            raise ValueError(f"{what}: not a buffer of the recorded calls")
        self._write("expect", what, place, str(found.dtype).removeprefix("torch."), strides, values, allowed)

    def _note(self, storage: torch.UntypedStorage) -> None:
        if all(known.data_ptr() != storage.data_ptr() for known in self._storages):
            self._storages.append(storage)

    def _write(self, *event: Any) -> None:
        pickle.dump(event, self._file)
        self._file.flush()

    def _encoded(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(self._encoded(item) for item in value)
        if id(value) in self._plans:
            return self._plans[id(value)][1]
        if isinstance(value, int) and not isinstance(value, bool):
            for number, storage in enumerate(self._storages):
                offset = value - storage.data_ptr()
                if 0 <= offset < storage.nbytes():
                    self._buffer(number, storage)
                    return Reference(number, offset)
        return value

    def _buffer(self, number: int, storage: torch.UntypedStorage) -> None:
        if number in self._written:
            return
        self._written.add(number)
        empty = any(tensor.untyped_storage().data_ptr() == storage.data_ptr() for tensor in self._unwritten)
        content = None
        if not empty:
            content = torch.tensor([], dtype=torch.uint8, device=storage.device).set_(storage).cpu().numpy().tobytes()
        self._write("buffer", number, storage.nbytes(), content)

    def _call(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self._write("call", name, self._encoded(arguments))
        try:
            value = getattr(self._module, name)(*arguments)
        except Exception as error:
            self._write("raised", type(error).__name__)
            raise
        self._write("returned", value)
        return value
