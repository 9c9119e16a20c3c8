"""The CUDA engines on tensors of any strides: 16 bytes at once where memory is aligned, else one element at a time."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cases import (
    LABEL_MAPS,
    PATHS,
    Case,
    check_case,
    make_logits,
    make_target,
    make_weight,
    multiclass,
    shape_of,
)
from layouts import channels_last
from segfuse._core import native

pytestmark = pytest.mark.usefixtures("cuda_kernels")


@pytest.mark.parametrize("pixels", [257, 1025, 2040, 2044, 2049, 4088])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_vector_more_or_less_than_whole_rounds(dtype: torch.dtype, pixels: int) -> None:
    for case in [*PATHS, *LABEL_MAPS]:
        shape = shape_of(case.mode, pixels)
        logits, target = make_logits(shape, dtype), make_target(case.mode, shape)
        check_case(case, logits, target)
        check_case(case, logits, target, reduction="none")


def misaligned(x: Tensor) -> Tensor:
    """Neighbours in memory, not the first of a vector."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


def odd_classes(x: Tensor) -> Tensor:
    """Planes that begin at an odd distance from one another, samples at an even one."""
    rows = torch.cat([x, x[..., :1]], -1).flatten(1)
    padded = torch.cat([rows, rows[:, : -rows.shape[1] % 16]], 1)
    return padded.as_strided(x.shape, (padded.shape[1], *((x.shape[-1] + 1, 1) if x.dim() == 3 else (1,))))


def odd_samples(x: Tensor) -> Tensor:
    rows = x.flatten(1)
    return torch.cat([rows, rows[:, :1]], 1)[:, :-1].unflatten(1, x.shape[1:])


def steps(x: Tensor) -> Tensor:
    """Every other element of planes that are aligned."""
    return torch.stack([x, x + 1 if x.is_floating_point() else 1 - x], -1).flatten(-2)[..., ::2]


@pytest.mark.parametrize("layout", [misaligned, odd_classes, odd_samples, steps], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", [*PATHS, *LABEL_MAPS], ids=str)
def test_no_vectors_where_memory_is_not_aligned(case: Case, layout: Callable[[Tensor], Tensor]) -> None:
    """One tensor at a time; the others are aligned arrays."""
    shape = shape_of(case.mode, 2048)
    logits, target, weight = make_logits(shape), make_target(case.mode, shape), make_weight(case.mode, shape)
    check_case(case, layout(logits), target, weight)
    check_case(case, logits, layout(target), weight)
    check_case(case, logits, layout(target.to(torch.uint8)), weight)
    check_case(case, logits, target, layout(weight))
    for reduction in ("mean", "none"):
        leaf = logits.clone().requires_grad_()
        with native.scheme("two_pass"):
            value = case.module(reduction=reduction)(leaf, target)
        upstream = torch.rand(value.shape) + 0.3
        spread = layout(upstream) if value.dim() > 1 else upstream
        (expected,) = torch.autograd.grad(value, leaf, upstream, retain_graph=True)
        assert torch.equal(torch.autograd.grad(value, leaf, spread)[0], expected)


def some_channels(x: Tensor) -> Tensor:
    """The first of more channels, channels_last."""
    return channels_last(torch.cat([x, x], 1))[:, : x.shape[1]]


def odd_begin(x: Tensor) -> Tensor:
    """Channels_last, the first element not the first of 16 bytes."""
    memory = misaligned(x.movedim(1, -1).contiguous())
    return memory.movedim(-1, 1)


def odd_images(x: Tensor) -> Tensor:
    """Channels_last, samples an odd number of elements apart."""
    memory = odd_samples(x.movedim(1, -1).contiguous().flatten(1))
    return memory.unflatten(1, (*x.shape[2:], x.shape[1])).movedim(-1, 1)


def upside_down(x: Tensor) -> Tensor:
    """Channels_last, columns before rows."""
    return channels_last(x.transpose(2, 3)).transpose(2, 3)


@pytest.mark.parametrize("classes", [5, 8, 33])
@pytest.mark.parametrize("layout", [channels_last, some_channels, odd_begin, odd_images, upside_down])
def test_channels_last_and_what_is_like_it(layout: Callable[[Tensor], Tensor], classes: int) -> None:
    """A staged tile needs one run of memory that begins at 16 bytes. Only channels_last is that."""
    cases = (multiclass("focal_loss", gamma=1.5), multiclass("tversky_loss", alpha=0.3, beta=0.7))
    for shape, dtype in itertools.product(
        ((2, classes, 19, 24), (1, classes, 19, 27)), (torch.float32, torch.bfloat16)
    ):
        logits = layout(make_logits(shape, dtype))
        assert logits.shape == shape
        one = shape[0] == 1 and layout is odd_images  # of one sample: no distance to another
        engine = "staged_tile" if layout is channels_last or one else "tile"
        for case in cases:
            with native.trace() as events:
                check_case(case, logits, make_target("multiclass", shape))
            assert events[0].kernel.split(".")[0] == engine


@pytest.mark.parametrize("case", [*PATHS, *LABEL_MAPS], ids=str)
def test_planes_that_end_within_a_vector(case: Case) -> None:
    """All tensors are cut from aligned ones. What lies behind the end of a plane must not count."""
    shape = shape_of(case.mode, 2048)
    logits, target, weight = make_logits(shape), make_target(case.mode, shape), make_weight(case.mode, shape)
    for pixels in (2047, 2045, 2041):
        check_case(case, logits[..., :pixels], target[..., :pixels], weight[..., :pixels])
        check_case(case, logits[..., :pixels], target[..., :pixels])


@pytest.mark.parametrize("case", [c for c in PATHS if c.mode != "binary"], ids=str)
def test_offsets_beyond_two_to_the_31(case: Case) -> None:
    """Classes 2^31 elements apart. The system gives memory only to the pages that are touched."""
    apart = 2**31 + 16
    near = make_logits((1, 2, 64), torch.float16)
    far = torch.empty(2 * apart, dtype=torch.float16).as_strided((1, 2, 64), (1, apart, 1)).copy_(near)
    options = {k: v for k, v in case.options.items() if not isinstance(v, tuple)}
    target = make_target(case.mode, (1, 2, 64))
    loss = Case(case.loss, case.mode, options).module()
    results = []
    for logits in (near.requires_grad_(), far.requires_grad_()):
        value = loss(logits, target)
        results.append((value.detach(), torch.autograd.grad(value, logits)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
