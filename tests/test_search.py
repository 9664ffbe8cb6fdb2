from __future__ import annotations

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gritkit import search
from gritkit.errors import InputError

# Small whole numbers: their dot products are exact in any order of summation, and equal scores are common.
WHOLE = st.integers(-3, 3).map(float)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    num_dims = draw(st.integers(1, 20))
    queries = draw(hnp.arrays(np.float32, (draw(st.integers(0, 4)), num_dims), elements=WHOLE))
    passages = draw(hnp.arrays(np.float32, (draw(st.integers(0, 30)), num_dims), elements=WHOLE))
    return queries, passages


def plain_top_k(scores_QN: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The plain twin: everything at once, a stable sort by falling score."""
    indices = np.argsort(-scores_QN, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores_QN, indices, axis=1), indices


def signs(vectors: np.ndarray) -> np.ndarray:
    return np.where(vectors > 0, 1, -1).astype(np.float32)


# -- exact search


@given(pairs(), st.integers(1, 40), st.integers(1, 35))
def test_blocks_give_what_one_stable_sort_gives(case: tuple[np.ndarray, np.ndarray], k: int, block_size: int) -> None:
    queries, passages = case
    scores, indices = search.top_k(queries, passages, k, block_size=block_size)
    expected_scores, expected_indices = plain_top_k(queries @ passages.T, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)
    assert (scores.dtype, indices.dtype) == (np.float32, np.int64)


def test_many_queries_cross_the_query_block() -> None:
    rng = np.random.default_rng(0)
    queries, passages = rng.standard_normal((600, 24), np.float32), rng.standard_normal((1000, 24), np.float32)
    scores, indices = search.top_k(queries, passages, 7, block_size=128)
    expected_scores, expected_indices = plain_top_k(queries @ passages.T, 7)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)


@given(hnp.arrays(np.float32, (3, 5), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@example(np.tile(np.array([-0.0, 0.0, -1.5, -0.0, -2.5], np.float32), (3, 1)))
def test_keys_order_like_scores_and_give_them_back(scores: np.ndarray) -> None:
    keys = search._keys(scores, np.arange(7, 12))
    back, indices = search._unpack_keys(keys)
    np.testing.assert_array_equal(back, scores)
    np.testing.assert_array_equal(indices, np.broadcast_to(np.arange(7, 12), scores.shape))
    for one, two in itertools.combinations(range(5), 2):  # the first of two equal scores is the larger key
        np.testing.assert_array_equal(keys[:, one] > keys[:, two], scores[:, one] >= scores[:, two])


def test_half_precision_and_memory_maps_are_searched_in_place(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    passages = rng.standard_normal((500, 16)).astype(np.float16)
    np.save(tmp_path / "passages.npy", passages)
    mapped = np.load(tmp_path / "passages.npy", mmap_mode="r")
    queries = rng.standard_normal((3, 16))
    scores, indices = search.top_k(queries, mapped, 5, block_size=64)
    expected = plain_top_k(queries.astype(np.float32) @ passages.astype(np.float32).T, 5)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5)


def test_memory_does_not_grow_with_the_number_of_passages() -> None:
    rng = np.random.default_rng(2)
    queries = rng.standard_normal((64, 8), np.float32)
    peaks = []
    for num_passages in (20_000, 200_000):
        passages = rng.standard_normal((num_passages, 8), np.float32)
        tracemalloc.start()
        search.top_k(queries, passages, 10, block_size=2000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def matrix(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def with_value(value: float, row: int, dtype: type = np.float32) -> np.ndarray:
    vectors = np.ones((300, 4), dtype)
    vectors[row, 1] = value
    return vectors


@pytest.mark.parametrize(
    ("queries", "passages", "k", "message"),
    [
        (matrix(2, 3), matrix(5, 4), 1, "queries have 3 dimensions and passages 4"),
        (matrix(3), matrix(5, 3), 1, r"queries must have two dimensions.*\(3,\)"),
        (matrix(1, 3), matrix(5, 3, dtype=np.int64), 1, "passages must be of type floating, not int64"),
        (matrix(1, 0), matrix(5, 0), 1, "no dimensions"),
        ([[1.0]], matrix(1, 1), 1, "numpy array, not list"),
        (matrix(1, 3), matrix(5, 3), 0, "at least 1, not 0"),
        (with_value(np.nan, 270), matrix(5, 4), 1, "query 270 holds NaN"),
        (matrix(2, 4), with_value(np.inf, 131), 1, "passage 131 holds NaN or infinity"),
        (matrix(2, 4) * np.float32(3e38), with_value(3e38, 131), 1, "overflows float32"),
        (matrix(2, 4), with_value(1e300, 131, np.float64), 1, "passage 131 holds NaN or infinity"),
    ],
)
def test_unusable_vectors_are_refused(queries: np.ndarray, passages: np.ndarray, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        search.top_k(queries, passages, k, block_size=100)


# -- fusion


def test_fusion_by_hand() -> None:
    fused = search.reciprocal_rank_fusion([["a", "b", "c"], ["b", "d"]])
    assert fused == [
        ("b", pytest.approx(1 / 62 + 1 / 61)),
        ("a", pytest.approx(1 / 61)),
        ("d", pytest.approx(1 / 62)),
        ("c", pytest.approx(1 / 63)),
    ]
    weighted = search.reciprocal_rank_fusion([["a"], ["b"]], k=0, weights=[1, 3])
    assert weighted == [("b", 3), ("a", 1)]


def test_equal_fused_scores_keep_the_order_of_appearance() -> None:
    assert [item for item, _ in search.reciprocal_rank_fusion([["b", "a"], ["a", "b"]])] == ["b", "a"]


@given(st.lists(st.permutations("abcdef"), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_fused_scores_do_not_depend_on_the_order_of_the_rankings(rankings: list[list[str]], order: object) -> None:
    shuffled = list(rankings)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert dict(search.reciprocal_rank_fusion(rankings)) == dict(search.reciprocal_rank_fusion(shuffled))


def test_unusable_rankings_are_refused() -> None:
    with pytest.raises(InputError, match="more than once"):
        search.reciprocal_rank_fusion([["a", "a"]])
    with pytest.raises(InputError, match="2 rankings need as many weights, not 1"):
        search.reciprocal_rank_fusion([["a"], ["b"]], weights=[1])
    with pytest.raises(InputError, match="at least 0, not -1"):
        search.reciprocal_rank_fusion([["a"]], k=-1)


# -- int8

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 12)), elements=FLOATS))
@example(np.full((1, 1), np.finfo(np.float32).max))
@example(np.full((1, 1), 1e-37, np.float32))
def test_int8_error_is_at_most_half_a_scale(vectors: np.ndarray) -> None:
    codes, scale = search.quantize_int8(vectors)
    assert (codes.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, vectors.shape[:1])
    error = np.abs(search.dequantize_int8(codes, scale).astype(np.float64) - vectors)
    assert (error <= np.maximum(scale[:, None].astype(np.float64) * (0.5 + 2e-5), 1.5e-36)).all()
    assert codes.min(initial=0) >= -127


def test_int8_vectors_too_small_for_a_scale_become_zero() -> None:
    codes, scale = search.quantize_int8(np.array([[1e-40, -2e-43], [0, 0], [1e-30, 0]], np.float32))
    assert codes.tolist() == [[0, 0], [0, 0], [127, 0]]
    assert (scale > 0).tolist() == [False, False, True]


@given(hnp.arrays(np.float32, (3, 8), elements=WHOLE))
def test_int8_codes_do_not_depend_on_the_other_vectors(vectors: np.ndarray) -> None:
    codes, scale = search.quantize_int8(vectors)
    for row in range(len(vectors)):
        alone_codes, alone_scale = search.quantize_int8(vectors[row : row + 1])
        np.testing.assert_array_equal(alone_codes[0], codes[row])
        assert alone_scale[0] == scale[row]


def test_int8_search_is_search_over_the_decoded_vectors() -> None:
    rng = np.random.default_rng(3)
    queries, passages = rng.standard_normal((5, 32), np.float32), rng.standard_normal((400, 32), np.float32)
    codes, scale = search.quantize_int8(passages)
    scores, indices = search.top_k_int8(queries, codes, scale, 10, block_size=64)
    expected_scores, expected_indices = search.top_k(queries, search.dequantize_int8(codes, scale), 10)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


# -- binary


@given(hnp.arrays(np.float32, st.tuples(st.integers(0, 4), st.integers(1, 40)), elements=WHOLE))
def test_binary_keeps_the_signs(vectors: np.ndarray) -> None:
    bits = search.quantize_binary(vectors)
    assert bits.dtype == np.uint8
    assert bits.shape == (len(vectors), -(-vectors.shape[1] // 8))
    np.testing.assert_array_equal(search.dequantize_binary(bits, vectors.shape[1]), signs(vectors))


def test_binary_layout_is_highest_bit_first_and_zero_is_not_positive() -> None:
    vectors = np.array([[1, -1, 0, 2, -3, -1, -1, 0.5, 1]], np.float32)
    assert search.quantize_binary(vectors).tolist() == [[0b10010001, 0b10000000]]


@given(pairs())
def test_hamming_distance_is_the_dot_product_of_signs(case: tuple[np.ndarray, np.ndarray]) -> None:
    queries, passages = case
    distances = search.hamming_distances(search.quantize_binary(queries), search.quantize_binary(passages))
    expected = (queries.shape[1] - signs(queries) @ signs(passages).T) / 2
    np.testing.assert_array_equal(distances, expected)


@given(pairs(), st.integers(1, 6), st.integers(1, 35))
def test_binary_search_that_keeps_everything_is_exact(
    case: tuple[np.ndarray, np.ndarray], k: int, block_size: int
) -> None:
    queries, passages = case
    bits = search.quantize_binary(passages)
    scores, indices = search.top_k_binary(queries, bits, k, rescore=30, block_size=block_size)
    expected_scores, expected_indices = plain_top_k(queries @ signs(passages).T, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(scores, expected_scores)


def test_rescoring_orders_the_nearest_candidates_by_the_float_query() -> None:
    query = np.array([[0.1, 0.1, 5.0]], np.float32)
    passages = np.array([[-1, 1, 1], [1, 1, -1], [-1, -1, -1]], np.float32)  # distances 1, 1, 3
    scores, indices = search.top_k_binary(query, search.quantize_binary(passages), 1, rescore=2)
    assert indices.tolist() == [[0]]
    assert scores[0, 0] == pytest.approx(5.0)
    scores, indices = search.top_k_binary(query, search.quantize_binary(passages[::-1]), 1, rescore=2)
    assert indices.tolist() == [[2]]  # the second by distance, tied and at a higher index, wins by its score


def test_unusable_codes_are_refused() -> None:
    query, codes = matrix(1, 12), matrix(4, 12, dtype=np.int8)
    with pytest.raises(InputError, match="4 vectors need as many scales"):
        search.top_k_int8(query, codes, matrix(3), 1)
    with pytest.raises(InputError, match="passages must be of type int8, not float32"):
        search.top_k_int8(query, matrix(4, 12), matrix(4), 1)
    with pytest.raises(InputError, match="12 dimensions pack into 2 bytes, not 3"):
        search.top_k_binary(query, matrix(4, 3, dtype=np.uint8), 1)
    with pytest.raises(InputError, match="packed signs must be of type uint8, not int8"):
        search.top_k_binary(query, codes, 1)
    with pytest.raises(InputError, match="2 and 3 bytes"):
        search.hamming_distances(matrix(1, 2, dtype=np.uint8), matrix(1, 3, dtype=np.uint8))
    with pytest.raises(InputError, match="at least 1, not 0 and 4"):
        search.top_k_binary(query, matrix(4, 2, dtype=np.uint8), 0)
    for quantize in (search.quantize_int8, search.quantize_binary):
        with pytest.raises(InputError, match="vector 131 holds NaN"):
            quantize(with_value(np.nan, 131))
    with pytest.raises(InputError, match="query 270 holds NaN"):
        search.top_k_binary(with_value(np.nan, 270), matrix(4, 1, dtype=np.uint8), 1)
