"""Decoding loops over any `step(tokens, cache) -> (logits, cache)`."""

from .automaton import (
    Automaton as Automaton,
)
from .automaton_builders import (
    check_automaton as check_automaton,
    from_edges as from_edges,
    matcher as matcher,
    trie as trie,
)
from .beam import (
    Beams as Beams,
    StoppingRule as StoppingRule,
    beam_search as beam_search,
    gnmt_penalty as gnmt_penalty,
    power_penalty as power_penalty,
)
from .logits_processors import (
    LogitsProcessors as LogitsProcessors,
)
from .loop import (
    Finish as Finish,
    LoopState as LoopState,
    SampleFn as SampleFn,
    StepFn as StepFn,
    decode_loop as decode_loop,
    greedy as greedy,
    init_loop as init_loop,
)
from .sampling import (
    min_p as min_p,
    sampler as sampler,
    top_k as top_k,
    top_p as top_p,
    typical as typical,
)

__all__ = [
    "Automaton",
    "Beams",
    "Finish",
    "LogitsProcessors",
    "LoopState",
    "SampleFn",
    "StepFn",
    "StoppingRule",
    "beam_search",
    "decode_loop",
    "from_edges",
    "gnmt_penalty",
    "greedy",
    "init_loop",
    "matcher",
    "min_p",
    "power_penalty",
    "sampler",
    "top_k",
    "top_p",
    "trie",
    "typical",
]
