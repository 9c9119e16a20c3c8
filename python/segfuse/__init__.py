"""segfuse: fused forward/backward kernels for per-pixel segmentation losses, under PyTorch."""

from segfuse import reference
from segfuse._native import build_info
from segfuse.algebra import CompoundLoss, Loss
from segfuse.compounds import DiceBCELoss, DiceCELoss, DiceFocalLoss
from segfuse.diagnostics import check_target, warmup
from segfuse.pointwise import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    FocalLoss,
    bce_with_logits_loss,
    cross_entropy_loss,
    focal_loss,
)
from segfuse.region import (
    DiceLoss,
    FocalTverskyLoss,
    JaccardLoss,
    TverskyLoss,
    dice_loss,
    focal_tversky_loss,
    jaccard_loss,
    tversky_loss,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "BCEWithLogitsLoss",
    "CompoundLoss",
    "CrossEntropyLoss",
    "DiceBCELoss",
    "DiceCELoss",
    "DiceFocalLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "JaccardLoss",
    "Loss",
    "TverskyLoss",
    "__version__",
    "bce_with_logits_loss",
    "build_info",
    "check_target",
    "cross_entropy_loss",
    "dice_loss",
    "focal_loss",
    "focal_tversky_loss",
    "jaccard_loss",
    "reference",
    "tversky_loss",
    "warmup",
]
