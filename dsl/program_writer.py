"""Writes random programs, typed by construction.

Each method keeps a pool of values with their axes and grows it by random operations that the types allow; what the
method must return is then made from the pool. A value knows its degree in the inputs, so that products of inputs
stay far inside fp32's range even on inputs of size 1e4.
"""

from __future__ import annotations

import random

from vortexlab.dsl.ir import FP8, ordered
from vortexlab.dsl.value_writer import ValueWriter
from vortexlab.dsl.writer_parts import Made, SetWriter


class ProgramWriter(ValueWriter):
    """Writes one program of page size `page`; with `smooth` also operations that fp32 rounds.

    Without `whole` it keeps to selection by values of pages: no state, parameters, attention output, prefill or
    operations along an axis.
    """

    def __init__(self, rng: random.Random, page: int, smooth: bool, size: int, whole: bool):
        super().__init__(rng, smooth, whole)
        self.page, self.size = page, size
        self.knobs: list[str] = []
        self.declared: list[str] = []
        self.params: list[Made] = []
        self.fields: list[Made] = []
        self.entries: dict[str, Made] = {}
        self.memories: dict[str, Made] = {}
        self.kept = self.slots = False

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
