"""Logarithms of mixed probabilities of K experts, in tiles that stay in the cache.

A prediction is a sum over tokens of logarithms of weighted sums, `log sum_k w_k v_k(t)`.
The values are divided by their largest per token and mixed in single precision; sums
are double. Where single precision has no more digits the logarithm is made again from
logarithms. No array of M mixtures times all tokens is built.

    K experts, M mixtures, T tokens of a block or tile, G groups of tokens

Several tokens' sums are multiplied before one logarithm, which is the same as a sum of
logarithms (METHODS 1.1) and takes a third of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mixture import Array

Single = NDArray[np.float32]
Mask = NDArray[np.bool_]

_TILE = 1 << 18  # mixed values at a time: 1 MB, about a core's second-level cache
_TILE_MIXTURES = 1024
_LONGEST_SUM = 4096  # tokens in a tile when slopes are made
_FEW_MIXTURES = 16  # whose slopes are summed in double precision: an optimum's certificate rests on them
_GROUP = 8  # tokens multiplied in single precision; then as many groups in double precision
_PAD = _GROUP * _GROUP
# Single precision loses digits below 1.2e-38. Mixed values are at most 1, so if a product of some is above
# this so was every part of it; and 8 such products are above 1e-280, which double precision holds.
_LEAST_PRODUCT = 1e-35
_SMALLEST = np.finfo(np.float32).tiny
_LEAST_INVERTED = 1e-30  # so that sums of inverses stay below 3e38, the end of single precision
_STEEPEST = 1e30
_EXACT_AT_ONCE = 1 << 20  # elements of the exact way at a time: 8 MB


@dataclass(frozen=True, eq=False)
class Term:
    """One logarithm of a weighted sum per token.

    Attributes:
        sign: 1 where it is added, -1 where it is subtracted.
        logs_TK: Logarithms of the values; the largest of a token is 0.
        values_TK: The values.
        peak_T: What was subtracted from the logarithms.
    """

    sign: int
    logs_TK: Single
    values_TK: Single
    peak_T: Array

    @classmethod
    def of(cls, sign: int, logs_KT: NDArray[Any]) -> Term:
        """Take (K, T) values, given by their logarithms."""
        peak_T = logs_KT.max(axis=0)
        logs_TK = np.ascontiguousarray((logs_KT - peak_T).T, dtype=np.float32)
        return cls(sign, logs_TK, np.exp(logs_TK), peak_T.astype(np.float64))


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive tokens of an evaluation set.

    Attributes:
        terms: What is added up.
        counted: (T,) which tokens the loss is the mean over, or None for all.
    """

    terms: tuple[Term, ...]
    counted: Mask | None

    def __len__(self) -> int:
        """T."""
        return len(self.terms[0].peak_T)


@dataclass(frozen=True, eq=False)
class _Tile:
    """Mixed values of some tokens and mixtures, in a buffer that the next tile overwrites."""

    term: Term
    tokens: slice
    rows: slice
    weights: Array
    counted: Mask | None
    mixed_TM: Single
    padded_TM: Single


def log_sums(weights: Array, block: Block) -> Array:
    """Return (M,) sums over a block's counted tokens of the logarithms of mixed values.

    Args:
        weights: (M, K), not negative.
        block: The tokens.
    """
    totals = np.zeros(len(weights))
    for tile in _tiles(weights, block, _TILE):
        totals[tile.rows] += tile.term.sign * _log_products(tile)
    for term in block.terms:
        totals += term.sign * (term.peak_T if block.counted is None else term.peak_T[block.counted]).sum()
    return totals


def logs(weights: Array, block: Block) -> Array:
    """Return (T, M) logarithms of mixed values, nats: for few mixtures or short blocks.

    Args:
        weights: (M, K), not negative.
        block: The tokens.
    """
    total_TM = np.zeros((len(block), len(weights)))
    for tile in _tiles(weights, block, _TILE):
        logs_TM = np.log(np.maximum(tile.mixed_TM, _SMALLEST)).astype(np.float64)
        low = np.nonzero(tile.mixed_TM < _LEAST_PRODUCT)
        if len(low[0]):
            logs_TM[low] = _exact_logs(tile, low[0][:, None], low[1])[:, 0]
        total_TM[tile.tokens, tile.rows] += tile.term.sign * (logs_TM + tile.term.peak_T[tile.tokens, None])
    return total_TM


def slopes(weights: Array, block: Block, factors_TM: Array | None = None) -> Array:
    """Return (M, K) derivatives of a sum over tokens of logarithms of mixed values.

    Where an expert of weight 0 has all of a token, its slope counts as 1e30.

    Args:
        weights: (M, K), not negative.
        block: The tokens.
        factors_TM: What each logarithm is multiplied with; None for 1 on counted tokens, else 0.
    """
    totals = np.zeros(weights.shape)
    for tile in _tiles(weights, block, min(_TILE, _LONGEST_SUM * len(weights))):
        factors = None if factors_TM is None else factors_TM[tile.tokens, tile.rows]
        if tile.mixed_TM.min() < _LEAST_INVERTED:
            totals[tile.rows] += tile.term.sign * _exact_slopes(tile, factors)
        inverse_TM = np.reciprocal(tile.mixed_TM, out=tile.mixed_TM)
        if factors is not None:
            inverse_TM *= factors.astype(np.float32)
        elif tile.counted is not None:
            inverse_TM[~tile.counted] = 0
        values_TK = tile.term.values_TK[tile.tokens]
        if len(weights) <= _FEW_MIXTURES:
            inverse_TM, values_TK = inverse_TM.astype(np.float64), values_TK.astype(np.float64)
        totals[tile.rows] += tile.term.sign * (inverse_TM.T @ values_TK)
    return totals


def curvatures(weights: Array, block: Block) -> Array:
    """Return (M, K, K) second derivatives of `log_sums`, in double precision.

    Args:
        weights: (M, K), not negative.
        block: The tokens.
    """
    num = weights.shape[1]
    totals = np.zeros((len(weights), num, num))
    for term in block.terms:
        for first in range(0, len(block), _LONGEST_SUM):
            tokens = slice(first, first + _LONGEST_SUM)
            logs_TK = term.logs_TK[tokens] if block.counted is None else term.logs_TK[tokens][block.counted[tokens]]
            values_TK = np.exp(logs_TK.astype(np.float64))
            for m, row in enumerate(weights):
                ratio_TK = np.minimum(values_TK / np.maximum(values_TK @ row, _SMALLEST)[:, None], _STEEPEST)
                totals[m] -= term.sign * (ratio_TK.T @ ratio_TK)
    return totals


def _tiles(weights: Array, block: Block, size: int) -> Iterator[_Tile]:
    """Yield mixed values of all tokens, terms and mixtures, about `size` at a time."""
    num = min(len(weights), _TILE_MIXTURES)
    step = max(1, min(size // max(num, 1), len(block)) // _PAD) * _PAD
    buffer = np.empty((step + _PAD, num), dtype=np.float32)
    for first in range(0, len(weights), _TILE_MIXTURES):
        rows = slice(first, min(first + _TILE_MIXTURES, len(weights)))
        weights_KM = np.ascontiguousarray(weights[rows].T, dtype=np.float32)
        for term in block.terms:
            for start in range(0, len(block), step):
                tokens = slice(start, min(start + step, len(block)))
                padded_TM = buffer.reshape(-1)[: buffer.shape[0] * weights_KM.shape[1]].reshape(buffer.shape[0], -1)
                mixed_TM = np.matmul(term.values_TK[tokens], weights_KM, out=padded_TM[: tokens.stop - tokens.start])
                counted = None if block.counted is None else block.counted[tokens]
                yield _Tile(term, tokens, rows, weights[rows], counted, mixed_TM, padded_TM)


def _log_products(tile: _Tile) -> Array:
    """Return (M,) sums of logarithms, as logarithms of products."""
    num, width = tile.mixed_TM.shape
    padded_TM = tile.padded_TM[: -(-num // _PAD) * _PAD]
    padded_TM[num:] = 1
    if tile.counted is not None:
        padded_TM[:num][~tile.counted] = 1
    products_GM = np.multiply.reduce(padded_TM.reshape(-1, _GROUP, width), axis=1)
    totals = np.zeros(width)
    if products_GM.min() < _LEAST_PRODUCT:
        groups, columns = np.nonzero(products_GM < _LEAST_PRODUCT)
        exact = _exact_logs(tile, groups[:, None] * _GROUP + np.arange(_GROUP), columns).sum(axis=1)
        totals += np.bincount(columns, exact, minlength=width)
        products_GM[groups, columns] = 1
    wide_GM = np.multiply.reduce(products_GM.reshape(-1, _GROUP, width), axis=1, dtype=np.float64)
    return np.asarray(totals + np.log(wide_GM).sum(axis=0))


def _exact_logs(tile: _Tile, tokens: NDArray[np.intp], columns: NDArray[np.intp]) -> Array:
    """Return logarithms of mixed values by log-sum-exp in double precision; 0 for tokens that do not count.

    Args:
        tile: What they are of.
        tokens: (N, n) places within the tile; those past its end count as 0.
        columns: (N,) mixtures within the tile.
    """
    here_TK = tile.term.logs_TK[tile.tokens]
    counts = np.ones(len(here_TK), dtype=bool) if tile.counted is None else tile.counted
    with np.errstate(divide="ignore"):
        weights_MK = np.log(tile.weights)
    result = np.zeros(tokens.shape)
    step = max(1, _EXACT_AT_ONCE // (tokens.shape[1] * here_TK.shape[1]))
    for first in range(0, len(tokens), step):
        part = slice(first, first + step)
        inside = np.minimum(tokens[part], len(here_TK) - 1)
        sums = here_TK[inside] + weights_MK[columns[part], None]
        peak = sums.max(axis=-1)
        exact = peak + np.log(np.exp(sums - peak[..., None]).sum(axis=-1))
        result[part] = np.where((tokens[part] < len(here_TK)) & counts[inside], exact, 0.0)
    return result


def _exact_slopes(tile: _Tile, factors_TM: Array | None) -> Array:
    """Return the (M, K) share of tokens whose mixed values have no inverse in single precision, and drop them."""
    tokens, columns = np.nonzero(tile.mixed_TM < _LEAST_INVERTED)
    tile.mixed_TM[tokens, columns] = np.inf
    totals: Array = np.zeros(tile.weights.shape)
    step = max(1, _EXACT_AT_ONCE // totals.shape[1])
    for first in range(0, len(tokens), step):
        t, m = tokens[first : first + step], columns[first : first + step]
        logs_NK = tile.term.logs_TK[tile.tokens][t] - _exact_logs(tile, t[:, None], m)
        ratios_NK = np.exp(np.minimum(logs_NK, np.log(_STEEPEST)))
        if factors_TM is not None:
            ratios_NK *= factors_TM[t, m, None]
        elif tile.counted is not None:
            ratios_NK *= tile.counted[t, None]
        np.add.at(totals, m, ratios_NK)
    return totals
