"""The actor that holds one more rank of a sharded target: it runs the passes that rank 0 leads."""

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING

from s2d_serve.config import TargetConfig
from s2d_serve.engine.messages import Shard

if TYPE_CHECKING:
    from s2d_serve.engine.sharding import ShardGroup
    from s2d_serve.engine.trunk import Trunk

log = logging.getLogger("s2d_serve")


class RankExecutor:
    """Follows rank 0 until that is gone, and ends with it."""

    def __init__(self, config: TargetConfig) -> None:
        self._config = config

    async def load(self, shard: Shard) -> None:
        """Load this rank's part and begin to follow; the first call to make.

        Raises: S2DError of any kind.
        """
        loaded = await asyncio.to_thread(self._load, shard)
        threading.Thread(target=_follow, args=loaded, daemon=True).start()

    async def wait_closed(self) -> None:
        """Never returns: a caller learns of this process's end by the error."""
        await asyncio.Event().wait()

    def _load(self, shard: Shard) -> "tuple[Trunk, ShardGroup]":
        from s2d_serve.engine.assemble import load_follower
        from s2d_serve.engine.sharding import ShardGroup

        group = ShardGroup(shard, self._config)
        return load_follower(self._config, group), group


def _follow(trunk: "Trunk", group: "ShardGroup") -> None:
    from s2d_serve.engine.sharding import follow

    try:
        follow(trunk, group)
    except Exception:  # whatever breaks the group ends the replica
        log.exception("rank %d ends: it lost the others", group.shard.rank)
        os._exit(1)
