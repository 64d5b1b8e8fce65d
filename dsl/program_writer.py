"""Writes random programs, typed by construction.

Each method keeps a pool of values with their axes and grows it by random operations that the types allow; what the
method must return is then made from the pool. A value knows its degree in the inputs, so that products of inputs
stay far inside fp32's range even on inputs of size 1e4.
"""

from __future__ import annotations

import random

from vortexlab.dsl.ir import FP8, ordered
from vortexlab.dsl.writer_parts import Made, SetWriter

#: Sizes at most, for bounding the work per page.
_LARGEST = {"page": 1, "head": 16, "query": 128, "token": 64, "channel": 256}
_MOST_ELEMENTS = 1 << 16
_MOST_DEGREE = 4


class ProgramWriter:
    """Writes one program of page size `page`; with `smooth` also operations that fp32 rounds.

    Without `whole` it keeps to selection by values of pages: no state, parameters, attention output, prefill or
    operations along an axis.
    """

    def __init__(self, rng: random.Random, page: int, smooth: bool, size: int, whole: bool):
        self.rng, self.page, self.smooth, self.size, self.whole = rng, page, smooth, size, whole
        self.lines: list[str] = []
        self.count = 0
        self.knobs: list[str] = []
        self.declared: list[str] = []
        self.params: list[Made] = []
        self.fields: list[Made] = []
        self.entries: dict[str, Made] = {}
        self.memories: dict[str, Made] = {}
        self.kept = self.slots = self.in_pages = False

    def text(self) -> str:
        rng = self.rng
        whole = self.whole
        self.params = self._params() if whole and rng.random() < 0.3 else []
        remembers = whole and rng.random() < 0.3
        attends = whole and rng.random() < 0.3
        if remembers:
            axes = rng.choice((("page",), ("page",), ("page", "head")))
            init, every = self.number(), rng.choice(("", "", f", every={rng.randint(2, 5)}"))
            scope = rng.choice(("step", "step", "layer"))
            self.memories["mass"] = Made("m.mass", axes, {}, 0.0)
            self.declared.append(
                f"mass = memory.{scope}({', '.join(axes)}, init={init}{every if scope == 'step' else ''})"
            )
        methods = {"summarize(k, v, ctx)": self._summarize(attends)}
        pooled = whole and rng.random() < 0.25
        if pooled:
            methods["pool(q, ctx)"] = self._pool()
        scores = self._score(self.fields)
        methods["score(q, s, m, ctx)"] = self.lines
        self.lines = []
        if remembers and rng.random() < 0.6:
            self.kept = True
            self.declared.append(f"kept = memory.{rng.choice(('step', 'step', 'layer'))}(pages)")
        sets = SetWriter(self, scores)
        chosen = sets.output(rng.choice((1, 2, 2, 3)))
        methods["select(score, m, ctx)"] = [*self.lines, f"return {chosen.text}"]
        if attends:
            methods["attend(q, s, score, pages, m, ctx)"] = self._attend(sets, scores)
        if remembers:
            methods["remember(score, pages, m, ctx)"] = self._remember(sets, scores)
        options = [f"page={self.page}"]
        if rng.random() < 0.5:
            precision = rng.choice(("kv", "fp32", "bf16", "fp16", *(FP8 if whole else ())))
            options.append(f'summaries="{precision}"')
        if pooled:
            options.append(f"block={rng.choice((self.page, 2 * self.page, self.page // 2))}")
        if rng.random() < 0.3:
            options.append(f"seed={rng.randrange(2**32)}")
        lines = ["from vortexlab.dsl import *", "", "", f"@program({', '.join(options)})", "class Random:"]
        lines += [f"    {line}" for line in (*self.knobs, *self.declared)]
        for head, body in methods.items():
            lines += ["", f"    def {head}:", *(f"        {line}" for line in body)]
        return "\n".join(lines) + "\n"

    # --- numbers

    def number(self) -> str:
        """A small constant; dyadic unless the program may round."""
        if self.smooth and self.rng.random() < 0.2:
            return self.rng.choice(("0.1", "0.3", "1.7", "-0.7"))
        return self.rng.choice(("1", "2", "3", "-1", "-2", "0.5", "0.25", "1.5", "-0.75", "4.0"))

    def positive(self) -> str:
        return self.rng.choice(("1", "2", "0.5", "1.5", "0.25"))

    # --- values

    def name(self, value: Made) -> Made:
        """Assigns the value to a name of its own."""
        self.count += 1
        name = f"x{self.count}"
        self.lines.append(f"{name} = {value.text}")
        return Made(name, value.axes, value.sizes, value.degree)

    def elements(self, value: Made) -> int:
        count = 1
        for axis in value.axes:
            length = 0
            for part in value.size_of(axis).split("+"):
                whole, _, parts = part.partition("/")
                length += max(1, (int(whole) if whole.isdigit() else _LARGEST[whole]) // int(parts or 1))
            count *= length
        return count

    def late(self, pool: list[Made]) -> Made:
        """A value of the pool, rather one made late: that leaves less dead code."""
        return pool[max(self.rng.randrange(len(pool)) for _ in range(2))]

    def unary(self, x: Made) -> Made:
        rng, t = self.rng, x.text
        forms: list[tuple[str, float]] = [
            (f"-{t}", x.degree), (f"abs({t})", x.degree), (f"relu({t})", x.degree),
            (f"{t} * {self.number()}", x.degree), (f"{self.number()} - {t}", x.degree),
            (f"clamp({t}, -2.0, {self.positive()})", 0.0), (f"{t} / {rng.choice(('2', '4', '0.5'))}", x.degree),
            (f'{t}.to("{rng.choice(("fp32", "bf16", "bf16", *(FP8 if self.whole else ())))}")', x.degree),
        ]  # fmt: skip
        if self.smooth:
            forms += [
                (f"exp(minimum({t}, 3.0))", 0.0), (f"exp(-abs({t}))", 0.0), (f"log(abs({t}) + {self.positive()})", 0.0),
                (f"sqrt(abs({t}))", x.degree / 2), (f"sigmoid({t})", 0.0), (f"silu({t})", x.degree),
                (f"tanh({t})", 0.0),
            ]  # fmt: skip
        text, degree = rng.choice(forms)
        return Made(text, x.axes, x.sizes, degree)

    def binary(self, a: Made, b: Made) -> Made:
        """Needs `a.fits(b)`."""
        rng = self.rng
        forms = [
            (f"{a.text} + {b.text}", max(a.degree, b.degree)), (f"{a.text} - {b.text}", max(a.degree, b.degree)),
            (f"maximum({a.text}, {b.text})", max(a.degree, b.degree)),
            (f"minimum({a.text}, {b.text})", max(a.degree, b.degree)),
            (f"where({self.condition(a, b)}, {a.text}, {b.text})", max(a.degree, b.degree)),
            (f"where({self.condition(a, b)}, {a.text}, {self.number()})", a.degree),
        ]  # fmt: skip
        if a.degree + b.degree <= _MOST_DEGREE:
            forms += [(f"{a.text} * {b.text}", a.degree + b.degree)] * 3
        if self.smooth:
            forms.append((f"{a.text} / (abs({b.text}) + {self.positive()})", a.degree))
        text, degree = rng.choice(forms)
        return Made(text, ordered({*a.axes, *b.axes}), {**a.sizes, **b.sizes}, degree)

    def condition(self, a: Made, b: Made) -> str:
        rng = self.rng
        sign = rng.choice(("<", "<=", ">", ">=", "==", "!="))
        plain = f"{a.text} {sign} {b.text}"
        more = f"{b.text} > {self.number()}"
        return rng.choice((plain, plain, f"({plain}) and ({more})", f"({plain}) or ({more})", f"not ({plain})"))

    def reduce(self, x: Made, axis: str) -> Made:
        how = self.rng.choice(("sum", "mean", "max", "min", *(("norm",) if self.smooth else ())))
        text = f"{x.text}.{how}({axis})" if self.rng.random() < 0.8 else f'{x.text}.reduce("{how}", {axis})'
        left = tuple(name for name in x.axes if name != axis)
        return Made(text, left, {a: s for a, s in x.sizes.items() if a != axis}, x.degree)

    def split(self, x: Made) -> Made | None:
        axes = [a for a in ("token", "channel") if a in x.axes and x.size_of(a) == a]
        if not axes:
            return None
        axis, count = self.rng.choice(axes), self.rng.choice((2, 4, 8))
        name = f"{axis}_part{count}"
        if name in x.axes:
            return None
        sizes = {**x.sizes, axis: f"{axis}/{count}", name: str(count)}
        return Made(f"{x.text}.split({axis}, {name}={count})", ordered({*x.axes, name}), sizes, x.degree)

    def rename(self, x: Made) -> Made | None:
        axes = [a for a in ("token", "channel", "head") if a in x.axes and x.size_of(a) == a]
        if not axes:
            return None
        axis = self.rng.choice(axes)
        name = f"other_{axis}"
        if name in x.axes:
            return None
        sizes = {**x.sizes, name: axis}
        return Made(f"{x.text}.rename({axis}, {name})", ordered({*x.axes, name} - {axis}), sizes, x.degree)

    def contract(self, a: Made, b: Made) -> Made | None:
        shared = [axis for axis in a.axes if axis in b.axes and axis != "page"]
        if not shared or not a.fits(b) or a.degree + b.degree > _MOST_DEGREE:
            return None
        axis = self.rng.choice(shared)
        sizes = {name: size for name, size in {**a.sizes, **b.sizes}.items() if name != axis}
        left = ordered({*a.axes, *b.axes} - {axis})
        return Made(f"dot({a.text}, {b.text}, {axis})", left, sizes, a.degree + b.degree)

    def moved(self, x: Made, other: Made) -> Made | None:
        """One of the operations that move, order or number what a value holds along one axis."""
        rng, t = self.rng, x.text
        axes = [axis for axis in x.axes if axis != "query"]
        if not axes:
            return None
        axis = rng.choice(axes)
        size, fill = x.size_of(axis), rng.choice(("", f", fill={self.number()}"))
        near = rng.randint(2, 4)
        length: str | None
        forms: list[tuple[str, tuple[str, ...], str | None]] = [
            (f"{t}.shift({axis}, {rng.choice((-2, -1, 1, 2))}{fill})", x.axes, size),
            (f"{t}.{rng.choice(('cummax', 'cummin', 'cumsum'))}({axis})", x.axes, size),
            (f"{t}.sort({axis}" + rng.choice((")", ', "up")')), x.axes, size),
            (f"float({t}.argmax({axis}))", tuple(a for a in x.axes if a != axis), None),
            (f"float({t}.index({axis}))", (axis,), size),
            (f"{t} + {t}.index({axis})", x.axes, size),
            (f"{t}.take({axis}, {t}.index({axis}) + {rng.choice((-1, 1, 2))}{fill})", x.axes, size),
        ]
        if f"near{near}" not in x.axes:
            forms.append((f"{t}.window({axis}, near{near}={near}{fill})", ordered({*x.axes, f"near{near}"}), size))
        if axis in other.axes and x.fits(other):
            rest = {*x.axes} - {axis} | {*other.axes} - {axis}
            forms.append((f"{t}.take({axis}, {other.text}.argmax({axis}){fill})", ordered(rest), None))
        if axis in ("token", "channel") and size == axis:
            start, cut = rng.choice((("0, 4", "4"), ("-4", "4"), ("1, 3", "2"), ("2, 8", "6")))
            forms.append((f"{t}.slice({axis}, {start})", x.axes, cut))
            forms.append((f"concat({t}, {t}.slice({axis}, 0, 4), {axis})", x.axes, f"{axis}+4"))
        parts = [name for name in x.axes if name.startswith(f"{axis}_part") and "/" in size]
        if parts and size == f"{axis}/{x.size_of(parts[0])}":
            first, second = rng.choice(((parts[0], axis), (axis, parts[0])))
            left = tuple(name for name in x.axes if name != parts[0])
            forms.append((f"{t}.merge({first}, {second}, into={axis})", left, axis))
            forms = forms[-1:] if rng.random() < 0.5 else forms
        if axis in ("page", "head") and not self.in_pages and x.axes in (("page",), ("page", "head")):
            chosen = rng.choice((f"topk({t}, {rng.randint(1, 4)})", f"stride({rng.randint(2, 3)})", "first(2)"))
            forms.append((f"where(member({chosen}), {t}, {self.number()})", x.axes, size))
        text, left, length = rng.choice(forms)
        sizes = {a: s for a, s in {**other.sizes, **x.sizes}.items() if a in left}
        if length is not None and axis in left and length != axis:
            sizes[axis] = length
        elif axis in left:
            sizes.pop(axis, None)
        if f"near{near}" in left and f"near{near}" not in x.axes:
            sizes[f"near{near}"] = str(near)
        return Made(text, left, sizes, x.degree)

    def share(self, x: Made) -> Made:
        return Made(f'share({x.text}, "{self.rng.choice(("sum", "max", "mean"))}")', x.axes, x.sizes, x.degree)

    def grow(self, pool: list[Made]) -> None:
        """Adds one random value to the pool, made from values that are there."""
        rng = self.rng
        for _ in range(20):
            a, b = self.late(pool), rng.choice(pool)
            made: Made | None = None
            draw = rng.random()
            if draw < 0.2:
                made = self.unary(a)
            elif draw < 0.4:
                made = self.binary(a, b) if a.fits(b) else None
            elif draw < 0.56 and self.whole:
                made = self.moved(a, b)
            elif draw < 0.68:
                axes = [axis for axis in a.axes if axis != "page" or rng.random() < 0.3]
                made = self.reduce(a, rng.choice(axes)) if axes else None
            elif draw < 0.8:
                made = self.contract(a, b)
            elif draw < 0.87:
                made = self.split(a)
            elif draw < 0.91:
                made = self.rename(a)
            elif draw < 0.96:
                if "page" in a.axes and self.smooth:
                    made = Made(f"softmax({a.text}, page)", a.axes, a.sizes, 0.0)
            elif a.axes == ("page",):
                made = self.share(a)
            if made is not None and self.elements(made) <= _MOST_ELEMENTS:
                pool.append(self.name(made))
                return

    def reduced_to(self, x: Made, keep: tuple[str, ...]) -> Made:
        """The value with every axis reduced that is not among `keep`."""
        while left := [axis for axis in x.axes if axis not in keep]:
            x = self.name(self.reduce(x, self.rng.choice(left)))
        return x

    # --- methods

    def _with_memory(self, x: Made) -> Made:
        memory = self.memories["mass"]
        text = memory.text if "head" in x.axes or "head" not in memory.axes else f"{memory.text}.max(head)"
        sign = self.rng.choice(("+", "+", "-"))
        return Made(f"{x.text} {sign} {text}", x.axes, x.sizes, x.degree)

    def _params(self) -> list[Made]:
        """Declares learned constants: values of the class body."""
        rng = self.rng
        rows = [f"per_layer={rng.random() < 0.5}, per_kv_head={rng.random() < 0.5}" for _ in range(3)]
        self.declared += [f"gain = param(channel, {rows[0]})", f"down = param(channel, rank=4, {rows[1]})"]
        if rng.random() < 0.4:
            self.declared.append(f'slots = param(rank=4, kind="int", {rows[2]})')
            self.slots = True
        return [Made("gain", ("channel",), {}, 0.0), Made("down", ("rank", "channel"), {"rank": "4"}, 0.0)]

    def _chosen_channels(self, pool: list[Made]) -> None:
        """Some channels of a value by learned numbers."""
        whole = [x for x in pool if "channel" in x.axes and x.size_of("channel") == "channel" and "rank" not in x.axes]
        if self.slots and whole:
            x = self.rng.choice(whole)
            left = ordered({*x.axes, "rank"} - {"channel"})
            sizes = {a: s for a, s in {**x.sizes, "rank": "4"}.items() if a != "channel"}
            pool.append(self.name(Made(f"{x.text}.take(channel, slots, fill=1.0)", left, sizes, x.degree)))

    def _pool(self) -> list[str]:
        rng = self.rng
        forms = ["q.mean(query)", "q.slice(query, -4).mean(query)", "q.max(query)", "q.slice(query, -1).sum(query)",
                 "(q.slice(query, 0, 8) * 0.5).sum(query)", "q.shift(query, 1).max(query) - q.min(query)",
                 "q.window(query, near=2).mean(near).max(query)", "(q * q.index(query)).max(query)"]  # fmt: skip
        return [f"return {rng.choice(forms)}"]

    def _summarize(self, attends: bool) -> list[str]:
        rng = self.rng
        self.lines, self.in_pages = [], True
        pool = [Made("k", ("token", "channel")), Made("v", ("token", "channel")), *self.params]
        for _ in range(rng.randint(1, self.size)):
            self.grow(pool)
        if rng.random() < 0.5:
            self._chosen_channels(pool)
        returned = []
        for number in range(rng.randint(1, 3)):
            x = self.late([made for made in pool if made.text not in ("gain", "down")])
            draw = rng.random()
            if draw < 0.75 or self.elements(x) > 4096:
                x = self.reduced_to(x, tuple(a for a in x.axes if a not in ("token", "other_token")))
            elif draw < 0.9:
                x = self.reduced_to(x, tuple(a for a in x.axes if a not in ("channel", "other_channel")))
            text = x.text if rng.random() < 0.8 else f"{x.text} * {self.positive()}"
            # A summary depends on the page: a number of the program alone is no summary.
            # With learned constants about, a value may have nothing of the page in it, and is then no summary.
            more = " + k.max(token).max(channel) * 0.5" if self.params else ""
            returned.append(f"f{number}={text}{more}")
            sizes = {"page": "page", **x.sizes}
            self.fields.append(Made(f"s.f{number}", ("page", *x.axes), sizes, max(1.0, x.degree)))
        if attends and rng.random() < 0.6:
            how = rng.choice((".mean(token)", ".split(token, half=2).mean(token)", ".max(token)"))
            axes = ("page", "half", "channel") if "half" in how else ("page", "channel")
            for name in ("k", "v"):
                returned.append(f"e{name}={name}{how}")
                self.entries[name] = Made(f"s.e{name}", axes, {"half": "2"} if "half" in how else {}, 1.0)
        self.in_pages = False
        return [*self.lines, f"return dict({', '.join(returned)})"]

    def _attend(self, sets: SetWriter, scores: dict[str, Made]) -> list[str]:
        """A sum of one to three attentions, some with gates."""
        rng = self.rng
        self.lines = []
        names = [text for text, made in scores.items() if made.axes in (("page",), ("page", "head"))]

        def weight(key: str) -> str:
            if rng.random() < 0.5:
                return ""
            score = rng.choice(names)
            forms = [f"clamp({score}, -4.0, 1.0)", "index(page) * -0.25", f"where({score} > 0, 0.5, -1.0)"]
            return f", {key}={rng.choice(forms)}"

        terms = []
        for _ in range(rng.choice((1, 1, 2, 3))):
            chosen = rng.choice(("pages", "pages", f"pages | {sets.pattern()}", sets.pattern()))
            entries = ""
            if self.entries:
                among = rng.choice(("", ", among=~pages", f", among={sets.pattern()}"))
                entries = f"keys={self.entries['k'].text}, values={self.entries['v'].text}{among}"
            draw = rng.random()
            if entries and draw < 0.4:
                made = f"attention({entries}{weight('log_weight')})"
            elif entries and draw < 0.8:
                made = f"attention({chosen}, {entries}{weight('log_weight')}{weight('entry_log_weight')})"
            else:
                made = f"attention({chosen}{weight('log_weight')})"
            gate = rng.choice(("", "", "0.5 * ", "clamp(q.max(channel), 0.0, 1.0) * "))
            if self.params and rng.random() < 0.5:
                gate = "clamp(dot(q, gain, channel), -1.0, 1.0) * "
            terms.append(gate + made)
        return [*self.lines, f"return {' + '.join(terms)}"]

    def _remember(self, sets: SetWriter, scores: dict[str, Made]) -> list[str]:
        """Writes stay within bounds, so that no number grows with the steps."""
        rng, axes = self.rng, self.memories["mass"].axes
        text, made = rng.choice([(text, made) for text, made in scores.items() if "page" in made.axes])
        if "head" in made.axes and "head" not in axes:
            text = f"{text}.max(head)"
        elif "head" in axes and "head" not in made.axes:
            text = f"({text} + index(head))"
        forms = [f"clamp({text}, -8.0, 8.0)", f"clamp(0.5 * m.mass + {text}, -8.0, 8.0)",
                 f"where(member(pages), clamp({text}, -8.0, 8.0), m.mass)" if "head" not in sets.axes else "m.mass",
                 f"maximum(m.mass, clamp({text}, -8.0, 8.0))"]  # fmt: skip
        written = [f"mass={rng.choice(forms)}"]
        if self.kept:
            single = "pages" if not sets.axes else "first(3)"
            written.append(f"kept={rng.choice((single, f'{single} & {sets.pattern()}', sets.pattern()))}")
        return [f"return dict({', '.join(written)})"]

    def _score(self, fields: list[Made]) -> dict[str, Made]:
        """The members of `score` by the text that names them."""
        rng = self.rng
        self.lines = []
        pool = [Made("q", ("head", "channel")), *fields, *self.params, *self.memories.values()]
        if rng.random() < 0.5:
            self._chosen_channels(pool)
        if rng.random() < 0.2:
            facts = ("ctx.scale * ctx.head_dim + ctx.layer", "where(ctx.prefill, 1.0, 2.0)", "1.0 * ctx.layers")
            scalar = rng.choice(facts if self.whole else facts[:1])
            pool.append(self.name(Made(scalar, (), {}, 0.0)))
        for x in fields:
            # The common beginning: the query meets a summary that has channels.
            if x.size_of("channel") == "channel" and "channel" in x.axes and rng.random() < 0.8:
                met = self.contract(pool[0], x) if rng.random() < 0.5 else None
                if met is None:
                    product = Made(f"q * {x.text}", ordered({*x.axes, "head"}), x.sizes, x.degree + 1)
                    met = self.reduce(self.name(product), "channel")
                pool.append(self.name(met))
        for _ in range(rng.randint(1, self.size)):
            self.grow(pool)
        members: dict[str, Made] = {}
        returned = []
        for number in range(rng.choice((1, 1, 2))):
            choices = [x for x in pool if "page" in x.axes]
            x = self.late(choices)
            x = self.reduced_to(x, ("page", "head") if rng.random() < 0.35 else ("page",))
            if self.memories and number == 0 and rng.random() < 0.7:
                x = self.name(self._with_memory(x))
            if x.axes == ("page",) and rng.random() < 0.15:
                x = self.name(self.share(x))
            returned.append(x)
            members[f"score.a{number}"] = x
        if rng.random() < 0.3:
            x = self.reduced_to(rng.choice(returned), ())
            returned.append(x)
            members[f"score.a{len(returned) - 1}"] = x
        if len(returned) == 1:
            self.lines.append(f"return {returned[0].text}")
            return {"score": returned[0]}
        self.lines.append(f"return dict({', '.join(f'a{i}={x.text}' for i, x in enumerate(returned))})")
        return members
