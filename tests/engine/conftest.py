"""Unit tests get a cache of their own; those with real weights use the user's, where they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path | None]:
    if any(request.node.get_closest_marker(name) for name in ("weights", "bench")):
        yield None
        return
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("cache")
        patch.setenv("S2D_CACHE", str(cache))
        yield cache
