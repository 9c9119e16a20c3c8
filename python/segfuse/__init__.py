"""segfuse: fused forward/backward kernels for per-pixel segmentation losses, under PyTorch."""

from segfuse import compounds, metrics, pointwise, reference, region, stats
from segfuse._core.native import build_info
from segfuse._version import __version__
from segfuse.algebra import CompoundLoss, Loss
from segfuse.compounds import *  # noqa: F403
from segfuse.diagnostics import check_target, warmup
from segfuse.pointwise import *  # noqa: F403
from segfuse.region import *  # noqa: F403
from segfuse.stats import *  # noqa: F403
from segfuse.tiles import TiledLoss

__all__ = [
    "CompoundLoss",
    "Loss",
    "TiledLoss",
    "__version__",
    "build_info",
    "check_target",
    "metrics",
    "reference",
    "warmup",
]
__all__ += compounds.__all__
__all__ += pointwise.__all__
__all__ += region.__all__
__all__ += stats.__all__
