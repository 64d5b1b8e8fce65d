"""Settings of a campaign that are refused, each with one line."""

from __future__ import annotations

from typing import Any

import pytest

from vortexlab.agent.config import CampaignConfig
from vortexlab.dsl.errors import VortexError


@pytest.mark.parametrize("cluster", ["", "local", "auto", "10.0.0.7:6379", "ray://head.example:10001", "[::1]:6379"])
def test_where_evaluations_may_run(cluster: str) -> None:
    config = CampaignConfig(parallel=4, cluster=cluster)
    assert CampaignConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"parallel": -1}, "parallel must not be negative, found -1"),
        ({"cluster": "everywhere"}, "cluster 'everywhere' is none of local, auto and no address"),
        ({"cluster": "http://host:1"}, "no address, HOST:PORT or ray://HOST:PORT"),
        ({"cluster": "host"}, "no address"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(VortexError, match=expected):
        CampaignConfig(**settings)
