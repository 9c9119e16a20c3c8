"""Losses as modules that add and scale. ``0.5 * DiceLoss("multiclass") + CrossEntropyLoss()`` is one fused loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import torch
from torch import Tensor, nn

from segfuse._core.checks import check_inputs, check_tensor
from segfuse._core.describe import class_doc, full_signature, in_package
from segfuse._core.native import number_dtype
from segfuse._core.options import DataOptions, defaults_of, plain
from segfuse._core.plan import plan_for
from segfuse._core.routes import apply
from segfuse._core.terms import Term, coefficient_of, numbers_of, shared_data
from segfuse._core.transfer import bring, may_stay


class Loss(nn.Module):
    """Base class of all losses. A loss has one term or more, all computed in the same two passes.

    ``loss(logits, target, weight=None)`` gives the loss. With ``return_terms=True`` it also gives a dict of its terms,
    detached and unscaled, for logging.

    >>> criterion = 0.5 * segfuse.DiceLoss("binary") + segfuse.BCEWithLogitsLoss("binary")
    >>> logits, target = torch.tensor([[2.0, -1.0, 0.5]]), torch.tensor([[1, 0, 0]])
    >>> loss, terms = criterion(logits, target, return_terms=True)
    >>> list(terms)
    ['dice', 'bce_with_logits']

    Losses can be added (``+``, ``-``, ``sum``) and scaled (``*``, ``/``, unary ``-``). A factor is a number, or a
    tensor or Parameter of one element (shape ``()`` or ``(1,)``), which is read at each call and gets its gradient.
    mypy does not see a loss in ``tensor * loss`` and ``sum(losses)``: write ``loss * tensor`` and
    ``sum(losses[1:], losses[0])``.

    A compound holds at most 4 pointwise and 8 region losses, and computes them together. So a term that overrides
    ``forward`` or has hooks is a TypeError when it is added, scaled or tiled. Hooks that a term gets later are not
    called.

    Class weights and coefficients may be on the host while the logits are on a GPU. No call waits for them. But the
    gradient of a coefficient on the host is copied to the host, which waits. Tables that you give (``class_weight``,
    ``pos_weight``, ``alpha``) are persistent buffers: they are in the state_dict, and ``half()`` rounds them.

    The terms of a compound share the data options (``mode``, ``from_logits``, ``ignore_index``, ``reduction``). If only
    some terms were given an option, the others take that value. Two given values that differ are a ValueError.
    """

    _terms: list[Term]
    _takes: ClassVar[type] = DataOptions  # the set of options that the constructor takes as **options
    _data_defaults: ClassVar[Mapping[str, Any]] = {}  # defaults that differ from those of other losses
    _hidden_defaults: ClassVar[Mapping[str, Any]] = {}
    _symbols: ClassVar[str] = ""  # what the letters of the formula mean
    _written_doc: ClassVar[str] = ""  # the docstring in the sources

    # So that numpy leaves `number * loss` to __rmul__, and does not make an array of objects.
    __array_ufunc__ = None

    def __init_subclass__(cls) -> None:
        """Adds the shared options to the signature and the documentation of a loss class."""
        super().__init_subclass__()
        cls._hidden_defaults = {**defaults_of(cls._takes), **cls._data_defaults}
        cls.__signature__ = full_signature(cls)  # type: ignore[attr-defined]
        doc = cls.__dict__.get("__doc__") or ""
        if ">>>" in doc and in_package(cls):  # only the classes for users
            cls._written_doc = doc
            cls.__doc__ = class_doc(cls, doc)

    def _build(self, terms: list[Term]) -> None:
        """Makes the plan of the terms, which then share their data options. Constructors call it last."""
        data = shared_data([term.loss for term in terms])
        unreduced = data["reduction"] == "none"
        if unreduced and len(terms) > 1:
            raise ValueError('reduction="none" has no meaning for a compound: its terms have different shapes')
        self._terms = terms
        self._class_value_rows = 0
        content: list[dict[str, Any]] = []
        for term in terms:
            options = dict(term.loss.options)
            for name in term.loss.class_options:
                options[name] = {"class_values": self._class_value_rows}
                self._class_value_rows += 1
            # Without a reduction there is one term. `forward` scales its loss.
            constant = 1.0 if unreduced else term.constant
            content.append({"name": term.loss.name, "coefficient": constant, "options": options})
        self._scales_outside = unreduced and (terms[0].constant != 1.0 or bool(terms[0].tensors))
        self._reads_coefficients = not unreduced and any(term.tensors for term in terms)
        self.plan = plan_for({**data, "terms": content})

    @overload
    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, return_terms: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, return_terms: Literal[True]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    @overload
    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, return_terms: bool
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]: ...

    def forward(
        self, logits: Tensor, target: Tensor, weight: Tensor | None = None, *, return_terms: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The loss; with ``return_terms=True`` also a dict of its terms, detached and unscaled."""
        check_tensor("logits", logits)
        class_values, coefficients = self._class_values(logits, target, weight), self._coefficients(logits.device)
        loss, terms = apply(self.plan, logits, target, weight, class_values, coefficients)
        values = loss.detach().unsqueeze(0) if self.plan.unreduced else terms
        if self._scales_outside:
            scale = self._terms[0].coefficient(self, number_dtype(logits.device))
            loss = loss * (scale.to(loss.dtype) if isinstance(scale, Tensor) else scale)
        if not return_terms:
            return loss
        return loss, dict(zip(self.term_names(), values.to(loss.dtype).unbind(0), strict=True))

    if TYPE_CHECKING:
        __call__ = forward  # in nn.Module its type is Any

    def _require_plain(self) -> None:
        """A TypeError if a call does more than to compute the terms: a sum, a multiple or tiles would skip that."""
        name, unseen = type(self).__name__, "but sums, multiples and tiles of losses do not call"
        if type(self).forward is not Loss.forward:
            raise TypeError(f"{name} overrides forward, {unseen} it: call the loss alone and add the values")
        if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks:
            raise TypeError(f"{name} has hooks, {unseen} them: register the hooks on the sum")
        for term in self._terms:
            if term.loss is not self:
                term.loss._require_plain()

    def terms(self) -> list[Term]:
        """The terms, with the current tensors of their coefficients."""
        self._require_plain()
        return [term.resolved(self) for term in self._terms]

    def term_names(self) -> list[str]:
        """Names of the terms, as in the dict of ``return_terms``: dice, cross_entropy, dice_2 ..."""
        names = [loss.name.removesuffix("_loss") for loss, *_ in self._terms]
        before = [len([n for n in names[:i] if n == name]) for i, name in enumerate(names)]  # for Dynamo, no count()
        return [name if count == 0 else f"{name}_{count + 1}" for name, count in zip(names, before, strict=True)]

    def _coefficients(self, device: torch.device) -> Tensor | None:
        """One number per term, with the graph of its tensors. None if all coefficients are constants of the plan."""
        if not self._reads_coefficients:
            return None
        dtype = number_dtype(device)
        values = [term.coefficient(self, dtype) for term in self._terms]
        # They are on the host if all tensors are there, else on the device. So are the class values.
        on_host = may_stay([v for v in values if isinstance(v, Tensor)], device)
        place = torch.device("cpu") if on_host else device
        return torch.stack(
            [bring(v, place) if isinstance(v, Tensor) else torch.full((), v, dtype=dtype, device=place) for v in values]
        )

    def _class_values(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor | None:
        """The rows of class weights that the terms of the plan name by number, in the widest type."""
        if not self._class_value_rows:
            return None
        classes = 1 if self.plan.mode == "binary" else logits.shape[1] if logits.dim() > 1 else 0
        rows = []
        for loss, *_ in self._terms:
            for name in loss.class_options:
                table = getattr(loss, name)
                table = table.expand(classes) if table.dim() == 0 else table
                if table.shape[0] != classes:
                    check_inputs(self.plan, logits, target, weight)  # an error of the tensors comes first
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
        coefficient = coefficient_of(factor)
        if coefficient is None:
            return NotImplemented
        return CompoundLoss([term.times(coefficient, 1) for term in self.terms()])

    __rmul__ = __mul__

    def __truediv__(self, divisor: object) -> Loss:
        coefficient = coefficient_of(divisor)
        if coefficient is None:
            return NotImplemented
        return CompoundLoss([term.times(coefficient, -1) for term in self.terms()])

    def __neg__(self) -> Loss:
        return self * -1.0

    def __sub__(self, other: object) -> Loss:
        if not isinstance(other, Loss):
            return NotImplemented
        return self + -other


class CompoundLoss(Loss):
    """A weighted sum of losses, made by ``+`` and ``*``, computed in one statistics pass and one gradient pass.

    >>> 0.5 * segfuse.DiceLoss("multiclass") + segfuse.CrossEntropyLoss()
    0.5 * DiceLoss('multiclass') + CrossEntropyLoss()

    Args:
        terms: losses with their coefficients, from ``loss.terms()``.
    """

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
                found = numbers_of(tensor.detach())  # no reshape: a part of it may be on another rank
                number = found[0] if isinstance(found, list) else found
                if isinstance(number, (int, float)):
                    value *= number**power
                else:
                    unknown += f"<{number}>{'' if power == 1 else '^-1'} * "
            text = f"{type(term.loss).__name__}({term.loss.extra_repr()})"
            parts.append(unknown + (text if value == 1.0 else f"{value:g} * {text}"))
        return " + ".join(parts)
