from t5jax import nearest


def test_the_most_similar_name_is_asked_for():
    assert nearest.hint("blue", ["chrf", "bleu", "rouge1"]) == "did you mean 'bleu'?"


def test_nothing_is_asked_where_no_name_is_similar():
    assert nearest.hint("xyz", ["chrf", "bleu"], "use chrf or bleu.") == "use chrf or bleu."
    assert nearest.hint("xyz", []) == ""
