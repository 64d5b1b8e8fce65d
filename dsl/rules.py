"""The type rule of every op: what it takes, what it gives, and what to say when that is not so."""

from __future__ import annotations

from collections.abc import Mapping

from vortexlab.dsl.graph import Value
from vortexlab.dsl.ir import FLOAT, SET, Memory, Param, Type
from vortexlab.dsl.places import Named, Place
from vortexlab.dsl.set_rules import SetRules
from vortexlab.dsl.sizes import Size

#: What an attention output may be made of, in the order of its inputs.
ATTENTION_PARTS = ("pages", "keys", "values", "among", "log_weight", "entry_log_weight")
_SHAPE = "attention(pages, keys=s.k, values=s.v, among=..., log_weight=..., entry_log_weight=...)"


class Graph(SetRules):
    """Builds nodes; each method is the rule of one op or of one group of them. All raise `Finding`."""

    def param(self, attribute: str, declared: Param, place: Place) -> Value:
        made = {axis: Size.of(size) for axis, size in declared.sizes.items()}
        type_ = Type(declared.kind, declared.axes)
        return self.add("param", type_, (), place, {**self.lengths, **made}, name=attribute)

    def memory(self, declared: Memory, place: Place) -> Value:
        return self.add("memory", declared.type, (), place, self.lengths, name=declared.name)

    # ---- the attention output

    def attention(self, parts: Mapping[str, Value], places: Mapping[str, Place], place: Place) -> Value:
        """One softmax over the tokens of `pages`, the entries made of `keys` and `values`, or both."""
        parts = {name: parts[name] for name in ATTENTION_PARTS if name in parts}
        self._complete(parts, place)
        for name in ("pages", "among"):
            if name in parts:
                self.page_set(parts[name], name, places[name])
        made: dict[str, Value] = {
            name: value if value.type.kind == SET else self._number_part(name, value, places[name])
            for name, value in parts.items()
        }
        entry_axes: set[str] = set()
        if "keys" in made:
            entry_axes = self._entries(made["keys"], made["values"], places)
        if "log_weight" in made:
            more = set() if "pages" in made else entry_axes
            made["log_weight"] = self._weight("log_weight", made["log_weight"], more, places)
        if "entry_log_weight" in made:
            made["entry_log_weight"] = self._weight(
                "entry_log_weight", made["entry_log_weight"], entry_axes, places
            )
        sizes = {"head": self.lengths["head"], "channel": self.lengths["value"]}
        inputs = tuple(made.values())
        return self.add("attention", Type(FLOAT, ("head", "channel")), inputs, place, sizes, parts=" ".join(made))

    def _complete(self, parts: Mapping[str, Value], place: Place) -> None:
        def missing(what: str, hint: str) -> None:
            raise place.error("attention-parts", what, found=", ".join(parts) or "nothing", expected=_SHAPE, hint=hint)

        if ("keys" in parts) != ("values" in parts):
            absent = "values" if "keys" in parts else "keys"
            missing(f"attention lacks {absent}", f"entries have a key and a value each: add {absent}=s.name")
        if "pages" not in parts and "keys" not in parts:
            missing("attention has nothing to attend to", "write attention(pages), or attention(keys=s.k, values=s.v)")
        if "among" in parts and "keys" not in parts:
            missing("among= limits entries, and there are none", "attention(pages & other) attends to fewer tokens")
        if "entry_log_weight" in parts and "keys" not in parts:
            missing("entry_log_weight= weighs entries, and there are none", "use log_weight= for the tokens of pages")
        if "entry_log_weight" in parts and "pages" not in parts:
            missing("without pages the one weight is log_weight", "write log_weight= instead of entry_log_weight=")

    def _number_part(self, name: str, value: Value, place: Place) -> Value:
        self._numeric(name, value, place)
        return self.unary("float", value, place)

    def _entries(self, keys: Value, values: Value, places: Mapping[str, Place]) -> set[str]:
        """The axes that entries have beside page and channel."""
        for name, value, width in (("keys", keys, "channel"), ("values", values, "value")):
            axes = set(value.type.axes)
            wrong = not {"page", "channel"} <= axes or axes & {"head", "query"}
            if wrong or self.sizes[value.index]["channel"] != self.lengths[width]:
                size = self.sizes[value.index].get("channel")
                raise places[name].error(
                    "attention-entries",
                    f"{name} holds a vector per page, as wide as a {name[:-1]}",
                    found=str(value) if wrong else f"{value}, its width {size}",
                    expected="float[page, channel], or with axes of the program between",
                    hint="entries are made of summaries, such as s.k of k.mean(token) and s.v of v.mean(token)",
                )
        if keys.type.axes != values.type.axes:
            raise places["values"].error(
                "attention-entries",
                "keys and values have different axes",
                found=f"{keys} and {values}",
                expected="the same axes: each position is one entry",
                hint="make both with the same splits and reductions",
            )
        self._merged((keys, values), places["values"], but="channel")
        return set(keys.type.axes) - {"page", "channel"}

    def _weight(self, name: str, weight: Value, more: set[str], places: Mapping[str, Place]) -> Value:
        axes = set(weight.type.axes)
        if axes - {"page", "head"} - more:
            allowed = ["float[page]", "float[page, head]", *(f"float[page, {axis}]" for axis in sorted(more))]
            extra = sorted(axes - {"page", "head"} - more)
            raise places[name].error(
                "log-weight-axes",
                f"{name} is one number per page, or per page and query head",
                found=str(weight),
                expected=" or ".join(allowed),
                hint=f"reduce {extra[0]} first, for example with .max({extra[0]})",
            )
        if "page" in axes:
            return weight
        # One weight for all pages is given to each of them, so that executors meet one form.
        place = places[name]
        number = self.index(Named("page", place), None, place)
        nowhere = self.compare("lt", number, self.const(0, place), place)
        return self.where(nowhere, self.const(0.0, place), weight, place)
