"""SGLang's backend of a program over fakes of SGLang's objects (`tests/sglang_fakes.py`), on the CPU: it is the
reference on ragged rows, through shared prefixes, chunks, freed pages and static buffers. It has not run in SGLang."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import sglang_fakes as fakes
from tests.triton_runs import interpreted
from vortexlab.deploy import package
from vortexlab.dsl import reference
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.ir import Program, Static
from vortexlab.kernels.gate import CONDITIONS, Gate, Ratio
from vortexlab.search_spaces.library import load

#: 5 pages of the 7 and 11 that the requests below have.
QUEST = load("quest").bind({"page": 16, "budget": 4, "sink": 0, "recent": 1})
#: Two of its pages are one of the server's.
SMALL = load("quest").bind({"page": 8, "budget": 4})
#: It reads values, too.
VALUES = load("value_energy").bind({"budget": 4, "recent": 1})
EVERYTHING = load("dense").bind()


@pytest.fixture(autouse=True)
def sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.install(monkeypatch)


def started(program: Program, gate: Gate | None = None, server: fakes.Server | None = None, **given: Any) -> Any:
    """A server that runs a program, with two requests of 170 and 105 tokens, read in chunks."""
    from vortexlab.deploy.sglang.backend import SparseBackend
    from vortexlab.deploy.sglang.checks import Pattern

    server = server or fakes.Server()
    runner = server.runner(**given)
    server.start(SparseBackend(runner, Pattern(server.name, program, gate)), runner)
    server.admit(1)
    server.admit(2)
    server.extend({1: 97, 2: 60})
    server.extend({2: 45, 1: 73})
    return server


def expected(server: fakes.Server, program: Program, layer: int, requests: list[int], q: Tensor) -> Tensor:
    """The reference over each request's own tokens: [rows, query_heads * channel]."""
    static = Static(server.kv_heads, server.group, server.channel, server.channel**-0.5, layer, server.layers)
    held = [server.history[layer, request] for request in requests]
    found = reference.run(program, static, q[: len(requests)], [k for k, _ in held], [v for _, v in held])
    return found.output.float().flatten(1)


def check(server: fakes.Server, program: Program, requests: list[int], padded: int = 0) -> None:
    for layer, (q, out) in enumerate(server.decode(requests, padded)):
        wanted = expected(server, program, layer, requests, q)
        torch.testing.assert_close(out[: len(requests)], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("program", [QUEST, SMALL, VALUES, EVERYTHING], ids=lambda x: f"{x.name}-{x.page_size}")
def test_a_decode_step_is_the_reference(program: Program) -> None:
    """Rows of different lengths, through the steps that fill pages, in any order of the batch."""
    server = started(program)
    for step in range(20):
        check(server, program, [1, 2] if step % 3 else [2, 1])
    assert server.backend.dense_steps == 0


def test_slots_of_a_page_are_a_page() -> None:
    from vortexlab.deploy.sglang.pages import filled, page_table, pages_of

    slots = torch.arange(14.0)[:, None, None].expand(14, 2, 3)
    assert pages_of(slots, 4).shape == (3, 2, 4, 3) and pages_of(slots, 4)[1, 1, :, 0].tolist() == [4, 5, 6, 7]
    table = torch.zeros(3, 12, dtype=torch.int32)
    table[1, :10] = torch.tensor([8, 9, 10, 11, 4, 5, 6, 7, 12, 13])
    table[2] = 99  # what an earlier request left there
    table[2, :5] = torch.tensor([8, 9, 10, 11, 16])
    requests, lengths = torch.tensor([2, 1]), torch.tensor([5, 10])
    assert page_table(table, requests, lengths, 4, 3).tolist() == [[2, 4, -1], [2, 1, 3]]
    assert page_table(table, requests, lengths, 2, 2).tolist() == [[4, 5], [4, 5]]
    # 1 of 5 and 8 of 10 tokens are new: the second request fills the page that it had begun, and one more.
    assert filled(table, requests, [4, 2], [1, 8], 4).tolist() == [2, 1]
    assert filled(table, requests, [0, 10], [5, 0], 4).tolist() == [2]


def test_the_selection_matters() -> None:
    """Else the comparisons above would hold for dense attention."""
    server = started(QUEST)
    for layer, (q, out) in enumerate(server.decode([1, 2])):
        dense = expected(server, EVERYTHING, layer, [1, 2], q)
        assert (out - dense).abs().max() > 0.01


def test_everything_is_the_stock_backend() -> None:
    sparse, stock = started(EVERYTHING), started(EVERYTHING)
    runner = stock.run
    stock.start(fakes.TritonAttnBackend(runner), runner)
    for _ in range(5):
        for (_, ours), (_, theirs) in zip(sparse.decode([1, 2]), stock.decode([1, 2]), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("program", [QUEST, SMALL], ids=lambda x: str(x.page_size))
def test_prefixes_are_shared_and_pages_used_again(program: Program) -> None:
    """A third request finds 176 tokens of the first; the second is given back, and a fourth gets its pages."""
    server = started(program)
    for _ in range(12):
        check(server, program, [1, 2])  # 182 tokens: a page that decoding filled is shared, too
    assert server.admit(3, like=1, pages=11) == 176
    server.extend({3: 1})  # a prompt of which one token is new
    server.release(2)
    server.free = server.free[-7:] + server.free[:-7]  # what was given back comes first
    server.admit(4)
    server.extend({4: 120})
    for _ in range(18):
        check(server, program, [4, 1, 3])


def test_summaries_are_a_function_of_the_pool() -> None:
    """Those of all complete pages are the numbers that are made anew from the pool, bit for bit."""
    from vortexlab.deploy.sglang.pages import LayerPages, Step

    server = started(QUEST)
    for _ in range(12):
        server.decode([1, 2])
    server.admit(3, like=1, pages=11)
    server.extend({3: 23})
    pool = server.run.token_to_kv_pool
    for number, layer in server.backend.pages.items():
        keys, values = pool.get_kv_buffer(number)
        anew = LayerPages(QUEST, layer.executor.static, keys, values)
        whole = {page for r, table in server.tables.items() for page in table[: server.lengths[r] // 16]}
        live = torch.tensor(sorted(whole), dtype=torch.int32)
        assert len(live) == 11 + 7 + 1
        anew.executor.summarize(anew.state, Step(live[:, None], torch.full_like(live, 16)).of(keys, values, 16))
        for name, held in layer.state.fields.items():
            assert torch.equal(held[:, live], anew.state.fields[name][:, live]) and held[:, live].isfinite().all()


def test_graphs_read_static_buffers() -> None:
    """Steps of captured graphs lie where the largest batch lies; rows that pad do no harm."""
    server = started(QUEST, decode="full", prefill="breakable")
    backend = server.backend
    backend.init_cuda_graph_state(4, 4)
    assert backend.graphs.table.shape == (4, 20)
    where = backend.graphs.table.data_ptr(), backend.graphs.lengths.data_ptr()
    # Page 0 holds what padding rows wrote in SGLang's own warm-up.
    for keys, values in backend.pool.buffers:
        keys[:16], values[:16] = 0.0, 0.0
    for padded in (2, 4, 2, 3):
        check(server, QUEST, [1, 2], padded)
        assert (backend.step.table.data_ptr(), backend.step.lengths.data_ptr()) == where
        assert backend.step.table.shape == (padded, 20) and backend.graphs.holds(backend.step)
    check(server, QUEST, [1, 2])
    assert not backend.graphs.holds(backend.step)


def test_triton_runs_it_in_static_buffers() -> None:
    """In Triton's interpreter: layers lend each other their page lists, which each batch finds where they were."""
    found = interpreted("sglang")
    assert found["difference"] < 1e-4
    assert found["kept"] and found["batches"] == [2, 4]


def gate() -> Gate:
    ratios = (Ratio(1, 32, 0.5, 0.4, 0.6), Ratio(1, 172, 1.5, 1.2, 1.6), Ratio(2, 32, 0.5, 0.4, 0.6))
    return Gate((*ratios, Ratio(2, 178, 1.5, 1.2, 1.6)), {**dict.fromkeys(CONDITIONS, ""), "program_hash": "00"})


def test_the_dense_gate_is_honoured() -> None:
    """With two rows it opens at 178 tokens; what was decoded densely before has filled a page, whose summary counts."""
    server = started(SMALL, gate())
    for length in range(171, 215):
        rows = server.decode([1, 2])
        for layer, (q, out) in enumerate(rows):
            program = SMALL if length >= 178 else EVERYTHING
            torch.testing.assert_close(out, expected(server, program, layer, [1, 2], q), rtol=1e-5, atol=1e-5)
    assert server.backend.dense_steps == 2 * 7
    with pytest.raises(VortexError, match=r"dense gate.*--cuda-graph-backend-decode disabled, or with VORTEX_GATE=off"):
        started(SMALL, gate(), decode="full")


ASKED = {
    "speculative decoding": {"speculative_algorithm": "EAGLE"},
    "DP attention": {"attn_dp_size": 2},
    "several devices": {"tp_size": 2},
    "mixed chunks": {"enable_mixed_chunk": True},
    "several backends for one pool": {"enable_pdmux": True},
    "different machines": {"disaggregation_mode": "decode"},
    "hierarchical cache": {"enable_hierarchical_cache": True},
    "unified memory": {"enable_unified_memory": True},
    "torch.compile": {"enable_torch_compile": True},
    "one whole CUDA graph": {"prefill": "full"},
    "latent": {"use_mla_backend": True},
    "another device": {"device": "cpu"},
    "--page-size 16": {"page_size": 8},
}


@pytest.mark.parametrize("says", ASKED)
def test_what_a_server_is_refused(says: str) -> None:
    with pytest.raises(VortexError, match=says) as error:
        started(QUEST, **ASKED[says])
    assert "\n" not in str(error.value)


class OtherPool(fakes.MHATokenToKVPool):
    """As those of sliding windows and hybrid models are."""


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("sliding window", {"sliding_window_size": 128}),
        ("sliding window", {"is_hybrid_swa": True}),
        ("a OtherPool", {"token_to_kv_pool": OtherPool(32, 16, 2, 2, 8)}),
        ("prefill and decode in different", {"prefill_attention_backend_str": "fa3"}),
    ],
)
def test_what_a_model_is_refused(says: str, change: dict[str, Any]) -> None:
    from vortexlab.deploy.sglang.checks import Pattern, check_engine

    runner = fakes.Server().runner()
    check_engine(Pattern("vortex_test", QUEST), runner)
    for name, value in change.items():
        setattr(runner, name, value)
    with pytest.raises(VortexError, match=says):
        check_engine(Pattern("vortex_test", QUEST), runner)


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("sliding window", {"sliding_window_size": 64}), ("soft capping", {"logit_cap": 30.0}),
        ("encoder", {"attn_type": fakes.AttentionType.ENCODER_ONLY}), ("iRoPE", {"use_irope": True}),
        ("full attention", {"layer_id": 3}), ("different widths", {"v_head_dim": 4}),
        ("temperature", {"xai_temperature_len": 8192}),
    ],
)  # fmt: skip
def test_what_a_layer_is_refused(says: str, change: dict[str, Any]) -> None:
    from vortexlab.deploy.sglang.checks import Pattern, check_engine

    runner = fakes.Server().runner()
    for name, value in change.items():
        setattr(runner.model[1], name, value)
    with pytest.raises(VortexError, match=says):
        check_engine(Pattern("vortex_test", QUEST), runner)


def test_a_quantised_cache_is_refused() -> None:
    from vortexlab.deploy.sglang.checks import Pattern, check_engine

    runner = fakes.Server().runner()
    runner.token_to_kv_pool.store_dtype = torch.uint8
    with pytest.raises(VortexError, match="quantised"):
        check_engine(Pattern("vortex_test", QUEST), runner)


def test_a_call_with_another_meaning_is_refused() -> None:
    server = started(QUEST)
    layer, batch = server.run.model[0], server._batch(fakes.ForwardMode.DECODE, [1], [1], [])
    q, kv = torch.zeros(1, 32), torch.zeros(1, 2, 8)
    for says, k, mode, given in (
        ("sinks", kv, fakes.ForwardMode.DECODE, {"sinks": torch.zeros(4)}),
        ("share a KV cache", None, fakes.ForwardMode.DECODE, {}),
        ("mixed-chunk off", kv, fakes.ForwardMode.MIXED, {}),
    ):
        batch.forward_mode = mode
        with pytest.raises(VortexError, match=says):
            server.backend.forward_decode(q, k, kv, layer, batch, **given)


def exported(folder: Path, program: Program = QUEST, **given: Any) -> package.Package:
    return package.write(
        program, folder, engine="sglang", version="0.1.0", knobs={}, source=program.source, measurements={},
        selftest={"cases": []}, **given,
    )  # fmt: skip


def test_the_package_is_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entry point makes it an attention backend of its own name, which the server is asked for."""
    written = exported(tmp_path / "out")
    project = tomllib.loads((tmp_path / "out" / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["sglang.srt.plugins"] == {written.module: f"{written.module}:register"}
    assert "sglang>=0.5.23,<0.5.24" in project["dependencies"]
    readme = (tmp_path / "out" / "README.md").read_text()
    assert f"--attention-backend {written.module}" in readme and "not been run" in readme and "@" not in readme[:600]
    assert "@" not in (tmp_path / "out" / written.module / "__init__.py").read_text()
    monkeypatch.syspath_prepend(tmp_path / "out")
    module = __import__(written.module)
    module.register()
    module.register()
    assert fakes.CHOICES[1:] == [written.module] and [*fakes.BACKENDS] == [written.module]
    assert len(fakes.HookRegistry.hooks) == 1
    server = fakes.Server(name=written.module)
    runner = server.runner()
    runner.attn_backend = fakes.BACKENDS[written.module](runner)
    assert runner.attn_backend.pattern.program == QUEST
    server.start(runner.attn_backend, runner)
    server.admit(1)
    server.extend({1: 70})
    check(server, QUEST, [1])
    target, hook, _ = fakes.HookRegistry.hooks[0]
    assert target.endswith("ModelRunner.init_attention_backends")
    hook(None, runner)
    runner.attn_backend = fakes.TritonAttnBackend(runner)
    with pytest.raises(VortexError, match=f"asked for {written.module} and runs TritonAttnBackend"):
        hook(None, runner)
    runner.server_args.attention_backend = "triton"
    hook(None, runner)


def test_importing_the_package_loads_nothing(tmp_path: Path) -> None:
    """SGLang imports its plugins in processes that never see a model."""
    written = exported(tmp_path / "out")
    code = f"import sys, {written.module} as m; assert not {{'torch', 'vortexlab', 'sglang'}} & set(sys.modules), m"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "out", check=True)


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vortexlab.deploy.sglang.plugin import register

    monkeypatch.setattr(sys.modules["sglang"], "__version__", "0.5.24")
    with pytest.raises(VortexError, match=r"SGLang >= 0.5.23, < 0.5.24, and 0.5.24 is installed.*SGLANG_PLUGINS=none"):
        register("vortex_other", tmp_path)
    assert not fakes.BACKENDS


@pytest.mark.parametrize(("value", "sparse"), [("off", True), ("on", False)])
def test_the_gate_can_be_turned_off(value: str, sparse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vortexlab.deploy.sglang.plugin import made

    digest = exported(tmp_path / "plain").manifest["program_hash"]
    found = Gate(gate().ratios, {**gate().conditions, "program_hash": digest})
    exported(tmp_path / "out", gate=found)
    monkeypatch.setenv("VORTEX_GATE", value)
    assert (made("vortex_test", tmp_path / "out", fakes.Server().runner()).pattern.gate is None) == sparse
    monkeypatch.setenv("VORTEX_GATE", "perhaps")
    with pytest.raises(VortexError, match="on or off, not 'perhaps'"):
        made("vortex_test", tmp_path / "out", fakes.Server().runner())


def test_programs_that_carry_something_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match=r"carries something.*SGLang"):
        exported(tmp_path / "out", load("running_average").bind())
