"""T5 in JAX: text in, text out.

    import t5jax
    t5 = t5jax.load("google/flan-t5-small")
    t5.generate(["translate English to German: That is good."])

Modules are imported when first used, so that `import t5jax` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

from t5jax.config import T5Config

if TYPE_CHECKING:
    from t5jax.answers import Answer
    from t5jax.finetuning import FinetuneConfig, finetune
    from t5jax.fit import FitConfig
    from t5jax.loading import export_hf, load
    from t5jax.optimizer import OptimizerConfig
    from t5jax.schedule import ScheduleConfig
    from t5jax.tasks import Task
    from t5jax.text2text import Text2Text
    from t5jax.train import StepConfig

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "FinetuneConfig",
    "FitConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "StepConfig",
    "T5Config",
    "Task",
    "Text2Text",
    "__version__",
    "export_hf",
    "finetune",
    "load",
]

_LAZY = {
    "Answer": "answers",
    "FinetuneConfig": "finetuning",
    "FitConfig": "fit",
    "OptimizerConfig": "optimizer",
    "ScheduleConfig": "schedule",
    "StepConfig": "train",
    "Task": "tasks",
    "Text2Text": "text2text",
    "export_hf": "loading",
    "finetune": "finetuning",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"t5jax.{_LAZY[name]}"), name)
    try:
        return importlib.import_module(f"t5jax.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"t5jax.{name}":
            raise
        raise AttributeError(f"module 't5jax' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return __all__
