"""T5: config, presets, modules and the incremental decoder."""

from .config import (
    AttentionKind as AttentionKind,
    ComputeDtype as ComputeDtype,
    ComputePolicy as ComputePolicy,
    Remat as Remat,
    T5Config as T5Config,
    pad_vocab as pad_vocab,
    read_compute_fields as read_compute_fields,
)
from .families import (
    FAMILIES as FAMILIES,
    Family as Family,
    get_family as get_family,
)
from .incremental_decoder import (
    DecoderCache as DecoderCache,
    DecodeStep as DecodeStep,
    IncrementalDecoder as IncrementalDecoder,
)
from .layers import (
    relative_position_bucket as relative_position_bucket,
)
from .presets import (
    preset_fields as preset_fields,
)
from .quantization import (
    LogitError as LogitError,
    check_saveable as check_saveable,
    quantize_params as quantize_params,
)
from .sentence_encoder import (
    ACTIVATIONS as ACTIVATIONS,
    POOLING_MODES as POOLING_MODES,
    SIMILARITIES as SIMILARITIES,
    Dense as Dense,
    Feature as Feature,
    Layer as Layer,
    LayerNorm as LayerNorm,
    Normalize as Normalize,
    Pooling as Pooling,
    PoolingMode as PoolingMode,
    SentenceEncoder as SentenceEncoder,
    Similarity as Similarity,
    apply_layers as apply_layers,
)
from .t5 import (
    T5 as T5,
    Params as Params,
    abstract_params as abstract_params,
    bind as bind,
    init_params as init_params,
    is_stacked as is_stacked,
    resolve_dtype as resolve_dtype,
)

__all__ = [
    "FAMILIES",
    "T5",
    "AttentionKind",
    "ComputeDtype",
    "ComputePolicy",
    "DecodeStep",
    "DecoderCache",
    "Dense",
    "Family",
    "IncrementalDecoder",
    "LayerNorm",
    "LogitError",
    "Normalize",
    "Params",
    "Pooling",
    "Remat",
    "SentenceEncoder",
    "T5Config",
    "abstract_params",
    "bind",
    "get_family",
    "init_params",
    "is_stacked",
    "pad_vocab",
    "quantize_params",
    "relative_position_bucket",
    "resolve_dtype",
]
