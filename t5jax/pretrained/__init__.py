"""Checkpoints of every known format, in and out.

A checkpoint is loaded in three steps:

1. Open the arrays. `open.py` detects the format; `formats/` opens the arrays in its files, reading
   their shapes and dtypes but not their values (`LazyArray`).
2. Match arrays with parameters. `hf/`, `t5x/`, `mesh_tf.py` and `native.py` each map the names of
   one format (`NameMap`) and infer the config from files and array shapes (`infer_config.py`,
   `hf_config.py`, `gin_config.py`). The result is a `CheckpointSource`.
3. Read the values block by block, in the requested dtype and onto the requested devices:
   `CheckpointSource.load_params`.

`open_...` functions read no arrays, `read_...` functions return values in host memory, and
`load_...` functions return parameters on devices. `hf.save_hf`, `t5x.save_t5x` and
`save_pretrained` write checkpoints.
"""

from t5jax._lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
