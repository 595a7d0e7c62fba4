"""Counter-based draws: the published vectors, and one set of bits from both forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desim_fl import draws
from desim_fl.draws import ClientSlot, JobSlot, Purpose

WORDS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 2**32 - 2, 2**32 - 1]))
SEEDS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1]))
ONES = 2**32 - 1
# Known answers of Philox4x32-10, published with Random123: counter, key, block.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_its_published_vectors_in_both_forms(counter, key, expected):
    """Counter and key of the three published vectors give the published block, as scalars and as arrays."""
    client, nth, purpose, group = counter
    seed = key[0] | key[1] << 32
    assert draws.block(seed, purpose, client, nth, group) == expected
    assert tuple(draws.blocks(seed, purpose, [client], [nth], group)[0].tolist()) == expected


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.sampled_from(list(Purpose)), st.lists(st.tuples(WORDS, WORDS), min_size=1), st.integers(0, 40))
def test_scalar_and_array_forms_agree_bit_for_bit(seed, purpose, jobs, slot):
    """Any seed up to 2^64 - 1, key, job count and slot give the same word and the same uniform either way."""
    clients, nths = zip(*jobs, strict=True)
    array = draws.words(seed, purpose, clients, nths, slot)
    scalars = [draws.word(seed, purpose, client, nth, slot) for client, nth in jobs]
    assert array.dtype == np.uint32
    assert array.tolist() == scalars
    assert draws.uniforms(array).tolist() == [draws.uniform(value) for value in scalars]


def test_array_form_broadcasts_clients_and_counts():
    """One client over many counts, many clients at one count and a whole table have the expected shapes."""
    assert draws.words(3, Purpose.JOB, 5, np.arange(7), 1).shape == (7,)
    assert draws.blocks(3, Purpose.CLIENT, np.arange(4)[:, None], np.arange(3), 0).shape == (4, 3, 4)
    assert draws.words(3, Purpose.JOB, 5, np.arange(7), 1)[6] == draws.word(3, Purpose.JOB, 5, 6, 1)


def test_uniforms_lie_strictly_between_zero_and_one():
    """The smallest and the largest word are neither 0 nor 1, so that every quantile is finite."""
    assert draws.uniform(0) == 2.0**-33
    assert draws.uniform(ONES) == 1.0 - 2.0**-33
    assert draws.uniforms(np.array([0, ONES], np.uint32)).tolist() == [2.0**-33, 1.0 - 2.0**-33]


def test_every_coordinate_of_a_draw_matters():
    """Changing seed half, purpose, client, count or slot gives another word; nothing is folded together; CASES RP-03."""
    base = (7, 1, 2, 3, 4)
    moved = [
        (8, 1, 2, 3, 4),
        (7 + 2**32, 1, 2, 3, 4),
        (7, 2, 2, 3, 4),
        (7, 1, 3, 3, 4),
        (7, 1, 2, 4, 4),
        (7, 1, 2, 3, 5),
    ]
    assert len({draws.word(*place) for place in [base, *moved]}) == 7
    assert draws.word(7, 1, 2, 3, 4) != draws.word(7, 1, 3, 2, 4)


def test_numbers_of_purposes_and_slots_never_change():
    """These numbers are part of every result ever computed: old ones stay, new ones follow."""
    purposes = ["CLIENT", "JOB", "SELECTION", "PARTITION", "MODEL_INIT", "BATCH_ORDER", "TRAINING", "DATA"]
    purposes += ["VALIDATION", "EVALUATION"]
    assert {name: Purpose[name].value for name in purposes} == {name: number for number, name in enumerate(purposes)}
    constants = ["DEVICE_FACTOR", "DOWN_MBPS", "UP_MBPS", "LATENCY"]
    assert [ClientSlot[name].value for name in constants] == [0, 1, 2, 3]
    jobs = ["COMPUTE_JITTER", "WAIT", "DOWN_LATENCY_JITTER", "UP_LATENCY_JITTER"]
    assert [JobSlot[name].value for name in jobs] == [0, 1, 2, 3]


def test_words_look_even():
    """Over 65,536 words each of the 32 bits is set in half of them, within five standard deviations."""
    words = draws.words(0, Purpose.JOB, np.arange(256)[:, None], np.arange(256), 0).ravel()
    shares = [np.mean((words >> np.uint32(bit)) & np.uint32(1)) for bit in range(32)]
    assert max(abs(share - 0.5) for share in shares) < 5 * 0.5 / 256


def test_streams_repeat_and_do_not_depend_on_each_other():
    """The same name gives the same numbers, another name others, and drawing from one leaves the other alone."""
    first, other = (
        draws.stream(2**64 - 1, Purpose.BATCH_ORDER, 3, 1),
        draws.stream(2**64 - 1, Purpose.BATCH_ORDER, 3, 2),
    )
    expected = first.random(5)
    other.random(100)
    again = draws.stream(2**64 - 1, Purpose.BATCH_ORDER, 3, 1)
    assert again.random(5).tolist() == expected.tolist()
    assert draws.stream(2**64 - 1, Purpose.BATCH_ORDER, 3, 2).random(5).tolist() != expected.tolist()


def test_streams_of_large_seeds_are_their_own():
    """Seeds that differ in their last bit near 2^64 and 2^63 give different streams, without a warning on the way."""
    seeds = [2**64 - 1, 2**64 - 2, 2**64 - 3, 2**63, 2**63 + 1, 2**63 - 1, 0]
    assert len({draws.stream(seed, Purpose.BATCH_ORDER, 3, 1).random() for seed in seeds}) == len(seeds)


def test_a_stream_is_pinned():
    """The first words of two streams must stay what they are: partitions, models and batch orders come from them."""
    assert draws.stream(0, Purpose.PARTITION, 0, 0).integers(0, 2**32, 3).tolist() == [
        517086099,
        2040793054,
        1890028263,
    ]
    assert draws.stream(2**64 - 1, Purpose.BATCH_ORDER, 2**32 - 1, 7).integers(0, 2**32, 3).tolist() == [
        3660355063,
        1910433587,
        2506058978,
    ]
