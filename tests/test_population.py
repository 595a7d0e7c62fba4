"""Partitions of the training samples, and the roster of free clients."""

import hashlib
import struct
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desim_fl.draws import Purpose, stream
from desim_fl.errors import LawError, ScenarioError
from desim_fl.population import (
    Roster,
    by_key,
    class_counts,
    dirichlet,
    divide,
    iid,
    partition_sha256,
    sized,
    validation_split,
)

GOLDEN = "76d29ae8a5fc2f0e518927611d2935f62f80451f95171055cedc8a6c403dbc0e"  # recorded with numpy 2.4.6


def drawn(seed):
    """Return the stream that partitions are drawn from."""
    return stream(seed, Purpose.PARTITION, 0, 0)


def assert_covers(parts, total):
    """Every index exactly once, each part ascending."""
    assert all(np.all(np.diff(part) > 0) for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(total))


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e-3, 0.5, 1e6, 1e300])
@pytest.mark.parametrize("min_samples", [0, 1, 10, 600])
def test_pt_01_any_alpha_gives_a_whole_partition_in_time(alpha, min_samples):
    """100 clients, 10 classes, 60,000 labels: no NaN, no index lost, nobody below the minimum, under 5 s."""
    labels = np.arange(60_000) % 10
    began = time.perf_counter()
    parts = dirichlet(labels, 100, alpha, min_samples, drawn(0))
    assert time.perf_counter() - began < 5
    assert len(parts) == 100
    assert_covers(parts, 60_000)
    assert min(map(len, parts)) >= min_samples


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf"), 1e-310])
def test_pt_01_an_impossible_alpha_is_refused(alpha):
    """Zero, negative, infinite, NaN: an error that names alpha."""
    with pytest.raises(ScenarioError, match="alpha = "):
        dirichlet([0, 1], 2, alpha, 0, drawn(0))


def test_pt_01_too_few_samples_for_the_minimum_are_refused():
    """Three clients with four samples each need twelve; the message says so and what to change."""
    for part in (lambda: dirichlet(np.zeros(11, int), 3, 1.0, 4, drawn(0)), lambda: iid(11, 3, 4, drawn(0))):
        with pytest.raises(ScenarioError, match=r"need 12 training samples, there are 11; lower clients\.count"):
            part()


def hostile_labels(kind):
    """1,000 labels of 10 classes: as usual, with class 3 absent, or with a single sample of class 3."""
    labels = np.arange(1000) % 10
    if kind != "normal":
        labels[labels == 3] = 4
    if kind == "single":
        labels[500] = 3
    return labels


@pytest.mark.parametrize("kind", ["normal", "absent", "single"])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 100.0])
def test_pt_03_parts_are_disjoint_and_complete(kind, alpha):
    """Over 20 seeds, whatever the classes look like, each index is in one part."""
    labels = hostile_labels(kind)
    for seed in range(20):
        parts = dirichlet(labels, 7, alpha, 1, drawn(seed))
        assert_covers(parts, 1000)
        assert min(map(len, parts)) >= 1
        np.testing.assert_array_equal(class_counts(labels, parts, 10).sum(axis=0), np.bincount(labels, minlength=10))


def test_pt_03_an_iid_split_of_sorted_labels_is_mixed():
    """100 zeros, then 100 ones, two clients: 100 samples each, each class 30 to 70 times in each, for 20 seeds."""
    labels = np.repeat([0, 1], 100)
    for seed in range(20):
        parts = iid(200, 2, 1, drawn(seed))
        assert_covers(parts, 200)
        counts = class_counts(labels, parts, 2)
        assert counts.sum(axis=1).tolist() == [100, 100]
        assert 30 <= counts.min() <= counts.max() <= 70


def test_pt_03_half_and_half_is_exactly_half():
    """Where the minimum leaves no choice, both clients have exactly N/2, at alpha 100 and at alpha 0.001."""
    for alpha in (100.0, 1e-3):
        parts = dirichlet(np.arange(1000) % 10, 2, alpha, 500, drawn(3))
        assert_covers(parts, 1000)
        assert [len(part) for part in parts] == [500, 500]


def test_iid_sizes_differ_by_one_at_most():
    """10 samples for 3 clients: 4, 3, 3."""
    assert [len(part) for part in iid(10, 3, 1, drawn(0))] == [4, 3, 3]


def test_pt_04_the_partition_of_a_seed_is_the_one_published():
    """A golden hash for seed 0, alpha 0.1, 10 clients, labels 0 to 9 in turn."""
    parts = dirichlet(np.arange(1000) % 10, 10, 0.1, 1, drawn(0))
    assert partition_sha256(parts) == GOLDEN, (
        f"numpy {np.__version__} draws another partition from the same seed than the one recorded with numpy 2.4.6"
    )


def test_pt_04_the_hash_is_of_the_bytes_that_the_docs_state():
    """Number of clients, sizes, then the indices, each as a little-endian 64-bit integer."""
    parts = (np.array([0, 2]), np.array([], np.int64), np.array([1]))
    assert partition_sha256(parts) == hashlib.sha256(struct.pack("<7q", 3, 2, 0, 1, 0, 2, 1)).hexdigest()


def test_the_hash_knows_who_holds_what():
    """Swapping two clients' parts, or moving a border between them, is another partition."""
    hashes = {
        partition_sha256([np.array(part, np.int64) for part in parts])
        for parts in ([[0, 1], [2]], [[2], [0, 1]], [[0], [1, 2]], [[0, 1, 2]], [[0, 1, 2], []])
    }
    assert len(hashes) == 5


def test_small_alpha_is_skewed_and_large_alpha_is_even():
    """Mean share of a client's largest class: at alpha 0.01 nearly all, at alpha 1e4 about a tenth."""
    labels = np.arange(20_000) % 10
    tops = []
    for alpha in (0.01, 1e4):
        counts = class_counts(labels, dirichlet(labels, 20, alpha, 1, drawn(1)), 10)
        tops.append(float(np.mean(counts.max(axis=1) / counts.sum(axis=1))))
    assert tops[0] > 0.6
    assert tops[1] < 0.13


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_have_the_variance_of_a_dirichlet(alpha):
    """A class's share at a client has mean 1/n and variance (1/n)(1 - 1/n) / (n alpha + 1); n = 5, 4,000 classes."""
    clients, classes, each = 5, 4000, 1000
    labels = np.repeat(np.arange(classes), each)
    shares = class_counts(labels, dirichlet(labels, clients, alpha, 0, drawn(2)), classes) / each
    assert shares.mean() == pytest.approx(1 / clients)
    expected = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    # 20,000 shares: the relative standard error of their variance is below 2 % here, so 8 % are four of them.
    assert shares.var() == pytest.approx(expected, rel=0.08)


def test_filling_up_takes_from_the_largest_and_from_nobody_below_them():
    """A client takes part in the levelling only if it ends at the common level; others keep all they had."""
    labels = np.arange(6000) % 10
    before = dirichlet(labels, 50, 0.01, 0, drawn(4))
    after = dirichlet(labels, 50, 0.01, 40, drawn(4))
    level = max(map(len, after))
    gave = [client for client in range(50) if len(after[client]) < len(before[client])]
    assert gave
    for client in range(50):
        old, new = set(before[client].tolist()), set(after[client].tolist())
        if client in gave:
            assert new < old
            assert level - 1 <= len(new) <= level
        elif len(old) < 40:
            assert old < new
            assert len(new) == 40
        else:
            assert old == new


def test_parts_go_to_clients_by_the_rank_of_their_keys():
    """Permuting keys permutes the data: each key holds the same samples as before."""
    labels = np.arange(300) % 10
    plain = divide(labels, seed=5, count=4, classes=10, partition="dirichlet", alpha=0.3, keys=[1, 5, 7, 9])
    moved = divide(labels, seed=5, count=4, classes=10, partition="dirichlet", alpha=0.3, keys=[7, 1, 9, 5])
    held = {key: part.tolist() for key, part in zip(plain.keys, plain.parts, strict=True)}
    assert {key: part.tolist() for key, part in zip(moved.keys, moved.parts, strict=True)} == held
    assert list(by_key([np.array([10]), np.array([20]), np.array([30])], [7, 1, 9])) == [20, 10, 30]


def test_a_population_states_sizes_and_classes_of_its_parts():
    """Sizes, class counts and the hash belong to the parts, with names and keys by default."""
    labels = np.arange(100) % 4
    population = divide(labels, seed=0, count=3, classes=5)
    assert population.sizes == tuple(len(part) for part in population.parts) == (34, 33, 33)
    for client, part in enumerate(population.parts):
        np.testing.assert_array_equal(population.class_counts[client], np.bincount(labels[part], minlength=5))
    assert list(population.keys) == [0, 1, 2]
    assert population.name(2) == "client 2"
    assert population.sha256() == partition_sha256(population.parts)
    assert len(population) == 3


def test_a_pool_keeps_the_validation_part_out():
    """Only samples of the pool are handed out, under their own numbers; CASES PT-03."""
    labels = np.arange(200) % 10
    training, validation = validation_split(200, 0.25, stream(0, Purpose.VALIDATION, 0, 0))
    for partition, alpha in (("iid", None), ("dirichlet", 0.5)):
        population = divide(labels, seed=0, count=6, classes=10, partition=partition, alpha=alpha, pool=training)
        handed = np.concatenate(population.parts)
        np.testing.assert_array_equal(np.sort(handed), training)
        assert not set(handed.tolist()) & set(validation.tolist())


def test_a_partition_that_is_not_known_is_refused():
    """An unknown name, or dirichlet without its alpha."""
    for partition in ("dirichlett", "dirichlet"):
        with pytest.raises(ScenarioError, match="use iid, dirichlet or"):
            divide([0, 1], seed=0, count=1, classes=2, partition=partition)


def test_a_population_without_data_has_sizes_only():
    """The quadratic task: no parts, no classes, and a hash of the sizes."""
    population = sized([3, 0, 5], names=["a", "b", "c"])
    assert (population.sizes, population.parts, population.class_counts) == ((3, 0, 5), (), None)
    assert population.name(1) == "b"
    assert population.sha256() == hashlib.sha256(struct.pack("<4q", 3, 3, 0, 5)).hexdigest()


def test_the_validation_part_is_disjoint_and_of_the_share_asked_for():
    """A fifth of 101 is 20; both parts ascend, together they are everything; share 0 holds nothing back."""
    training, validation = validation_split(101, 0.2, stream(1, Purpose.VALIDATION, 0, 0))
    assert len(validation) == 20
    assert_covers((training, validation), 101)
    assert len(validation_split(5, 0, stream(1, Purpose.VALIDATION, 0, 0))[1]) == 0


@pytest.mark.parametrize(
    ("total", "share"), [(10, 1.0), (10, -0.1), (10, 0.01), (10, 0.99), (10, float("nan")), (0, 0)]
)
def test_a_validation_share_that_leaves_a_side_empty_is_refused(total, share):
    """Nothing to validate on, or nothing to train on, is an error."""
    with pytest.raises(ScenarioError, match="validation_share"):
        validation_split(total, share, stream(0, Purpose.VALIDATION, 0, 0))


# ---- roster


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.lists(st.tuples(st.integers(0, 299), st.integers(0, 12)), max_size=150))
def test_the_roster_agrees_with_a_plain_list(count, moves):
    """After any takes and frees: number, ranks and idle order are those of a list that is searched and re-appended."""
    roster, idle = Roster(count), list(range(count))
    for raw, asked in moves:
        client = raw % count
        if client in idle:
            roster.take(client)
            idle.remove(client)
        else:
            roster.free(client)
            idle.append(client)
        assert roster.selectable == len(idle)
        assert roster.is_selectable(client) == (client in idle)
        assert list(roster.longest_idle(asked)) == idle[:asked]
    assert [roster.nth_selectable(rank) for rank in range(len(idle))] == sorted(idle)
    assert [roster.is_selectable(client) for client in range(count)] == [client in idle for client in range(count)]


@pytest.mark.parametrize("count", [63, 64, 65, 4095, 4096, 4097])
def test_ranks_are_right_at_the_borders_of_blocks(count):
    """Every rank of a full roster, and of one with each third client out."""
    roster = Roster(count)
    assert [roster.nth_selectable(rank) for rank in range(count)] == list(range(count))
    for client in range(0, count, 3):
        roster.take(client)
    left = [client for client in range(count) if client % 3]
    assert [roster.nth_selectable(rank) for rank in range(len(left))] == left


def test_sa_02_a_busy_client_cannot_be_taken_and_a_free_one_not_freed():
    """At most one open job a client; once free, a client is selectable in the same instant."""
    roster = Roster(3)
    roster.take(1)
    with pytest.raises(LawError, match="client 1 was sent out although"):
        roster.take(1)
    roster.free(1)
    assert roster.is_selectable(1)
    with pytest.raises(LawError, match="client 1 was freed although"):
        roster.free(1)
    for rank in (-1, 3):
        with pytest.raises(LawError, match="of 3"):
            roster.nth_selectable(rank)


def test_a_roster_of_a_million_starts_at_once():
    """Start-up well under a second; ranks and idle order at its far end are right."""
    began = time.perf_counter()
    roster = Roster(1_000_000)
    assert time.perf_counter() - began < 1
    roster.take(0)
    roster.take(500_000)
    assert roster.nth_selectable(999_997) == 999_999
    assert roster.nth_selectable(499_999) == 500_001
    roster.free(0)
    assert roster.longest_idle(2) == [1, 2]
    assert roster.nth_selectable(0) == 0
