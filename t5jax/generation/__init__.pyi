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
from .compiled import (
    prefill as prefill,
)
from .compiled import (
    prepare_decoder as prepare_decoder,
)
from .config import (
    GenerationConfig as GenerationConfig,
)
from .config import (
    GenerationOverrides as GenerationOverrides,
)
from .config import (
    show_options as show_options,
)
from .constraints import (
    Ids as Ids,
)
from .detokenizer import (
    StreamingDetokenizer as StreamingDetokenizer,
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
from .outputs import (
    GenerationOutput as GenerationOutput,
)
from .outputs import (
    Writing as Writing,
)
from .outputs import (
    make_outputs as make_outputs,
)
from .outputs import (
    output_text as output_text,
)
from .scorer import (
    Scorer as Scorer,
)
from .scorer import (
    check_positive as check_positive,
)
