"""Checkpoints of every known format, in and out.

A checkpoint is loaded in three steps:

1. Open the arrays. `open.py` finds out the format; `formats/` opens the arrays of its files, whose
   shapes and types are known and whose values are not read yet (`LazyArray`).
2. Match each array with a parameter. `hf/`, `t5x/`, `mesh_tf.py` and `native.py` have one format's
   names (`NameMap`) and determine the config, from files and from the arrays (`infer_config.py`,
   `hf_config.py`, `gin_config.py`). The result is a `CheckpointSource`.
3. Read the values, block by block, into the type and onto the devices asked for:
   `CheckpointSource.load_params`.

A function `open_...` reads no arrays, `read_...` returns what it reads in memory, and `load_...`
returns parameters on devices. `hf.save_hf`, `t5x.save_t5x` and `save_pretrained` write.
"""

from t5jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
