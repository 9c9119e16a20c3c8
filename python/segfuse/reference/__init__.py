"""The losses in plain PyTorch. Tests compare with them.

They also give second derivatives, and run on devices without kernels. They have the names, options
and results of the fused functions, for every float dtype and any order of derivative.
"""

from segfuse.reference import _compounds, _pointwise, _region
from segfuse.reference._compounds import *  # noqa: F403
from segfuse.reference._pointwise import *  # noqa: F403
from segfuse.reference._region import *  # noqa: F403

__all__: list[str] = []
__all__ += _compounds.__all__
__all__ += _pointwise.__all__
__all__ += _region.__all__
