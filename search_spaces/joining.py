"""Crossover: the score of one program inside another, with everything that it needs and no name in two roles."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from vortexlab.search_spaces.genome import Genome, fill, is_attribute, is_declaration, members
from vortexlab.search_spaces.knobs import SHARED
from vortexlab.search_spaces.layout import clone


def joined(first: Genome, key: str, second: Genome, other: str, template: str) -> Genome:
    """`first` with its score `key` replaced by `template` of that, ``l``, and of second's score `other`, ``r``.

    Second's summaries, constants, knobs, parameters and memories come along under names that are free; a memory comes
    with what is written to it, in which second's scores are written out, since the score is now another one.
    """
    memories = _needed(second, other)
    moved = _Moved(
        fields=_free(second.fields, first.fields),
        memories=_free(memories, first.names),
        names=_renamed_names(first, second, memories),
    )
    names = {moved.name(name): moved.declaration(name, tree) for name, tree in second.names.items()}
    scores = {name: moved(tree) for name, tree in second.scores.items()}
    written = {moved.memories[name]: _without_score(moved(second.remember[name]), scores) for name in memories}
    made = replace(
        first,
        fields={**first.fields, **{moved.fields[name]: moved(tree) for name, tree in second.fields.items()}},
        names={**{name: tree for name, tree in names.items() if name not in first.names}, **first.names},
        remember={**first.remember, **written},
    )
    return made.with_part("scores", key, fill(template, l=first.scores[key], r=scores[other]))


def grafted(first: Genome, second: Genome) -> Genome | None:
    """The scores of `first` under the selection, page size and precisions of `second`; None where these do not fit.

    They fit where the selection reads no score that `first` has not, and nothing that `second` remembers.
    """
    read = _scores_read(second.select, second)
    if not first.scores or not read <= set(first.scores) or members(second.select, "m"):
        return None
    clash = [
        name for name, tree in second.names.items()
        if name in first.names and name not in SHARED and ast.dump(tree) != ast.dump(first.names[name])
    ]  # fmt: skip
    if clash:
        return None
    names = {**{name: tree for name, tree in second.names.items() if not is_declaration(tree)}, **first.names}
    return replace(first, names=names, select=clone(second.select), options=dict(second.options))


@dataclass(frozen=True)
class _Moved:
    """New names of what `s.`, `m.` and plain names stand for."""

    fields: Mapping[str, str]
    memories: Mapping[str, str]
    names: Mapping[str, str]

    def __call__(self, tree: ast.expr) -> ast.expr:
        tree = clone(tree)
        for node in ast.walk(tree):
            if is_attribute(node, "s"):
                node.attr = self.fields[node.attr]
            elif is_attribute(node, "m"):
                node.attr = self.memories.get(node.attr, node.attr)
            elif isinstance(node, ast.Name):
                node.id = self.names.get(node.id, node.id)
        return tree

    def name(self, name: str) -> str:
        return self.memories.get(name, self.names.get(name, name))

    def declaration(self, name: str, tree: ast.expr) -> ast.expr:
        """What declares it; a parameter under another name keeps the name of its tensor."""
        tree = self(tree)
        if is_declaration(tree, "param") and self.name(name) != name:
            assert isinstance(tree, ast.Call)
            if not (tree.args and isinstance(tree.args[0], ast.Constant)):
                tree.args.insert(0, ast.Constant(name))
        return tree


def _needed(genome: Genome, score: str) -> list[str]:
    """The memories that a score depends on, through what is written to them too."""
    found: dict[str, None] = {}
    trees = [genome.scores[score]]
    while trees:
        tree = trees.pop()
        trees += [genome.scores[name] for name in _scores_read(tree, genome) if genome.scores[name] is not tree]
        for name in sorted(members(tree, "m")):
            if name not in found:
                found[name] = None
                trees.append(genome.remember[name])
    return list(found)


def _scores_read(tree: ast.expr, genome: Genome) -> set[str]:
    if set(genome.scores) == {"score"}:
        return {"score"} if any(isinstance(node, ast.Name) and node.id == "score" for node in ast.walk(tree)) else set()
    return members(tree, "score") & set(genome.scores)


def _without_score(tree: ast.expr, scores: Mapping[str, ast.expr]) -> ast.expr:
    """What is written to a memory with the scores written out."""

    class Write(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.expr:  # the name is ast's
            if is_attribute(node, "score") and node.attr in scores:
                return clone(scores[node.attr])
            self.generic_visit(node)
            return node

        def visit_Name(self, node: ast.Name) -> ast.expr:  # the name is ast's
            return clone(scores["score"]) if node.id == "score" and set(scores) == {"score"} else node

    made: ast.expr = Write().visit(tree)
    return made


def _free(names: Iterable[str], taken: Iterable[str]) -> dict[str, str]:
    """A free name for each of `names`, its own where nobody has it."""
    used, found = set(taken), {}
    for name in names:
        found[name] = next(f"{name}{i}" for i in ("", *range(2, 999)) if f"{name}{i}" not in used)
        used.add(found[name])
    return found


def _renamed_names(first: Genome, second: Genome, memories: Iterable[str]) -> dict[str, str]:
    """New names of second's constants, parameters and private knobs that mean something else in `first`."""
    clashes = [
        name
        for name, tree in second.names.items()
        if name in first.names and name not in SHARED and name not in memories
        and ast.dump(tree) != ast.dump(first.names[name])
    ]  # fmt: skip
    return _free(clashes, {*first.names, *second.names})
