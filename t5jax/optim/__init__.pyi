"""Optimizers and learning rate schedules."""

from .optimizer import (
    OptimizerConfig as OptimizerConfig,
    OptimizerName as OptimizerName,
    make_optimizer as make_optimizer,
)
from .schedules import (
    ScheduleConfig as ScheduleConfig,
    learning_rate_schedule as learning_rate_schedule,
)

__all__ = [
    "OptimizerConfig",
    "OptimizerName",
    "ScheduleConfig",
    "learning_rate_schedule",
    "make_optimizer",
]
