"""Clusters of pictures that are the same to the eye."""

import numpy as np
import pytest

from thaw.data.image_checks import near_duplicates

RNG = np.random.default_rng(5)


def textured(level, n=1):
    """n equal thumbnails with structure, about a mean grey."""
    one = np.clip(level + np.tile([[-20, 20], [20, -20]], (4, 4)), 0, 255).astype(np.uint8)
    return np.repeat(one[None], n, axis=0)


def flipped(value, bits):
    for bit in bits:
        value ^= 1 << bit
    return value


def test_both_the_hash_and_the_thumbnail_must_agree():
    base = 0x0123456789ABCDEF
    hashes = np.array([base, flipped(base, [0, 13, 30, 63]), flipped(base, [1, 2, 3, 4, 5]), base], np.uint64)
    thumbnails = np.concatenate([textured(100, 3), textured(110)])
    # The second is four bits away, the third five, the fourth looks different.
    assert near_duplicates(hashes, thumbnails).tolist() == [0, 0, 2, 3]


def test_the_limit_on_the_thumbnails_is_the_mean_absolute_difference():
    hashes = np.zeros(2, np.uint64)
    near, far = textured(100), textured(100)
    near[0, :, :4] += 4  # half of the pixels by 4: 2.0 in the mean
    far[0, :, :4] += 5
    assert near_duplicates(hashes, np.concatenate([textured(100), near])).tolist() == [0, 0]
    assert near_duplicates(hashes, np.concatenate([textured(100), far])).tolist() == [0, 1]


def test_clusters_are_connected_components():
    hashes = np.array([0b0, 0b1111, 0b11111111, 1 << 40], np.uint64)
    assert near_duplicates(hashes, textured(90, 4)).tolist() == [0, 0, 0, 0]
    assert near_duplicates(hashes[[0, 2]], textured(90, 2)).tolist() == [0, 1]


def test_plain_pictures_are_joined_only_when_equal():
    thumbnails = np.stack([np.full((8, 8, 3), level, np.uint8) for level in (50, 51, 50)])
    assert near_duplicates(np.zeros(3, np.uint64), thumbnails).tolist() == [0, 1, 0]


@pytest.mark.parametrize("bits", [0, 1, 4, 8])
def test_against_comparing_all_with_all(bits):
    n = 300
    base = RNG.integers(0, 2**63, 30, dtype=np.uint64)[RNG.integers(0, 30, n)]
    flips = np.bitwise_or.reduce(np.uint64(1) << RNG.integers(0, 64, (n, 3), dtype=np.uint64), axis=1)
    flips[RNG.random(n) < 0.5] = 0
    hashes = base ^ flips
    thumbnails = np.concatenate([textured(level) for level in RNG.integers(80, 110, n)])
    flat = thumbnails.reshape(n, -1).astype(int)
    same = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= bits
    same &= np.abs(flat[:, None] - flat[None]).mean(-1) <= 2
    expected = np.arange(n)
    for _ in range(n):
        spread = np.where(same, expected[None], n).min(1)
        if (spread == expected).all():
            break
        expected = spread
    assert len(np.unique(expected)) < n
    assert (near_duplicates(hashes, thumbnails, max_bits=bits) == expected).all()


def test_a_mass_of_equal_pictures_is_one_cluster():
    assert (near_duplicates(np.zeros(2000, np.uint64), textured(100, 2000)) == 0).all()


def test_nothing_and_misfits():
    assert near_duplicates(np.zeros(0, np.uint64), np.zeros((0, 8, 8), np.uint8)).tolist() == []
    with pytest.raises(ValueError, match="There are 2 hashes and 3 thumbnails; expected one for each"):
        near_duplicates(np.zeros(2, np.uint64), textured(1, 3))
    with pytest.raises(ValueError, match="max_bits=16; expected a whole number from 0 to 15"):
        near_duplicates(np.zeros(2, np.uint64), textured(1, 2), max_bits=16)
