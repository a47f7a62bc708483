"""Mixtures against loops: what becomes of each pair, where it lies, and how often it comes."""

import collections
import fractions
import hashlib
import itertools
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from t5jax.data.mixture import MixtureBatches, heldout_batches, mixing_rates, mixture_stream
from t5jax.data.packing import (
    LimitCounts,
    Pair,
    PairLimits,
    Pairs,
    apply_limits,
    pack_pairs,
    pairs_digest,
    stack_rows,
    truncate_ids,
)
from t5jax.models.config import ComputePolicy
from t5jax.parallel.mesh import MeshConfig, make_mesh
from t5jax.parallel.sharding import shard_batch
from t5jax.training.evaluation import make_eval_step

EOS, PAD, START = 1, 0, 2


def ids_of(length, first=10):
    """So many ids, EOS the last."""
    return [*range(first, first + length - 1), EOS]


def limits(input_length=8, target_length=6, **policies):
    return PairLimits(input_length=input_length, target_length=target_length, **policies)


def pair_of(number, *lengths):
    """A pair that tells its number by its first ids."""
    ids = ([number + 10] * (length - 1) + [EOS] for length in lengths)
    return Pair(*(np.array(x, np.int32) for x in ids))


def some_pairs(count, *, lengths=(8, 6), seed=0):
    """Pairs of all lengths from 2 on, which fit into rows of `lengths`."""
    rng = np.random.default_rng(seed)
    return [pair_of(i, *(rng.integers(2, most + 1) for most in lengths)) for i in range(count)]


def plain(pairs):
    """Pairs as lists, to compare."""
    return [(list(map(int, pair.input)), list(map(int, pair.target))) for pair in pairs]


def read_back(batch, row):
    """The pairs of a packed row, by its segment ids alone."""
    found = []
    for number in range(1, batch["encoder_segment_ids"][row].max() + 1):
        read = batch["encoder_segment_ids"][row] == number
        write = batch["decoder_segment_ids"][row] == number
        found.append(
            Pair(
                batch["encoder_input_tokens"][row][read], batch["decoder_target_tokens"][row][write]
            )
        )
    return found


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        assert value.dtype == other[name].dtype
        np.testing.assert_array_equal(value, other[name], err_msg=name)


# Pairs


def test_pairs_are_the_pairs_they_are_made_of():
    made = [*some_pairs(5), Pair(np.array([EOS], np.int32), np.array([EOS], np.int32))]
    pairs = Pairs(made)
    assert len(pairs) == 6
    assert plain(pairs) == plain(made)
    assert pairs.tokens == (sum(len(x) for x, _ in made), sum(len(y) for _, y in made))
    assert pairs[5].input.dtype == np.int32
    for index in (-1, 6):
        with pytest.raises(IndexError):
            pairs[index]


def test_pairs_may_be_none_or_without_tokens():
    none = np.zeros(0, np.int32)
    assert len(Pairs([])) == 0
    assert Pairs([]).tokens == (0, 0)
    pairs = Pairs([Pair(none, none), Pair(np.array([5, EOS]), none)])
    assert plain(pairs) == [([], []), ([5, EOS], [])]
    pairs.update(hashlib.sha256())


def test_pairs_hash_tells_ids_and_their_bounds():
    def digest(*pairs):
        found = hashlib.sha256()
        Pairs([Pair(*(np.array(x, np.int32) for x in pair)) for pair in pairs]).update(found)
        return found.hexdigest()

    sets = [
        [([3, 1], [4, 1]), ([5, 1], [6, 1])],
        [([5, 1], [6, 1]), ([3, 1], [4, 1])],
        [([3, 1, 5], [4, 1]), ([1], [6, 1])],
        [([3, 1], [4, 1, 6]), ([5, 1], [1])],
        [([3, 1, 5, 1], [4, 1, 6, 1])],
        [([3, 1], [4, 1]), ([5, 1], [7, 1])],
    ]
    assert len({digest(*pairs) for pairs in sets}) == len(sets)
    assert digest(*sets[0]) == digest(*sets[0])


def test_digest_tells_tasks_and_their_data():
    one, two = Pairs(some_pairs(3)), Pairs(some_pairs(4))
    found = [
        pairs_digest(tasks)
        for tasks in ({"a": one, "b": two}, {"b": two, "a": one}, {"a": two, "b": one}, {"a": one})
    ]
    assert len(set(found)) == 4
    assert pairs_digest({"a": Pairs(some_pairs(3))}) == found[-1]


# Limits

# Lengths of inputs and targets; the limits are 8 and 6, and a target of 1 is empty.
LENGTHS = [(8, 6), (9, 6), (3, 7), (12, 20), (2, 1), (10, 1), (1, 2)]


@pytest.mark.parametrize("too_long", ["drop", "truncate"])
@pytest.mark.parametrize("empty_targets", ["drop", "keep"])
def test_limit_does_what_it_is_told_and_counts(too_long, empty_targets):
    inputs, targets = ([ids_of(n, 10 * n) for n in side] for side in zip(*LENGTHS, strict=True))
    pairs, counts = apply_limits(
        inputs,
        targets,
        limits=limits(too_long=too_long, empty_targets=empty_targets),
        name="t",
    )
    expected, dropped = [], 0
    for x, y in zip(inputs, targets, strict=True):
        long, empty = len(x) > 8 or len(y) > 6, len(y) == 1
        if (long and too_long == "drop") or (empty and empty_targets == "drop"):
            dropped += 1
            continue
        expected.append((x if len(x) <= 8 else [*x[:7], EOS], y if len(y) <= 6 else [*y[:5], EOS]))
    assert plain(pairs) == expected
    assert counts == LimitCounts(long_inputs=3, long_targets=2, empty_targets=2, dropped=dropped)


def test_limit_leaves_alone_what_keeps_the_limits():
    inputs, targets = [ids_of(8), ids_of(1)], [ids_of(6), ids_of(2)]
    pairs, counts = apply_limits(inputs, targets, limits=limits(), name="t")
    assert plain(pairs) == list(zip(inputs, targets, strict=True))
    assert counts == LimitCounts(0, 0, 0, 0)


NONE_LEFT = (
    "task 'mine' must have an example within its limits, got {} examples: {} with inputs too long, "
    "{} with targets too long, {} with empty targets; "
)
TOO_LONG = (
    "{0}s of task 'mine' must have at most {1} tokens, got {2} with more, the longest {3}; raise "
    "{0}_length, or set too_long to drop or truncate."
)
EMPTY = "targets of task 'mine' must not be empty, got {} empty of {}; "


@pytest.mark.parametrize(
    ("lengths", "policies", "message"),
    [
        (LENGTHS, {}, TOO_LONG.format("input", 8, "3 of 7", 12)),
        ([(8, 6), (2, 7), (2, 9)], {}, TOO_LONG.format("target", 6, "2 of 3", 9)),
        (LENGTHS, {"too_long": "drop"}, EMPTY.format(2, 7)),
        (
            [(9, 6), (2, 7), (2, 1), (9, 7)],
            {"too_long": "drop", "empty_targets": "drop"},
            NONE_LEFT.format(4, 2, 2, 1),
        ),
        ([], {}, NONE_LEFT.format(0, 0, 0, 0)),
    ],
)
def test_limit_says_how_many_do_not_keep_them(lengths, policies, message):
    inputs, targets = ([ids_of(pair[side]) for pair in lengths] for side in (0, 1))
    with pytest.raises(ValueError, match=re.escape(message)):
        apply_limits(inputs, targets, limits=limits(**policies), name="mine")


@pytest.mark.parametrize("name", ["input_length", "target_length"])
def test_limits_have_room_for_eos(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        limits(**{name: 0})


@given(st.lists(st.integers(3, 99), max_size=9), st.integers(1, 12))
def test_cut_keeps_the_beginning_and_eos(ids, length):
    found = truncate_ids([*ids, EOS], length)
    assert found.dtype == np.int32
    assert found.tolist() == [*ids[: length - 1], EOS]


# Shares


def test_rates_are_the_papers():
    # r_m = min(e_m, K) / sum of min(e_n, K), in fractions.
    sizes = {"a": 392_702, "b": 5, "c": 2**19, "d": 2**19 + 1, "e": 10**9}
    for limit in (1, 7, 2**19, 2**21, 10**10):
        found = mixing_rates(sizes, dict.fromkeys(sizes), size_limit=limit)
        total = sum(min(size, limit) for size in sizes.values())
        for name, size in sizes.items():
            expected = fractions.Fraction(min(size, limit), total)
            assert found[name] == pytest.approx(float(expected), rel=1e-12)
        assert list(found) == list(sizes)


def test_rates_by_weights_do_not_look_at_sizes():
    found = mixing_rates({"a": 9, "b": 10**6}, {"a": 3.0, "b": 1.0}, size_limit=5)
    assert found == {"a": 0.75, "b": 0.25}
    assert mixing_rates({"a": 9}, {"a": 0.1}, size_limit=5) == {"a": 1.0}


def test_rates_refuse_weights_for_some():
    with pytest.raises(ValueError, match=r"all tasks must have a weight.* b, d;"):
        mixing_rates(
            dict.fromkeys("abcd", 5), {"a": 1.0, "b": None, "c": 2.0, "d": None}, size_limit=9
        )


# Rows


def first_fit(lengths, *, batch_size, room):
    """Numbers of the pairs in each row, by trying one row after the other."""
    rows = [[] for _ in range(batch_size)]
    for number in range(len(lengths)):
        for row in rows:
            held = [lengths[i] for i in [*row, number]]
            if all(sum(pair[side] for pair in held) <= room[side] for side in (0, 1)):
                row.append(number)
                break
        else:
            break
    return rows


LIST_OF_LENGTHS = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 6)), max_size=30)
ROOM = st.tuples(st.integers(8, 20), st.integers(6, 15))


@given(LIST_OF_LENGTHS, st.integers(1, 4), ROOM)
def test_fill_puts_each_pair_in_the_first_row_with_room(lengths, batch_size, room):
    pairs = [pair_of(i, *both) for i, both in enumerate(lengths)]
    numbers = {id(pair): i for i, pair in enumerate(pairs)}
    found = pack_pairs(iter(pairs), batch_size=batch_size, lengths=room, max_pairs=None)
    expected = first_fit(lengths, batch_size=batch_size, room=room)
    assert [[numbers[id(pair)] for pair in row] for row in found] == expected
    # Whoever goes on behind the number of pairs that were placed leaves none out.
    assert sorted(itertools.chain(*expected)) == list(range(sum(map(len, expected))))


@pytest.mark.parametrize("most", [1, 2])
def test_fill_takes_no_more_than_it_may(most):
    pairs = iter(some_pairs(3 * most + 2))
    found = pack_pairs(pairs, batch_size=3, lengths=(100, 100), max_pairs=most)
    expected = some_pairs(3 * most)
    assert [plain(row) for row in found] == [
        plain(expected[i * most : (i + 1) * most]) for i in range(3)
    ]
    assert len(list(pairs)) == 2
    (one, two), three = some_pairs(2), []
    found = pack_pairs(iter([one, two]), batch_size=3, lengths=(8, 6), max_pairs=1)
    assert [plain(row) for row in found] == [plain([one]), plain([two]), three]


# Batches


@settings(deadline=None)
@given(LIST_OF_LENGTHS, st.integers(1, 3), ROOM)
def test_stack_keeps_every_pair_to_be_read_back(lengths, batch_size, room):
    pairs = [pair_of(i, *both) for i, both in enumerate(lengths)]
    rows = pack_pairs(iter(pairs), batch_size=batch_size, lengths=room, max_pairs=None)
    batch = stack_rows(rows, lengths=room, pad_id=PAD, decoder_start_id=START, packed=True)
    for name, value in batch.items():
        assert value.shape == (batch_size, room[0 if "encoder" in name else 1])
        assert value.dtype == (np.float32 if name == "decoder_loss_weights" else np.int32)
    for row, expected in enumerate(rows):
        assert plain(read_back(batch, row)) == plain(expected)
        write = 0
        for pair in expected:
            # Each pair begins anew, whatever stands before it in the row.
            shifted = batch["decoder_input_tokens"][row, write : write + len(pair.target)]
            assert shifted.tolist() == [START, *pair.target[:-1]]
            write += len(pair.target)
        read = sum(len(pair.input) for pair in expected)
        for side, used in (("encoder", read), ("decoder", write)):
            assert (batch[f"{side}_segment_ids"][row, :used] > 0).all()
            assert (batch[f"{side}_segment_ids"][row, used:] == 0).all()
        assert (batch["encoder_input_tokens"][row, read:] == PAD).all()
        for name in ("decoder_input_tokens", "decoder_target_tokens"):
            assert (batch[name][row, write:] == PAD).all()
        assert batch["decoder_loss_weights"][row].tolist() == [1.0] * write + [0.0] * (
            room[1] - write
        )


def test_stack_by_hand():
    a, b = Pair([5, 6, EOS], [7, EOS]), Pair([8, EOS], [9, 3, EOS])
    packed = stack_rows(
        [[a, b], []], lengths=(6, 7), pad_id=PAD, decoder_start_id=START, packed=True
    )
    expected = {
        "encoder_input_tokens": [[5, 6, 1, 8, 1, 0], [0] * 6],
        "encoder_segment_ids": [[1, 1, 1, 2, 2, 0], [0] * 6],
        "decoder_input_tokens": [[2, 7, 2, 9, 3, 0, 0], [0] * 7],
        "decoder_target_tokens": [[7, 1, 9, 3, 1, 0, 0], [0] * 7],
        "decoder_segment_ids": [[1, 1, 2, 2, 2, 0, 0], [0] * 7],
        "decoder_loss_weights": [[1, 1, 1, 1, 1, 0, 0], [0] * 7],
    }
    assert {name: value.tolist() for name, value in packed.items()} == expected
    single = stack_rows([[b], []], lengths=(3, 4), pad_id=-1, decoder_start_id=START, packed=False)
    expected = {
        "encoder_input_tokens": [[8, 1, -1], [-1] * 3],
        "decoder_input_tokens": [[2, 9, 3, -1], [-1] * 4],
        "decoder_target_tokens": [[9, 3, 1, -1], [-1] * 4],
        "decoder_loss_weights": [[1, 1, 1, 0], [0] * 4],
    }
    assert {name: value.tolist() for name, value in single.items()} == expected


# The stream


def numbers_of(examples, count):
    """(task, number of its pair) of the first examples."""
    taken = (examples[i] for i in range(count))
    return [(place, int(pair.input[0]) - 10) for place, pair in taken]


SIZES = [13, 40, 1]


def make_stream(shares=(0.5, 0.3, 0.2), *, seed=0, sizes=SIZES):
    return mixture_stream([Pairs(some_pairs(size)) for size in sizes], shares, seed=seed)


def test_stream_gives_every_example_once_an_epoch():
    found = collections.defaultdict(list)
    for place, number in numbers_of(make_stream(), 300):
        found[place].append(number)
    for place, size in enumerate(SIZES):
        epochs = [found[place][i : i + size] for i in range(0, len(found[place]) - size, size)]
        assert len(epochs) > 1
        for epoch in epochs:
            assert sorted(epoch) == list(range(size))
        if size > 1:  # each in an order of its own, none of them that of the data
            assert len({tuple(epoch) for epoch in [*epochs, range(size)]}) == len(epochs) + 1


def test_stream_of_one_task_is_that_task():
    found = numbers_of(make_stream([1.0], sizes=[7]), 21)
    for epoch in range(3):
        assert sorted(found[7 * epoch : 7 * epoch + 7]) == [(0, i) for i in range(7)]


@pytest.mark.parametrize("shares", [(0.5, 0.3, 0.2), (0.9, 0.001, 0.099), (1 / 3, 1 / 3, 1 / 3)])
def test_stream_keeps_shares_wherever_one_looks(shares):
    places = np.array([place for place, _ in numbers_of(make_stream(shares), 700)])
    for window in (places, places[:100], places[321:654]):
        counts = np.bincount(window, minlength=3)
        # Tasks take turns by their shares, not by chance: off by a few, whatever the length.
        np.testing.assert_allclose(counts, np.array(shares) * len(window), rtol=0, atol=2)


def test_stream_depends_on_the_seed_alone():
    one, same, other = (numbers_of(make_stream(seed=seed), 100) for seed in (3, 3, 4))
    assert one == same
    assert [place for place, _ in one] == [place for place, _ in other]
    assert one != other
    # Any example can be had without those before it.
    backwards = make_stream(seed=3)
    assert [backwards[i][1].input[0] - 10 for i in reversed(range(100))] == [
        number for _, number in reversed(one)
    ]


def test_stream_shuffles_tasks_of_one_size_differently():
    found = numbers_of(make_stream((0.5, 0.5), sizes=[20, 20]), 40)
    orders = [[number for at, number in found if at == place] for place in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


# Batches of a stream


def make_batches(*, pack=True, rows=None, seed=0, batch_size=4):
    return MixtureBatches(
        make_stream(seed=seed),
        batch_size=batch_size,
        limits=limits(16, 12),
        pack=pack,
        pad_id=PAD,
        decoder_start_id=START,
        rows=rows,
    )


def take(data, count):
    return list(itertools.islice(data, count))


def test_batches_hold_the_stream_in_order_and_leave_out_nothing():
    found, stream, next_example = make_batches(), make_stream(), 0
    for batch in take(found, 20):
        held = [pair for row in range(4) for pair in read_back(batch, row)]
        assert len(held) > 4  # packed, or there is nothing to see here
        upcoming = [stream[next_example + i][1] for i in range(len(held))]
        assert sorted(plain(held)) == sorted(plain(upcoming))
        next_example += len(held)
    assert found.get_state() == {"next_example": next_example}


def test_batches_that_are_not_packed_hold_one_pair_in_a_row():
    found, stream = make_batches(pack=False), make_stream()
    for number, batch in enumerate(take(found, 5)):
        expected = stack_rows(
            [[stream[4 * number + row][1]] for row in range(4)],
            lengths=(16, 12),
            pad_id=PAD,
            decoder_start_id=START,
            packed=False,
        )
        assert_same(batch, expected)
        assert "encoder_segment_ids" not in batch
    assert found.get_state() == {"next_example": 20}


@pytest.mark.parametrize("pack", [True, False])
def test_batches_go_on_where_they_were(pack):
    whole = make_batches(pack=pack)
    take(whole, 7)
    state = whole.get_state()
    resumed = make_batches(pack=pack)
    take(resumed, 2)
    resumed.set_state(state)
    for batch, other in zip(take(whole, 5), take(resumed, 5), strict=True):
        assert_same(batch, other)
    assert whole.get_state() == resumed.get_state() != state


@pytest.mark.parametrize("pack", [True, False])
def test_batches_of_some_rows_are_parts_of_the_whole(pack):
    whole = take(make_batches(pack=pack), 6)
    for rows in ([0, 1], [2, 3], np.array([3]), [1, 2, 0], range(4)):
        part = make_batches(pack=pack, rows=rows)
        for batch, found in zip(whole, take(part, 6), strict=True):
            assert_same({name: value[list(rows)] for name, value in batch.items()}, found)
        # The position is that of all rows.
        others = make_batches(pack=pack)
        take(others, 6)
        assert part.get_state() == others.get_state()


@pytest.mark.parametrize("rows", [None, [0, 2], [1]])
@pytest.mark.parametrize("count", [1, 3, 7, 9])
def test_heldout_gives_all_pairs_once_and_in_order(count, rows):
    pairs = some_pairs(count)
    found = list(
        heldout_batches(
            Pairs(pairs),
            batch_size=3,
            lengths=(8, 6),
            pad_id=PAD,
            decoder_start_id=START,
            rows=rows,
        )
    )
    assert len(found) == -(-count // 3)
    for number, batch in enumerate(found):
        expected = [pairs[3 * number + row : 3 * number + row + 1] for row in rows or range(3)]
        assert_same(
            batch,
            stack_rows(expected, lengths=(8, 6), pad_id=PAD, decoder_start_id=START, packed=False),
        )
    if rows is None:
        total = sum(int(batch["decoder_loss_weights"].sum()) for batch in found)
        assert total == sum(len(pair.target) for pair in pairs)


# The loss


def test_packed_pairs_have_the_loss_of_pairs_alone(tiny_config, tiny_params):
    rng = np.random.default_rng(0)

    def draw(length):
        return np.array([*rng.integers(3, tiny_config.vocab_size, length - 1), EOS], np.int32)

    pairs = [Pair(draw(n), draw(m)) for n, m in [(3, 2), (7, 5), (2, 6), (8, 1), (5, 4), (6, 3)]]
    mesh = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])
    step = make_eval_step(tiny_config, policy=ComputePolicy(), mesh=mesh)
    shape = {"pad_id": tiny_config.pad_id, "decoder_start_id": tiny_config.decoder_start_id}

    def loss(rows, lengths, *, packed):
        batch = stack_rows(rows, lengths=lengths, **shape, packed=packed)
        return step(tiny_params, shard_batch(batch, mesh=mesh))

    rows = pack_pairs(iter(pairs), batch_size=4, lengths=(17, 13), max_pairs=None)
    counts = list(map(len, rows))
    assert sum(counts) == len(pairs)
    assert max(counts) >= 2
    assert 0 in counts  # an empty row is there, and does not count
    packed = loss(rows, (17, 13), packed=True)
    alone = loss([[pair] for pair in pairs], (8, 6), packed=False)
    assert packed.weight == alone.weight == sum(len(pair.target) for pair in pairs)
    assert packed.correct == alone.correct
    # float32, sums in another order
    assert float(packed.cross_entropy) == pytest.approx(float(alone.cross_entropy), rel=1e-5)
    # Were pairs to see one another, it would show: the same rows as single long examples.
    seen = loss(
        [[Pair(*map(np.concatenate, zip(*row, strict=True)))] for row in rows if row],
        (17, 13),
        packed=False,
    )
    assert abs(float(seen.cross_entropy) / float(alone.cross_entropy) - 1) > 1e-3
