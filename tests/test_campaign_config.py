"""Settings of a campaign that are refused, each with one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vortexlab.agent.config import CampaignConfig
from vortexlab.dsl.errors import VortexError


@pytest.mark.parametrize("cluster", ["", "local", "auto", "10.0.0.7:6379", "ray://head.example:10001", "[::1]:6379"])
def test_where_evaluations_may_run(cluster: str) -> None:
    config = CampaignConfig(parallel=4, cluster=cluster)
    assert CampaignConfig.from_json(config.to_json()) == config


def test_recorded_settings_have_the_name_of_their_folder_and_as_many_slots_as_they_had(tmp_path: Path) -> None:
    config = CampaignConfig(name="before", parallel=3)
    assert CampaignConfig.recorded(config.to_json(), tmp_path / "renamed") == replace(config, name="renamed")
    earlier = {name: value for name, value in config.to_json().items() if name != "parallel"}
    assert CampaignConfig.recorded(earlier, tmp_path / "before").parallel == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"parallel": -1}, r"parallel must lie in 0\.\.4096, found -1"),
        ({"parallel": 5000}, r"parallel must lie in 0\.\.4096, found 5000"),
        ({"proposers": ()}, "proposers must name one at least of grammar, llm, handoff"),
        ({"cluster": "everywhere"}, "cluster 'everywhere' is none of local, auto and no address"),
        ({"cluster": "http://host:1"}, "no address, HOST:PORT or ray://HOST:PORT"),
        ({"cluster": "host"}, "no address"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(VortexError, match=expected):
        CampaignConfig(**settings)
