"""What we rely on of SGLang 0.5.23, read in its sources: one line for each thing, which fails when it has moved.

SGLang does not run without a GPU, so its files are parsed and not imported, but for two that need nothing. `make
test-sglang` fetches the wheel and runs these; or give VORTEX_SGLANG the folder of an unpacked one. The fakes of
`tests/test_sglang.py` are held to the same names.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import sglang_fakes as fakes

ROOT = os.environ.get("VORTEX_SGLANG", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ROOT, reason="no sources of SGLang: run `make test-sglang`, or set VORTEX_SGLANG to an unpacked wheel"
    ),
]

REGISTRY = "sglang.srt.layers.attention.attention_registry"
BASE = "sglang.srt.layers.attention.base_attn_backend"
TRITON = "sglang.srt.layers.attention.triton_backend"
RADIX = "sglang.srt.layers.radix_attention"
POOL = "sglang.srt.mem_cache.memory_pool"
PAGED = "sglang.srt.mem_cache.allocator.paged"
BATCH = "sglang.srt.model_executor.forward_batch_info"
RUNNER = "sglang.srt.model_executor.model_runner"
SETUP = "sglang.srt.model_executor.model_runner_components.attention_backend_setup"
GRAPH = "sglang.srt.model_executor.runner.decode_cuda_graph_runner"
FULL = "sglang.srt.model_executor.runner_backend.full_cuda_graph_backend"
CHOICES = "sglang.srt.arg_groups.choices"


@functools.cache
def tree(module: str) -> ast.Module:
    path = Path(ROOT, *module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    assert file.is_file(), f"{module} is gone"
    return ast.parse(file.read_text(encoding="utf-8"))


def top(module: str) -> dict[str, ast.AST]:
    """What a module names: definitions, assignments and imports, those under `if` too."""
    found: dict[str, ast.AST] = {}
    stack: list[ast.stmt] = list(tree(module).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            stack += node.body
    return found


def definition(module: str, name: str) -> Any:
    """A function, a class, or a method (`Class.method`)."""
    here: Any = tree(module)
    for part in name.split("."):
        inside = [x for x in here.body if isinstance(x, ast.ClassDef | ast.FunctionDef) and x.name == part]
        assert inside, f"{module} has no {name}"
        here = inside[0]
    return here


def parameters(function: ast.FunctionDef) -> list[str]:
    return [x.arg for x in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]


def attributes(module: str, name: str) -> set[str]:
    """What objects of a class have: methods, class attributes, and what methods assign to self."""
    found = set()
    for node in ast.walk(definition(module, name)):
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            found.add(node.attr)
    for statement in definition(module, name).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def calls(where: ast.AST) -> Iterator[str]:
    return (ast.unparse(node) for node in ast.walk(where) if isinstance(node, ast.Call))


def test_it_is_the_release_that_packages_ask_for() -> None:
    from vortexlab.deploy import engines

    (info,) = Path(ROOT).glob("sglang-*.dist-info")
    version = info.name.removesuffix(".dist-info").split("-")[1]
    engines.check_version(engines.find("sglang"), version, "unpack another wheel")


@pytest.mark.parametrize("module", sorted(set(fakes.MODULES) - {"sglang"}))
def test_what_is_imported_is_there(module: str) -> None:
    missing = set(fakes.MODULES[module]) - set(top(module))
    assert not missing, f"{module} no longer has {missing}"


HELD = [
    (RUNNER, "ModelRunner", {
        "server_args", "prefill_attention_backend_str", "decode_attention_backend_str", "is_draft_worker", "device",
        "page_size", "use_mla_backend", "sliding_window_size", "is_hybrid_swa", "dtype", "model", "model_config",
        "token_to_kv_pool", "req_to_token_pool", "attn_backend", "init_attention_backends",
    }),
    (RADIX, "RadixAttention", {
        "tp_q_head_num", "tp_k_head_num", "qk_head_dim", "v_head_dim", "scaling", "layer_id", "logit_cap",
        "sliding_window_size", "is_cross_attention", "use_irope", "attn_type", "xai_temperature_len", "k_scale",
        "v_scale",
    }),
    (POOL, "MHATokenToKVPool", {"kv_cache_layout", "post_capture_active", "get_kv_buffer", "set_kv_buffer"}),
    (POOL, "KVCache", {"dtype", "store_dtype", "post_capture_active"}),
    (POOL, "ReqToTokenPool", {"req_to_token"}),
    (TRITON, "TritonAttnBackend", {
        "req_to_token", "init_forward_metadata", "init_forward_metadata_out_graph", "init_cuda_graph_state",
        "forward_decode", "forward_extend", "needs_cpu_seq_lens",
    }),
    (BATCH, "ForwardMode", {"is_decode", "is_extend", "is_mixed"}),
    (BATCH, "ForwardBatch", {
        "forward_mode", "req_pool_indices", "seq_lens", "seq_lens_cpu", "out_cache_loc", "extend_prefix_lens",
        "extend_seq_lens", "extend_prefix_lens_cpu", "extend_seq_lens_cpu",
    }),
    (RADIX, "AttentionType", {"DECODER"}),
    ("sglang.srt.plugins.hook_registry", "HookType", {"AFTER"}),
    ("sglang.srt.configs.model_config", "ModelConfig", {"num_hidden_layers"}),
    ("sglang.srt.model_executor.cuda_graph_config", "CudaGraphConfig", {"decode", "prefill"}),
    ("sglang.srt.model_executor.cuda_graph_config", "PhaseConfig", {"backend"}),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name", "wanted"), HELD, ids=[name for _, name, _ in HELD])
def test_objects_have_what_is_read_of_them(module: str, name: str, wanted: set[str]) -> None:
    missing = wanted - attributes(module, name)
    assert not missing, f"{name} no longer has {missing}"


def test_our_names_are_not_taken() -> None:
    """What our backend keeps on itself is nothing that SGLang's keeps there."""
    ours: set[str] = set()
    file = Path(__file__).parents[1] / "deploy" / "sglang" / "backend.py"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            ours.add(node.attr)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith(("init_", "forward_", "__")):
            ours.add(node.name)
    assert {"pages", "step", "filled", "_layer"} <= ours
    taken = attributes(TRITON, "TritonAttnBackend") | attributes(BASE, "AttentionBackend")
    assert not ours & taken


@pytest.mark.parametrize(
    ("field", "file"),
    [
        *[(name, "parallel") for name in ("attn_dp_size", "tp_size", "pp_size")],
        *[(name, "memory") for name in ("enable_hierarchical_cache", "enable_lmcache", "enable_flexkv")],
        ("enable_unified_memory", "memory"), ("enable_mixed_chunk", "schedule"), ("disaggregation_mode", "disagg"),
        ("enable_pdmux", "disagg"), ("page_size", "schedule"), ("speculative_algorithm", "spec"),
        *[(name, "exec_") for name in (
            "enable_two_batch_overlap", "cuda_graph_config", "dllm_algorithm", "enable_torch_compile",
            "attention_backend", "prefill_attention_backend", "decode_attention_backend",
        )],
    ],
)  # fmt: skip
def test_server_arguments_have_their_names(field: str, file: str) -> None:
    found = {
        node.target.id for node in ast.walk(tree(f"sglang.srt.arg_groups.fields.{file}"))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }  # fmt: skip
    assert field in found


CALL = ["self", "q", "k", "v", "layer", "forward_batch", "save_kv_cache"]


@pytest.mark.parametrize(
    ("module", "name", "wanted"),
    [
        (TRITON, "TritonAttnBackend.forward_decode", CALL), (TRITON, "TritonAttnBackend.forward_extend", CALL),
        (TRITON, "TritonAttnBackend.init_forward_metadata", ["self", "forward_batch"]),
        (TRITON, "TritonAttnBackend.init_forward_metadata_out_graph", ["self", "forward_batch", "in_capture"]),
        (TRITON, "TritonAttnBackend.init_cuda_graph_state", ["self", "max_bs", "max_num_tokens"]),
        (TRITON, "TritonAttnBackend.__init__", ["self", "model_runner"]),
        (POOL, "MHATokenToKVPool.set_kv_buffer",
         ["self", "layer", "loc_info", "cache_k", "cache_v", "k_scale", "v_scale"]),
        (POOL, "MHATokenToKVPool.get_kv_buffer", ["self", "layer_id"]),
        (POOL, "KVWriteLoc.for_batch", ["cls", "forward_batch"]),
        (REGISTRY, "register_attention_backend", ["name"]),
        ("sglang.srt.plugins.hook_registry", "HookRegistry.register", ["cls", "target", "hook", "hook_type"]),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_functions_take_what_they_are_given(module: str, name: str, wanted: list[str]) -> None:
    assert parameters(definition(module, name))[: len(wanted)] == wanted


def test_no_argument_of_an_attention_call_is_new() -> None:
    """What changes an attention's meaning has to be refused by name."""
    refused = {"sinks", "score_mod", "aux_tensors"}
    for name in ("forward_decode", "forward_extend"):
        found = parameters(definition(TRITON, f"TritonAttnBackend.{name}"))
        assert set(found[len(CALL) :]) == refused, name


def test_a_name_that_no_plugin_registered_is_an_error() -> None:
    """So that a server whose plugin has failed does not start."""
    source = ast.unparse(definition(SETUP, "_build_full_attention_backend_from_str"))
    assert "if backend_str not in ATTENTION_BACKENDS:\n        raise ValueError" in source
    assert "ATTENTION_BACKENDS[backend_str](model_runner)" in source
    assert ast.unparse(top(CHOICES)["add_attention_backend_choices"]).endswith("ATTENTION_BACKEND_CHOICES.extend")
    fields = ast.unparse(tree("sglang.srt.arg_groups.fields.exec_"))
    assert fields.count("choices=ATTENTION_BACKEND_CHOICES") == 3
    assert ast.unparse(top("sglang.srt.plugins")["GENERAL_PLUGINS_GROUP"]).endswith("'sglang.srt.plugins'")


def test_every_process_loads_plugins() -> None:
    for module in ("srt.managers.scheduler", "srt.entrypoints.engine", "cli.serve", "launch_server"):
        assert "load_plugins()" in set(calls(tree(f"sglang.{module}"))), module


def test_backends_are_made_where_the_hook_looks() -> None:
    from vortexlab.deploy.sglang.plugin import MADE

    module, name, method = MADE.rsplit(".", 2)
    source = ast.unparse(definition(module, f"{name}.{method}"))
    first, then = (source.index(x) for x in ("self.decode_attention_backend_str = ", "build_attention_backends("))
    assert first < then, "the runner's names of its backends come too late"


def test_a_hook_after_a_function_gets_its_result_and_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry itself, which needs nothing."""
    file = Path(ROOT, "sglang", "srt", "plugins", "hook_registry.py")
    spec = importlib.util.spec_from_file_location("hook_registry_of_sglang", file)
    assert spec is not None and spec.loader is not None
    real: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(real)
    target, seen = types.ModuleType("target_of_a_hook"), []
    vars(target)["f"] = lambda x: x + 1
    monkeypatch.setitem(__import__("sys").modules, target.__name__, target)
    real.HookRegistry.register(f"{target.__name__}.f", lambda *given: seen.append(given), real.HookType.AFTER)
    real.HookRegistry.apply_hooks()
    assert target.f(3) == 4 and seen == [(4, 3)]


def test_a_decode_step_and_a_prompt_go_where_we_are() -> None:
    source = ast.unparse(definition(BASE, "AttentionBackend.forward"))
    decode, extend = source.index("return self.forward_decode("), source.index("return self.forward_extend(")
    assert "forward_mode.is_decode()" in source[:decode] and decode < extend
    wanted = "get_attn_backend().forward(q, k, v, self, forward_batch, save_kv_cache, **kwargs)"
    assert wanted in set(calls(definition(RADIX, "RadixAttention.forward")))


def test_graphs_are_prepared_as_we_prepare_them() -> None:
    """Metadata is made outside of a graph before each capture and each replay; captures are preceded by warm runs, in
    which kernels are compiled and lists are made; rows that pad are one token long and those of request 0."""
    found = set(calls(tree(GRAPH)))
    assert "attn_backend.init_forward_metadata_out_graph(forward_batch, in_capture=True)" in found
    assert "attn_backend.init_forward_metadata_out_graph(fb_view)" in found
    assert "self.attn_backend.init_cuda_graph_state(self.max_bs, self.max_num_token)" in found
    assert "for warmup_step in range(2):" in ast.unparse(definition(FULL, "FullCudaGraphBackend.capture_one"))
    fill = definition(TRITON, "TritonAttnBackend.get_cuda_graph_seq_len_fill_value")
    assert ast.unparse(fill.body[-1]) == "return 1"
    pool = ast.unparse(definition(POOL, "ReqToTokenPool.__init__"))
    assert "self.free_slots = list(range(1, self._alloc_size))" in pool
    assert "(self._alloc_size, max_context_len), dtype=torch.int32" in pool


def test_backends_of_graphs_have_their_names() -> None:
    backend = definition("sglang.srt.model_executor.cuda_graph_config", "Backend")
    found = {ast.unparse(x) for x in backend.body}
    assert {"FULL = 'full'", "BREAKABLE = 'breakable'", "DISABLED = 'disabled'"} <= found


def test_the_pool_is_laid_out_token_by_token() -> None:
    source = ast.unparse(definition(POOL, "MHATokenToKVPool._kv_buffer_shapes"))
    assert "rows = self.size + self.page_size" in source
    assert "((rows, self.head_num, self.head_dim), (rows, self.head_num, self.v_head_dim))" in source


def test_slots_of_a_page_lie_together() -> None:
    """The allocator's own functions, run on a request of 6 tokens that grows to 13, one that begins, and a decode."""
    names = ("alloc_extend_naive", "alloc_decode_naive")
    held: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([definition(PAGED, name) for name in names], []), PAGED, "exec"), held)
    page, out = 4, torch.empty(7 + 5, dtype=torch.int64)
    free = torch.tensor([9, 3, 7, 5, 8])
    before = [20, 21, 22, 23, 8, 9]  # pages 5 and 2
    lengths, prefixes = torch.tensor([13, 5]), torch.tensor([6, 0])
    held["alloc_extend_naive"](prefixes, lengths, torch.tensor([before[-1], -1]), free, out, page, "cpu")
    rows = [[*before, *out[:7].tolist()], out[7:].tolist()]
    for row in rows:
        assert all(slot // page == row[at // page * page] // page for at, slot in enumerate(row))
        assert all(slot % page == at % page for at, slot in enumerate(row))
    new = torch.empty(2, dtype=torch.int64)
    held["alloc_decode_naive"](lengths + 1, torch.tensor([row[-1] for row in rows]), torch.tensor([1]), new, page, 0)
    assert new.tolist() == [row[-1] + 1 for row in rows]
    clear = ast.unparse(definition(PAGED, "PagedTokenToKVPoolAllocator.clear"))
    assert "self.free_pages = torch.arange(1, self.num_pages + 1" in clear, "page 0 is no longer that of padding"


@pytest.mark.parametrize(
    ("fake", "module", "names"),
    [
        (
            fakes.TritonAttnBackend,
            TRITON,
            ("forward_decode", "init_forward_metadata_out_graph", "init_forward_metadata"),
        ),
        (fakes.KVWriteLoc, POOL, ("for_batch",)),
        (fakes.HookRegistry, "sglang.srt.plugins.hook_registry", ("register",)),
    ],
    ids=lambda x: x.__name__ if isinstance(x, type) else "",
)
def test_fakes_are_called_like_the_real_ones(fake: type, module: str, names: tuple[str, ...]) -> None:
    """As many arguments in the same order, though perhaps of other names."""
    for name in names:
        real = definition(module, f"{fake.__name__}.{name}")
        ours = [x for x in inspect.signature(getattr(fake, name)).parameters if x not in ("self", "cls")]
        required = [x for x in parameters(real) if x not in ("self", "cls")]
        required = required[: len(real.args.args) - 1 - len(real.args.defaults)]
        assert len(ours) >= len(required), name
