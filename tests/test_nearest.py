from t5jax import nearest


def test_hint_asks_for_the_most_similar_name():
    assert nearest.hint("bluer", ["chrf", "bleu", "blue"], "") == "did you mean 'blue'?"


def test_hint_is_otherwise_where_none_is_similar():
    assert nearest.hint("xyz", ["chrf", "bleu"], "use chrf or bleu.") == "use chrf or bleu."


def test_hint_takes_names_for_similar_above_the_cutoff():
    assert nearest.hint("abcd", ["abyz"], "none", cutoff=0.5) == "did you mean 'abyz'?"
    assert nearest.hint("abcd", ["abyz"], "none", cutoff=0.6) == "none"
