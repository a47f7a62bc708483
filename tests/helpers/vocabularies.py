"""Google's T5 vocabulary, and text to train and to try others on."""

from pathlib import Path

GENUINE = Path(__file__).parents[2].parent / "shared" / "data" / "t5_tokenizer"
LINES = [
    "The quick brown fox jumps over the lazy dog.",
    "A tokenizer cuts text into pieces; pieces have ids.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Hello world, hello again: 12345 and 67890 (numbers)!",
    "sphinx of black quartz, judge my vow",
]
MULTILINGUAL = [
    "Thank you for inviting me to your party last week.",
    "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    "Deux jeunes hommes blancs sont dehors près de buissons, n'est-ce pas ?",
    "Bucureşti este capitala României; ţară în Europa.",
    "日本語 and русский have no pieces here",
    "½ ﬁne ﬀ ①②  two  spaces\tand a tab\nand a line",
    "emoji 🙂 {braces} ~ back\\slash ^ `tick`",
    "",
]
