"""Final checkpoint of fine-tuning."""

from collections.abc import Sequence

from t5jax.checkpoint import average_checkpoints, choose_checkpoints, is_best
from t5jax.models import Params
from t5jax.parallel import log_once
from t5jax.pretrained import CHECKPOINTS
from t5jax.recipes.finetune_config import FinetuneConfig
from t5jax.training import TrainState

MODEL = "model"


def resulting_params(
    config: FinetuneConfig, abstract: TrainState, ranking_keys: Sequence[float]
) -> Params:
    """Load the best or last checkpoint of a finished run, or the average of several.

    Args:
      config: options of the run.
      abstract: shapes, dtypes and shardings of the state.
      ranking_keys: ranking keys of all evaluations, to warn if the best one has no checkpoint.
    """
    folder = config.folder / CHECKPOINTS
    steps = choose_checkpoints(
        folder, choice=config.use, count=config.average, every=config.fit.checkpoint_every
    )
    tree = "params" if abstract.ema_params is None else "average"
    params = average_checkpoints(folder, steps, tree, abstract.params)
    which = f"the {config.use} checkpoint" if len(steps) == 1 else f"the mean of {len(steps)}"
    log_once(f"the result is {which} (step {', '.join(map(str, steps))}): {config.folder / MODEL}")
    if config.use == "best" and not is_best(folder, steps[0], ranking_keys):
        log_once(
            f"warning: an evaluation was better than that of step {steps[0]}, but its checkpoint "
            "was not kept; set --use best from the start of a run to keep it."
        )
    return params
