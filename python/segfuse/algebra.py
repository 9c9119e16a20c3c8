"""Losses as modules that add and scale: ``0.5 * DiceLoss("multiclass") + CrossEntropyLoss()`` is one fused loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from segfuse._core.checks import check_inputs, check_tensor
from segfuse._core.native import number_dtype
from segfuse._core.options import DATA_DEFAULTS, check_data, check_number, plain, refuse_unknown
from segfuse._core.plan import LOWER, plan_for
from segfuse._core.routes import apply
from segfuse._core.spec import KernelTerm
from segfuse._core.transfer import bring, may_stay

if TYPE_CHECKING:
    from typing_extensions import Self


class Term(NamedTuple):
    """A loss times a coefficient: a number, times tensors that are read at each call (to the power 1 or -1)."""

    loss: SingleLoss
    constant: float = 1.0
    tensors: tuple[tuple[Tensor | str, int], ...] = ()  # a Parameter stands under its name in the compound

    def times(self, factor: float | Tensor, power: int) -> Term:
        # Not _replace: Dynamo of torch 2.8 does not trace it.
        if isinstance(factor, Tensor):
            return Term(self.loss, self.constant, (*self.tensors, (factor, power)))
        return Term(self.loss, self.constant * factor**power, self.tensors)

    def resolved(self, owner: Loss) -> Term:
        """With the Parameters that the compound holds now."""
        tensors = tuple([(getattr(owner, t) if isinstance(t, str) else t, power) for t, power in self.tensors])
        return Term(self.loss, self.constant, tensors)

    def coefficient(self, owner: Loss, dtype: torch.dtype) -> float | Tensor:
        """A number, or a scalar of a type where its tensors lie, with their graph."""
        value: float | Tensor = self.constant
        for tensor, power in self.resolved(owner).tensors:
            assert isinstance(tensor, Tensor)
            factor = tensor.to(dtype).reshape(())
            value = value if isinstance(value, Tensor) else torch.full_like(factor, value, requires_grad=False)
            value = value * factor if power == 1 else value / factor
        return value


class Loss(nn.Module):
    """What every loss is: terms over the same two passes.

    ``loss(logits, target, weight=None)`` gives the loss; with ``return_terms=True`` also a dict of its detached,
    unscaled terms, for logging. Losses add (``+``, ``-``, ``sum``) and scale (``*``, ``/``, unary ``-``) by numbers, or
    by tensors and Parameters of one element (shape ``()`` or ``(1,)``), which are read at each call and get their
    gradient. Class weights and coefficients may lie on the host while the logits are on a GPU: no call waits for that,
    but the gradient of a coefficient on the host is copied there, which does. A compound holds at most 4 pointwise and
    8 region losses. It computes them together: a term that overrides
    ``forward`` or has hooks is a TypeError when it is added, scaled or tiled, and hooks that a term is given later are
    not called. Tables that you give (``class_weight``, ``pos_weight``, ``alpha``) are persistent buffers: they are in
    the state_dict, and ``half()`` rounds them.

    A data option (``mode``, ``from_logits``, ``ignore_index``, ``reduction``) that a term was not given takes the value
    that another term was given; two given values that differ are a ValueError.
    """

    _terms: list[Term]
    data_defaults: ClassVar[Mapping[str, Any]] = {}
    hidden_defaults: ClassVar[Mapping[str, Any]] = {}  # of options that the signature keeps in its **options

    # A number of numpy times a loss is for __rmul__, not an array of objects.
    __array_ufunc__ = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.__signature__ = _full_signature(cls)  # type: ignore[attr-defined]

    def _build(self, terms: list[Term]) -> None:
        """Called last by constructors: the plan of the terms, with their data options made one."""
        data = _shared_data([term.loss for term in terms])
        unreduced = data["reduction"] == "none"
        if unreduced and len(terms) > 1:
            raise ValueError('reduction="none" has no meaning for a compound: its terms have different shapes')
        self._terms = terms
        self._table_count = 0
        content: list[dict[str, Any]] = []
        for term in terms:
            options = dict(term.loss.options)
            for name in term.loss.tables_of:
                options[name] = {"table": self._table_count}
                self._table_count += 1
            # Without a reduction there is one term, and it is scaled outside.
            constant = 1.0 if unreduced else term.constant
            content.append({"name": term.loss.name, "coefficient": constant, "options": options})
        self._scales_outside = unreduced and (terms[0].constant != 1.0 or bool(terms[0].tensors))
        self._reads_coefficients = not unreduced and any(term.tensors for term in terms)
        self.plan = plan_for({**data, "terms": content})

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, return_terms: bool = False
    ) -> Any:
        check_tensor("logits", logits)
        tables, coefficients = self.tables(logits, target, weight), self.coefficients(logits.device)
        loss, terms = apply(self.plan, logits, target, weight, tables, coefficients)
        values = loss.detach().unsqueeze(0) if self.plan.unreduced else terms
        if self._scales_outside:
            scale = self._terms[0].coefficient(self, number_dtype(logits.device))
            loss = loss * (scale.to(loss.dtype) if isinstance(scale, Tensor) else scale)
        if not return_terms:
            return loss
        return loss, dict(zip(self.term_names(), values.to(loss.dtype).unbind(0), strict=True))

    def require_plain(self) -> None:
        """Whoever computes the terms by itself must not lose, without a word, what else a call would do."""
        name, unseen = type(self).__name__, "which a sum, a multiple or tiles of losses would not call"
        if type(self).forward is not Loss.forward:
            raise TypeError(f"{name} overrides forward, {unseen}: call it by itself and add the values")
        if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks:
            raise TypeError(f"{name} has hooks, {unseen}: register them on the whole")
        for term in self._terms:
            if term.loss is not self:
                term.loss.require_plain()

    def terms(self) -> list[Term]:
        """The terms, with the tensors of their coefficients as they are now."""
        self.require_plain()
        return [term.resolved(self) for term in self._terms]

    def term_names(self) -> list[str]:
        """Names of the terms, as ``return_terms`` gives them: dice, cross_entropy, dice_2 ..."""
        names = [loss.name.removesuffix("_loss") for loss, *_ in self._terms]
        before = [len([n for n in names[:i] if n == name]) for i, name in enumerate(names)]  # for Dynamo, not count()
        return [name if count == 0 else f"{name}_{count + 1}" for name, count in zip(names, before, strict=True)]

    def coefficients(self, device: torch.device) -> Tensor | None:
        """One number per term, with the graph of its tensors; None if the plan has them all. On the device or, if all
        tensors are there, on the host."""
        if not self._reads_coefficients:
            return None
        dtype = number_dtype(device)
        values = [term.coefficient(self, dtype) for term in self._terms]
        on_host = may_stay([v for v in values if isinstance(v, Tensor)], device)
        place = torch.device("cpu") if on_host else device
        return torch.stack(
            [bring(v, place) if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=place) for v in values]
        )

    def tables(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor | None:
        """The rows of values per class that the plan's terms name, of the widest type. On the device of the logits or,
        if all are there, on the host."""
        if not self._table_count:
            return None
        classes = 1 if self.plan.mode == "binary" else logits.shape[1] if logits.dim() > 1 else 0
        rows = []
        for loss, *_ in self._terms:
            for name in loss.tables_of:
                table = getattr(loss, name)
                table = table.expand(classes) if table.dim() == 0 else table
                if table.shape[0] != classes:
                    check_inputs(self.plan, logits, target, weight)  # what is wrong with the tensors comes first
                    raise ValueError(
                        f"{name} of {type(loss).__name__} has {table.shape[0]} values, "
                        f"but the logits have {classes} class(es)"
                    )
                rows.append(table.to(number_dtype(logits.device)))
        if may_stay(rows, logits.device):
            return torch.stack(rows)
        return torch.stack([bring(row, logits.device) for row in rows])

    def __add__(self, other: object) -> Loss:
        if isinstance(plain(other), (int, float)) and other == 0:  # sum() starts at 0
            return self
        if not isinstance(other, Loss):
            return NotImplemented
        return CompoundLoss([*self.terms(), *other.terms()])

    __radd__ = __add__

    def __mul__(self, factor: object) -> Loss:
        coefficient = _coefficient(factor)
        if coefficient is None:
            return NotImplemented
        return CompoundLoss([term.times(coefficient, 1) for term in self.terms()])

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> Loss:
        coefficient = _coefficient(divisor)
        if coefficient is None:
            return NotImplemented
        return CompoundLoss([term.times(coefficient, -1) for term in self.terms()])

    def __neg__(self) -> Loss:
        return self * -1.0

    def __sub__(self, other: object) -> Loss:
        if not isinstance(other, Loss):
            return NotImplemented
        return self + -other


def _coefficient(value: object) -> float | Tensor | None:
    """What a loss may be scaled by, None if the value is nothing of the kind."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.dim() > 1:
            raise ValueError(f"the coefficient of a loss must be a 0-d tensor, or (1,); got shape {tuple(value.shape)}")
        return value
    value = plain(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return check_number("the coefficient of a loss", value)


def _shared_data(losses: list[SingleLoss]) -> dict[str, Any]:
    """The data options of all terms: given values must agree, the rest takes them."""
    shared: dict[str, Any] = {}
    giver: dict[str, SingleLoss] = {}
    for loss in losses:
        for name, value in {"mode": loss.mode, **loss.data}.items():
            if name in shared and shared[name] != value:
                raise ValueError(
                    f"{type(giver[name]).__name__} was given {name}={shared[name]!r} and {type(loss).__name__} was "
                    f"given {name}={value!r}: the terms of a compound read the same data"
                )
            shared[name] = value
            giver[name] = loss
    defaults: dict[str, Any] = dict(DATA_DEFAULTS)
    for loss in losses:
        defaults.update(loss.data_defaults)
    return {**defaults, **shared}


def _full_signature(cls: type[Loss]) -> inspect.Signature:
    """The signature of the constructor with the options that it takes as ``**options`` spelled out, for help()."""
    signature = inspect.signature(cls.__init__)
    given = list(signature.parameters.values())[1:]
    own = [p for p in given if p.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(own) == len(given):
        return inspect.Signature(own)
    shared = {**cls.hidden_defaults, **DATA_DEFAULTS, **cls.data_defaults}
    rest = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=v) for n, v in shared.items()]
    return inspect.Signature([*own, *rest])


class SingleLoss(Loss):
    """One loss. Subclasses give ``name``, check their options, and lower them to the kernels' term."""

    name: ClassVar[str] = ""

    def __init__(self, mode: str, options: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        super().__init__()
        refuse_unknown(self, data)
        data = check_data(data)
        self.mode = mode
        self.data = data
        self.options = {k: v for k, v in options.items() if not isinstance(v, Tensor)}
        self.tables_of = [k for k, v in options.items() if isinstance(v, Tensor)]
        for name in self.tables_of:
            self.register_buffer(name, options[name])
        self._fixed: dict[str, list[float]] = {}
        if data.get("reduction") == "sample" and options.get("pool_batch"):
            raise ValueError('reduction="sample" and pool_batch=True exclude each other: one row holds the whole batch')
        self._build([Term(self)])

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            LOWER[cls.name] = cls.lower
        elif "lower" in cls.__dict__:
            raise TypeError(f"{cls.__name__} has a lower() of its own, so it must have a name of its own, too")

    def with_fixed(self, **tables: list[float]) -> Self:
        """Tables that follow from numbers of somebody else: no state, and the same after any conversion."""
        self._fixed = tables
        self._make_fixed_tables()
        return self

    def _make_fixed_tables(self) -> None:
        for name, numbers in self._fixed.items():
            device = getattr(self, name).device
            table = torch.tensor(numbers, dtype=number_dtype(device), device=device)
            self.register_buffer(name, table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        try:
            super()._apply(fn, recurse)
        except TypeError:  # perhaps the new device has no float64
            wide = [name for name in self.tables_of if getattr(self, name).dtype == torch.float64]
            if not wide:
                raise
            for name in wide:
                self.register_buffer(name, getattr(self, name).float(), persistent=name not in self._fixed)
            super()._apply(fn, recurse)
        self._make_fixed_tables()
        return self

    @staticmethod
    def lower(options: dict[str, Any], mode: str) -> KernelTerm:
        """The term of the kernels, from the options."""
        raise NotImplementedError

    @classmethod
    def own_signature(cls) -> Mapping[str, inspect.Parameter]:
        """Of the class that named the loss; subclasses may hide options in theirs."""
        return inspect.signature(next(base for base in cls.__mro__ if "name" in base.__dict__)).parameters

    def extra_repr(self) -> str:
        shown = {**self.options, **{name: _numbers(getattr(self, name)) for name in self.tables_of}, **self.data}
        signature = self.own_signature()
        given = [f"{name}={value!r}" for name, value in shown.items() if signature[name].default != value]
        return ", ".join([repr(self.mode), *given] if "mode" in signature else given)

    # A loss is its own only term; it must not hold itself as a submodule, nor copy itself twice.
    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_terms"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__["_terms"] = [Term(self)]


def _numbers(tensor: Tensor) -> Any:
    """The values of a small tensor, or its device where it has none of its own (meta, fake and distributed tensors)."""
    return tensor.tolist() if type(tensor.data) is Tensor and not tensor.is_meta else tensor.device


class CompoundLoss(Loss):
    """A weighted sum of losses, computed in one statistics pass and one gradient pass."""

    def __init__(self, terms: Sequence[Term]) -> None:
        super().__init__()
        self.losses = nn.ModuleList([term.loss for term in terms])
        names: dict[int, str] = {}
        for tensor in (tensor for term in terms for tensor, _ in term.tensors):
            if isinstance(tensor, nn.Parameter) and id(tensor) not in names:
                names[id(tensor)] = f"coefficient_{len(names)}"
                self.register_parameter(names[id(tensor)], tensor)
        self._build(
            [
                Term(loss, constant, tuple([(names.get(id(tensor), tensor), power) for tensor, power in tensors]))
                for loss, constant, tensors in terms
            ]
        )

    def __repr__(self) -> str:
        parts = []
        for term in self._terms:
            value, unknown = term.constant, ""
            for tensor, power in term.resolved(self).tensors:
                assert isinstance(tensor, Tensor)
                found = _numbers(tensor.detach())  # a part of it may lie on another rank: no reshape
                number = found[0] if isinstance(found, list) else found
                if isinstance(number, (int, float)):
                    value *= number**power
                else:
                    unknown += f"<{number}>{'' if power == 1 else '^-1'} * "
            text = f"{type(term.loss).__name__}({term.loss.extra_repr()})"
            parts.append(unknown + (text if value == 1.0 else f"{value:g} * {text}"))
        return " + ".join(parts)
