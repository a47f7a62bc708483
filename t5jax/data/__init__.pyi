"""From text files to batches."""

from . import objectives as objectives, pydocs as pydocs
from .batches import (
    Batch as Batch,
    BatchIterator as BatchIterator,
    ExampleSource as ExampleSource,
    batch_chunks as batch_chunks,
    evaluation_batches as evaluation_batches,
    shift_right as shift_right,
    training_batches as training_batches,
)
from .corpus import (
    Chunks as Chunks,
    DataConfig as DataConfig,
    TokenStream as TokenStream,
    corpus_documents as corpus_documents,
    read_corpus as read_corpus,
    tokenize_dataset as tokenize_dataset,
)
from .mixture import (
    MixtureBatches as MixtureBatches,
    heldout_batches as heldout_batches,
    mixing_rates as mixing_rates,
    mixture_stream as mixture_stream,
)
from .packing import (
    Empty as Empty,
    LimitCounts as LimitCounts,
    Pair as Pair,
    PairLimits as PairLimits,
    Pairs as Pairs,
    TooLong as TooLong,
    apply_limits as apply_limits,
    pairs_digest as pairs_digest,
    truncate_ids as truncate_ids,
)
from .tasks import (
    SPLITS as SPLITS,
    Example as Example,
    Row as Row,
    Split as Split,
    Task as Task,
    check_task_names as check_task_names,
    load_tasks as load_tasks,
    read_split as read_split,
    split_overlap as split_overlap,
)
from .text_files import (
    KNOWN_ENDINGS as KNOWN_ENDINGS,
    file_ending as file_ending,
    file_suffix as file_suffix,
    numbered_records as numbered_records,
    read_lines as read_lines,
    read_rows as read_rows,
)

__all__ = [
    "Batch",
    "BatchIterator",
    "Chunks",
    "DataConfig",
    "Example",
    "ExampleSource",
    "MixtureBatches",
    "Pair",
    "PairLimits",
    "Pairs",
    "Split",
    "Task",
    "TokenStream",
    "corpus_documents",
    "evaluation_batches",
    "load_tasks",
    "mixing_rates",
    "mixture_stream",
    "objectives",
    "read_corpus",
    "read_split",
    "shift_right",
    "tokenize_dataset",
    "training_batches",
]
