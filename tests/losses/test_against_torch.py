"""The drop-in promise: torch's own BCE and CE, argument for argument."""

import itertools

import pytest
import torch
from torch.nn import functional

import segfuse
from cases import check_close

TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def compare(ours, theirs, logits: torch.Tensor) -> None:
    a, b = (logits.detach().clone().requires_grad_() for _ in range(2))
    left, right = ours(a), theirs(b)
    upstream = torch.rand_like(right) + 0.3
    left.backward(upstream)
    right.backward(upstream)
    check_close(left.detach(), right.detach(), TOLERANCE[logits.dtype], "loss")
    assert a.grad is not None
    assert b.grad is not None
    check_close(a.grad, b.grad, 10 * TOLERANCE[logits.dtype], "gradient")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_cross_entropy(dtype: torch.dtype, reduction: str) -> None:
    weights = torch.tensor([0.2, 1.5, 0.7, 2.0], dtype=dtype)
    targets = ((False, -100), (False, 2), (True, -100))  # soft or not, ignore_index
    for weight, smoothing, (soft, ignore) in itertools.product((None, weights), (0.0, 0.3), targets):
        logits = 4 * torch.randn(3, 4, 7, 9, dtype=dtype)
        target = torch.rand(3, 4, 7, 9, dtype=dtype).softmax(1) if soft else torch.randint(0, 4, (3, 7, 9))
        if not soft:
            target[0, :2] = -100 if ignore == -100 else 2
        options = {"label_smoothing": smoothing, "ignore_index": ignore, "reduction": reduction}
        crit = segfuse.CrossEntropyLoss(class_weight=weight, **options)
        compare(
            lambda x, crit=crit, t=target: crit(x, t),
            lambda x, t=target, w=weight, o=options: functional.cross_entropy(x, t, w, **o),
            logits,
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_bce_with_logits(dtype: torch.dtype, reduction: str) -> None:
    logits = 4 * torch.randn(2, 3, 11, 5, dtype=dtype)
    target = torch.rand(2, 3, 11, 5, dtype=dtype)
    for pos_weight in (None, torch.tensor([0.3, 1.0, 4.0], dtype=dtype)):
        crit = segfuse.BCEWithLogitsLoss("multilabel", pos_weight=pos_weight, reduction=reduction)
        column = None if pos_weight is None else pos_weight[:, None, None]
        compare(
            lambda x, crit=crit: crit(x, target),
            lambda x, c=column: functional.binary_cross_entropy_with_logits(
                x, target, pos_weight=c, reduction=reduction
            ),
            logits,
        )


def test_bce_of_probabilities_at_the_ends() -> None:
    """Logarithms are clamped at -100, as in torch."""
    p = torch.tensor([[0.0, 1.0, 1.0, 0.0, 0.25]])
    target = torch.tensor([[1.0, 0.0, 1.0, 0.0, 1.0]])
    ours = segfuse.bce_with_logits_loss(p, target, mode="binary", from_logits=False, reduction="none")
    torch.testing.assert_close(ours, functional.binary_cross_entropy(p, target, reduction="none"))


def test_focal_is_torchvisions_formula() -> None:
    logits, target = 3 * torch.randn(2, 3, 8, 8).double(), (torch.rand(2, 3, 8, 8) > 0.7).double()
    p = logits.sigmoid()
    ce = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p_t = p * target + (1 - p) * (1 - target)
    expected = (0.25 * target + 0.75 * (1 - target)) * ce * (1 - p_t) ** 2
    ours = segfuse.focal_loss(logits, target, mode="multilabel", alpha=0.25, gamma=2.0, reduction="none")
    torch.testing.assert_close(ours, expected)
