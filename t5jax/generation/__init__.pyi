"""Text generation, scoring and embedding with a T5."""

from .batching import (
    batch_bucket as batch_bucket,
    length_bucket as length_bucket,
    limit_lengths as limit_lengths,
    pad_batch as pad_batch,
    unpad_batch as unpad_batch,
)
from .config import (
    GenerationConfig as GenerationConfig,
    GenerationOverrides as GenerationOverrides,
    Ids as Ids,
    override_config as override_config,
)
from .detokenizer import (
    StreamingDetokenizer as StreamingDetokenizer,
    detokenize as detokenize,
)
from .engine import (
    Engine as Engine,
    FinishReason as FinishReason,
    GeneratedSequence as GeneratedSequence,
    StreamedSequence as StreamedSequence,
    prefill as prefill,
    prepare_decoder as prepare_decoder,
)
from .generation_file import (
    from_generation_file as from_generation_file,
    merge_config as merge_config,
    to_generation_file as to_generation_file,
)
from .outputs import (
    GenerationOutput as GenerationOutput,
    RankedCandidate as RankedCandidate,
    StreamEvent as StreamEvent,
    TokenAlternative as TokenAlternative,
    make_outputs as make_outputs,
)
from .scoring import (
    Scorer as Scorer,
)

__all__ = [
    "Engine",
    "FinishReason",
    "GeneratedSequence",
    "GenerationConfig",
    "GenerationOutput",
    "GenerationOverrides",
    "RankedCandidate",
    "Scorer",
    "StreamEvent",
    "StreamedSequence",
    "StreamingDetokenizer",
    "TokenAlternative",
    "from_generation_file",
    "merge_config",
    "override_config",
    "to_generation_file",
]
