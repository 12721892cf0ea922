"""The torch functions of sample_partial and sample_reduce: logarithms and exponentials in float64, Philox in NumPy."""

from __future__ import annotations

import math

import numpy as np
import torch

from mpklab.ops import Node
from mpklab.ops.sample import BINS
from mpklab.reference.functions import FUNCTIONS, Tensors, first_largest

MOST = 2.0**23  # scores are cut off at either side
COUNT_SHIFT = 45
NO_CUT = -math.inf


def scores(x: torch.Tensor, seen: torch.Tensor, rules: torch.Tensor) -> torch.Tensor:
    """float32 [n] of one row: penalised and divided by the temperature, as transformers computes them."""
    temperature, penalty = rules[0], rules[4]
    x = torch.where(seen, torch.where(x < 0, x * penalty, x / penalty), x)
    if not temperature > 0:
        return x
    return torch.nan_to_num(x / temperature, nan=MOST).clamp(-MOST, MOST) + 0.0


def random_words(seed: torch.Tensor, position: int, tokens: torch.Tensor) -> np.ndarray:
    """uint32 [n]: Philox4x32-10 (Salmon and others, 2011); counter (token / 4, position, request, 0), word token % 4."""
    low, high, request = (int(s) & 0xFFFFFFFF for s in seed)
    token = tokens.cpu().numpy().astype(np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    a, b, c, d = (token // 4, np.full_like(token, position), np.full_like(token, request), np.zeros_like(token))
    for i in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        k0, k1 = np.uint64((low + i * 0x9E3779B9) & 0xFFFFFFFF), np.uint64((high + i * 0xBB67AE85) & 0xFFFFFFFF)
        a, b, c, d = (second >> np.uint64(32)) ^ b ^ k0, second & mask, (first >> np.uint64(32)) ^ d ^ k1, first & mask
    return np.choose((token % 4).astype(np.int64), [a, b, c, d]).astype(np.uint32)


def noise(words: np.ndarray) -> torch.Tensor:
    """Gumbel noise, float64 [n]."""
    return torch.from_numpy(-np.log(-np.log1p(-(words.astype(np.float64) + 0.5) / 2.0**32)))


def filters(rules: torch.Tensor, vocabulary: int) -> bool:
    """Whether any of top-k, top-p and min-p takes anything away."""
    temperature, top_k, top_p, min_p, _ = rules.tolist()
    return temperature > 0 and (0 < top_k < vocabulary or top_p < 1 or min_p > 0)


def cut_of(z: torch.Tensor, rules: torch.Tensor) -> float:
    """The smallest score of a whole row that passes the filters, in transformers' order; equal scores share a fate."""
    _, top_k, top_p, min_p, _ = rules.tolist()
    ordered = z.sort(descending=True).values
    kept = torch.ones(len(z), dtype=torch.bool)
    larger = torch.searchsorted(-ordered, -ordered)  # how many are larger than each
    if 0 < top_k < len(z):
        kept &= larger < int(top_k)
    if top_p < 1:
        mass = torch.exp(ordered.double() - ordered[0].double()) * kept
        above = torch.cat([torch.zeros(1, dtype=torch.float64), mass.cumsum(0)])[larger]
        kept &= above < top_p * mass.sum()
    cut = float(ordered[kept][-1])
    if min_p > 0:
        cut = max(cut, float(ordered[0] + math.log(min_p)))
    return cut


def _seen(t: Tensors, row: int, tokens: torch.Tensor) -> torch.Tensor:
    return (t["seen"][row][tokens // 32] >> (tokens % 32) & 1).bool()


def _draw(value: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    at = int(first_largest(value[None])[0])
    return value[at], index[at]


def sample_partial(node: Node, t: Tensors, tile: list[int]) -> None:
    lo, hi, part, _ = tile
    rows, vocabulary = t["x"].shape
    tokens = torch.arange(lo, hi, device=t["x"].device)
    for b in range(rows):
        rules = t["sampling"][b]
        z = scores(t["x"][b, lo:hi].float(), _seen(t, b, tokens), rules)
        if not filters(rules, vocabulary):
            if rules[0] > 0:
                words = random_words(t["seed"][b], int(t["position"][b]) + 1, tokens)
                value, index = _draw((z.double() + noise(words).to(z.device)).float(), tokens)
            else:
                value, index = _draw(z, tokens)
            t["value"][b, part], t["index"][b, part] = value, index.int()
            continue
        octave = torch.round(z.double() / math.log(2)).long()
        bins = (octave.max() - octave).clamp(max=BINS - 1)
        order = torch.argsort(bins, stable=True)
        mantissas = torch.exp2(z.double() / math.log(2) - octave + 24).long() * (bins < BINS - 1)
        held = torch.zeros(BINS, dtype=torch.int64, device=z.device)
        held.index_add_(0, bins, mantissas + (1 << COUNT_SHIFT))
        t["words"][b, part] = held.cumsum(0)
        t["score"][b, lo:hi], t["token"][b, lo:hi] = z[order], tokens[order].int()
        t["value"][b, part], t["index"][b, part] = z.max(), lo


def sample_reduce(node: Node, t: Tensors, tile: list[int]) -> None:
    rows, vocabulary = t["score"].shape
    for b in range(rows):
        rules = t["sampling"][b]
        if filters(rules, vocabulary):
            z = t["score"][b]
            cut = cut_of(z, rules)
            tokens = t["token"][b][z >= cut].sort().values
            kept = torch.zeros(vocabulary, dtype=z.dtype, device=z.device)
            kept[t["token"][b].long()] = z
            words = random_words(t["seed"][b], int(t["position"][b]) + 1, tokens)
            _, chosen = _draw(kept[tokens.long()].double() + noise(words).to(z.device), tokens)
        else:
            value, chosen = _draw(t["value"][b], t["index"][b])
            cut = NO_CUT if rules[0] > 0 else float(value)
        t["out"][b], t["cut"][b] = chosen, cut
        t["seen"][b, int(chosen) // 32] |= _bit(int(chosen) % 32)


def _bit(i: int) -> int:
    """Bit i of an int32."""
    return 1 << i if i < 31 else -(1 << 31)


FUNCTIONS.update(sample_partial=sample_partial, sample_reduce=sample_reduce)
