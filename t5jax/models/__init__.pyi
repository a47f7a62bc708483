"""T5: config, presets, modules and the incremental decoder."""

from .config import (
    COMPUTE_FIELDS as COMPUTE_FIELDS,
)
from .config import (
    ComputeDtype as ComputeDtype,
)
from .config import (
    Remat as Remat,
)
from .config import (
    T5Config as T5Config,
)
from .config import (
    pad_vocab as pad_vocab,
)
from .incremental_decoder import (
    DecoderCache as DecoderCache,
)
from .incremental_decoder import (
    DecodeStep as DecodeStep,
)
from .incremental_decoder import (
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
)
from .quantization import (
    check_saveable as check_saveable,
)
from .quantization import (
    quantize_params as quantize_params,
)
from .t5 import (
    PARTITION_RULES as PARTITION_RULES,
)
from .t5 import (
    T5 as T5,
)
from .t5 import (
    Params as Params,
)
from .t5 import (
    abstract_params as abstract_params,
)
from .t5 import (
    bind as bind,
)
from .t5 import (
    init_params as init_params,
)
from .t5 import (
    is_stacked as is_stacked,
)
from .t5 import (
    resolve_dtype as resolve_dtype,
)
