"""The selection kernel: one program per list evaluates the sets, page tile by page tile, and writes the page lists.

Reductions over pages and selectors are settled one after the other, each into a few scalars of the row, after which
membership of a page in any set is a plain expression of that page. Where one tile holds the row, scores stay in
registers; where it does not, every settling strides over the row again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from vortexlab.dsl.ir import SET
from vortexlab.kernels.gpu.emit import PAGE_DIM, Affine, Coords, Dim, Value, coords, expand
from vortexlab.kernels.gpu.graph import Graph, Listing, Schedule
from vortexlab.kernels.gpu.values import Dtypes, KernelText

#: Selectors that are settled before membership is known, and which of their inputs is the count.
_SETTLED = {"random": 0, "topk": 1, "above": 2, "topp": 3}
_PAGES = "for start in range(0, own + 1, TILE):"


def write_choose(graph: Graph, plan: Schedule, dtypes: Dtypes, whole: bool) -> KernelText:
    """`choose_whole` needs TILE to cover the row's pages; `choose_tiled` takes any row."""
    return _Choose(graph, plan, dtypes, whole).write()


class _Choose(KernelText):
    def __init__(self, graph: Graph, plan: Schedule, dtypes: Dtypes, whole: bool):
        super().__init__("choose_whole" if whole else "choose_tiled", graph, plan.available, dtypes)
        self.whole, self.follows = whole, bool(plan.maps)

    def write(self) -> KernelText:
        w, lists = self.writer, self.graph.lists
        self.line("list_row = tl.program_id(0).to(tl.int64)")
        places = f"list_row // {lists}", "row // KV_HEADS", "(row % KV_HEADS).to(tl.int32)"
        self.request_head(*places, waits=not self.follows)
        listings = self.graph.listings
        roots = [i for item in listings for i in (*item.sets, item.weight) if i is not None]
        if any("head" in self.graph.ops[i].axes for i in roots):
            self.line(f"head = (list_row % {lists}).to(tl.int32)  # the query head whose list this is")
        for name in ("pages", "counts", "entries", "tokens", "most", "table", "table_row"):
            self.param(name)
        self.line("previous = tl.load(counts + list_row)  # entries of the last step's list")
        if self.whole:
            self.line("start = 0")
            self.tile_head()
            self._units("page * PAGE < length")
        if self.follows:
            self.line("start_after_previous(CHAINED)")
        totals = [self.scalar("tl.full((), 0, tl.int32)") for _ in listings]
        self.open()
        for number, listing in enumerate(listings):
            if listing.entries:
                self._list_entries(number, listing, totals[number])
            else:
                self._list_tokens(number, listing, totals[number])
        self.close([_PAGES])
        for number, listing in enumerate(listings):
            self._finish(number, listing, totals[number])
        w.line(f"for start in range({totals[0]}, previous, TILE):")
        w.line("    slot = start + tl.arange(0, TILE)")
        w.line("    tl.store(pages + list_row * most + slot, -1, mask=slot < previous)")
        for name in ("TILE: tl.constexpr", "BLOCK: tl.constexpr"):
            self.param(name)
        return self

    # listings

    def _list_tokens(self, number: int, listing: Listing, total: str) -> None:
        """Lists this tile's pages of the listing's sets; `total` counts those of the tiles before."""
        chosen = " | ".join(self.set(index).text for index in listing.sets)
        self.line(f"listed = ({chosen} | (page == own)) & (page <= own) & (page < length)")
        self.line(f"rank = {total} + tl.cumsum(listed.to(tl.int32), 0) - 1")
        unit = "unit" if self.whole else "page"
        places = f"list_row * most, table + request * table_row, rank, page, {unit}, listed, length, most, PAGE, BLOCK"
        places += f", {self.whole}"
        if number:
            self.line(f"list_places({self.param(f'entries{number}')}, {places})")
        else:
            self.line(f"list_pages(pages, entries, {places})")
        self._weigh(number, listing, "most")
        self.line(f"{total} += tl.sum(listed.to(tl.int32), 0)")

    def _list_entries(self, number: int, listing: Listing, total: str) -> None:
        """As `_list_tokens`, for the candidates whose summaries are entries: their physical pages."""
        among = "".join(f" & {self.set(index).text}" for index in listing.sets)
        entries, capacity = self.param(f"entries{number}"), self.param("capacity")
        self.line(f"listed = live{among}")
        self.line(f"rank = {total} + tl.cumsum(listed.to(tl.int32), 0) - 1")
        if not self.whole:
            self._units("listed")
        self.line(f"tl.store({entries} + list_row * {capacity} + rank, unit, mask=listed)")
        self._weigh(number, listing, capacity)
        self.line(f"{total} += tl.sum(listed.to(tl.int32), 0)")

    def _units(self, live: str) -> None:
        """Where the tile's pages lie. A row of one tile asks for all of them, before what it waits for is there."""
        self.line(f"unit = list_unit(table + request * table_row, page, {live}, own, PAGE, BLOCK)")

    def _weigh(self, number: int, listing: Listing, most: str) -> None:
        """Writes the log-weights of the pages just listed, in their order, for a softmax in powers of two; the own page
        has 0."""
        if listing.weight is None:
            return
        e, heads = self.emitter, self.graph.weights(listing)
        places: dict[str, Affine] = {"page": ((PAGE_DIM, 1),), "head": (("head", 1),)}
        dims: tuple[Dim, ...] = (PAGE_DIM,)
        head = padding = ""
        if heads > 1:
            dims = (PAGE_DIM, Dim("head", heads))
            places["head"] = ((dims[1], 1),)
            head = f" + {expand(e.index(dims[1]), dims)}"
            padding = f" & {e.mask_of(dims[1], dims)}" if dims[1].pad != heads else ""
        axes = self.graph.ops[listing.weight].axes
        value = e.eval(listing.weight, coords(**{axis: places[axis] for axis in axes}))
        value = e.broadcast(e.as_float(value), dims)
        live = expand(Value("live", (PAGE_DIM,)), dims)
        weight = e.assign(f"tl.where({live}, {value.text} * {math.log2(math.e)}, 0.0)", dims)
        at, listed = (expand(Value(name, (PAGE_DIM,)), dims) for name in ("rank", "listed"))
        weights = self.param(f"weights{number}")
        row = f"(list_row * {heads}{head}) * {most}"
        self.line(f"tl.store({weights} + {row} + {at}, {weight.text}, mask={listed} & ({at} < {most}){padding})")

    def _finish(self, number: int, listing: Listing, total: str) -> None:
        """Stores how much is listed."""
        w = self.writer
        if listing.entries:
            w.line(f"tl.store({self.param(f'tokens{number}')} + list_row, {total} * {listing.entries})")
            return
        w.line(f"{total} = tl.minimum({total}, most)")
        if not number:
            w.line(f"tl.store(counts + list_row, {total})")
        w.line("# The own page, which is listed last, may not be full; rows without a token list nothing.")
        tokens = self.param(f"tokens{number}") if number else "tokens"
        w.line(f"tl.store({tokens} + list_row, tl.maximum(({total} - 1) * PAGE + length - own * PAGE, 0))")

    # tiles

    def line(self, text: str) -> None:
        self.writer.line(text)

    def tile_head(self) -> None:
        self.line("page = start + tl.arange(0, TILE)")
        self.line("live = page < own")

    def open(self) -> None:
        """Starts work on page tiles; `close` puts its lines under the given loop headers."""
        if not self.whole:
            self.writer.open()
            self.tile_head()

    def close(self, headers: list[str], footer: tuple[str, ...] = (), opening: tuple[str, ...] = ()) -> None:
        """`opening` and `footer` are lines of the outer loop (all headers but the last) around the page loop."""
        if self.whole:
            return
        lines = self.writer.close()
        depth = 0
        for header in headers[:-1]:
            self.outer("    " * depth + header)
            depth += 1
            for text in opening:
                self.outer("    " * depth + text)
        self.outer("    " * depth + headers[-1])
        for text in lines:
            self.outer("    " * (depth + 1) + text)
        for text in footer:
            self.outer("    " * depth + text)

    def outer(self, text: str) -> None:
        self.writer.line(text, False)

    def scalar(self, text: str) -> str:
        """A named scalar of the row, ahead of any tile work under way."""
        name = self.writer.fresh()
        self.outer(f"{name} = {text}")
        return name

    # values

    def load(self, index: int, at: Coords) -> Value | None:
        value = super().load(index, at)
        if value is None and self.graph.ops[index].op == "pagereduce":
            return self._reduction(index, dict(at))
        if value is None and self.graph.ops[index].op == "member":
            return self.set(self.graph.ops[index].inputs[0])
        return value

    def _reduction(self, index: int, at: dict[str, Affine]) -> Value:
        op = self.graph.ops[index]
        dims = self.emitter.dims_of(coords(**at))
        inside = coords(page=((PAGE_DIM, 1),), **at)
        if self.whole:
            value = self.emitter.eval(op.inputs[0], inside)
            return self.emitter.assign(self.reduce_tile(op, value, dims), dims, note=f"{op.attrs['how']} over pages")
        shape = ", ".join(d.extent for d in dims)
        total = self.scalar(f"tl.full([{shape}], {self.identity(op)}, tl.float32)")
        self.open()
        value = self.emitter.eval(op.inputs[0], inside)
        self.line(self.accumulate(op, total, self.reduce_tile(op, value, dims)))
        self.close([_PAGES])
        return Value(total, dims)

    def at(self, index: int) -> Coords:
        """Coordinates of a score or threshold: its pages along the tile, its head that of the list."""
        places: dict[str, Affine] = {"page": ((PAGE_DIM, 1),), "head": (("head", 1),)}
        return coords(**{axis: places[axis] for axis in self.graph.ops[index].axes})

    def value(self, index: int) -> Value:
        return self.emitter.eval(index, self.at(index))

    # sets

    def set(self, index: int) -> Value:
        """Membership of the tile's pages in a set."""
        known = self.writer.recall(("set", index))
        if known is not None:
            return known
        op = self.graph.ops[index]
        parts = []
        if op.op not in _SETTLED:
            parts = [self.set(i) if self.graph.ops[i].kind == SET else self.value(i) for i in op.inputs]
        text = [part.text for part in parts]
        if op.op == "everything":
            value = self.member("page <= own", op.op)
        elif op.op == "first":
            value = self.member(f"page < {text[0]}", op.op)
        elif op.op == "last":
            value = self.member(f"page > own - {text[0]}", op.op)
        elif op.op == "stride":
            step, offset = (self.emitter.scalar(part) for part in parts)
            period = self.scalar(f"tl.maximum({step.text}, 1).to(tl.int64)")
            value = self.member(f"page % {period} == floor_mod({offset.text}, {period})", op.op)
        elif op.op == "union":
            value = self.member(f"{text[0]} | {text[1]}", op.op)
        elif op.op == "intersect":
            value = self.member(f"{text[0]} & {text[1]}", op.op)
        elif op.op == "difference":
            value = self.member(f"{text[0]} & ({text[1]} == 0)", op.op)
        elif op.op == "complement":
            value = self.member(f"(page <= own) & ({text[0]} == 0)", op.op)
        elif op.op == "where":
            if parts[0].literal:
                value = parts[1] if text[0] == "True" else parts[2]
            else:
                value = self.member(f"tl.where({text[0]}, {text[1]}, {text[2]})", op.op)
        else:
            value = self._selector(index)
        return self.writer.remember(("set", index), value, True)

    def member(self, text: str, note: str = "") -> Value:
        return self.emitter.assign(text, (PAGE_DIM,), "bool", note)

    def _count(self, index: int) -> str:
        """A selector's count, clipped to the candidates; settled before any tile work."""
        value = self.value(index)
        if value.literal:
            return self.scalar(f"tl.minimum(own, {min(max(int(value.text), 0), 2**30)})")
        return self.scalar(f"as_count({value.text}, own)")

    def _unlimited(self, index: int) -> bool:
        op = self.graph.ops[index]
        return op.op == "ctx" and op.attrs["name"] == "pages"

    def _key(self, index: int) -> Value:
        """Sort keys of the tile's pages; 0 where the selector may not choose."""
        known = self.writer.recall(("key", index))
        if known is not None:
            return known
        op, ops = self.graph.ops[index], self.graph.ops
        allowed = "live"
        among = [i for i in op.inputs if ops[i].kind == SET]
        if among:
            allowed = self.member(f"live & {self.set(among[0]).text}", "among").text
        if op.op == "random":
            self.param("layer")
            key = self.emitter.assign(
                f"random_key({self.graph.program.seed}, {int(op.attrs['salt'])}, layer, kv_head, page, length - 1, "
                f"{allowed})",
                (PAGE_DIM,), "int", "counter-based order",
            )  # fmt: skip
        else:
            e = self.emitter
            score = e.broadcast(e.as_float(self.value(op.inputs[0])), (PAGE_DIM,))
            if op.op == "above":
                threshold = e.as_float(self.value(op.inputs[1]))
                allowed = self.member(f"{allowed} & ({score.text} > {threshold.text})", "above the threshold").text
            key = self.emitter.assign(f"order_key({score.text}, {allowed})", (PAGE_DIM,), "int", "page order")
        return self.writer.remember(("key", index), key, True)

    def _selector(self, index: int) -> Value:
        op = self.graph.ops[index]
        if op.op == "above" and self._unlimited(op.inputs[2]):
            return self.member(f"{self._key(index).text} > 0", op.op)
        cut, edge = self._settled(index)
        return self.member(f"chosen({self._key(index).text}, page, {cut}, {edge})", op.op)

    def _settled(self, index: int) -> tuple[str, str]:
        """Names of the cut and edge that describe a selector's choice."""
        known = self.writer.recall(("cut", index))
        if known is None:
            op = self.graph.ops[index]
            n = self._count(op.inputs[_SETTLED[op.op]])
            cut, need = self._mass(index, n) if op.op == "topp" else self._top(index, n)
            edge = self._edge(index, cut, need)
            known = self.writer.remember(("cut", index), Value(f"{cut} {edge}"), False)
        cut, edge = known.text.split()
        return cut, edge

    def _top(self, index: int, n: str) -> tuple[str, str]:
        """The cut of the `n` first pages and how many of those equal to it belong to them."""
        if self.whole:
            key = self._key(index).text
            cut = self.scalar(f"top_cut({key}, {n})")
            return cut, self.scalar(f"{n} - tl.sum(({key} > {cut}).to(tl.int32), 0)")
        cut = self.scalar("tl.full((), 0, tl.uint32)")
        counts = self.scalar("tl.full((), 0, tl.int64)")
        shift = self.scalar("tl.full((), 30, tl.int32)")
        self.open()
        self.line(f"{counts} += digit_counts({self._key(index).text}, {cut}, {shift}.to(tl.uint32))")
        self.close(
            [f"while {shift} >= 0:", _PAGES],
            opening=(f"{counts} = tl.full((), 0, tl.int64)",),
            footer=(
                f"{cut} = next_cut({cut}, {counts}, {n}, {shift}.to(tl.uint32))",
                f"{shift} = tl.where(is_settled({counts}, {n}), -1, {shift} - 2)",
            ),
        )
        above = self._count_above(index, cut)
        return cut, self.scalar(f"{n} - {above}")

    def _count_above(self, index: int, cut: str) -> str:
        above = self.scalar("tl.full((), 0, tl.int32)")
        self.open()
        self.line(f"{above} += tl.sum(({self._key(index).text} > {cut}).to(tl.int32), 0)")
        self.close([_PAGES])
        return above

    def _edge(self, index: int, cut: str, need: str) -> str:
        if self.whole:
            return self.scalar(f"settled_edge({self._key(index).text}, page, {cut}, {need}, own)")
        edge, ties = self.scalar("tl.full((), 0, tl.int32)"), self.scalar("tl.full((), 0, tl.int32)")
        self.open()
        key = self._key(index).text
        self.line(f"{edge} = tl.maximum({edge}, edge_page({key}, page, {cut}, {need}, {ties}))")
        self.line(f"{ties} += tl.sum(({key} == {cut}).to(tl.int32), 0)")
        self.close([_PAGES])
        return edge

    def _mass(self, index: int, n: str) -> tuple[str, str]:
        """As `_top` for a mass choice: the first pages while the mass before each is under p, at most `n`."""
        op = self.graph.ops[index]
        e = self.emitter
        p = self.scalar(f"tl.maximum({e.scalar(e.as_float(self.value(op.inputs[1]))).text}, 1e-30)")

        def logit() -> str:
            score = e.broadcast(e.as_float(self.value(op.inputs[0])), (PAGE_DIM,))
            scale = e.as_float(self.value(op.inputs[2]))
            return e.assign(f"{score.text} * {scale.text}", (PAGE_DIM,), note="logit").text

        def weight(top: str, whole: str = "1.0") -> str:
            text = f"tl.where({self._key(index).text} > 0, tl.div_rn(tl.exp({logit()} - {top}), {whole}), 0.0)"
            return e.assign(text, (PAGE_DIM,), note="mass").text

        def highest() -> str:
            return f'tl.max(tl.where({self._key(index).text} > 0, {logit()}, float("-inf")), 0)'

        top = self._gather("tl.maximum", 'float("-inf")', "tl.float32", highest)
        whole = self._gather("+", "0.0", "tl.float32", lambda: f"tl.sum({weight(top)}, 0)")
        if self.whole:
            key, mass = self._key(index).text, weight(top, whole)
            cut = self.scalar(f"mass_cut({key}, {mass}, {p}, {n})")
        else:
            cut, candidate = self.scalar("tl.full((), 0, tl.uint32)"), self.writer.fresh()
            total, count = self.writer.fresh(), self.writer.fresh()
            self.open()
            key = self._key(index).text
            self.line(f"{total} += tl.sum(tl.where({key} >= {candidate}, {weight(top, whole)}, 0.0), 0)")
            self.line(f"{count} += tl.sum(({key} >= {candidate}).to(tl.int32), 0)")
            self.close(
                ["for step in range(32):", _PAGES],
                opening=(
                    f"{candidate} = {cut} | (tl.full((), 1, tl.uint32) << (31 - step))",
                    f"{total} = tl.full((), 0.0, tl.float32)",
                    f"{count} = tl.full((), 0, tl.int32)",
                ),
                footer=(f"{cut} = tl.where(({total} >= {p}) | ({count} >= {n}), {candidate}, {cut})",),
            )

        def key_text() -> str:
            return self._key(index).text

        above = self._gather(
            "+", "0.0", "tl.float32", lambda: f"tl.sum(tl.where({key_text()} > {cut}, {weight(top, whole)}, 0.0), 0)"
        )
        one = self._gather(
            "tl.maximum", "0.0", "tl.float32",
            lambda: f"tl.max(tl.where({key_text()} == {cut}, {weight(top, whole)}, 0.0), 0)",
        )  # fmt: skip
        count = self._gather("+", "0", "tl.int32", lambda: f"tl.sum(({key_text()} > {cut}).to(tl.int32), 0)")
        return cut, self.scalar(f"ties_needed({p}, {above}, {one}, {n}, {count})")

    def _gather(self, how: str, start: str, dtype: str, tile: Callable[[], str]) -> str:
        """A scalar of the row gathered over its page tiles; `tile` writes one tile's share."""
        if self.whole:
            return self.scalar(tile())
        total = self.scalar(f"tl.full((), {start}, {dtype})")
        self.open()
        share = tile()
        self.line(f"{total} = {total} + {share}" if how == "+" else f"{total} = {how}({total}, {share})")
        self.close([_PAGES])
        return total
