"""Paged decode attention over latent keys on Hopper, in Gluon; `latent` launches it, and
`latent_kernels.latent_split` says what it computes.

Memory stays busy if copies never wait for products. So one warpgroup only copies, a tile ahead, and two multiply, each
for half of the value channels. Both compute all logits of a tile: that is cheaper than telling each other, and one
takes exponents while the other multiplies.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from vortexlab.kernels.gpu.attention_kernels import row_member
from vortexlab.kernels.gpu.device import start_after_previous

# Triton 3.9 renamed these two.
copy_async = getattr(async_copy, "async_load", async_copy.async_copy_global_to_shared)
barrier = getattr(gl, "barrier", None) or gl.thread_barrier

#: Rows of a tile of logits, two for each query head, and its tokens: those of a tile of keys.
ROWS, TILE = 64, 64
#: Channels of the rotary part, padded.
TURNED = 64
#: Warps of a warpgroup.
WARPS = 4
#: Registers of a thread that copies and of one that multiplies.
FEW, MANY = 40, 232

_ROWS, _TILE, _TURNED, _WARPS = gl.constexpr(ROWS), gl.constexpr(TILE), gl.constexpr(TURNED), gl.constexpr(WARPS)
_HEADS, _FEW, _MANY = gl.constexpr(ROWS // 2), gl.constexpr(FEW), gl.constexpr(MANY)
_LOWER, _UPPER = gl.constexpr(0), gl.constexpr(1)
#: Eight threads copy 128 bytes of one token.
_COPY = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [WARPS, 1], [1, 0]))
_SHARED = gl.constexpr(gl.NVMMASharedLayout(128, 16, 2))


@gluon.constexpr_function
def rows_layout(columns):
    """A warpgroup's accumulator [row, column]."""
    return gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, columns, 16])


@gluon.constexpr_function
def heads_layout(columns):
    """Half an accumulator, [head, column]: a thread holds one head, in two of the accumulator's rows."""
    return gl.DistributedLinearLayout(
        [[0, 1], *([0, 8 << i] for i in range((columns // 8).bit_length() - 1))],
        [[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
        [[8, 0], [16, 0]],
        [],
        [ROWS // 2, columns],
    )


@gluon.jit
def rows_apart(x):
    """The first and the second rows of all heads, [head, column] each, of [row, column]."""
    heads: gl.constexpr = heads_layout(x.shape[1])
    first, second = gl.split(gl.permute(gl.reshape(x, (_HEADS // 8, 2, 8, x.shape[1])), (0, 2, 3, 1)))
    first = gl.convert_layout(gl.reshape(first, (_HEADS, x.shape[1])), heads, assert_trivial=True)
    second = gl.convert_layout(gl.reshape(second, (_HEADS, x.shape[1])), heads, assert_trivial=True)
    return first, second


@gluon.jit
def rows_together(first, second, layout: gl.constexpr):
    """[row, column] of the first and second rows of all heads, [head, column] each."""
    x = gl.reshape(gl.join(first, second), (_HEADS // 8, 8, first.shape[1], 2))
    x = gl.reshape(gl.permute(x, (0, 3, 1, 2)), (_ROWS, first.shape[1]))
    return gl.convert_layout(x, layout, assert_trivial=True)


@gluon.jit
def for_both_rows(x, layout: gl.constexpr):
    """[row] of [head]."""
    x = gl.permute(gl.reshape(gl.join(x, x), (_HEADS // 8, 8, 2)), (0, 2, 1))
    return gl.convert_layout(gl.reshape(x, (_ROWS,)), layout, assert_trivial=True)


@gluon.jit
def look_up(entries, start, end, ATOM: gl.constexpr):
    """The list entry of each token that a thread copies of a tile."""
    slot = start + gl.arange(0, _TILE, layout=gl.SliceLayout(1, _COPY))
    return gl.load(entries + slot // ATOM, mask=slot < end, other=0)


@gluon.jit
def copy_rows(at, live, latent, rotary, LATENT: gl.constexpr, ROTARY: gl.constexpr):
    """Begins to copy [LATENT | ROTARY] channels of 64 rows; those that are not live become zero."""
    channel = gl.arange(0, LATENT, layout=gl.SliceLayout(0, _COPY))
    turned = gl.arange(0, _TURNED, layout=gl.SliceLayout(0, _COPY))
    copy_async(latent, at[:, None] + channel[None, :], mask=live[:, None])
    if ROTARY == _TURNED:
        copy_async(rotary, at[:, None] + (LATENT + turned)[None, :], mask=live[:, None])
    else:
        copy_async(rotary, at[:, None] + (LATENT + turned)[None, :], mask=live[:, None] & (turned < ROTARY)[None, :])


@gluon.jit
def copy_all(
    HEADS: gl.constexpr, LATENT: gl.constexpr, ROTARY: gl.constexpr, K_TOKEN: gl.constexpr, ATOM: gl.constexpr,
    BLOCK: gl.constexpr,
    q, q_head, first, k, k_block, entries, begin, end, query, query_turned, keys, turns, full, empty,
):  # fmt: skip
    """What the copying warpgroup does: queries from the head `first` on come with the first tile of keys."""
    PER_BLOCK: gl.constexpr = BLOCK // ATOM
    token = gl.arange(0, _TILE, layout=gl.SliceLayout(1, _COPY))
    head = first + row_member(token, True)
    copy_rows(q + head * q_head, head < HEADS, query, query_turned, LATENT, ROTARY)
    following = look_up(entries, begin, end, ATOM)
    for number in range(gl.cdiv(end - begin, _TILE)):
        start = begin + number * _TILE
        atom = following.to(gl.int64)
        following = look_up(entries, start + _TILE, end, ATOM)
        inside = token % ATOM
        if PER_BLOCK > 1:
            inside += (atom % PER_BLOCK).to(gl.int32) * ATOM
            atom = atom // PER_BLOCK
        stage = number & 1
        # A buffer is free after its first use, which is the second time that one asks for it.
        mbarrier.wait(empty.index(stage), (number >> 1) & 1 ^ 1)
        at = k + (atom * k_block + inside * K_TOKEN)
        copy_rows(at, start + token < end, keys.index(stage), turns.index(stage), LATENT, ROTARY)
        async_copy.mbarrier_arrive(full.index(stage), increment_count=False)
    async_copy.commit_group()
    async_copy.wait_group(0)  # nothing is under way when memory is given back, not even for a run of no tokens


@gluon.jit
def multiply_tile(
    half: gl.constexpr, WHOLE: gl.constexpr,
    query, query_turned, keys, turns, full, empty, number, left, scale, top, total, sums,
):  # fmt: skip
    """Takes in the tile `number`, of which `left` tokens are live, all of them of a WHOLE one."""
    PART: gl.constexpr = sums.shape[1]
    WEIGHTS: gl.constexpr = heads_layout(_TILE)
    stage = number & 1
    mbarrier.wait(full.index(stage), (number >> 1) & 1)
    fence_async_shared()  # copies write memory by another path than products read it
    tile = keys.index(stage)
    none = gl.zeros([_ROWS, _TILE], gl.float32, layout=rows_layout(_TILE))
    logits = warpgroup_mma(query, tile.permute((1, 0)), none, use_acc=False, is_async=True)
    logits = warpgroup_mma(query_turned, turns.index(stage).permute((1, 0)), logits, is_async=True)
    logits = warpgroup_mma_wait(0, deps=[logits])
    logits, _ = rows_apart(logits)
    logits *= scale
    if not WHOLE:
        token = gl.arange(0, _TILE, layout=gl.SliceLayout(0, WEIGHTS))
        logits = gl.where((token < left)[None, :], logits, float("-inf"))
    higher = gl.maximum(top, gl.max(logits, 1))
    weights = gl.exp2(logits - higher[:, None])
    fade = gl.exp2(top - higher)
    total = total * fade + gl.sum(weights, 1)
    rounded = weights.to(keys.dtype)
    rest = (weights - rounded.to(gl.float32)).to(keys.dtype)
    operand = rows_together(rounded, rest, gl.DotOperandLayout(0, rows_layout(PART), 2))
    sums *= for_both_rows(fade, gl.SliceLayout(1, rows_layout(PART)))[:, None]
    sums = warpgroup_mma(operand, tile.slice(half * PART, PART, 1), sums, is_async=True)
    sums = warpgroup_mma_wait(0, deps=[sums])
    barrier()  # all four warps have read the tile
    mbarrier.arrive(empty.index(stage))
    return higher, total, sums


@gluon.jit
def multiply_all(
    half: gl.constexpr, HEADS: gl.constexpr, LATENT: gl.constexpr, DIRECT: gl.constexpr,
    query, query_turned, keys, turns, full, empty,
    out, out_head, partial, summit, mass, first, begin, end, scale,
):  # fmt: skip
    """What a multiplying warpgroup does for a half of the value channels. `first`: its first head; results of head 0
    of the list are at `out`, or at `partial`, `summit` and `mass`."""
    PART: gl.constexpr = LATENT // 2
    WEIGHTS: gl.constexpr = heads_layout(_TILE)
    VALUES: gl.constexpr = heads_layout(PART)
    top = gl.full([_HEADS], -1.0e30, gl.float32, layout=gl.SliceLayout(1, WEIGHTS))
    total = gl.zeros([_HEADS], gl.float32, layout=gl.SliceLayout(1, WEIGHTS))
    sums = gl.zeros([_ROWS, PART], gl.float32, layout=rows_layout(PART))
    last = gl.cdiv(end - begin, _TILE) - 1  # below 0 for a run of no tokens
    for number in range(last):
        top, total, sums = multiply_tile(
            half, True, query, query_turned, keys, turns, full, empty, number, _TILE, scale, top, total, sums
        )
    if last >= 0:
        left = end - begin - last * _TILE
        top, total, sums = multiply_tile(
            half, False, query, query_turned, keys, turns, full, empty, last, left, scale, top, total, sums
        )
    rounded, rest = rows_apart(sums)
    result = rounded + rest
    channel = half * PART + gl.arange(0, PART, layout=gl.SliceLayout(0, VALUES))
    head = first + gl.arange(0, _HEADS, layout=gl.SliceLayout(1, VALUES))
    live = head < HEADS
    if DIRECT:
        total = gl.convert_layout(total, gl.SliceLayout(1, VALUES), assert_trivial=True)
        result = gl.where(total[:, None] > 0.0, result / total[:, None], 0.0)
        at = out + head[:, None] * out_head + channel[None, :]
        gl.store(at, result.to(out.dtype.element_ty), mask=live[:, None])
    else:
        if begin < end:
            gl.store(partial + head[:, None] * LATENT + channel[None, :], result, mask=live[:, None])
        if half == 0:
            member = first + gl.arange(0, _HEADS, layout=gl.SliceLayout(1, WEIGHTS))
            gl.store(summit + member, top, mask=member < HEADS)
            gl.store(mass + member, total, mask=member < HEADS)


@gluon.jit
def latent_split_hopper(
    q, q_row, q_head,
    k, k_block, k_head,
    entries, entry_row, tokens,
    out, out_row, out_head, partial, summit, mass,
    splits, scale,
    KV_HEADS: gl.constexpr, LISTS: gl.constexpr, HEADS: gl.constexpr, LATENT: gl.constexpr, ROTARY: gl.constexpr,
    K_TOKEN: gl.constexpr, ATOM: gl.constexpr, BLOCK: gl.constexpr, IDENTITY: gl.constexpr, DIRECT: gl.constexpr,
    CHAINED: gl.constexpr,
):  # fmt: skip
    """`latent_kernels.latent_split` for 16-bit queries and keys, of 128, 256 or 512 latent and at most 64 rotary
    channels, whose addresses and strides are multiples of 16 bytes; launched with `WARPS` warps."""
    start_after_previous(CHAINED)
    split = gl.program_id(0)
    row = gl.program_id(1).to(gl.int64)
    request = row // (KV_HEADS * LISTS)
    kv_head = row // LISTS % KV_HEADS
    first_head = kv_head * (HEADS * LISTS) + row % LISTS
    listed = request if IDENTITY else row
    live_tokens = gl.load(tokens + listed)
    run = gl.cdiv(gl.cdiv(live_tokens, _TILE), splits) * _TILE
    begin = split * run
    end = gl.minimum(begin + run, live_tokens)
    first = gl.program_id(2) * _HEADS
    q += request * q_row + first_head * q_head
    k += kv_head * k_head
    out += request * out_row + first_head * out_head
    place = (row * splits + split) * HEADS

    dtype: gl.constexpr = k.dtype.element_ty
    query = gl.allocate_shared_memory(dtype, [_ROWS, LATENT], _SHARED)
    query_turned = gl.allocate_shared_memory(dtype, [_ROWS, _TURNED], _SHARED)
    keys = gl.allocate_shared_memory(dtype, [2, _TILE, LATENT], _SHARED)
    turns = gl.allocate_shared_memory(dtype, [2, _TILE, _TURNED], _SHARED)
    full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(2):
        mbarrier.init(full.index(stage), 32 * _WARPS)  # every thread that copies
        mbarrier.init(empty.index(stage), 2)  # both warpgroups that multiply
    tiles = (query, query_turned, keys, turns, full, empty)
    results = (out, out_head, partial + place * LATENT, summit + place, mass + place, first, begin, end, scale)
    # Constants stay constant only on the left of a sum of tuples, and there is no unpacking.
    source = (q, q_head, first, k, k_block, entries + listed * entry_row, begin, end)
    gl.warp_specialize(
        [
            (multiply_all, (_LOWER, HEADS, LATENT, DIRECT) + tiles + results),  # noqa: RUF005
            (multiply_all, (_UPPER, HEADS, LATENT, DIRECT) + tiles + results),  # noqa: RUF005
            (copy_all, (HEADS, LATENT, ROTARY, K_TOKEN, ATOM, BLOCK) + source + tiles),  # noqa: RUF005
        ],
        [_WARPS, _WARPS],
        [_MANY, _FEW],
    )
