"""API keys: SHA-256 digests in a file, compared in constant time."""

import hashlib
import hmac
import re
from pathlib import Path

from s2d_serve.errors import ConfigError


class Keys:
    """Which keys may pass; without a file, every request may."""

    def __init__(self, file: Path | None) -> None:
        """Raises ConfigError if the file is missing, empty or holds anything but digests."""
        self._digests = None if file is None else _read(file)

    def allow(self, key: str) -> bool:
        """Whether a request with this key may pass."""
        if self._digests is None:
            return True
        digest = hashlib.sha256(key.encode()).hexdigest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]  # all of them
        return any(matches)


def _read(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"auth.api_keys_file {file}: cannot be read: {error}") from None
    digests = [line.strip().lower() for line in lines if line.strip() and line[0] != "#"]
    for number, digest in enumerate(digests, start=1):
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ConfigError(
                f"auth.api_keys_file {file}: entry {number} is no SHA-256 digest (64 hex digits); "
                "make one with: printf %s KEY | sha256sum"
            )
    if not digests:
        raise ConfigError(f"auth.api_keys_file {file}: holds no digest; nobody could get in")
    return tuple(digests)
