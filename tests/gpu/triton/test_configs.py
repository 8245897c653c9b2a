"""Which row of the table of configurations a device gets."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import ifan.kernels.configs as configs
import pytest
import torch


@pytest.mark.parametrize(
    ("properties", "hip", "family"),
    [
        ({"major": 8, "minor": 6}, None, "sm_80"),
        ({"major": 9, "minor": 0}, None, "sm_90"),
        ({"major": 12, "minor": 0}, None, "sm_120"),
        ({"gcnArchName": "gfx942:sramecc+:xnack-"}, "6.4", "gfx942"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_family_of_a_gpu(
    properties: dict[str, int], hip: str | None, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**properties))
    monkeypatch.setattr(torch.version, "hip", hip)
    assert configs.family_of(torch.device("cuda", 0)) == family


def test_an_unknown_family_gets_the_default_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(configs, "family_of", lambda _: "sm_990")
    with caplog.at_level(logging.INFO, configs.__name__):
        assert configs.config_of(torch.device("cpu")) == configs.config_of(torch.device("cpu"))
        assert configs.config_of(torch.device("cpu")) == configs.CONFIGS[configs.DEFAULT]
    assert [record.message for record in caplog.records] == ["no kernel configuration for sm_990: using that of sm_80"]


def test_a_known_family_gets_its_own_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "family_of", lambda _: "gfx942")
    assert configs.config_of(torch.device("cpu")) is configs.CONFIGS["gfx942"]
