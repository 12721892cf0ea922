"""Each CPU operator against float64, one tile at a time, held to what it may read and write."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from host_kit import Library, Program

from mpklab.ops.sample import BINS, COLUMNS, SEED_WORDS, seen_words
from mpklab.reference import sampling

EPS = 1e-5
EPS_BITS = f"{np.float32(EPS).view(np.uint32)}u"
GUARD = 128  # elements before and after each tensor that no tile may touch or use
CANARY = -12345.0
NAMES = {torch.float32: "float", torch.bfloat16: "mpk::bf16"}
Mask = torch.Tensor


@dataclass
class Case:
    """One operator variant: its operands, its tiles, and per tile what it may read and must write."""

    name: str
    variant: str
    inputs: dict[int, torch.Tensor]  # NaN wherever the mask of `reads` is false while a tile runs
    outputs: dict[int, torch.Tensor]  # the correct result, float64 or int
    dtypes: dict[int, torch.dtype]  # of the outputs
    tiles: list[tuple[int, ...]]
    writes: Callable[[tuple[int, ...]], dict[int, Mask]]
    reads: Callable[[tuple[int, ...]], dict[int, Mask]] = field(default=lambda tile: {})
    state: dict[int, torch.Tensor] = field(default_factory=dict)  # outputs that are read too: what they hold before
    dims: tuple[int, ...] = ()
    scale: float = 1.0  # what a float32 error is relative to
    segments: dict[int, list[int]] = field(default_factory=dict)  # operand -> rows of its pieces
    aliases: dict[int, int] = field(default_factory=dict)  # operand -> the operand whose slot it shares


class Guarded:
    """A tensor between two bands of NaN (or a canary)."""

    def __init__(self, values: torch.Tensor, band: float) -> None:
        fill = band if values.is_floating_point() else int(np.nan_to_num(band, nan=-(2**31)))
        self.flat = torch.full((values.numel() + 2 * GUARD,), fill, dtype=values.dtype)
        self.values = self.flat[GUARD : GUARD + values.numel()].view(values.shape)
        self.values.copy_(values)


def as_bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return as_bits(a.contiguous()).equal(as_bits(b.contiguous()))


def box(shape: tuple[int, ...], *ranges: tuple[int, int] | slice | int) -> Mask:
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[tuple(slice(*r) if isinstance(r, tuple) else r for r in ranges)] = True
    return mask


def random(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def cuts(generator: torch.Generator, extent: int, parts: int) -> list[tuple[int, int]]:
    """Ragged tiles, one of them empty if there are more than two."""
    at = sorted(torch.randint(0, extent + 1, (parts - 1,), generator=generator).tolist())
    at = [0, *at, extent]
    return list(itertools.pairwise(at))


def rms(x: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS)


def embedding(g: torch.Generator, dtype: torch.dtype, vocab: int, hidden: int, rows: int, live: int) -> Case:
    token = torch.randint(0, vocab, (rows,), generator=g, dtype=torch.int32)
    weight = random(g, dtype, vocab, hidden)
    used = torch.zeros(vocab, dtype=torch.bool)
    used[token[:live].long()] = True

    def writes(tile: tuple[int, ...]) -> dict[int, Mask]:
        return {2: box((rows, hidden), (0, live), tile[:2])}

    def reads(tile: tuple[int, ...]) -> dict[int, Mask]:
        return {1: box((vocab, hidden), (0, vocab), tile[:2]) & used[:, None], 0: box((rows,), (0, live))}

    dim = -1 if live == rows else 2
    return Case(
        f"embedding-{vocab}x{hidden}-{live}of{rows}",
        f"Embedding<{NAMES[dtype]}, {vocab}, {hidden}, {rows}, {dim}>",
        {0: token, 1: weight},
        {2: weight[token.long()].double()},
        {2: dtype},
        cuts(g, hidden, 3),
        writes,
        reads,
        dims=(0, 0, live),
        segments={1: [vocab // 3, vocab - vocab // 3]} if vocab > 8 else {},
    )


def rms_norm(g: torch.Generator, dtype: torch.dtype, hidden: int, rows: int, live: int) -> Case:
    x, weight = random(g, dtype, rows, hidden), random(g, dtype, hidden)

    def writes(tile: tuple[int, ...]) -> dict[int, Mask]:
        return {2: box((rows, hidden), (tile[0], max(tile[0], min(tile[1], live))))}

    return Case(
        f"rms_norm-{hidden}-{live}of{rows}",
        f"RmsNorm<{NAMES[dtype]}, {hidden}, {EPS_BITS}, {rows}, {-1 if live == rows else 0}>",
        {0: x, 1: weight},
        {2: rms(x.double()) * weight.double()},
        {2: dtype},
        cuts(g, rows, 2),
        writes,
        lambda tile: {0: writes(tile)[2]},
        dims=(live,),
        scale=4.0,
    )


def silu_mul(g: torch.Generator, dtype: torch.dtype, columns: int, rows: int, live: int, groups: int = 1) -> Case:
    run = columns // groups
    stride, gate_at, up_at = 2 * columns + 5, 2, run + 4
    x = random(g, dtype, rows, stride) * 3
    column = torch.arange(columns) + torch.arange(columns) // run * run if groups > 1 else torch.arange(columns)
    gate, up = x[:, gate_at + column].double(), x[:, up_at + column].double()

    def reads(tile: tuple[int, ...]) -> dict[int, Mask]:
        mask = torch.zeros(rows, stride, dtype=torch.bool)
        for at in (gate_at, up_at):
            mask[:live, at + column[tile[0] : tile[1]]] = True
        return {0: mask}

    return Case(
        f"silu_mul-{columns}-{live}of{rows}{f'-groups{groups}' if groups > 1 else ''}",
        f"SiluMul<{NAMES[dtype]}, {columns}, {gate_at}, {up_at}, {stride}, {stride}, {rows}, "
        f"{-1 if live == rows else 0}, {groups}>",
        {0: x},
        {2: torch.nn.functional.silu(gate) * up},
        {2: dtype},
        cuts(g, columns, 3),
        lambda tile: {2: box((rows, columns), (0, live), tile[:2])},
        reads,
        dims=(live,),
        scale=8.0,
        aliases={1: 0},
    )


def add(g: torch.Generator, dtype: torch.dtype, columns: int, rows: int, live: int) -> Case:
    a, b = random(g, dtype, rows, columns), random(g, dtype, rows, columns)

    def area(tile: tuple[int, ...]) -> Mask:
        return box((rows, columns), (0, live), tile[:2])

    return Case(
        f"add-{columns}-{live}of{rows}",
        f"Add<{NAMES[dtype]}, {columns}, {rows}, {-1 if live == rows else 0}>",
        {0: a, 1: b},
        {2: a.double() + b.double()},
        {2: dtype},
        cuts(g, columns, 3),
        lambda tile: {2: area(tile)},
        lambda tile: {0: area(tile), 1: area(tile)},
        dims=(live,),
    )


def part_bests(x: torch.Tensor, parts: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    values = torch.full((x.shape[0], len(parts)), -math.inf, dtype=torch.float64)
    indices = torch.full((x.shape[0], len(parts)), 0x7FFFFFFF, dtype=torch.int32)
    for p, (begin, end) in enumerate(parts):
        if begin < end:
            best = x[:, begin:end].argmax(-1)
            indices[:, p] = (best + begin).int()
            values[:, p] = x.gather(1, (best + begin)[:, None])[:, 0].double()
    return values, indices


def argmax_partial(g: torch.Generator, dtype: torch.dtype, vocab: int, rows: int, live: int, nan: bool) -> Case:
    # Few distinct values: many ties, and which of them comes first matters.
    x = torch.randint(-4, 4, (rows, vocab), generator=g).to(dtype)
    x[0] = -math.inf
    if nan:
        x[rows - 1, torch.randint(0, vocab, (3,), generator=g)] = math.nan
    parts = cuts(g, vocab, 4)
    values, indices = part_bests(x, parts)

    def writes(tile: tuple[int, ...]) -> dict[int, Mask]:
        area = box((rows, 4), (0, live), tile[2])
        return {1: area, 2: area}

    return Case(
        f"argmax_partial-{vocab}-{live}of{rows}{'-nan' if nan else ''}",
        f"ArgmaxPartial<{NAMES[dtype]}, {vocab}, 4, {rows}, {-1 if live == rows else 0}>",
        {0: x},
        {1: values, 2: indices},
        {1: torch.float32, 2: torch.int32},
        [(*part, p) for p, part in enumerate(parts)],
        writes,
        lambda tile: {0: box((rows, vocab), (0, live), tile[:2])},
        dims=(live,),
    )


def argmax_reduce(g: torch.Generator, dtype: torch.dtype, parts: int, rows: int, live: int) -> Case:
    value = torch.randint(-3, 3, (rows, parts), generator=g).float()
    value[0, parts // 2] = math.nan
    value[0, parts - 1] = math.nan
    # Any order of parts: a tie goes to the lowest index, not to the first part.
    index = torch.stack([torch.randperm(parts, generator=g) for _ in range(rows)]).int()
    best = []
    for v, i in zip(value.tolist(), index.tolist(), strict=True):
        best.append(
            min(zip(v, i, strict=True), key=lambda p: (not math.isnan(p[0]), -p[0] if p[0] == p[0] else 0, p[1]))[1]
        )
    return Case(
        f"argmax_reduce-{parts}-{live}of{rows}",
        f"ArgmaxReduce<{parts}, {rows}, {-1 if live == rows else 0}>",
        {0: value, 1: index},
        {2: torch.tensor(best, dtype=torch.int32)},
        {2: torch.int32},
        [(0,)],
        lambda tile: {2: box((rows,), (0, live))},
        dims=(live,),
    )


# temperature, top_k, top_p, min_p, repetition penalty: every filter alone, and all together
RULES = (
    (0.9, 40, 0.8, 0.02, 1.2),
    (1.5, 0, 1.0, 0.0, 1.1),
    (0.0, 0, 1.0, 0.0, 1.3),
    (0.7, 0, 0.9, 0.0, 1.0),
    (1.0, 7, 1.0, 0.0, 0.8),
    (2.0, 0, 1.0, 0.1, 1.0),
    (1.0, 0, 0.999, 0.0, 1.0),
    (1.0, 1500, 0.99, 0.0, 1.0),
)


def sample_state(
    g: torch.Generator, dtype: torch.dtype, vocab: int, rows: int, rules: tuple[tuple[float, ...], ...] = RULES
) -> dict[str, torch.Tensor]:
    """Logits with ties and with what no finite number is, tokens seen, and a rule for each row."""
    x = (random(g, dtype, rows, vocab).float() * 3).round(decimals=1).to(dtype)
    x[:, torch.randint(0, vocab, (vocab // 9,), generator=g)] = -math.inf
    if rows > 1:
        x[1, vocab // 2 :] -= 60.0
    seen = torch.randint(-(2**31), 2**31, (rows, seen_words(vocab)), generator=g, dtype=torch.int64).int()
    return {
        "x": x,
        "seen": seen,
        "sampling": torch.tensor([rules[i % len(rules)] for i in range(rows)]).float(),
        "seed": torch.randint(-(2**31), 2**31, (rows, SEED_WORDS), generator=g, dtype=torch.int64).int(),
        "position": torch.randint(0, 2**15, (rows,), generator=g, dtype=torch.int32),
    }


def sampled_parts(t: dict[str, torch.Tensor], parts: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """What the oracle's first stage leaves."""
    rows, vocab = t["x"].shape
    made = {
        "value": torch.full((rows, len(parts)), -(2.0**23)),
        "index": torch.zeros(rows, len(parts), dtype=torch.int32),
        "score": torch.zeros(rows, vocab),
        "token": torch.zeros(rows, vocab, dtype=torch.int32),
        "words": torch.zeros(rows, len(parts), BINS, dtype=torch.int64),
    }
    for p, (begin, end) in enumerate(parts):
        if begin < end:
            sampling.sample_partial(None, {**t, **made}, [begin, end, p, 0])
            continue
        for b in range(rows):  # an empty part: nothing in it is ever chosen
            if sampling.filters(t["sampling"][b], vocab):
                made["index"][b, p] = begin
            else:
                made["value"][b, p], made["index"][b, p] = -math.inf, 0x7FFFFFFF
    return made


def sample_partial(g: torch.Generator, dtype: torch.dtype, vocab: int, rows: int, live: int) -> Case:
    state = sample_state(g, dtype, vocab, rows)
    parts = cuts(g, vocab, 4)
    made = sampled_parts(state, parts)
    filtered = torch.tensor([sampling.filters(rules, vocab) for rules in state["sampling"]])
    inputs = dict(enumerate(state.values()))
    outputs = {5 + i: value.double() if value.is_floating_point() else value for i, value in enumerate(made.values())}
    dtypes = {5 + i: value.dtype for i, value in enumerate(made.values())}

    def writes(tile: tuple[int, ...]) -> dict[int, Mask]:
        one = box((rows, 4), (0, live), tile[2])
        columns = box((rows, vocab), (0, live), tile[:2]) & filtered[:, None]
        return {
            5: one,
            6: one,
            7: columns,
            8: columns,
            9: one[..., None].expand(outputs[9].shape) & filtered[:, None, None],
        }

    def reads(tile: tuple[int, ...]) -> dict[int, Mask]:
        begin, end = tile[0] // 32, -(-tile[1] // 32)
        return {
            0: box((rows, vocab), (0, live), tile[:2]),
            1: box((rows, seen_words(vocab)), (0, live), (begin, end)),
            2: box((rows, len(COLUMNS)), (0, live)),
            3: box((rows, SEED_WORDS), (0, live)),
            4: box((rows,), (0, live)),
        }

    return Case(
        f"sample_partial-{vocab}-{live}of{rows}",
        f"SamplePartial<{NAMES[dtype]}, {vocab}, 4, {rows}, {-1 if live == rows else 0}>",
        inputs,
        outputs,
        dtypes,
        [(*part, p) for p, part in enumerate(parts)],
        writes,
        reads,
        dims=(live,),
        scale=8.0,
    )


def sample_reduce(g: torch.Generator, dtype: torch.dtype, vocab: int, parts: int, rows: int, live: int) -> Case:
    state = sample_state(g, dtype, vocab, rows)
    made = sampled_parts(state, cuts(g, vocab, parts))
    rules = {name: state[name] for name in ("sampling", "seed", "position")}
    after = {
        "seen": state["seen"].clone(),
        "out": torch.zeros(rows, dtype=torch.int32),
        "cut": torch.zeros(rows),
    }
    sampling.sample_reduce(None, {**made, **rules, **after}, [0, 0, 0, 0])
    return Case(
        f"sample_reduce-{vocab}-{parts}-{live}of{rows}",
        f"SampleReduce<{vocab}, {parts}, {rows}, {-1 if live == rows else 0}>",
        dict(enumerate([*made.values(), *rules.values()])),
        {8: after["seen"], 9: after["out"], 10: after["cut"].double()},
        {8: torch.int32, 9: torch.int32, 10: torch.float32},
        [(0,)],
        lambda tile: {
            i: box(tuple(shape.shape), (0, live))
            for i, shape in ((8, after["seen"]), (9, after["out"]), (10, after["cut"]))
        },
        state={8: state["seen"]},
        dims=(live,),
    )


def attention_state(
    g: torch.Generator, dtype: torch.dtype, rows: int, heads: int, splits: int, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Partials with their statistics, some splits empty, and the float64 merge."""
    partial = random(g, dtype, rows, heads, splits, size)
    stats = torch.stack(
        [torch.randn(rows, heads, splits, generator=g) * 4, torch.rand(rows, heads, splits, generator=g) * 9 + 1], -1
    )
    for split in range(splits - 1):
        if split % 3 == 1:
            partial[0, :, split] = 0
            stats[0, :, split, 0] = -math.inf
            stats[0, :, split, 1] = 0
    s = stats.double()
    weight = torch.exp(s[..., 0] - s[..., 0].amax(-1, keepdim=True)) * s[..., 1]
    weight = weight / weight.sum(-1, keepdim=True)
    merged = (partial.double() * weight[..., None]).sum(2).reshape(rows, heads * size)
    return partial, stats, merged


def attention_merge(
    g: torch.Generator, dtype: torch.dtype, partial_dtype: torch.dtype, heads: int, size: int, splits: int, rows: int
) -> Case:
    partial, stats, merged = attention_state(g, partial_dtype, rows, heads, splits, size)

    def heads_of(tile: tuple[int, ...]) -> tuple[int, int]:
        return tile[1], tile[2]

    return Case(
        f"attention_merge-{heads}x{size}-{splits}-{partial_dtype}",
        f"AttentionMerge<{NAMES[dtype]}, {heads}, {size}, {splits}, {NAMES[partial_dtype]}, {rows}, -1>",
        {0: partial, 1: stats},
        {2: merged.view(rows, heads, size)},
        {2: dtype},
        [(b, *part) for b in range(rows) for part in cuts(g, heads, 2)],
        lambda tile: {2: box((rows, heads, size), tile[0], heads_of(tile))},
        lambda tile: {
            0: box(tuple(partial.shape), tile[0], heads_of(tile)),
            1: box(tuple(stats.shape), tile[0], heads_of(tile)),
        },
        scale=2.0,
    )


def linear(
    g: torch.Generator,
    dtype: torch.dtype,
    n: int,
    k: int,
    rows: int = 1,
    live: int | None = None,
    out: torch.dtype | None = None,
    norm: bool = False,
    epilogue: str = "none",
    bias: bool = False,
    splits: int = 0,
    size: int = 1,
    partial_dtype: torch.dtype | None = None,
    parts: int = 0,
    segments: list[int] | None = None,
) -> Case:
    live, out, partial_dtype = rows if live is None else live, out or dtype, partial_dtype or dtype
    total = 2 * n if epilogue == "silu_mul" else n
    weight = random(g, dtype, total, k)
    inputs: dict[int, torch.Tensor] = {1: weight}
    if splits:
        inputs[0], inputs[6], x = attention_state(g, partial_dtype, rows, k // size, splits, size)
    else:
        inputs[0] = random(g, dtype, rows, k)
        x = inputs[0].double()
    if norm:
        inputs[3] = random(g, dtype, k)
        x = rms(x) * inputs[3].double()
    y = x @ weight.double().T
    if bias:
        inputs[5] = random(g, dtype, total) * 4
        y = y + inputs[5].double()
    if epilogue == "silu_mul":
        y = torch.nn.functional.silu(y[:, :n]) * y[:, n:]
    if epilogue == "residual":
        inputs[4] = random(g, dtype, rows, n) * 4
        y = y + inputs[4].double()
    tiles = [(*part, p) for p, part in enumerate(cuts(g, n, parts or 3))]
    outputs, dtypes = {2: y}, {2: out}
    if parts:
        # What is compared is what was stored; margins of random numbers are far above the rounding.
        outputs[7], outputs[8] = part_bests(y.to(out), [t[:2] for t in tiles])
        dtypes[7], dtypes[8] = torch.float32, torch.int32

    def writes(tile: tuple[int, ...]) -> dict[int, Mask]:
        masks = {2: box((rows, n), (0, live), tile[:2])}
        if parts:
            masks[7] = masks[8] = box((rows, parts), (0, live), tile[2])
        return masks

    def reads(tile: tuple[int, ...]) -> dict[int, Mask]:
        masks = {1: box((total, k), tile[:2])}
        if epilogue == "silu_mul":
            masks[1] |= box((total, k), (n + tile[0], n + tile[1]))
        if bias:
            masks[5] = masks[1][:, 0]
        if epilogue == "residual":
            masks[4] = box((rows, n), (0, live), tile[:2])
        masks[0] = box(tuple(inputs[0].shape), (0, live))
        if splits:
            masks[6] = box(tuple(inputs[6].shape), (0, live))
        return masks

    return Case(
        f"linear-{n}x{k}-{live}of{rows}-{epilogue}{'-norm' if norm else ''}{'-bias' if bias else ''}"
        f"{f'-splits{splits}-{partial_dtype}' if splits else ''}{f'-parts{parts}' if parts else ''}"
        f"{'-segments' if segments else ''}-{out}",
        f"Linear<{NAMES[dtype]}, {NAMES[out]}, {n}, {k}, {rows}, {-1 if live == rows else 1}, {int(norm)}, {EPS_BITS}, "
        f"Epilogue::{epilogue}, {int(bias)}, {splits}, {size}, {NAMES[partial_dtype]}, {parts}>",
        inputs,
        outputs,
        dtypes,
        tiles,
        writes,
        reads,
        dims=(0, live),
        scale=k**0.5 * (k**0.5 if epilogue == "silu_mul" else 1.0) + 4.0,
        segments={1: segments} if segments else {},
    )


def rotate(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    cosine, sine = rope[:half].double(), rope[half:].double()
    low, high = x[..., :half], x[..., half:]
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)


def attention(
    g: torch.Generator,
    dtype: torch.dtype,
    q_heads: int,
    kv_heads: int,
    size: int,
    context: int,
    positions: list[int],
    splits: int = 1,
    qk_norm: bool = False,
    partial_dtype: torch.dtype | None = None,
    live: int | None = None,
    grouped: bool = False,
    rows_first: bool = False,
) -> Case:
    """`grouped`: the columns of a KV head's q, k and v lie together. `rows_first`: caches [batch, context, heads, size]."""
    partial_dtype = partial_dtype or dtype
    rows, group = len(positions), q_heads // kv_heads
    live = rows if live is None else live
    offsets = (3, 3 + q_heads * size, 5 + (q_heads + kv_heads) * size)
    stride = offsets[2] + kv_heads * size + 1
    qkv = random(g, dtype, rows, stride)
    norms = [random(g, dtype, size) for _ in range(2)]
    angle = torch.arange(context)[:, None] / 10.0 ** (torch.arange(size // 2) / size * 4)
    rope = torch.cat([torch.cos(angle), torch.sin(angle)], -1).float()
    caches = [random(g, dtype, rows, kv_heads, context, size) for _ in range(2)]
    after = [c.double() for c in caches]
    shape = (rows, q_heads, size) if splits == 1 else (rows, q_heads, splits, size)
    result, stats = torch.zeros(shape, dtype=torch.float64), torch.zeros(rows, q_heads, splits, 2, dtype=torch.float64)
    ranges = [[((p + 1) * i // splits, (p + 1) * (i + 1) // splits) for i in range(splits)] for p in positions]
    for b, p in enumerate(positions):
        q = qkv[b, offsets[0] : offsets[0] + q_heads * size].double().view(q_heads, size)
        k = qkv[b, offsets[1] : offsets[1] + kv_heads * size].double().view(kv_heads, size)
        v = qkv[b, offsets[2] : offsets[2] + kv_heads * size].double().view(kv_heads, size)
        if qk_norm:
            q, k = rms(q) * norms[0].double(), rms(k) * norms[1].double()
        q, k = rotate(q, rope[p]), rotate(k, rope[p])
        after[0][b, :, p], after[1][b, :, p] = k.to(dtype).double(), v
        for h in range(q_heads):
            for s, (begin, end) in enumerate(ranges[b]):
                scores = after[0][b, h // group, begin:end] @ q[h] / size**0.5
                part = torch.softmax(scores, -1) @ after[1][b, h // group, begin:end]
                most = scores.max() if end > begin else torch.tensor(-math.inf)
                stats[b, h, s, 0], stats[b, h, s, 1] = most, torch.exp(scores - most).sum()
                if splits == 1:
                    result[b, h] = part
                else:
                    result[b, h, s] = part

    column = torch.arange(stride)
    if grouped:
        q, k, v = (offset + torch.arange(n).view(kv_heads, -1) for offset, n in zip(
            offsets, (q_heads * size, kv_heads * size, kv_heads * size), strict=True
        ))  # fmt: skip
        column = torch.cat([torch.zeros(2, dtype=torch.long), torch.cat([q, k, v], 1).flatten()])
    every = (group + 2) * size if grouped else 0
    at = (2, 2 + group * size, 2 + (group + 1) * size) if grouped else offsets

    def stored(x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2).contiguous() if rows_first else x

    def heads(kv: int) -> tuple[int, int]:
        return kv * group, (kv + 1) * group

    def writes(tile: tuple[int, ...]) -> dict[int, Mask]:
        b, kv, split = tile
        masks = {9: torch.zeros(shape, dtype=torch.bool), 6: torch.zeros(after[0].shape, dtype=torch.bool)}
        if splits > 1:
            masks[10] = torch.zeros(stats.shape, dtype=torch.bool)
        if b < live:
            where = (b, heads(kv)) if splits == 1 else (b, heads(kv), split)
            masks[9] = box(shape, *where)
            if splits > 1:
                masks[10] = box(tuple(stats.shape), b, heads(kv), split)
            if split == splits - 1:
                masks[6] = box(tuple(after[0].shape), b, kv, positions[b])
        masks[6] = masks[7] = stored(masks[6])
        return masks

    def reads(tile: tuple[int, ...]) -> dict[int, Mask]:
        b, kv, split = tile
        q_head = heads(kv)
        x = torch.zeros(rows, stride, dtype=torch.bool)
        cache, table = torch.zeros(after[0].shape, dtype=torch.bool), torch.zeros(rope.shape, dtype=torch.bool)
        if b < live:
            x[b, offsets[0] + q_head[0] * size : offsets[0] + q_head[1] * size] = True
            begin, end = ranges[b][split]
            if split == splits - 1:
                for offset in offsets[1:]:
                    x[b, offset + kv * size : offset + (kv + 1) * size] = True
                end -= 1
            cache = box(tuple(after[0].shape), b, kv, (begin, end))
            table = box(tuple(rope.shape), positions[b])
        return {0: x[:, column], 5: table, 6: stored(cache), 7: stored(cache)}

    return Case(
        f"attention-{q_heads}of{kv_heads}x{size}-at{max(positions)}-splits{splits}{'-norm' if qk_norm else ''}"
        f"-{partial_dtype}{'-grouped' if grouped else ''}{'-rows_first' if rows_first else ''}",
        f"Attention<{NAMES[dtype]}, {q_heads}, {kv_heads}, {size}, {context}, {splits}, {at[0]}, {at[1]}, "
        f"{at[2]}, {len(column)}, {len(column)}, {len(column)}, {int(qk_norm)}, {EPS_BITS}, {NAMES[partial_dtype]}, {rows}, "
        f"{-1 if live == rows else 0}, {every}, {str(rows_first).lower()}>",
        {0: qkv[:, column], 3: norms[0], 4: norms[1], 5: rope, 8: torch.tensor(positions, dtype=torch.int32)},
        {9: result, 6: stored(after[0]), 7: stored(after[1]), **({10: stats} if splits > 1 else {})},
        {9: dtype if splits == 1 else partial_dtype, 6: dtype, 7: dtype, 10: torch.float32},
        [(b, kv, s) for b in range(rows) for kv in range(kv_heads) for s in range(splits)],
        writes,
        reads,
        state={6: stored(caches[0]), 7: stored(caches[1])},
        dims=(live,),
        scale=4.0,
        aliases={1: 0, 2: 0},
    )


def cases(dtype: torch.dtype) -> list[Case]:
    g = torch.Generator().manual_seed(7)
    f32, bf16 = torch.float32, torch.bfloat16
    return [
        embedding(g, dtype, 37, 45, 1, 1),
        embedding(g, dtype, 5, 64, 4, 3),
        rms_norm(g, dtype, 77, 3, 2),
        rms_norm(g, dtype, 576, 1, 1),
        silu_mul(g, dtype, 83, 2, 1),
        silu_mul(g, dtype, 84, 2, 1, groups=4),
        add(g, dtype, 51, 3, 3),
        argmax_partial(g, dtype, 203, 2, 2, nan=False),
        argmax_partial(g, dtype, 91, 5, 4, nan=True),
        argmax_reduce(g, dtype, 9, 4, 3),
        argmax_reduce(g, dtype, 1, 1, 1),
        sample_partial(g, dtype, 1203, 5, 4),
        sample_partial(g, dtype, 97, 8, 8),
        sample_reduce(g, dtype, 3001, 7, 8, 8),
        sample_reduce(g, dtype, 61, 3, 4, 3),
        attention_merge(g, dtype, f32, 3, 20, 4, 2),
        attention_merge(g, dtype, bf16, 2, 64, 2, 1),
        attention(g, dtype, 9, 3, 64, 80, [70]),
        attention(g, dtype, 4, 2, 12, 40, [0, 39, 17], splits=3, partial_dtype=f32),
        attention(g, dtype, 4, 4, 32, 300, [299, 130], splits=2, qk_norm=True, partial_dtype=bf16),
        attention(g, dtype, 2, 1, 80, 70, [1, 64, 3], splits=4, qk_norm=True, live=2),
        attention(g, dtype, 6, 2, 16, 90, [70, 3], splits=2, qk_norm=True, grouped=True, rows_first=True),
        attention(g, dtype, 9, 3, 64, 300, [299], grouped=True),
        linear(g, dtype, 50, 576),
        linear(g, dtype, 37, 75, bias=True, out=f32),
        linear(g, dtype, 48, 64, norm=True, segments=[17, 30, 1]),
        linear(g, dtype, 33, 100, rows=7, live=6, norm=True, epilogue="silu_mul", bias=True),
        linear(g, dtype, 40, 1536, epilogue="residual"),
        linear(g, dtype, 29, 36, rows=5, epilogue="residual", splits=3, size=12, partial_dtype=f32),
        linear(g, dtype, 32, 128, epilogue="residual", splits=2, size=64, partial_dtype=bf16),
        linear(g, dtype, 203, 48, rows=3, norm=True, parts=4, out=f32),
        linear(g, dtype, 64, 33, epilogue="silu_mul", norm=True, segments=[64, 64]),
    ]


CASES = {dtype: cases(dtype) for dtype in NAMES}
ALL = [pytest.param(dtype, i, id=f"{dtype}-{case.name}") for dtype in NAMES for i, case in enumerate(CASES[dtype])]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Library]:
    folder = tmp_path_factory.mktemp("ops")
    return {dtype: Library(folder, f"ops{i}", [c.variant for c in CASES[dtype]]) for i, dtype in enumerate(NAMES)}


def poisoned(values: torch.Tensor, readable: Mask | None) -> torch.Tensor:
    if readable is None:
        return values
    bad = math.nan if values.is_floating_point() else -(2**31)
    return torch.where(readable, values, torch.tensor(bad, dtype=values.dtype))


def run_tile(
    library: Library, variant: int, case: Case, tile: tuple[int, ...]
) -> tuple[dict[int, Guarded], dict[int, Guarded]]:
    """Runs one tile on fresh memory; the outputs before and after."""
    readable = case.reads(tile)
    program = Program(dims=case.dims)
    slots, segments, before, after = {}, {}, {}, {}
    for operand, values in case.inputs.items():
        values = poisoned(values, readable.get(operand))
        if operand in case.segments:
            pieces = [Guarded(p, math.nan) for p in values.split(case.segments[operand])]
            slots[operand] = program.slot(pieces[0].values)
            segments[slots[operand]] = [(p.values, len(p.values)) for p in pieces]
        else:
            slots[operand] = program.slot(Guarded(values, math.nan).values)
    for operand, expected in case.outputs.items():
        if operand in case.state:
            start = poisoned(case.state[operand], readable.get(operand))
        else:
            fill = CANARY if operand != 2 or case.dtypes[operand] == torch.int32 else math.nan
            start = torch.full(expected.shape, fill, dtype=torch.float64).to(case.dtypes[operand])
        before[operand], after[operand] = Guarded(start, CANARY), Guarded(start, CANARY)
        slots[operand] = program.slot(after[operand].values)
    for operand, other in case.aliases.items():
        slots[operand] = slots[other]
    program.task(variant, [slots.get(i, 0) for i in range(12)], tile)
    packed = program.pack([[[0]]], segments=segments)
    assert library.run(packed.launch, 0) == 0
    return before, after


@pytest.mark.parametrize(("dtype", "number"), ALL)
def test_operator_tile_by_tile(libraries: dict[torch.dtype, Library], dtype: torch.dtype, number: int) -> None:
    case = CASES[dtype][number]
    covered = {operand: torch.zeros(values.shape, dtype=torch.bool) for operand, values in case.outputs.items()}
    for tile in case.tiles:
        before, after = run_tile(libraries[dtype], number, case, tile)
        written = case.writes(tile)
        for operand, expected in case.outputs.items():
            mask, found = written[operand], after[operand].values
            covered[operand] |= mask
            # Outside its box nothing changed, the bands included.
            restored = as_bits(after[operand].flat).clone()
            restored[GUARD : GUARD + found.numel()].view(found.shape)[mask] = as_bits(before[operand].values)[mask]
            untouched = restored.equal(as_bits(before[operand].flat))
            assert untouched, f"tile {tile} wrote outside its box of operand {operand}"
            compare(found[mask], expected[mask], case.scale, f"tile {tile}, operand {operand}")
    assert any(mask.any() for mask in covered.values())


def compare(found: torch.Tensor, expected: torch.Tensor, scale: float, where: str) -> None:
    if found.dtype == torch.int32:
        assert found.tolist() == expected.tolist(), where
        return
    if found.dtype == torch.int64:  # words of sample_partial: counts, and sums of rounded mantissas
        count, mass = found >> sampling.COUNT_SHIFT, found & ((1 << sampling.COUNT_SHIFT) - 1)
        assert count.equal(expected >> sampling.COUNT_SHIFT), where
        off = (mass - (expected & ((1 << sampling.COUNT_SHIFT) - 1))).abs()
        assert (off <= 4 * count).all(), f"{where}: {off.max()}"
        return
    ulp = 2.0**-8 if found.dtype == torch.bfloat16 else 2.0**-23
    torch.testing.assert_close(
        found.double(),
        expected,
        rtol=1.01 * ulp + 1e-6,
        atol=scale * 2e-6,
        equal_nan=True,
        msg=lambda m: f"{where}: {m}",
    )


@pytest.mark.parametrize("dtype", NAMES)
def test_linear_rows_do_not_depend_on_the_tile(libraries: dict[torch.dtype, Library], dtype: torch.dtype) -> None:
    """However rows are cut into tiles, each row has the same bits."""
    g = torch.Generator().manual_seed(1)
    for number, case in enumerate(CASES[dtype]):
        if not case.name.startswith("linear") or "parts" in case.name:
            continue
        n = case.outputs[2].shape[1]
        whole = run_tile(libraries[dtype], number, case, (0, n, 0))[1][2].values
        live = case.writes((0, n, 0))[2][:, 0]
        for _ in range(3):
            for part in cuts(g, n, 5):
                tile = run_tile(libraries[dtype], number, case, (*part, 0))[1][2].values
                assert same_bits(tile[live, slice(*part)], whole[live, slice(*part)]), (case.name, part)


def test_rows_of_a_batch_do_not_depend_on_each_other(libraries: dict[torch.dtype, Library]) -> None:
    """A request's bits are the same alone and among others."""
    for dtype, all_cases in CASES.items():
        number, case = next((i, c) for i, c in enumerate(all_cases) if c.name.startswith("linear-33x100"))
        results = []
        for live in range(1, 8):
            case.dims = (0, live)
            after = run_tile(libraries[dtype], number, Case(**{**vars(case), "reads": lambda tile: {}}), (0, 33, 0))[1]
            results.append(after[2].values[:live].clone())
        case.dims = (0, 6)
        for live, result in enumerate(results, 1):
            assert same_bits(result, results[-1][:live])


EXP_SOURCE = """
#include "mpklab/host/vector.hpp"
extern "C" void exps(const float* x, float* y, long n) {
  for (long i = 0; i < n; i += mpk::lanes) mpk::store(y + i, mpk::exp(mpk::load(x + i, n - i)), n - i);
}
extern "C" void narrows(const float* x, void* vector, void* scalar, long n) {
  mpk::bf16 *y = (mpk::bf16*)vector, *z = (mpk::bf16*)scalar;
  for (long i = 0; i < n; i += mpk::lanes) mpk::store(y + i, mpk::load(x + i, n - i), n - i);
  for (long i = 0; i < n; ++i) z[i] = mpk::narrow<mpk::bf16>(x[i]);
}
"""


def test_exp_and_rounding(tmp_path_factory: pytest.TempPathFactory) -> None:
    """exp within 2 ulp of float64 everywhere; bfloat16 rounding as torch does it, NaN kept."""
    import ctypes

    from host_kit import compile_source

    library = ctypes.CDLL(str(compile_source(EXP_SOURCE, tmp_path_factory.mktemp("exp") / "exp.so", "-shared")))
    x = np.concatenate([np.linspace(-110, 95, 1_000_003), np.linspace(-1e-3, 1e-3, 10_007)]).astype(np.float32)
    x = np.concatenate([x, np.array([0.0, -0.0, np.inf, -np.inf, 88.72283, 88.72284, -103.97], np.float32)])
    y = np.empty_like(x)
    library.exps(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_long(len(x)))
    with np.errstate(over="ignore", under="ignore"):
        exact = np.exp(x.astype(np.float64))
        single = exact.astype(np.float32)
    finite = np.isfinite(single)
    assert (y[~finite] == single[~finite]).all()
    ulp = np.spacing(np.maximum(single[finite], np.float32(np.finfo(np.float32).tiny))).astype(np.float64)
    assert (np.abs(y[finite] - exact[finite]) <= 2 * ulp).all()

    words = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(3)).int()
    floats = torch.cat([words.view(torch.float32), torch.tensor([math.nan, math.inf, -math.inf, 3.4e38])])
    by_vector, by_scalar = (torch.empty(len(floats), dtype=torch.bfloat16) for _ in range(2))
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (floats, by_vector, by_scalar)]
    library.narrows(*pointers, ctypes.c_long(len(floats)))
    expected = floats.to(torch.bfloat16)
    nan = floats.isnan()
    assert by_vector.isnan().equal(nan) and by_scalar.isnan().equal(nan)
    assert same_bits(by_vector[~nan], expected[~nan]) and same_bits(by_scalar[~nan], expected[~nan])
