"""Decoding loops over any `step(tokens, cache) -> (logits, cache)`."""

from .automaton import (
    Automaton as Automaton,
)
from .automaton_builders import (
    check_automaton as check_automaton,
)
from .automaton_builders import (
    from_edges as from_edges,
)
from .automaton_builders import (
    matcher as matcher,
)
from .automaton_builders import (
    trie as trie,
)
from .beam import (
    Beams as Beams,
)
from .beam import (
    StoppingRule as StoppingRule,
)
from .beam import (
    beam_search as beam_search,
)
from .beam import (
    gnmt_penalty as gnmt_penalty,
)
from .beam import (
    power_penalty as power_penalty,
)
from .logits_processors import (
    LogitsProcessors as LogitsProcessors,
)
from .loop import (
    Finish as Finish,
)
from .loop import (
    LoopState as LoopState,
)
from .loop import (
    SampleFn as SampleFn,
)
from .loop import (
    StepFn as StepFn,
)
from .loop import (
    decode_loop as decode_loop,
)
from .loop import (
    init_loop as init_loop,
)
from .sampling import (
    greedy as greedy,
)
from .sampling import (
    min_p as min_p,
)
from .sampling import (
    sampler as sampler,
)
from .sampling import (
    top_k as top_k,
)
from .sampling import (
    top_p as top_p,
)
from .sampling import (
    typical as typical,
)
