"""Configuration files: every key can be said, is written with its meaning, and what is wrong is told in one line."""

from __future__ import annotations

import json
import os
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from face_fixtures import record, vortex
from test_cli_search import made as made  # the fixture that replaces the evaluator
from test_user_data import rows

import vortexlab
from vortexlab import settings
from vortexlab.agent.config import CampaignConfig
from vortexlab.agent.proposers.models import LLMConfig, ModelConfig
from vortexlab.agent.run import Run
from vortexlab.cli import main
from vortexlab.cli import search as command
from vortexlab.configuration.keys import MEANINGS, Key, keys
from vortexlab.configuration.presets import PRESETS, preset
from vortexlab.configuration.reading import read_file
from vortexlab.configuration.writing import sections_of, text_of
from vortexlab.dsl.errors import VortexError
from vortexlab.evaluator.config import EvaluationConfig
from vortexlab.evaluator.tasks import make_samples

#: Keys whose value becomes something else: paths, names of runs, what all models share.
RESOLVED = {"memory", "replay", "model", "data", "sources", "device", "tasks", "runs"}
MODEL = {"proposers": ["llm"]}


def written(folder: Path, text: str, name: str = "campaign.toml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def another(key: Key) -> Any:
    """A value that is allowed and not the default."""
    default = key.default
    if isinstance(default, tuple):
        other = {int: [2048, 256], float: [0.5], str: [key.choices[0] if key.choices else "sm_80"]}
        return other[type(default[0]) if default else str]
    if key.choices:
        return next(item for item in key.choices if item != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 if default > 1 and key.name != "attempts" else 0.25 if key.name != "attempts" else 2.0
    return {"cluster": "local", "geometry": "qwen3-1.7b", "name": "other"}.get(key.name, 2.5)


def test_every_option_of_search_has_a_key() -> None:
    names = {item.name for item in typer.main.get_command(main.application()).commands["search"].params}  # type: ignore[attr-defined]
    names -= {*command._CONTROL, "help"}
    assert names <= {*settings.Settings.__annotations__, *settings.EvaluationSettings.__annotations__}
    for name in names:
        assert settings.key_of(name) in {*keys(), "llm.named", "llm.prices"}, name
    with pytest.raises(VortexError, match="did you mean evaluations"):
        settings.key_of("evaluatons")


def test_every_field_has_a_key_and_every_key_a_meaning() -> None:
    assert list(keys()) == list(MEANINGS)
    for record_type, sections in (
        (CampaignConfig, ("campaign", "budget")), (EvaluationConfig, ("evaluation",)), (LLMConfig, ("llm",)),
        (ModelConfig, ("llm.models",)),
    ):  # fmt: skip
        mine = {key.name for key in keys().values() if key.section in sections}
        assert set(record_type.__dataclass_fields__) - mine <= {"llm", "evaluation", "models"}


@pytest.mark.parametrize("key", [k for k in keys().values() if k.name not in RESOLVED], ids=lambda key: key.path)
def test_a_key_reaches_its_field(key: Key, tmp_path: Path) -> None:
    value = another(key)
    said: dict[str, Any] = {"evaluation": {"device": "cpu"}}
    if key.path == "campaign.proposers":
        value = ["handoff"]
    if key.section.startswith("llm"):
        if key.name == "table":
            written(tmp_path, '["some"]\nmax_tokens = 7\n', "table.toml")
            value = str(tmp_path / "table.toml")
        elif key.name in ("base_url", "label", "key_variable"):
            value = "authored"
        model = {"model": "some", "input_price": 1.0, "output_price": 1.0}
        own = {key.name: value} if key.section == "llm.models" else {}
        said["campaign"] = MODEL
        said["llm"] = {"models": [{**model, **own}]} | ({key.name: value} if key.section == "llm" else {})
        if key.name == "table":
            del said["llm"]["models"]
    else:
        said.setdefault(key.section, {})[key.name] = value
    config = settings.campaign_config(said)
    if key.section.startswith("llm"):
        assert config.llm is not None
        holder: Any = config.llm if hasattr(config.llm, key.name) else config.llm.models[0]
        if key.name == "table":
            assert holder.max_tokens == 7
            return
    else:
        holder = config.evaluation if key.section == "evaluation" else config
    found = getattr(holder, key.name)
    assert (list(found) if isinstance(found, tuple) else found) == value != key.default


@pytest.mark.parametrize("name", PRESETS)
def test_the_written_file_says_what_the_preset_says(name: str, tmp_path: Path) -> None:
    file = written(tmp_path, text_of(preset(name), "A campaign"))
    assert {section: values for section, values in read_file(file).items() if values} == preset(name)
    assert settings.campaign_config(file) == settings.campaign_config(preset=name)
    assert max(map(len, file.read_text().splitlines())) <= 140


def test_every_commented_key_can_be_uncommented(tmp_path: Path) -> None:
    lines = text_of(preset("quick"), "A campaign").splitlines()
    section, seen = "", []
    for number, line in enumerate(lines):
        section = re.sub(r"[#\[\]]", "", line) if re.match(r"#?\[", line) else section
        match = re.match(r"#?([a-z_]+) = ", line)
        if match is None:
            continue
        seen.append(f"{section}.{match[1]}")
        assert lines[number - 1].startswith("# "), line
        changed = [*lines]
        changed[number] = line.removeprefix("#")
        if section == "llm.models":
            needed = ["#[[llm.models]]", "#model = "] + ["#input_price = ", "#output_price = "] * ("price" in match[1])
            changed = [text.removeprefix("#") if text.startswith(tuple(needed)) else text for text in changed]
        found = read_file(written(tmp_path, "\n".join(changed)))
        outer, _, inner = section.partition(".")
        values = found[outer][inner][0] if inner else found[outer]
        assert match[1] in values, line
    assert seen == list(keys())


@pytest.mark.parametrize(
    "config",
    [
        CampaignConfig(),
        CampaignConfig(evaluations=None, hours=2.5, attempts=4.0, parallel=3, cluster="ray://head:10001"),
        CampaignConfig(hours=1.0, seeds=("dense",), budget_points=(), mirror=False, knob_share=0.0),
        CampaignConfig(seeds=(), evaluation=EvaluationConfig(phase="prefill", lengths=(512,), margin=0.05)),
        CampaignConfig(evaluation=EvaluationConfig(speed="predicted", compile_for=(), tasks=("needle",), seed=4)),
        CampaignConfig(
            proposers=("llm", "grammar"),
            llm=LLMConfig(
                (ModelConfig("a", temperature=None, label='say "hi"\n'), ModelConfig("b/c", "http://h:1/v1")),
                money=None, seconds=90.0, calls=0,
            ),
        ),
    ],
)  # fmt: skip
def test_a_configuration_comes_back_from_its_file(config: CampaignConfig, tmp_path: Path) -> None:
    file = written(tmp_path, text_of(sections_of(config), "Again"))
    assert settings.campaign_config(file) == config


def test_init_from_a_run_repeats_its_settings(tmp_path: Path, made: list[EvaluationConfig]) -> None:
    samples = [sample for length in (300, 400) for sample in make_samples("keys", length, 4, seed=9)]
    data = written(tmp_path, "\n".join(rows(samples)), "mine.jsonl")
    record(tmp_path, "taught", 6)
    first = vortex("search", "--name", "first", "--runs", tmp_path, "--evaluations", "3", "--memory", "taught",
                   "--data", data, "--seed", "7", "--device", "cpu")  # fmt: skip
    assert first.status == 0, first.err
    file = tmp_path / "again.toml"
    done = vortex("init", file, "--from", "first", "--runs", tmp_path, "--json").json("init")
    assert done == {"file": str(file), "preset": "", "run": "first"}
    again = settings.campaign_config(file, name="first", runs=tmp_path)
    assert again == Run.open("first", tmp_path).config
    assert "exists; give another FILE, or --force" in vortex("init", file, "--runs", tmp_path).complaint()
    assert "leave one out" in vortex("init", file, "--from", "first", "--preset", "quick").complaint()
    assert vortex("init", file, "--force").out.strip() == str(file)
    assert vortex("init", "-").out == file.read_text() and not Path("-").exists()
    assert "leave one out" in vortex("init", "-", "--json").complaint()
    assert read_file(file)["budget"] == {"evaluations": 40}


def test_search_reads_the_file_and_flags_override_it(
    tmp_path: Path, made: list[EvaluationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "there", """
        campaign = { name = "filed", runs = "kept", seed = 3 }
        [budget]
        evaluations = 4
        hours = 2.0
        [evaluation]
        device = "cpu"
        lengths = [1_024]
        contexts = 9
        """)  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = vortex("search", "--config", "there/campaign.toml", "--evaluations", "3", "--contexts", "2")
    assert done.status == 0, done.err
    opened = Run.open("filed", tmp_path / "there" / "kept")
    config = opened.config
    assert (config.seed, config.evaluations, config.hours) == (3, 3, None)
    assert (config.evaluation.lengths, config.evaluation.contexts) == ((1024,), 2) and made == [config.evaluation]
    stored = json.loads((opened.folder / "config.json").read_text())
    assert CampaignConfig.from_json(stored) == replace(config, runs=stored["runs"])
    assert stored == next(opened.events("campaign_started")).data["config"]
    run = vortexlab.search(file, name="python", evaluations=2)
    assert run.folder.parent == file.parent / "kept" and run.config.seed == 3 and len(run.trials) == 2
    other = vortexlab.search({"campaign": {"seed": 9}}, preset=None, runs=tmp_path, name="mapping", evaluations=2)
    assert other.config.seed == 9
    with pytest.raises(VortexError, match="config does not go with resume"):
        vortexlab.search(file, resume="python")
    with pytest.raises(VortexError, match="seed does not go with resume"):
        vortexlab.search(resume="python", runs=run.folder.parent, seed=0)
    on = vortexlab.search(resume="python", runs=run.folder.parent, seed=None, tasks=[], evaluations=2)
    assert on.folder == run.folder and len(on.history.sessions) == 2


def test_paths_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "there" / "model").mkdir(parents=True)
    file = written(tmp_path / "there", """
        [campaign]
        runs = "../kept"
        memory = ["first", "old/second"]
        [evaluation]
        model = "model"
        geometry = "qwen3-8b"
        data = ["a.jsonl", "/b.jsonl"]
        tasks = ["needles", "c.jsonl"]
        sources = ["squad=model", "longbench=some/name"]
        [llm]
        table = "models.toml"
        """)  # fmt: skip
    found, base = read_file(file), tmp_path / "there"
    assert found["campaign"] == {"runs": str(base / "../kept"), "memory": ["first", str(base / "old/second")]}
    assert found["evaluation"] == {
        "model": str(base / "model"), "geometry": "qwen3-8b", "data": [str(base / "a.jsonl"), "/b.jsonl"],
        "tasks": ["needles", str(base / "c.jsonl")], "sources": [f"squad={base / 'model'}", "longbench=some/name"],
    }  # fmt: skip
    assert found["llm"]["table"] == str(base / "models.toml")


def test_models_of_a_file_take_flags_too(tmp_path: Path) -> None:
    text = """
        [campaign]
        proposers = ["llm"]
        [llm]
        base_url = "http://common/v1"
        money = 2.0
        [[llm.models]]
        model = "one"
        input_price = 1.0
        output_price = 2.0
        [[llm.models]]
        model = "two"
        base_url = "http://own/v1"
        temperature = "none"
        input_price = 1.0
        output_price = 2.0
        """
    file = written(tmp_path, text)
    config = settings.campaign_config(file)
    assert config.llm is not None
    assert [(item.model, item.base_url, item.temperature) for item in config.llm.models] == [
        ("one", "http://common/v1", 0.8), ("two", "http://own/v1", None),
    ]  # fmt: skip
    changed = settings.campaign_config(file, model="two", llm_prices=["two=5,6"], llm_minutes=3.0, llm_money=9.0).llm
    assert changed is not None and (changed.seconds, changed.money) == (180.0, 9.0)
    assert [(item.model, item.input_price) for item in changed.models] == [("two", 5.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[budget]\nhour = 3", "{}: budget.hour is unknown; did you mean budget.hours?"),
        ("hours = 3", "{}: hours is unknown; did you mean budget.hours?"),
        ("[campaign]\nhours = 3", "{}: campaign.hours is unknown; did you mean budget.hours?"),
        ("[budgets]\nhours = 3", "{}: budgets is unknown; did you mean [budget]?"),
        ("[evaluation]\nxyzzy = 3", "{}: evaluation.xyzzy is unknown; known there: model, tasks,"),
        ("[models]\n", "{}: models is unknown; did you mean [llm.models]?"),
        ('[campaign]\n"a\\nb" = 3', '{}: campaign."a\\nb" is unknown; known there: name,'),
        ("[[llm.models]]\nbase_url = 'u'", "{}: llm.models.model is missing (1. entry)"),
        ("[[llm.models]]\nmodel = 'm'\nprice = 2", "{}: llm.models.price is unknown (1. entry); "),
        ("[llm.models]\nmodel = 'm'", "{}: llm.models: expected a list in [ ], found {{'model': 'm'}}"),
        ("[budget]\nhours = 'eight'", "{}: budget.hours: expected a number, found 'eight'"),
        ("[budget]\nhours = true", "{}: budget.hours: expected a number, found True"),
        ("[budget]\nhours = nan", "{}: budget.hours: expected a finite number, found nan"),
        ("[budget]\nhours = inf", "{}: budget.hours: expected a finite number, found inf"),
        ("[budget]\nhours = 1e300", "{}: budget.hours must be at most 100000.0, found 1e+300"),
        ("[evaluation]\nseconds = 1e300", "{}: evaluation.seconds must be at most 10000000.0, found 1e+300"),
        ("[evaluation]\nmemory_mb = 999999999", "{}: evaluation.memory_mb must be at most 100000000, found 999999999"),
        ("[evaluation]\nlengths = [999999999999]", "{}: evaluation.lengths must be at most 134217728 tokens"),
        ("[budget]\nhours = 0", "{}: budget.hours must be above 0, found 0.0"),
        ("[budget]\nevaluations = 0", "{}: budget.evaluations must be at least 1, found 0"),
        ("[budget]\nevaluations = 2.5", "{}: budget.evaluations: expected a whole number, found 2.5"),
        ("[budget]\nattempts = 0.5", "{}: budget.attempts must be at least 1, found 0.5"),
        ("[budget]\nevaluations = 'none'", "{}: a campaign needs a budget: give --evaluations or --hours"),
        ("budget = 3", "{}: budget: expected a section, found 3"),
        ("[campaign]\nproposers = 'llm'", "{}: campaign.proposers: expected a list in [ ], found 'llm'"),
        ("[campaign]\nproposers = ['gramar']",
         "{}: campaign.proposers (1. entry): 'gramar' is not one of grammar, llm, handoff; did you mean 'grammar'?"),
        ("[campaign]\nproposers = ['llm']", "{}: the llm proposer needs a model: give --model NAME"),
        ("[campaign]\nseeds = ['dense', 'qest']", "{}: campaign.seeds (2. entry): 'qest' is not one of "),
        ("[campaign]\nname = '../up'", "{}: campaign.name: run name '../up' is not usable"),
        ("[campaign]\nname = 3", "{}: campaign.name: expected a text, found 3"),
        ("[campaign]\nmirror = 1", "{}: campaign.mirror: expected true or false, found 1"),
        ("[campaign]\nparallel = -1", "{}: campaign.parallel must lie in 0..4096, found -1"),
        ("[campaign]\ncluster = 'here'", "{}: campaign.cluster 'here' is none of local, auto"),
        ("[campaign]\nstructure_share = 1.5", "{}: campaign.structure_share must lie in 0..1, found 1.5"),
        ("[evaluation]\ndevice = 'abacus'", "{}: evaluation.device: 'abacus' is not one of auto, cpu, cuda"),
        ("[evaluation]\nlengths = 4096", "{}: evaluation.lengths: expected a list in [ ], found 4096"),
        ("[evaluation]\nlengths = ['4k']", "{}: evaluation.lengths (1. entry): expected a whole number, found '4k'"),
        ("[evaluation]\nlengths = [4]", "{}: evaluation.lengths must be one or more numbers of at least 64 tokens"),
        ("[evaluation]\ncontexts = -1", "{}: evaluation.contexts must be above 0, found -1"),
        ("[evaluation]\ncontext_cache = -1", "{}: evaluation.context_cache must not be negative, found -1"),
        ("[evaluation]\nmargin = 1999-01-01", "{}: evaluation.margin: expected a number, found datetime.date"),
        ("[evaluation]\nsources = ['wiki=x']", "{}: evaluation.sources: a source is NAME=WHERE"),
        ("[evaluation]\nmodel = 'nowhere'", "has no config.json"),
        ("[evaluation]\nphase = 'prefill'\nspeed = 'predicted'", "{}: the speed of sparse prefill is measured"),
        ("[llm]\nmoney = 3.0", "{}: settings of a language model were given without one: add --proposer llm --model"),
        ("[llm]\nmoney = -3.0", "{}: llm.money of the language models must be above 0, found -3.0"),
        ("[[llm.models]]\nmodel = 'm'", "{}: a language model was named and no proposer uses it"),
        ("[[llm.models]]\nmodel = 'm'\nmax_tokens = 0", "{}: llm.models: max_tokens of model 'm' must be at least 1"),
        ("[campaign]\nproposers = ['llm']\n[llm]\nmoney = 3\n[[llm.models]]\nmodel = 'm'",
         "{}: a money budget needs the price of model 'm'"),
        ("[campaign]\nproposers = ['llm']\n[[llm.models]]\nmodel = 'm'\n[[llm.models]]\nmodel = 'm'",
         "{}: model 'm' is named twice"),
        ("[budget\nhours = 3", "{}: line 1, column 8: no TOML: expected ']'"),
        ("[budget]\nhours = 3\nhours = 4\n", "{}: line 3, column 10: no TOML: cannot overwrite a value"),
        ("[budget]\nhours = ", "{}: at its end: no TOML: invalid value"),
        ("x = " + "[" * 5000, "{}: is nested too deeply"),
        ("[budget]\nevaluations = 1" + "0" * 5000, "{}: a number in it has thousands of digits; give a smaller one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(text: str, expected: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    line = vortex("search", "--config", file, "--runs", tmp_path / "runs").complaint()
    assert expected.format(file) in line and len(line) < 900, line
    assert not (tmp_path / "runs").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large").write_bytes(b"#" * (1 << 21))
    for name, expected in (
        ("absent", "No such file or directory"), (".", "Is a directory"), ("binary", "byte 0 is no UTF-8"),
        ("large", "is larger than"),
    ):  # fmt: skip
        assert expected in vortex("search", "--config", tmp_path / name).complaint()
    assert "leave one out" in vortex("search", "--config", "a.toml", "--preset", "quick").complaint()
    assert "not one of quick, night, cluster" in vortex("search", "--preset", "nigth").complaint()
    assert "--config does not go with --resume" in vortex("search", "--resume", "x", "--config", "a.toml").complaint()
    assert "is a folder" in vortex("init", tmp_path).complaint()
    assert "cannot write" in vortex("init", tmp_path / "no" / "where.toml").complaint()
    os.mkfifo(tmp_path / "pipe")
    assert "is a device or a pipe" in vortex("init", tmp_path / "pipe", "--force").complaint()
    assert (tmp_path / "pipe").is_fifo()


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf[budget]\r\nevaluations = 7\r\n")
    assert settings.campaign_config(tmp_path / "marked.toml", device="cpu").evaluations == 7


def test_an_empty_file_is_a_campaign_of_defaults(tmp_path: Path) -> None:
    assert settings.campaign_config(written(tmp_path, ""), device="cpu") == CampaignConfig()
    assert tomllib.loads(text_of({}, "nothing")) == {"campaign": {}, "budget": {}, "evaluation": {}, "llm": {}}
