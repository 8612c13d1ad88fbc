from typing import Any

import pytest

from s2d_serve.config import AppConfig
from s2d_serve.errors import ConfigError
from s2d_serve.exposure import check_exposure, is_public


def config(**settings: Any) -> AppConfig:
    return AppConfig.model_validate({"targets": {"a": {"source": "w"}}, **settings})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"])
def test_loopback_is_private(host: str) -> None:
    assert not is_public(host)
    check_exposure(host, config())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.3", "192.0.2.1", "example.org", ""])
def test_all_else_is_public_and_needs_keys(host: str) -> None:
    assert is_public(host)
    with pytest.raises(ConfigError, match="no API keys are set"):
        check_exposure(host, config())
    check_exposure(host, config(auth={"api_keys_file": "keys.txt"}))
    check_exposure(host, config(allow_public_without_keys=True))
