"""Pre-train a model, and show what it fills in."""

from t5jax.data import corpus_documents
from t5jax.parallel import is_main_process
from t5jax.recipes import PretrainConfig, plain_sentences, pretrain, show_blanks


def pretrain_and_show(config: PretrainConfig) -> None:
    """Pre-train a model, then print held-out sentences with blanks that it fills in."""
    result = pretrain(config)
    if result.evaluation is None or not is_main_process():
        return
    print("\nheld-out sentences, [what stood there -> what the model fills in]:")
    sentences = plain_sentences(corpus_documents(result.heldout), count=6)
    for line in show_blanks(result.t5, sentences, seed=config.seed):
        print(f"  {line}")
    print(f"\nuse it:  import t5jax; t5 = t5jax.load({str(config.folder)!r})")
