"""Optimizers and learning rate schedules."""

from .optimizer import (
    OptimizerConfig as OptimizerConfig,
)
from .optimizer import (
    OptimizerName as OptimizerName,
)
from .optimizer import (
    make_optimizer as make_optimizer,
)
from .schedules import (
    ScheduleConfig as ScheduleConfig,
)
from .schedules import (
    learning_rate_schedule as learning_rate_schedule,
)
