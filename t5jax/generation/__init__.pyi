"""Text generation, scoring and embedding with a T5."""

from .batching import (
    batch_bucket as batch_bucket,
)
from .batching import (
    length_bucket as length_bucket,
)
from .batching import (
    pad_batch as pad_batch,
)
from .config import (
    GenerationConfig as GenerationConfig,
)
from .config import (
    GenerationOverrides as GenerationOverrides,
)
from .config import (
    Ids as Ids,
)
from .config import (
    override_config as override_config,
)
from .detokenizer import (
    StreamingDetokenizer as StreamingDetokenizer,
)
from .detokenizer import (
    detokenize as detokenize,
)
from .engine import (
    Engine as Engine,
)
from .engine import (
    FinishReason as FinishReason,
)
from .engine import (
    GeneratedSequence as GeneratedSequence,
)
from .engine import (
    StreamedSequence as StreamedSequence,
)
from .engine import (
    prefill as prefill,
)
from .engine import (
    prepare_decoder as prepare_decoder,
)
from .outputs import (
    GenerationOutput as GenerationOutput,
)
from .outputs import (
    TokenAlternative as TokenAlternative,
)
from .outputs import (
    make_outputs as make_outputs,
)
from .scoring import (
    Scorer as Scorer,
)
