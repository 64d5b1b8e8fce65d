"""The gates one by one: what each lets pass, what it finds, and that planted faults are found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vortexlab import dsl, search_spaces
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.evaluator import compiling, courses, fidelity, numerics
from vortexlab.evaluator.config import REFERENCE_MODEL
from vortexlab.evaluator.contexts import Context, ContextStore, Fork, Turn
from vortexlab.evaluator.executors import EVERYTHING, ReversedTies
from vortexlab.evaluator.models import load_model
from vortexlab.evaluator.replay import Session, Tally, Watcher, replay
from vortexlab.evaluator.tasks import make_samples
from vortexlab.evaluator.traits import depends_on_data, depends_on_layer, forced_part
from vortexlab.kernels.cache import PagedKV
from vortexlab.kernels.executor import PageLists
from vortexlab.kernels.gpu.report import KernelReport
from vortexlab.kernels.torch_executor import TorchExecutor
from vortexlab.kernels.torch_select import reversed_ties
from vortexlab.search_spaces.library import source

STATIC = Static(2, 2, 16, 0.25, 0, 2)
PROGRAM = """@program(page=8)
class Example:
    def summarize(k):
        return dict(lo=k.min(token), hi=k.max(token))
    def score(q, s):
        return maximum(q * s.lo, q * s.hi).sum(channel).max(head)
    def select(score, ctx):
        return topk(score, {count}) | first(1) | last(2)
"""
EXAMPLE = dsl.parse(PROGRAM.format(count=3)).bind()


def _program(body: str, page: int = 8) -> Program:
    return dsl.parse(f"@program(page={page})\nclass Example:\n{body}").bind()


# --- numerics ------------------------------------------------------------------------------------------------------


def test_the_seeds_pass_numerics() -> None:
    for name in ("quest", "top_p", "gqa_quest"):
        found = numerics.check(search_spaces.load(name).bind({"page": 8}), STATIC, "cpu", 0)
        assert found["failure"] == "" and found["cases"] == len(numerics.KINDS) + 1
        assert found["open"] < 0.5 * found["pages"]


def test_requests_end_within_at_and_after_a_page_and_one_is_long() -> None:
    cases = list(numerics._cases(EXAMPLE, STATIC, torch.Generator().manual_seed(0)))
    assert [case.kind for case in cases] == [*numerics.KINDS, "long integers"]
    lengths = [[keys.shape[1] for keys in case.keys] for case in cases]
    every = [1, 8, 9, 37, 72]
    assert lengths[:2] == [every, every], "fp32 is exact there, so every length is judged exactly"
    assert [rows[0] for rows in lengths[2:5]] == [37, 72, 1] and [rows[1] for rows in lengths[2:5]] == [74, 75, 76]
    assert lengths[5] == [96 * 8 + 1]
    assert {case.static.layer for case in cases} == {0, 1}
    for case in cases:
        assert case.q.shape == (len(case.keys), case.static.kv_heads * case.static.group, STATIC.head_dim)


def test_numbers_are_of_the_kind_that_their_case_says() -> None:
    cases = {case.kind: case for case in numerics._cases(EXAMPLE, STATIC, torch.Generator().manual_seed(0))}
    whole = set(range(-3, 4))
    for kind, keys in {"integers": whole, "ties": {0, 1}, "long integers": whole}.items():
        case = cases[kind]
        assert set(torch.cat([*case.keys, *case.values], 1).unique().tolist()) == keys
        assert set(case.q.unique().tolist()) == whole, "queries of both signs, or ties were all there is"
    for kind in ("normal", "outliers", "repeated"):
        for x in (*cases[kind].keys, *cases[kind].values, cases[kind].q):
            assert not torch.equal(x, x.round())
            loud = x.flatten(0, -2)[:, ::4].std() / x.flatten(0, -2)[:, 1::4].std()
            assert (loud > 10) == (kind == "outliers")
        for x in (cases[kind].keys[1], cases[kind].values[1]):
            assert torch.equal(x[:, 8:], x[:, :-8]) == (kind == "repeated"), "page for page"


def test_memory_that_was_never_written_is_no_number_while_a_case_runs() -> None:
    with numerics._poisoned_memory():
        assert bool(torch.empty(1 << 10).isnan().all())
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", ["running_average", "vattention"])
def test_what_needs_a_course_is_judged_on_a_course_alone(name: str) -> None:
    found = numerics.check(dsl.parse(source(name)).bind(), STATIC, "cpu", 0)
    assert found["failure"] == "" and found["steps"] > 0 and found["cases"] == 0


def test_long_lists_are_told_by_their_beginning() -> None:
    assert numerics._short(range(12)) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]"
    assert numerics._short(range(13)) == "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, ...]"


class _WrongPage(TorchExecutor):
    """Reads one page that the program did not choose."""

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        lists = super().select(q, state, cache)
        mask = lists.to_mask(int(lists.pages.max()) + 1)
        if mask.shape[-1] > 4:
            mask[:, 0, :, 1] ^= (cache.lengths > 4 * self.program.page_size)[:, None]
        return PageLists.from_mask(mask)


class _FutureLeak(TorchExecutor):
    """Attends one token past the length."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        longer = torch.minimum(cache.lengths + 1, (cache.lengths + 7) // 8 * 8).int()
        return super().attend(q, PagedKV(cache.k, cache.v, cache.table, longer, cache.block), lists)


class _Crosstalk(TorchExecutor):
    """Every request selects with the first request's query."""

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        return super().select(q[:1].expand_as(q).contiguous(), state, cache)


class _Stale(TorchExecutor):
    """Forgets to summarise pages that fill up later."""

    def update(self, state: Any, cache: PagedKV) -> None:
        return None


class _Lossy(TorchExecutor):
    """Attention with a scale that is off by one per cent."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        return super().attend(q * 1.01, cache, lists)


class _Remembering(TorchExecutor):
    """Answers a query like the one it saw first: state carried across requests."""

    first: PageLists | None = None

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        found = super().select(q, state, cache)
        if self.first is None or self.first.pages.shape != found.pages.shape:
            self.first = found
        return self.first


class _Hot(TorchExecutor):
    """Output that is not a number where a list is short."""

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        out = super().attend(q, cache, lists)
        out[cache.lengths == 1] = float("nan")
        return out


class _Writing(TorchExecutor):
    """Scales its query after it has used it: right for once, and wrong for who comes next."""

    def decode(self, q: Tensor, state: Any, cache: PagedKV, memory: Any = None) -> tuple[Tensor, PageLists]:
        found = super().decode(q, state, cache, memory)
        q.mul_(2)
        return found


PER_HEAD = dsl.parse(PROGRAM.format(count=3).replace(".max(head)", "")).bind()


class _OneForAll(TorchExecutor):
    """The list of the first query head for its whole group."""

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        lists = super().select(q, state, cache)
        return PageLists(lists.pages[:, :, :1].contiguous(), lists.counts[:, :, :1].contiguous())


class _SecondApart(TorchExecutor):
    """A list for each query head, of which only the first is the one that all should share."""

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        lists = super().select(q, state, cache)
        first = lists.to_mask(int(lists.pages.max()) + 1)
        return PageLists.from_mask(
            torch.cat([first, torch.ones_like(first)], 2)
            & (torch.arange(first.shape[-1]) * self.program.page_size < cache.lengths[:, None, None, None])
        )


class _Twice(TorchExecutor):
    """Lists every page twice, where attention reads it once."""

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        lists = super().select(q, state, cache)
        return PageLists(torch.cat([lists.pages] * 2, -1), 2 * lists.counts)

    def attend(self, q: Tensor, cache: PagedKV, lists: PageLists) -> Tensor:
        return super().attend(q, cache, PageLists(lists.pages.chunk(2, -1)[0].contiguous(), lists.counts // 2))


@pytest.mark.parametrize(
    ("program", "fault"), [(PER_HEAD, _OneForAll), (EXAMPLE, _SecondApart), (EXAMPLE, _Twice), (PER_HEAD, None)]
)
def test_the_list_of_every_query_head_is_judged(program: Program, fault: type[Any] | None) -> None:
    found = numerics.check(program, STATIC, "cpu", 0, fault)
    assert ("reads pages" in found["failure"]) == (fault is not None), found["failure"]


@pytest.mark.parametrize(
    ("read", "allowed", "right"),
    [
        ([[1, 4]], [({1}, {1, 4})], [True]),
        ([[1, 4]], [({1}, {1, 4}), ({4}, {4})], [True, False]),
        ([[1, 4], [4, 1]], [({1}, {1, 4})], [True, False]),
        ([[1, 1, 4], [4]], [({1}, {1, 4}), ({1}, {1, 4})], [False, False]),
    ],
)
def test_lists_are_judged_by_what_they_must_and_may_hold(read: Any, allowed: Any, right: list[bool]) -> None:
    assert [courses.is_open(*each) for each in courses.beside(read, allowed)] == right


class _TieBreak(TorchExecutor):
    """Of equal scores the later page."""

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        with reversed_ties():
            return super().select(q, state, cache)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_WrongPage, "reads pages"),
        (_FutureLeak, "not finite"),
        (_Crosstalk, "reads pages"),
        (_Stale, "token by token"),
        (_Lossy, "off by"),
        (_Remembering, "reversed order"),
        (_Hot, "not finite"),
        (_Writing, "wrote into its inputs"),
        (_TieBreak, "reads pages"),
    ],
)
def test_planted_faults_fail_numerics(fault: type[Any], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "executor_for", lambda device: fault)
    assert words in numerics.check(EXAMPLE, STATIC, "cpu", 0)["failure"]


def test_a_leak_of_finite_memory_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory behind the newest token happens to be finite, only the second run of the case can tell."""
    draw = numerics._cache
    monkeypatch.setattr(numerics, "executor_for", lambda device: _FutureLeak)
    monkeypatch.setattr(
        numerics, "_cache", lambda case, page, device, behind, spare=0: draw(case, page, device, 0.5, spare)
    )
    assert numerics.check(EXAMPLE, STATIC, "cpu", 0)["failure"] != ""


def test_nan_scores_fail_numerics() -> None:
    program = _program(
        "    def summarize(k):\n        return dict(n=k.norm(token))\n"
        "    def score(q, s):\n        return log(dot(q, s.n, channel)).max(head)\n"
        "    def select(score):\n        return topk(score, 2)\n"
    )
    assert "NaN" in numerics.check(program, STATIC, "cpu", 0)["failure"]


# --- what a program's form says ------------------------------------------------------------------------------------


def test_budgets_that_depend_on_data_are_told_from_those_that_do_not() -> None:
    data = {
        name: depends_on_data(program.bind()) for name in search_spaces.seeds() if (program := search_spaces.load(name))
    }
    assert {name for name, yes in data.items() if yes} == {"top_p"}
    two = _program(
        "    def summarize(k):\n        return dict(c=k.mean(token))\n"
        "    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
        "    def select(score):\n        return topk(score, 2) | random(2)\n"
    )
    assert depends_on_data(two), "two choices may overlap or not"


def test_layer_dependence_is_seen() -> None:
    layered = _program("    def select(ctx):\n        return where(ctx.layer < 1, everything(), last(2))\n")
    assert depends_on_layer(layered) and not depends_on_layer(EXAMPLE)


def test_the_forced_part_is_what_is_read_whatever_the_scores() -> None:
    k, v = torch.randn(2, 1, 2, 80, 16)
    cache = PagedKV.from_dense(k, v, 8)
    executor = TorchExecutor(forced_part(EXAMPLE), STATIC)
    lists = executor.select(torch.randn(1, 4, 16), executor.new_state(cache), cache)
    assert lists.to_list() == [[[[0, 8, 9]], [[0, 8, 9]]]]


# --- fidelity ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[ContextStore, fidelity.Recording, Path]:
    folder = tmp_path_factory.mktemp("fidelity")
    model = load_model(str(REFERENCE_MODEL))
    samples = [make_samples(task, 272, 1)[0] for task in ("needles", "keys")]
    contexts = [
        Context(tuple(s.context), tuple(Turn(tuple(t.question), len(t.answer)) for t in s.turns[:2])) for s in samples
    ]
    store = ContextStore(model, contexts, folder)
    forks = [Fork(0, 0), Fork(0, 1), Fork(1, 0)]
    watcher = Watcher({0: 2, 2: 2}, model.layers)
    replay(Session(EVERYTHING, model, store, TorchExecutor), forks, Tally(), watch=watcher)
    return store, fidelity.Recording.from_watcher(forks, watcher), folder


def _fidelity(program: Program, recorded: tuple[ContextStore, fidelity.Recording, Path]) -> dict[str, Any]:
    store, recording, _ = recorded
    session = Session(program, store.model, store, TorchExecutor)
    reversed_session = Session(program, store.model, store, ReversedTies)
    session.prepare()
    return fidelity.measure(session, recording, reversed_session)


def test_everything_has_no_error_and_full_density(recorded: Any) -> None:
    found = _fidelity(EVERYTHING, recorded)
    assert found["finite"] and found["error_mean"] < 1e-5 and found["density"] == pytest.approx(1.0)
    assert found["steps"] == 2 and found["ties"] == 0.0


def test_more_budget_keeps_more_mass_and_errs_less(recorded: Any) -> None:
    found = [_fidelity(dsl.parse(PROGRAM.format(count=count)).bind(), recorded) for count in (1, 4, 16, 64)]
    masses, errors = [item["mass"] for item in found], [item["error_mean"] for item in found]
    assert masses == sorted(masses) and errors == sorted(errors, reverse=True)
    assert masses[-1] == pytest.approx(1.0) and errors[-1] < 1e-5
    assert all(0 < item["mass_of_best"] <= 1 + 1e-6 for item in found)


def test_mass_does_not_count_forced_pages(recorded: Any) -> None:
    window = _program("    def select():\n        return first(1) | last(8)\n")
    assert _fidelity(window, recorded)["mass"] == 0.0


def test_ties_are_counted(recorded: Any) -> None:
    blind = _program(
        "    def summarize(k):\n        return dict(c=k.mean(token) * 0)\n"
        "    def score(q, s):\n        return dot(q, s.c, channel).max(head)\n"
        "    def select(score):\n        return topk(score, 6)\n"
    )
    assert _fidelity(blind, recorded)["ties"] > 0.5
    assert _fidelity(EXAMPLE, recorded)["ties"] < 0.01


class _OtherRounding(TorchExecutor):
    """Stands for an executor whose scores differ in the last bits: where they are close it reads other pages."""

    def select(self, q: Tensor, state: Any, cache: PagedKV) -> PageLists:
        most = int(cache.lengths.max() - 1) // self.program.page_size + 1
        mask = super().select(q, state, cache).to_mask(most)
        own = mask[..., -1:].clone()
        return PageLists.from_mask(torch.cat([mask[..., 1:-1], mask[..., :1], own], -1))


def test_another_rounding_is_no_tie(recorded: Any) -> None:
    """Both orders come from one executor: what another one selects otherwise says nothing about ties."""
    store, recording, _ = recorded
    session = Session(EXAMPLE, store.model, store, _OtherRounding)
    found = fidelity.measure(session, recording, Session(EXAMPLE, store.model, store, ReversedTies))
    assert found["ties"] < 0.01
    assert found["mass"] != _fidelity(EXAMPLE, recorded)["mass"], "it does read other pages"


def test_a_recording_survives_its_file(recorded: Any) -> None:
    store, recording, folder = recorded
    recording.save(folder / "recording.safetensors")
    again = fidelity.Recording.load(folder / "recording.safetensors", torch.device("cpu"))
    assert again.forks == recording.forks
    assert _fidelity(EXAMPLE, (store, again, folder)) == _fidelity(EXAMPLE, recorded)


def test_pages_that_fill_up_with_the_question_are_summarised(tmp_path: Path) -> None:
    """Else all of them would score what an empty summary does: the first would be chosen here, and be tied."""
    quietest = _program(
        "    def summarize(k):\n        return dict(loud=k.norm(token).sum(channel))\n"
        "    def score(s):\n        return -s.loud\n"
        "    def select(score):\n        return topk(score, 1)\n"
    )
    model = load_model(str(REFERENCE_MODEL))
    context = Context(tuple(range(3, 73)), (Turn(tuple(range(40, 60)), 1),))
    store, forks = ContextStore(model, [context], tmp_path), [Fork(0, 0)]
    watcher = Watcher({0: 19}, model.layers)
    replay(Session(EVERYTHING, model, store, TorchExecutor), forks, Tally(), watch=watcher)
    recording = fidelity.Recording.from_watcher(forks, watcher)
    session = Session(quietest, model, store, TorchExecutor)
    found = fidelity.measure(session, recording, Session(quietest, model, store, ReversedTies))
    expected = torch.zeros(12)
    for cache in recording.caches(session):
        loud = cache.dense(0)[0][:, :88].unflatten(1, (11, 8)).norm(dim=2).sum(-1)
        expected += torch.nn.functional.one_hot(loud.argmin(1), 12).double().mean(0)
    expected = expected / model.layers
    expected[11] = 1  # its own
    assert found["picked"][0] == pytest.approx(expected.tolist(), abs=1e-3) and found["ties"] == 0.0


# --- compile -------------------------------------------------------------------------------------------------------


def test_compile_results_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def report(program: Program, *_: Any, **limits: Any) -> list[KernelReport]:
        calls.append(limits)
        return [KernelReport("attend", "sm_90", 64, 0, 1024, ("tensor core",))]

    monkeypatch.setattr(compiling, "compile_report", report)
    first = compiling.report(EXAMPLE, STATIC, ["sm_90"], "bf16", tmp_path / "kept")
    again = compiling.report(EXAMPLE, STATIC, ["sm_90"], "bf16", tmp_path / "kept")
    assert first["failure"] == "" and not first["cached"] and again == {**first, "cached": True}
    other = dsl.parse(PROGRAM.format(count=4)).bind()
    compiling.report(other, STATIC, ["sm_90"], "bf16", tmp_path / "kept")
    assert len(calls) == 2 and all(limits["seconds"] and limits["memory_mb"] for limits in calls)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (KernelReport("attend", "sm_90", 64, 0, 300 << 10), "shared memory"),
        (KernelReport("map0", "sm_80", 255, 9000, 1024), "spills 9000 bytes"),
    ],
)
def test_kernels_that_do_not_fit_fail_compile(
    kernel: KernelReport, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "compile_report", lambda *_, **__: [kernel])
    assert words in compiling.report(EXAMPLE, STATIC, [kernel.target], "bf16", tmp_path / "kept")["failure"]


def test_a_compiler_that_gives_up_fails_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(*_: Any, **__: Any) -> list[KernelReport]:
        raise VortexError("compiling its kernels took over 60 s; make it smaller")

    monkeypatch.setattr(compiling, "compile_report", report)
    assert "took over" in compiling.report(EXAMPLE, STATIC, ["sm_90"], "bf16", tmp_path / "kept")["failure"]
