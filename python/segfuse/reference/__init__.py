"""The losses in plain PyTorch: the oracle of the tests, the double backward, and the path for devices without a kernel.

Same names, options and numbers as the fused functions, for every float dtype and any order of derivative.
"""

from segfuse.reference._compounds import combo_loss, unified_focal_loss
from segfuse.reference._pointwise import (
    bce_with_logits_loss,
    broken_loss,
    cross_entropy_loss,
    focal_loss,
    hinge_loss,
    huber_loss,
    kl_div_loss,
    l1_loss,
    mse_loss,
    polynomial_loss,
    sigmoid_free_loss,
)
from segfuse.reference._region import (
    adaptive_log_loss,
    background_tversky_loss,
    dice_loss,
    focal_tversky_loss,
    generalized_dice_loss,
    jaccard_loss,
    region_stats,
    sensitivity_specificity_loss,
    tversky_loss,
)

__all__ = [
    "adaptive_log_loss",
    "background_tversky_loss",
    "bce_with_logits_loss",
    "broken_loss",
    "combo_loss",
    "cross_entropy_loss",
    "dice_loss",
    "focal_loss",
    "focal_tversky_loss",
    "generalized_dice_loss",
    "hinge_loss",
    "huber_loss",
    "jaccard_loss",
    "kl_div_loss",
    "l1_loss",
    "mse_loss",
    "polynomial_loss",
    "region_stats",
    "sensitivity_specificity_loss",
    "sigmoid_free_loss",
    "tversky_loss",
    "unified_focal_loss",
]
