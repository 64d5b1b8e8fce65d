"""Device functions that the generated kernels call.

Page order is decided on 32-bit keys: a larger key comes first, equal keys are taken in page order, and key 0 is
never chosen. `cut` and `edge` describe a choice: the keys above `cut`, and those equal to it on pages below `edge`.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

import os

import triton
import triton.language as tl

#: True where Triton runs in its interpreter, whose bf16 conversions truncate and whose bf16 products are wrong.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def start_after_previous(CHAINED: tl.constexpr):
    """First line of a kernel. CHAINED kernels are launched while the one before them in the stream still runs: they
    wait for its end here, after which the next one may be brought up (programmatic dependent launch, sm_90)."""
    if CHAINED:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def round_bf16(x):
    """fp32 to the nearest bf16, ties to even."""
    if _INTERPRETED:
        bits = x.to(tl.uint32, bitcast=True)
        even = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return tl.where(x == x, even, 0x7FC00000).to(tl.uint32).to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def product_operand(x, dtype):
    """An operand of a matrix product in the type that holds it exactly; fp32 in the interpreter."""
    if _INTERPRETED:
        return x.to(tl.float32)
    else:
        return x.to(dtype)


@triton.jit
def matrix_operand(x):
    """An operand of a matrix product as it was loaded; fp32 in the interpreter."""
    if _INTERPRETED:
        return x.to(tl.float32)
    else:
        return x


@triton.jit
def page_unit(table, page, live, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    """Physical page of each logical page of one request, whose row of the block table is `table`; int64."""
    if PAGE > BLOCK:
        return tl.load(table + (page + 1) * (PAGE // BLOCK) - 1, mask=live, other=0).to(tl.int64)
    else:
        block = tl.load(table + page // (BLOCK // PAGE), mask=live, other=0).to(tl.int64)
        return block * (BLOCK // PAGE) + page % (BLOCK // PAGE)


@triton.jit
def list_unit(blocks, page, live, own, PAGE: tl.constexpr, BLOCK: tl.constexpr):
    """The physical page of each page, int32; 0 for the own one where pages are larger than blocks, whose last block may
    not be there yet. `blocks` is the request's row of the block table."""
    if PAGE > BLOCK:
        live = live & (page < own)
    return page_unit(blocks, page, live, PAGE, BLOCK).to(tl.int32)


@triton.jit
def list_pages(
    pages, entries, first, blocks, rank, page, unit, listed, length, most, PAGE: tl.constexpr, BLOCK: tl.constexpr,
    KNOWN: tl.constexpr,
):  # fmt: skip
    """Writes one list's pages and where they lie: `rank` is the place of each page that is `listed` in the list, whose
    place 0 is `first`."""
    tl.store(pages + first + rank, page, mask=listed & (rank < most))
    list_places(entries, first, blocks, rank, page, unit, listed, length, most, PAGE, BLOCK, KNOWN)


@triton.jit
def list_places(
    entries, first, blocks, rank, page, unit, listed, length, most, PAGE: tl.constexpr, BLOCK: tl.constexpr,
    KNOWN: tl.constexpr,
):  # fmt: skip
    """Writes where one list's pages lie.

    `blocks`: the request's row of the block table. An entry is a physical page, or a block where a page has several.
    With KNOWN `unit` holds the physical pages already (`list_unit`).
    """
    listed = listed & (rank < most)
    if PAGE > BLOCK:
        SPAN: tl.constexpr = PAGE // BLOCK
        for part in tl.static_range(SPAN):
            number = page * SPAN + part
            block = tl.load(blocks + number, mask=listed & (number * BLOCK < length), other=0)
            tl.store(entries + (first + rank) * SPAN + part, block, mask=listed)
    else:
        if KNOWN:
            where = unit
        else:
            where = page_unit(blocks, page, listed, PAGE, BLOCK).to(tl.int32)
        tl.store(entries + first + rank, where, mask=listed)


@triton.jit
def token_offset(table, position, live, block_stride, token_stride, BLOCK: tl.constexpr):
    """Offset of each token position of one request inside a pool of blocks; int64."""
    block = tl.load(table + position // BLOCK, mask=live, other=0).to(tl.int64)
    return block * block_stride + (position % BLOCK) * token_stride


@triton.jit
def order_key(score, allowed):
    """Sort key of each score: monotone, -0 equal to +0, and 0 for -inf, NaN and pages that are not allowed."""
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.uint32, bitcast=True)
    key = tl.where((bits >> 31) != 0, ~bits, bits | 0x80000000)
    return tl.where(allowed & (score > float("-inf")), key, 0).to(tl.uint32)


@triton.jit
def mix(x):
    """One round of the counter-based hash behind `random`; wraps around at 32 bits."""
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D).to(tl.uint32)
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B).to(tl.uint32)
    return x ^ (x >> 16)


@triton.jit
def random_key(seed, salt, layer, kv_head, page, position, allowed):
    """Sort key of a random choice: the smallest hash first."""
    h = mix(tl.full((), seed, tl.uint32) ^ 0x9E3779B9)
    h = mix(h ^ tl.full((), salt, tl.uint32))
    h = mix(h ^ tl.full((), layer, tl.uint32))
    h = mix(h ^ kv_head.to(tl.uint32))
    h = mix(h ^ page.to(tl.uint32))
    h = mix(h ^ position.to(tl.uint32))
    return tl.where(allowed, tl.maximum(~h, 1), 0).to(tl.uint32)


@triton.jit
def digit_counts(key, cut, shift):
    """How many keys reach each of the three candidates for the next two bits of a cut, packed in 20-bit fields.

    A tile has fewer than 2**15 keys, so two counts fit one 32-bit sum, which a warp adds in one instruction.
    """
    one = tl.full((), 1, tl.uint32)
    reach = (key >= (cut | (one << shift))).to(tl.int32)
    reach += (key >= (cut | (2 * one << shift))).to(tl.int32) << 16
    low = tl.sum(reach, 0).to(tl.int64)
    high = tl.sum((key >= (cut | (3 * one << shift))).to(tl.int32), 0).to(tl.int64)
    return (low & 0xFFFF) | ((low >> 16) << 20) | (high << 40)


@triton.jit
def next_cut(cut, counts, n, shift):
    """The cut with its next two bits: the largest value that at least `n` keys reach."""
    digit = ((counts & 0xFFFFF) >= n).to(tl.uint32)
    digit += (((counts >> 20) & 0xFFFFF) >= n).to(tl.uint32)
    digit += ((counts >> 40) >= n).to(tl.uint32)
    return cut | (digit << shift)


@triton.jit
def is_settled(counts, n):
    """Whether exactly `n` keys reach one of the candidates: then the cut with its next two bits divides them."""
    return ((counts & 0xFFFFF) == n) | (((counts >> 20) & 0xFFFFF) == n) | ((counts >> 40) == n)


@triton.jit
def common_bits(key):
    """What all keys other than 0 share: a cut of their upper bits and the place of the next two; below 0 if all are
    equal, or none."""
    highest = tl.max(key, 0)
    differ = highest ^ tl.min(tl.where(key > 0, key, highest), 0)
    # The exponent of a float is the place of the highest bit, or one more if rounding carried.
    exponent = (differ.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127
    shift = tl.where(differ == 0, -2, tl.minimum(exponent, 31) & -2)
    lower = (tl.full((), 4, tl.uint64) << tl.maximum(shift, 0).to(tl.uint64)) - 1
    return tl.where(differ == 0, highest, highest & ~lower.to(tl.uint32)), shift


@triton.jit
def top_cut(key, n):
    """The largest cut that at least `n` keys reach, as far as bits matter: its lower bits are 0 where exactly `n` keys
    reach it already. 0 when there are fewer keys."""
    cut, shift = common_bits(key)
    while shift >= 0:
        counts = digit_counts(key, cut, shift.to(tl.uint32))
        cut = next_cut(cut, counts, n, shift.to(tl.uint32))
        shift = tl.where(is_settled(counts, n), -1, shift - 2)
    return cut


@triton.jit
def edge_page(key, page, cut, need, before):
    """One past the page of the `need`-th key equal to `cut`, given `before` of them on earlier tiles; 0 if none."""
    tie = key == cut
    rank = before + tl.cumsum(tie.to(tl.int32), 0)
    return tl.max(tl.where(tie & (rank <= need), page + 1, 0), 0)


@triton.jit
def settled_edge(key, page, cut, need, own):
    """`edge_page` for a row of one tile; ranks are counted only where the cut divides equal keys."""
    edge = own
    if tl.sum((key == cut).to(tl.int32), 0) > need:
        edge = edge_page(key, page, cut, need, 0)
    return edge


@triton.jit
def mass_cut(key, weight, p, n):
    """The largest cut such that the keys reaching it number `n` or weigh `p`; 0 when none does."""
    cut = tl.full((), 0, tl.uint32)
    for step in range(32):
        candidate = cut | (tl.full((), 1, tl.uint32) << (31 - step))
        reach = key >= candidate
        mass = tl.sum(tl.where(reach, weight, 0.0), 0)
        cut = tl.where((mass >= p) | (tl.sum(reach.to(tl.int32), 0) >= n), candidate, cut)
    return cut


@triton.jit
def ties_needed(p, above_mass, weight, n, above_count):
    """How many keys equal to the cut a mass choice takes: while the mass before one is under `p`, `n` in all."""
    wanted = tl.where(weight > 0.0, tl.ceil((p - above_mass) / weight), 2147480000.0)
    wanted = tl.minimum(tl.maximum(wanted, 0.0), 2147480000.0).to(tl.int32)
    return tl.minimum(wanted, n - above_count)


@triton.jit
def chosen(key, page, cut, edge):
    """Membership that `cut` and `edge` describe."""
    return (key > 0) & ((key > cut) | ((key == cut) & (page < edge)))


@triton.jit
def as_count(x, own):
    """A selector's count, clipped to the candidates."""
    return tl.minimum(tl.maximum(x, 0), own).to(tl.int32)


@triton.jit
def to_int(x):
    """A whole float scalar as an int: NaN becomes 0, magnitudes end at 2**30."""
    x = tl.where(x == x, x, 0.0)
    return tl.minimum(tl.maximum(x, -1073741824.0), 1073741824.0).to(tl.int64)


@triton.jit
def floor_divide(a, b):
    """Integer quotient rounded down; 0 when dividing by 0."""
    a = tl.full((), 0, tl.int64) + a
    b = tl.full((), 0, tl.int64) + b
    divisor = tl.where(b == 0, 1, b)
    quotient = a // divisor
    quotient = tl.where((a % divisor != 0) & ((a < 0) != (divisor < 0)), quotient - 1, quotient)
    return tl.where(b == 0, 0, quotient)


@triton.jit
def floor_mod(a, b):
    """Integer remainder with the sign of `b`; 0 when dividing by 0."""
    return tl.where(b == 0, 0, a - floor_divide(a, b) * b)


@triton.jit
def sigmoid(x):
    return tl.div_rn(1.0, 1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x))
    y = tl.div_rn(1.0 - e, 1.0 + e)
    return tl.where(x < 0, -y, y)


@triton.jit
def combine_partials(partials, out, parts, identity, REST: tl.constexpr, TILE: tl.constexpr, HOW: tl.constexpr):
    """Finishes a reduction over pages: `partials` [rows, parts, REST] to `out` [rows, REST]."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * TILE + tl.arange(0, TILE)
    total = tl.full([TILE], identity, tl.float32)
    for part in range(parts):
        x = tl.load(partials + (row * parts + part) * REST + at, mask=at < REST, other=0.0)
        if HOW == "sum":
            total = total + x
        elif HOW == "max":
            total = tl.maximum(total, x)
        else:
            total = tl.minimum(total, x)
    tl.store(out + row * REST + at, total, mask=at < REST)
