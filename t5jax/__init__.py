"""T5 in JAX: text in, text out.

Load a model and use it:

    import t5jax

    t5 = t5jax.load("google/flan-t5-small")  # a hub id, a folder or a file of any T5 format
    t5.generate(["translate English to German: That is good."], max_new_tokens=40)
    t5.score(["2 + 2 ="], ["4"])  # log-probabilities; also rank, embed, encode, stream
    t5.save("my-model")  # t5jax.load reads it
    t5jax.export_hf(t5, "my-hf-model")  # transformers reads it

Train one, or continue to train one:

    t5jax.pretrain(t5jax.PretrainConfig(output="runs/mine"))  # no data needed
    task = t5jax.Task(
        name="german",
        train="train.tsv",
        validation="dev.tsv",
        input="translate English to German: {en}",
        target="{de}",
        metrics=("bleu",),
    )
    t5jax.finetune([task], t5jax.FinetuneConfig(checkpoint="google/t5-v1_1-small"))

The same from a shell, and more:

    t5jax pretrain | finetune | train-tokenizer | generate | evaluate | convert | inspect | plan

`t5jax.evaluation` scores files of predictions, `t5jax.pretrained` converts checkpoints,
`t5jax.models` has the model itself. Names are imported when they are first used, so `import t5jax`
is quick. Messages of the library go to `logging.getLogger("t5jax")`.
"""

from t5jax._lazy import attach

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach(__name__, __file__)
