"""Who could reach the service: a public address without API keys is refused."""

from ipaddress import ip_address

from s2d_serve.config import AppConfig
from s2d_serve.errors import ConfigError


def is_public(host: str) -> bool:
    """Whether other machines can reach a server that listens on `host`; a name may be anything."""
    try:
        return not ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host != "localhost"


def check_exposure(host: str, config: AppConfig) -> None:
    """Refuse to serve where anybody could come in.

    Raises:
        ConfigError: `host` is public, there are no API keys, and nobody said that this is wanted.
    """
    open_to_all = config.auth.api_keys_file is None and not config.allow_public_without_keys
    if is_public(host) and open_to_all:
        raise ConfigError(
            f"http_options.host {host} can be reached from other machines and no API keys are set: "
            "set http_options.host to 127.0.0.1, or args.auth.api_keys_file, "
            "or args.allow_public_without_keys to true"
        )
