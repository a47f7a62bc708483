"""`t5jax pretrain`: pre-train a model and print predictions for masked spans."""

import dataclasses

from t5jax.data import corpus_documents
from t5jax.parallel import abort_together, barrier, is_main_process, log_once
from t5jax.recipes import PretrainConfig, plain_sentences, pretrain, show_blanks
from t5jax.runtime import keep_memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(PretrainConfig):
    """Pre-train a T5 by span corruption.

    The defaults train a tiny model on the docstrings of installed packages, in minutes.  After
    Ctrl-C, SIGTERM or a crash, the same command resumes the run.  `--config FILE` reads options
    from a YAML or JSON file, such as the `options.yaml` of another run.
    """


def pretrain_and_show(config: PretrainConfig) -> None:
    """Pre-train a model, then print its predictions for masked spans of held-out sentences.

    Args:
      config: options of the run.
    Raises:
      ValueError, OSError, RunAborted: see `pretrain`.
    """
    keep_memory()
    result = pretrain(config)
    if result.evaluation is None:
        return
    with abort_together():
        if is_main_process():
            log_once("held-out sentences, [original -> prediction]:")
            sentences = plain_sentences(corpus_documents(result.heldout), count=6)
            for line in show_blanks(result.t5, sentences, seed=config.seed):
                log_once(f"  {line}")
            log_once(f"use it:  import t5jax; t5 = t5jax.load({str(config.folder)!r})")
        barrier("the end of the sentences")
