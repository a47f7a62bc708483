from t5jax.errors import suggest


def test_hint_asks_for_the_most_similar_name():
    assert suggest("bluer", ["chrf", "bleu", "blue"], "") == "did you mean 'blue'?"


def test_hint_is_otherwise_where_none_is_similar():
    assert suggest("xyz", ["chrf", "bleu"], "use chrf or bleu.") == "use chrf or bleu."


def test_hint_takes_names_for_similar_above_the_cutoff():
    assert suggest("abcd", ["abyz"], "none", cutoff=0.5) == "did you mean 'abyz'?"
    assert suggest("abcd", ["abyz"], "none", cutoff=0.6) == "none"
