"""Text is judged before Python's parser sees it, and never run."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from pathlib import Path

import pytest
from dsl_programs import program

from vortexlab.dsl import check, limits, load, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Knob
from vortexlab.dsl.sizes import settings
from vortexlab.dsl.tracer import MAX_FINDINGS
from vortexlab.search_spaces import seeds

HOSTILE = {
    "text-too-long": "a" * 200_000,
    "line-too-long": "x = " + "9" * 10_000,
    "nesting-too-deep": "x = \\\n" + "\n".join("(" * 20 for _ in range(900)),
    "number-too-long": "x = " + "9" * 900,
    "statement-too-long": "x = 1" + "+1" * 450,
    "too-many-tokens": "a;b\n" * 2_500,
    "hidden-character": "x = 1\0",
    "not-normalised": "# a\u0308",
    "name-not-ascii": "\ufb01rst = 1",
    "coding-cookie": "# coding: utf-7\n",
    "string-prefix": "x = b''",
    "open-string": "'''" + "x" * 900,
    "stray-character": "x = $y",
    "name-too-long": "x" * 65,
}


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's parser fails the test when anything reaches it."""

    def reached(*args: object, **kwargs: object) -> None:
        raise AssertionError("the text reached Python's parser")

    for name in ("parse", "literal_eval"):
        monkeypatch.setattr(ast, name, reached)
    for name in ("compile", "eval", "exec"):
        monkeypatch.setattr(builtins, name, reached)


@pytest.mark.parametrize(("code", "text"), HOSTILE.items(), ids=list(HOSTILE))
@pytest.mark.usefixtures("no_parser")
def test_limits_are_checked_before_parsing(code: str, text: str) -> None:
    found, findings = check(text)
    assert found is None and [f.code for f in findings] == [code]


@pytest.mark.usefixtures("no_parser")
@pytest.mark.parametrize("text", ["(" * 100_000, "9" * 10**7, "a" * 10**8, "\n" * 10**6], ids=str.__len__)
def test_huge_text_is_refused_by_its_length_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*args: object) -> None:
        raise AssertionError("the text was looked at")

    for name in ("_check_characters", "_check_lines", "_check_tokens"):
        monkeypatch.setattr(limits, name, looked)
    assert [f.code for f in check(text)[1]] == ["text-too-long"]


def test_bytes_are_counted_not_characters() -> None:
    text = "# " + "·" * 450 + "\n"
    many = text * (limits.MAX_BYTES // len(text))
    assert len(many) <= limits.MAX_BYTES < len(many.encode())
    assert [f.code for f in check(many)[1]] == ["text-too-long"]


@pytest.mark.parametrize("name", ["exec", "eval", "compile", "__import__"])
def test_nothing_of_a_program_is_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading every seed and hostile files asks Python for a syntax tree and for nothing that the text names."""
    calls: list[tuple[object, ...]] = []
    original: Callable[..., object] = getattr(builtins, name)

    def watch(*args: object, **kwargs: object) -> object:
        calls.append(args)
        return original(*args, **kwargs)

    texts = [*seeds().values(), "import planted\nplanted.run()\n", program("return __import__('planted')")]
    monkeypatch.setattr(builtins, name, watch)
    for text in texts:
        check(text)
    if name == "compile":  # ast.parse is compile with the flag that stops at the tree
        assert len(calls) == len(texts)
        assert all(isinstance(call[3], int) and call[3] & ast.PyCF_ONLY_AST for call in calls)
    elif name == "__import__":  # the standard library imports on first use
        assert not [call for call in calls if call[0] == "planted" or (len(call) > 3 and call[3] == ("*",))]
    else:
        assert calls == []


def test_the_front_end_has_no_way_to_run_text(repo_root: Path) -> None:
    builtin = {"exec", "eval", "compile", "__import__", "globals", "vars", "setattr", "open"}
    modules = ("limits", "outline", "declarations", "places", "graph", "rules", "items", "expressions", "calls",
               "tracer", "parser", "words", "lint", "sizes", "normal", "canonical", "printer", "arguments", "methods",
               "elementwise", "axis_rules", "set_rules", "state", "reader", "returns", "whole")  # fmt: skip
    for module in modules:
        tree = ast.parse((repo_root / "dsl" / f"{module}.py").read_text())
        called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not builtin & {f.id for f in called if isinstance(f, ast.Name)}, module
        attributes = {f.attr for f in called if isinstance(f, ast.Attribute)}
        assert not {"literal_eval", "import_module", "system"} & attributes, module


@pytest.mark.parametrize("text", ['"""q·k ÷ √d, é, 漢字"""', "# × – √\n", "x = 1\r\ny = 2\r\n", "\tx = 1\n"])
def test_plain_text_passes(text: str) -> None:
    limits.check_text(text)


def test_a_file_with_windows_line_ends_is_a_program() -> None:
    assert parse(seeds()["quest"].replace("\n", "\r\n")).name == "Quest"


def test_deep_but_allowed_programs_parse() -> None:
    depth = limits.MAX_BRACKETS - 1
    assert parse(program("return first(" + "(" * depth + "1" + ")" * depth + ")")).name == "P"


@pytest.mark.parametrize(
    "text",
    ["x = " + "not " * 240 + "1", "x = a" + ".b" * 190, "x = " + "lambda:" * 140 + "1", "x = " + "~-" * 190 + "1",
     "".join(" " * i + "if 1:\n" for i in range(120)), "x = 1" + "**1" * 190, "x = " + "1 if 1 else " * 70 + "1"],
    ids=["not", "attribute", "lambda", "unary", "indent", "power", "choice"],
)  # fmt: skip
def test_depth_without_brackets_is_refused_in_one_line(text: str) -> None:
    found, (finding,) = check(text)
    assert found is None and finding.code in ("expression-too-deep", "syntax", "statement-too-long")


class TestFiles:
    def test_load(self, tmp_path: Path) -> None:
        path = tmp_path / "quest.py"
        path.write_text(seeds()["quest"])
        assert load(path).name == "Quest"

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("absent.py", None, "cannot read"),
            ("latin.py", b"# \xe9\n", "is not UTF-8 text"),
            ("large.py", b"#" * (limits.MAX_BYTES + 1), "is larger than"),
        ],
    )
    def test_files_that_are_no_programs(self, tmp_path: Path, name: str, data: bytes | None, message: str) -> None:
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(VortexError, match=message) as raised:
            load(path)
        assert "\n" not in str(raised.value)

    def test_folders_and_devices_are_no_programs(self, tmp_path: Path) -> None:
        for path in (tmp_path, Path("/dev/zero")):
            with pytest.raises(VortexError, match="is no file"):
                load(path)


def test_a_method_full_of_errors_is_not_read_to_its_end() -> None:
    _, findings = check(program("\n".join(f"x{i} = nothing{i}" for i in range(100)) + "\nreturn first(1)"))
    assert len(findings) == MAX_FINDINGS


def test_sizes_that_many_knobs_decide_are_judged_by_few_settings() -> None:
    knobs = {f"n{i}": Knob(f"n{i}", "int", 2, 1, 64) for i in range(12)}
    found = list(settings(set(knobs), knobs))
    assert 2 < len(found) <= 64 and found[0] == (True, dict.fromkeys(knobs, 2))
    for name in knobs:
        assert {setting[name] for _, setting in found} == {2, 1, 64}
