"""Memory, operations and time of a step on devices that are not there."""

from .plan import (
    Plan as Plan,
)
from .plan import (
    plan_step as plan_step,
)
from .workload import (
    Workload as Workload,
)
from .workload import (
    lower_step as lower_step,
)
from .workload import (
    slice_devices as slice_devices,
)
