"""What an exported package holds, what it refuses, and that pip installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vortexlab.deploy import package
from vortexlab.deploy.package import MANIFEST, PARAMETERS, PROGRAM, Package
from vortexlab.dsl import canonical_hash, parse
from vortexlab.dsl.errors import VortexError
from vortexlab.dsl.parameters import Parameters, parameter
from vortexlab.evaluator.geometries import GEOMETRIES
from vortexlab.kernels.gate import CONDITIONS, Gate, Ratio
from vortexlab.search_spaces.library import load

QUEST = load("quest")
MEASURED = {
    "speedup": {"value": 2.5, "low": 2.25, "high": 2.75},
    "accuracy": {"value": 0.97, "low": 0.9, "high": 1.0},
    "density": 0.1234,
    "conditions": {"device": "some CPU", "speed": "measured", "lengths": [4096]},
}


def write(folder: Path, budget: int = 16, **changes: Any) -> Package:
    given: dict[str, Any] = {
        "engine": "transformers", "version": "0.1.0", "knobs": {"budget": budget}, "source": QUEST.source,
        "measurements": MEASURED, "selftest": {"cases": []}, **changes,
    }  # fmt: skip
    return package.write(QUEST.bind({"budget": budget}), folder, **given)


def test_a_package_is_the_program_and_its_measurements(tmp_path: Path) -> None:
    written = write(tmp_path / "out")
    bound = QUEST.bind({"budget": 16})
    assert written.module == f"vortex_quest_{canonical_hash(bound)[:8]}"
    assert written.program == bound and package.read(tmp_path / "out") == written
    assert written.manifest["measurements"] == MEASURED and written.manifest["knobs"] == {"budget": 16}
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "2.500 x the fastest dense attention step (measured), 95 % interval 2.250 to 2.750" in readme
    assert "device: some CPU" in readme and QUEST.source.strip() in readme and "@" not in readme.replace("@program", "")
    project = tomllib.loads((tmp_path / "out" / "pyproject.toml").read_text())["project"]
    assert project["dependencies"][0] == "vortexlab>=0.1.0" and project["license"] == "Apache-2.0"


def gate(digest: str) -> Gate:
    ratios = (Ratio(1, 1024, 0.5, 0.4, 0.6), Ratio(1, 4096, 1.5, 1.2, 1.6), Ratio(4, 1024, 0.9, 0.8, 1.2))
    return Gate(ratios, {**dict.fromkeys(CONDITIONS, ""), "device": "some CPU", "program_hash": digest})


def test_a_package_holds_its_gate(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain")
    assert plain.gate is None and plain.manifest["gate"] is None
    assert "No dense gate was measured" in (tmp_path / "plain" / "README.md").read_text()
    found = gate(plain.manifest["program_hash"])
    written = write(tmp_path / "out", gate=found)
    assert written.gate == found and package.read(tmp_path / "out").gate == found
    readme = (tmp_path / "out" / "README.md").read_text()
    assert "- batch 1 and more: sparse from 4096 tokens on\n- batch 4 and more: never sparse" in readme
    assert "without it" in readme and "- device: some CPU" in readme and "No dense gate" not in readme
    file = tmp_path / "out" / written.module / MANIFEST
    kept = json.loads(file.read_text())
    for change, says in (
        ({"opens": []}, "not those of its ratios"),
        ({"ratios": []}, "at least one"),
        ({"conditions": {**found.conditions, "program_hash": "0" * 64}}, "measured for another program"),
    ):
        file.write_text(json.dumps({**kept, "gate": {**kept["gate"], **change}}))
        with pytest.raises(VortexError, match=says):
            package.read(tmp_path / "out")


def test_words_of_a_program_stay_words(tmp_path: Path) -> None:
    """A docstring can neither close the code block, nor fill in a template, nor become a link or markup."""
    source = QUEST.source.replace("Pages with", '````\n# <script>x</script> @HASH@ [link](http://a) ````\nPages with')
    program = parse(source).bind()
    written = package.write(
        program, tmp_path / "out", engine="transformers", version="0.1.0", knobs={}, source=source, measurements={},
        selftest={},
    )  # fmt: skip
    readme = (tmp_path / "out" / "README.md").read_text()
    before, fence, rest = readme.partition("`````python\n")
    assert fence and rest.partition("\n`````\n")[0] == source.strip()
    assert "\\<script\\>" in before and "<script>" not in before and "[link](" not in before
    assert f"@HASH@ {written.manifest['program_hash']}" not in readme and "@HASH@" in before
    compile((tmp_path / "out" / written.module / "__init__.py").read_text(), "init", "exec")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: next(n for n in data["nodes"] if n["attrs"].get("value") == 16)["attrs"].update(value=17),
        lambda data: data.update(page=32),
        lambda data: data.update(seed=1) or data["nodes"][0].update(op="v"),
        lambda data: data.update(summary_dtype="fp16"),
    ],
)
def test_a_changed_program_is_refused(change: Any, tmp_path: Path) -> None:
    written = write(tmp_path / "out")
    file = tmp_path / "out" / written.module / PROGRAM
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(VortexError, match="is not the one that was measured"):
        package.read(tmp_path / "out")


def test_a_changed_hash_is_refused_too(tmp_path: Path) -> None:
    """The module's name carries the hash, so program and manifest cannot be exchanged together unnoticed."""
    written, other = write(tmp_path / "out"), write(tmp_path / "other", budget=32)
    for name in (PROGRAM, MANIFEST):
        (tmp_path / "out" / written.module / name).write_text((tmp_path / "other" / other.module / name).read_text())
    with pytest.raises(VortexError, match="is not the one that was measured"):
        package.read(tmp_path / "out")


@pytest.mark.parametrize(
    "name, content, expected",
    [
        (MANIFEST, "{", "is damaged"),
        (MANIFEST, "[]", "is damaged"),
        (MANIFEST, '{"format": 99}', "has format 99; this release reads 1"),
        (PROGRAM, '{"version": 2}', "is damaged"),
        (PROGRAM, '{"version": 1}', "program form of version 1; this release reads 2"),
        ("selftest.json", "", "is damaged"),
    ],
)
def test_a_damaged_package_is_refused(name: str, content: str, expected: str, tmp_path: Path) -> None:
    written = write(tmp_path / "out")
    (tmp_path / "out" / written.module / name).write_text(content)
    with pytest.raises(VortexError, match=expected):
        package.read(tmp_path / "out")


def test_a_folder_without_or_with_several_packages(tmp_path: Path) -> None:
    with pytest.raises(VortexError, match="holds no exported package"):
        package.read(tmp_path)
    first, second = write(tmp_path / "a"), write(tmp_path / "b", budget=32)
    (tmp_path / "a" / first.module).rename(tmp_path / first.module)
    (tmp_path / "b" / second.module).rename(tmp_path / second.module)
    with pytest.raises(VortexError, match="several packages"):
        package.read(tmp_path)


def test_only_an_earlier_package_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = write(out), write(out, budget=32)
    assert first.module != second.module and not (out / first.module).exists()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(VortexError, match=r"holds 'notes.txt'"):
        write(out)
    assert package.read(out) == second and (out / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("")
    with pytest.raises(VortexError, match="is a file"):
        write(tmp_path / "file")
    with pytest.raises(VortexError, match="cannot export to 'toaster'; this release exports to: transformers"):
        write(tmp_path / "new", engine="toaster")
    assert not (tmp_path / "new").exists()


def test_a_failed_export_leaves_the_earlier_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    first, real = write(out), Path.rename

    def failing(self: Path, target: Any) -> Path:
        if Path(target) == out and self.name == "package":
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(VortexError, match="No space left on device"):
        write(out, budget=32)
    assert package.read(out) == first
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_pip_installs_it_and_importing_it_registers_the_pattern(tmp_path: Path) -> None:
    written = write(tmp_path / "out")
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, str(tmp_path / "out")], check=True, capture_output=True, text=True)
    assert package.read(target) == Package(target, written.module, written.program, written.manifest, written.selftest)
    code = (
        f"import {written.module} as pattern; from transformers import AttentionInterface;"
        "from transformers.masking_utils import AttentionMaskInterface as masks;"
        "assert pattern.NAME in AttentionInterface() and pattern.NAME in masks();"
        f"assert pattern.__file__.startswith({str(target)!r});"
        "assert pattern.MANIFEST['knobs'] == {'budget': 16};"
        "import sys; sys.exit(', '.join({'optuna', 'openai', 'datasets', 'pydantic'} & set(sys.modules)) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    write(tmp_path / "out", budget=32)  # what pip's build left in the folder is no hindrance


def test_parameters_go_along_and_are_those_that_were_measured(tmp_path: Path) -> None:
    static, file = GEOMETRIES["qwen3-1.7b"].static(), tmp_path / "private" / "retrieval.safetensors"
    file.parent.mkdir()
    save_file({"retrieval": torch.arange(28 * 8).view(28, 8).float()}, file)
    bound = load("streaming_heads").bind({}, Parameters.open(file))
    more = {"engine": "transformers", "version": "0.1.0", "knobs": {}, "source": "", "measurements": {}, "selftest": {}}
    in_memory = load("streaming_heads").bind({}, Parameters.of({"retrieval": torch.zeros(28, 8)}))
    kept = package.write(in_memory, tmp_path / "out", **more).program
    assert float(parameter(kept, "retrieval", static, 5)) == 0.0 and kept.parameters.held is None  # type: ignore[union-attr]
    written = package.write(bound, tmp_path / "out", **more)
    held = tmp_path / "out" / written.module / PARAMETERS
    assert held.read_bytes() == file.read_bytes()
    assert written.manifest["parameters"] == bound.parameters.digest  # type: ignore[union-attr]
    assert written.manifest["program_hash"] == canonical_hash(bound) != canonical_hash(load("streaming_heads").bind())
    texts = [item.read_text() for item in (tmp_path / "out").rglob("*") if item.suffix in (".json", ".py", ".md")]
    assert not any("private" in text for text in texts)
    file.unlink()  # nothing but the package's own copy is read
    (tmp_path / "out").rename(tmp_path / "moved")
    again = package.read(tmp_path / "moved").program
    assert float(parameter(again, "retrieval", static, 5)) == 5.0
    save_file({"retrieval": torch.zeros(28, 8)}, tmp_path / "moved" / written.module / PARAMETERS)
    with pytest.raises(VortexError, match="are not those that were measured"):
        package.read(tmp_path / "moved")
    (tmp_path / "moved" / written.module / PARAMETERS).unlink()
    with pytest.raises(VortexError, match="cannot read the parameters"):
        package.read(tmp_path / "moved")


@pytest.mark.parametrize(
    "program, expected",
    [
        (load("loki"), "it has parameters; give --parameters"),
        (load("mla_rope_unaware"), "it reads ctx.latent"),
        (parse('@program(kv="fp8_e4m3")\nclass F:\n    def select(): return last(2)\n'), "a KV cache in fp8_e4m3"),
    ],
    ids=["parameters", "latent", "fp8"],
)
def test_what_the_engine_cannot_run_is_refused(program: Any, expected: str, tmp_path: Path) -> None:
    more = {"engine": "transformers", "version": "0.1.0", "knobs": {}, "source": "", "measurements": {}, "selftest": {}}
    with pytest.raises(VortexError, match=expected):
        package.write(program.bind(), tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()
