"""From text files to batches."""

from . import objectives as objectives
from . import pydocs as pydocs
from .batch import (
    Batch as Batch,
)
from .batch import (
    shift_right as shift_right,
)
from .corpus import (
    DataConfig as DataConfig,
)
from .corpus import (
    corpus_documents as corpus_documents,
)
from .corpus import (
    read_corpus as read_corpus,
)
from .loader import (
    batch_chunks as batch_chunks,
)
from .loader import (
    evaluation_batches as evaluation_batches,
)
from .loader import (
    training_batches as training_batches,
)
from .mixture import (
    MixtureBatches as MixtureBatches,
)
from .mixture import (
    heldout_batches as heldout_batches,
)
from .mixture import (
    mixing_rates as mixing_rates,
)
from .mixture import (
    mixture_stream as mixture_stream,
)
from .packing import (
    Empty as Empty,
)
from .packing import (
    LimitCounts as LimitCounts,
)
from .packing import (
    Pair as Pair,
)
from .packing import (
    PairLimits as PairLimits,
)
from .packing import (
    Pairs as Pairs,
)
from .packing import (
    TooLong as TooLong,
)
from .packing import (
    apply_limits as apply_limits,
)
from .packing import (
    pairs_digest as pairs_digest,
)
from .packing import (
    truncate_ids as truncate_ids,
)
from .tasks import (
    SPLITS as SPLITS,
)
from .tasks import (
    Example as Example,
)
from .tasks import (
    Row as Row,
)
from .tasks import (
    Split as Split,
)
from .tasks import (
    Task as Task,
)
from .tasks import (
    check_task_names as check_task_names,
)
from .tasks import (
    load_tasks as load_tasks,
)
from .tasks import (
    read_split as read_split,
)
from .tasks import (
    split_overlap as split_overlap,
)
from .text_files import (
    KNOWN_ENDINGS as KNOWN_ENDINGS,
)
from .text_files import (
    file_ending as file_ending,
)
from .text_files import (
    file_suffix as file_suffix,
)
from .text_files import (
    numbered_records as numbered_records,
)
from .text_files import (
    read_lines as read_lines,
)
from .text_files import (
    read_rows as read_rows,
)
from .token_stream import (
    Chunks as Chunks,
)
from .token_stream import (
    ExampleSource as ExampleSource,
)
from .token_stream import (
    TokenStream as TokenStream,
)
from .token_stream import (
    tokenize_dataset as tokenize_dataset,
)
