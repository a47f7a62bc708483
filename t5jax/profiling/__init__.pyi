"""Hardware, FLOPs, step times and traces."""

from .flops import (
    decode_step_flops as decode_step_flops,
)
from .flops import (
    encode_flops as encode_flops,
)
from .flops import (
    forward_flops as forward_flops,
)
from .flops import (
    train_step_flops as train_step_flops,
)
from .hardware import (
    GIB as GIB,
)
from .hardware import (
    Chip as Chip,
)
from .hardware import (
    chip_of_kind as chip_of_kind,
)
from .hardware import (
    chip_of_topology as chip_of_topology,
)
from .step_timer import (
    StepTimer as StepTimer,
)
from .step_timer import (
    peak_memory_bytes as peak_memory_bytes,
)
from .trace import (
    Profiler as Profiler,
)
