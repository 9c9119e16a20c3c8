from segfuse._C import BUFFERS as BUFFERS
from segfuse._C import CALL as CALL
from segfuse._C import FINISH as FINISH
from segfuse._C import GATHER as GATHER
from segfuse._C import NAMES as NAMES
from segfuse._C import Plan as Plan
from segfuse._C import backward as backward
from segfuse._C import forward as forward
from segfuse._C import head as head
from segfuse._C import sizes as sizes
from segfuse._C import statistics as statistics
from segfuse._C import trace_start as trace_start
from segfuse._C import trace_stop as trace_stop

architectures: str
few_rows: int

def write_words(to: int, source: int, count: int, stream: int) -> None: ...
def write_classes(plan: Plan, to: int, stream: int) -> None: ...
def unusable() -> str: ...
def warmup() -> None: ...
def kernel_names() -> list[str]: ...
