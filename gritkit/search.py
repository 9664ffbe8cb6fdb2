"""Exact nearest neighbours in bounded memory, fusion of rankings, and vectors in fewer bytes.

Vectors are numpy arrays, and passages may be a memory map: they are read block by block and never copied whole.
Equal scores are ordered by the lower index, so the same vectors give the same answer every time. For cosine similarity
pass vectors of length 1, as the model makes them.

This module knows nothing about models, texts or where vectors are stored.

Shapes: Q queries, N passages, D dimensions, K results, B = ceil(D / 8) bytes of packed signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from gritkit.errors import InputError

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Codes = npt.NDArray[np.int8]
Bits = npt.NDArray[np.uint8]
Id = TypeVar("Id", bound=Hashable)

_QUERY_BLOCK = 256
_SMALLEST_SCALE = np.finfo(np.float32).tiny
_LARGEST_SCALE = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))  # 127 of it are finite

# ---------------------------------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------------------------------


def top_k(
    queries_QD: npt.NDArray[Any], passages_ND: npt.NDArray[Any], k: int, *, block_size: int = 8192
) -> tuple[Floats, Indices]:
    """The ``k`` passages of highest dot product for each query: scores [Q, K] and indices [Q, K], best first.

    K is the smaller of ``k`` and N. Dot products are computed in float32. Beside the arguments, at most about 256 x
    ``block_size`` scores are held at a time (some 50 MB), however many passages there are.
    """
    _check_pair(queries_QD, passages_ND)

    def score(queries: Floats, start: int, stop: int) -> Floats:
        return _dot(queries, _float32(passages_ND[start:stop]))

    return _search(queries_QD, len(passages_ND), k, block_size, score)


def top_k_int8(
    queries_QD: npt.NDArray[Any], codes_ND: Codes, scale_N: Floats, k: int, *, block_size: int = 8192
) -> tuple[Floats, Indices]:
    """:func:`top_k` over passages of :func:`quantize_int8`; the queries stay in full precision."""
    _check_pair(queries_QD, codes_ND, passages_dtype=np.int8)
    _check_scale(codes_ND, scale_N)

    def score(queries: Floats, start: int, stop: int) -> Floats:
        scores: Floats = _dot(queries, codes_ND[start:stop].astype(np.float32)) * scale_N[start:stop]
        return scores

    return _search(queries_QD, len(codes_ND), k, block_size, score)


def top_k_binary(
    queries_QD: npt.NDArray[Any], bits_NB: Bits, k: int, *, rescore: int = 4, block_size: int = 8192
) -> tuple[Floats, Indices]:
    """Passages of :func:`quantize_binary`: by Hamming distance first, then the best by float query x passage signs.

    The first pass keeps ``rescore`` x ``k`` candidates for each query, the second orders them by the dot product of the
    query with the passage's signs as +1 and -1, which is the score returned (Yamada et al. 2021, "Efficient passage
    retrieval with hashing"). ``rescore`` large enough to keep all N passages makes the result exact.
    """
    if k < 1 or rescore < 1:
        raise InputError(f"k and rescore must be at least 1, not {k} and {rescore}")
    _check_matrix(queries_QD, "queries")
    _check_finite(queries_QD, "query")
    num_dims = queries_QD.shape[1]
    _check_bits(bits_NB, num_dims)

    def nearness(queries: Floats, start: int, stop: int) -> Floats:
        return -hamming_distances(quantize_binary(queries), bits_NB[start:stop]).astype(np.float32)

    _, candidates_QC = _search(queries_QD, len(bits_NB), k * rescore, block_size, nearness)
    candidates_QC.sort(axis=1)  # so that position order is index order, and ties go to the lower index again
    width = min(k, candidates_QC.shape[1])
    scores_QK = np.empty((len(queries_QD), width), np.float32)
    indices_QK = np.empty((len(queries_QD), width), np.int64)
    for row, (query, candidates) in enumerate(zip(queries_QD, candidates_QC, strict=True)):
        signs_CD = dequantize_binary(bits_NB[candidates], num_dims)
        scores, positions = top_k(query[None], signs_CD, k) if len(candidates) else (scores_QK[:1], indices_QK[:1])
        scores_QK[row], indices_QK[row] = scores[0], candidates[positions[0]]
    return scores_QK, indices_QK


def _search(
    queries_QD: npt.NDArray[Any],
    num_passages: int,
    k: int,
    block_size: int,
    score: Callable[[Floats, int, int], Floats],
) -> tuple[Floats, Indices]:
    """Run over blocks of queries and passages, keeping the ``k`` best so far of each query as sortable keys."""
    if k < 1 or block_size < 1:
        raise InputError(f"k and block_size must be at least 1, not {k} and {block_size}")
    width = min(k, num_passages)
    scores_QK = np.empty((len(queries_QD), width), np.float32)
    indices_QK = np.empty((len(queries_QD), width), np.int64)
    for first in range(0, len(queries_QD) if width else 0, _QUERY_BLOCK):
        rows = slice(first, first + _QUERY_BLOCK)
        queries = _float32(queries_QD[rows])
        best: Indices = np.empty((len(queries), 0), np.int64)
        for start in range(0, num_passages, block_size):
            stop = min(start + block_size, num_passages)
            scores = score(queries, start, stop)
            if not (np.isfinite(scores.min()) and np.isfinite(scores.max())):  # both are NaN where any score is
                raise InputError(_blame(queries, scores, first, start))
            best = _largest(np.concatenate([best, _entrants(scores, start, best, width)], axis=1), width)
        best = -np.sort(-best, axis=1)
        scores_QK[rows], indices_QK[rows] = _unpack_keys(best)
    return scores_QK, indices_QK


def _float32(vectors: npt.NDArray[Any]) -> Floats:
    with np.errstate(over="ignore"):  # too large for float32 becomes infinity, which is then found like any other
        return vectors.astype(np.float32, copy=False)


def _dot(queries: Floats, passages: Floats) -> Floats:
    with np.errstate(invalid="ignore", over="ignore"):  # found by the caller, who can say which vector it was
        scores: Floats = queries @ passages.T
    return scores


def _keys(scores: Floats, indices: Indices) -> Indices:
    """(score, index) as one integer, of which a larger one is a higher score or, at equal scores, a lower index.

    The bits of a non-negative float order like integers; those of a negative one the other way round, and -0.0 falls
    on 0.0. One integer makes selection deterministic: no two keys are equal, so a partition has only one outcome.
    """
    bits = scores.view(np.int32).astype(np.int64)
    ordered = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    keys: Indices = (ordered << 32) | (0xFFFFFFFF - indices)
    return keys


def _entrants(scores: Floats, start: int, best: Indices, width: int) -> Indices:
    """Keys of a block's scores that can still enter the best, [Q, as many as any query has], others the smallest key.

    Blocks come in the order of their indices, so a score that only equals the worst of ``width`` kept ones loses. After
    the first blocks hardly any score passes, which spares the making and sorting of keys for the rest.
    """
    if best.shape[1] < width:
        return _keys(scores, np.arange(start, start + scores.shape[1]))
    worst_Q, _ = _unpack_keys(best.min(axis=1))
    rows, columns = np.divmod(np.flatnonzero(scores > worst_Q[:, None]), scores.shape[1])
    counts = np.bincount(rows, minlength=len(scores))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, ... within each query
    keys = np.full((len(scores), counts.max(initial=0)), np.iinfo(np.int64).min)
    keys[rows, place] = _keys(scores[rows, columns], start + columns)
    return keys


def _unpack_keys(keys: Indices) -> tuple[Floats, Indices]:
    ordered = keys >> 32
    bits = np.where(ordered < 0, -ordered | 0x80000000, ordered).astype(np.uint32)
    return bits.view(np.float32), 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def _largest(keys: Indices, width: int) -> Indices:
    if keys.shape[1] <= width:
        return keys
    largest: Indices = np.partition(keys, keys.shape[1] - width, axis=1)[:, -width:]
    return largest


def _blame(queries: Floats, scores: Floats, first: int, start: int) -> str:
    row, column = (int(where) for where in np.argwhere(~np.isfinite(scores))[0])
    if not np.isfinite(queries[row]).all():
        return f"query {first + row} holds NaN or infinity"
    return f"passage {start + column} holds NaN or infinity, or its product with query {first + row} overflows float32"


# ---------------------------------------------------------------------------------------------------------------------
# Fusion
# ---------------------------------------------------------------------------------------------------------------------


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[Id]], *, k: float = 60, weights: Sequence[float] | None = None
) -> list[tuple[Id, float]]:
    """One ranking out of several: (id, score) pairs, best first.

    score(d) = sum over the rankings that hold d of weight / (k + rank), with rank from 1 (Cormack, Clarke and Buettcher
    2009, k = 60). Equal scores keep the order in which the ids first appear: first ranking first, then by rank.
    """
    if k < 0 or not math.isfinite(k):
        raise InputError(f"k must be a number of at least 0, not {k}")
    if weights is None:
        weights = [1.0] * len(rankings)
    if len(weights) != len(rankings):
        raise InputError(f"{len(rankings)} rankings need as many weights, not {len(weights)}")
    terms: dict[Id, list[float]] = {}
    for ranking, weight in zip(rankings, weights, strict=True):
        if len(set(ranking)) != len(ranking):
            raise InputError("an id stands more than once in a ranking")
        for rank, item in enumerate(ranking, start=1):
            terms.setdefault(item, []).append(weight / (k + rank))
    # fsum rounds once, so the order in which the rankings are given cannot decide between equal scores
    return sorted(((item, math.fsum(parts)) for item, parts in terms.items()), key=lambda pair: -pair[1])


# ---------------------------------------------------------------------------------------------------------------------
# Quantisation
# ---------------------------------------------------------------------------------------------------------------------


def quantize_int8(vectors_ND: npt.NDArray[Any]) -> tuple[Codes, Floats]:
    """Codes [N, D] in -127..127 and one scale per vector [N]: vector = scale x code, a quarter of float32's bytes.

    scale = largest |x| / 127 and code = round(x / scale), so each component is off by at most half a scale (0.4 % of
    the vector's largest component; plus float32 rounding, below 2e-5 of a scale). No vector's codes depend on the
    others. A vector without a component above 1.5e-36 becomes zero.
    """
    _check_matrix(vectors_ND, "vectors")
    vectors = _float32(vectors_ND)
    _check_finite(vectors, "vector")
    scale = np.minimum(np.abs(vectors).max(axis=1, initial=0) / np.float32(127), _LARGEST_SCALE)
    scale[scale < _SMALLEST_SCALE] = 0  # a scale in the denormal range has too few digits to divide by
    divisor = np.where(scale == 0, np.float32(np.inf), scale)
    return np.rint(vectors / divisor[:, None]).astype(np.int8), scale


def dequantize_int8(codes_ND: Codes, scale_N: Floats) -> Floats:
    """Float32 vectors [N, D] out of :func:`quantize_int8`."""
    _check_matrix(codes_ND, "codes", np.int8)
    _check_scale(codes_ND, scale_N)
    return codes_ND.astype(np.float32) * scale_N[:, None].astype(np.float32, copy=False)


def quantize_binary(vectors_ND: npt.NDArray[Any]) -> Bits:
    """Signs packed into bytes [N, B], first dimension in the highest bit, 1 for above 0: 1/32 of float32's bytes.

    The layout of ``numpy.packbits`` and of sentence-transformers' ``ubinary``. Where D is no multiple of 8 the last
    byte is filled with 0 bits.
    """
    _check_matrix(vectors_ND, "vectors")
    _check_finite(vectors_ND, "vector")
    return np.packbits(vectors_ND > 0, axis=1)


def dequantize_binary(bits_NB: Bits, num_dims: int) -> Floats:
    """+1 and -1 [N, D] out of :func:`quantize_binary`."""
    _check_bits(bits_NB, num_dims)
    return np.unpackbits(bits_NB, axis=1, count=num_dims).astype(np.float32) * 2 - 1


def hamming_distances(first_QB: Bits, second_NB: Bits) -> npt.NDArray[np.int32]:
    """Bits that differ, [Q, N]; for vectors of +1 and -1 the dot product is D - 2 x this."""
    _check_matrix(first_QB, "packed signs", np.uint8)
    _check_matrix(second_NB, "packed signs", np.uint8)
    if first_QB.shape[1] != second_NB.shape[1]:
        raise InputError(f"packed signs of {first_QB.shape[1]} and {second_NB.shape[1]} bytes cannot be compared")
    first, second = _words(first_QB), _words(second_NB)
    distances = np.empty((len(first), len(second)), np.int32)
    for row, words in enumerate(first):  # row by row, so that the differing bits of all pairs are never held at once
        distances[row] = np.bitwise_count(words ^ second).sum(axis=1, dtype=np.int32)
    return distances


def _words(bits: Bits) -> npt.NDArray[np.uint64]:
    """Packed signs as 64-bit words, filled with 0 bits: an eighth of the operations."""
    padded = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8)))
    return np.ascontiguousarray(padded).view(np.uint64)


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def _check_matrix(array: npt.NDArray[Any], name: str, dtype: type[np.generic] = np.floating) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} must be a numpy array, not {type(array).__name__}")
    if array.ndim != 2:
        raise InputError(f"{name} must have two dimensions, one row per vector, not shape {array.shape}")
    if not array.shape[1]:
        raise InputError(f"{name} have no dimensions: shape {array.shape}")
    if not np.issubdtype(array.dtype, dtype):
        raise InputError(f"{name} must be of type {dtype.__name__}, not {array.dtype}")


def _check_pair(
    queries: npt.NDArray[Any], passages: npt.NDArray[Any], passages_dtype: type[np.generic] = np.floating
) -> None:
    _check_matrix(queries, "queries")
    _check_matrix(passages, "passages", passages_dtype)
    if queries.shape[1] != passages.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} dimensions and passages {passages.shape[1]}")


def _check_finite(vectors: npt.NDArray[Any], name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(f"{name} {bad[0]} holds NaN or infinity")


def _check_scale(codes: Codes, scale: Floats) -> None:
    if scale.shape != codes.shape[:1]:
        raise InputError(f"{len(codes)} vectors need as many scales, not shape {scale.shape}")


def _check_bits(bits: Bits, num_dims: int) -> None:
    _check_matrix(bits, "packed signs", np.uint8)
    if bits.shape[1] != -(-num_dims // 8):
        raise InputError(f"{num_dims} dimensions pack into {-(-num_dims // 8)} bytes, not {bits.shape[1]}")
