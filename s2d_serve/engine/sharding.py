"""A target over several ranks: transformers splits the layers' weights, each rank keeps the KV of
its own heads.

Rank 0 leads: it takes the calls, tells the others which tokens a pass reads, and alone computes
logits and samples. A rank that is lost or stuck makes the collectives of all others fail.
"""

import os
from collections.abc import Sequence
from dataclasses import astuple
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.distributed_c10d import _set_pg_timeout
from transformers import PreTrainedModel

from s2d_serve.config import TargetConfig
from s2d_serve.engine.cache import Row
from s2d_serve.engine.messages import Shard
from s2d_serve.engine.sources import resolve
from s2d_serve.engine.trunk import Trunk
from s2d_serve.errors import ConfigError

WAIT_FOR_RANKS = timedelta(hours=1)
"""Fetching and converting weights takes one rank longer than another."""
WAIT_FOR_WORK = timedelta(days=365)
"""A rank may wait for its next pass as long as nobody asks anything."""
ROW_SIZE = 4
"""Numbers in a `Row`."""


class ShardGroup:
    """The ranks of one target, connected."""

    def __init__(self, shard: Shard, config: TargetConfig, store: Store | None = None) -> None:
        """Fetch the weights' files, and return when all ranks have them.

        Args:
            store: rank 0's own; the others connect to it.

        Raises:
            torch.distributed.DistError: a rank did not come in time.
            ConfigError: this machine does not have that address.
        """
        if store is None:
            store = TCPStore(shard.host, shard.port, is_master=False, timeout=WAIT_FOR_RANKS)
        resolve(config)
        _meet(store, shard)
        interface = interface_of(shard.own_host)
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface
        dist.init_process_group(
            "gloo" if config.device == "cpu" else "nccl",
            store=store,
            rank=shard.rank,
            world_size=shard.size,
        )
        self.shard = shard
        self._timeout = timedelta(seconds=config.collective_timeout_s)
        patience = WAIT_FOR_WORK if shard.rank else self._timeout
        self._work = dist.new_group(backend="gloo", timeout=patience)

    def limit(self, model: PreTrainedModel) -> None:
        """Put the time limit on the layers' collectives: torch gives the groups of a device mesh
        its own default.
        """
        _set_pg_timeout(self._timeout, model._device_mesh.get_group("tp"))  # type: ignore[attr-defined]  # once sharded

    def lead(self, rows: Sequence[Row], token_ids: Sequence[int]) -> None:
        """Tell the other ranks what the next pass reads."""
        body = [number for row in rows for number in astuple(row)] + list(token_ids)
        dist.broadcast(torch.tensor([len(rows), len(body)]), 0, group=self._work)
        dist.broadcast(torch.tensor(body), 0, group=self._work)

    def follow(self) -> tuple[list[Row], list[int]]:
        """Wait until rank 0 says what the next pass reads.

        Raises: RuntimeError if rank 0 is gone.
        """
        head = torch.empty(2, dtype=torch.int64)
        dist.broadcast(head, 0, group=self._work)
        num_rows, size = head.tolist()
        body = torch.empty(size, dtype=torch.int64)
        dist.broadcast(body, 0, group=self._work)
        numbers = body.tolist()
        split = num_rows * ROW_SIZE
        rows = [Row(*numbers[i : i + ROW_SIZE]) for i in range(0, split, ROW_SIZE)]
        return rows, numbers[split:]


class LeadingTrunk(Trunk):
    """Rank 0's part of a sharded checkpoint: its passes run on all ranks."""

    def __init__(self, group: ShardGroup, model: PreTrainedModel, *sizes: int) -> None:
        """`sizes`: vocabulary, slots and capacity, as of a `Trunk`."""
        super().__init__(model, *sizes)
        self._group = group

    def forward(self, rows: Sequence[Row], token_ids: Sequence[int]) -> Tensor:
        """Run a pass, here and on the ranks that follow."""
        self._group.lead(rows, token_ids)
        return super().forward(rows, token_ids)

    def prepare(self) -> None:
        """Bring the LM head into the best layout; the layers stay as transformers split them."""
        self.prepare_head()


@torch.inference_mode()
def follow(trunk: Trunk, group: ShardGroup) -> None:
    """Run rank 0's passes on this rank's part, for ever.

    Raises: RuntimeError when another rank is lost or stuck.
    """
    while True:
        trunk.forward(*group.follow())


def open_store(host: str) -> TCPStore:
    """Where the ranks of a target find each other: at a free port of rank 0's address."""
    return TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=WAIT_FOR_RANKS)


def _meet(store: Store, shard: Shard) -> None:
    """Wait for all ranks: torch's own meeting is less patient."""
    store.set(f"rank {shard.rank} is here", "")
    store.wait([f"rank {rank} is here" for rank in range(shard.size)], WAIT_FOR_RANKS)


def interface_of(address: str) -> str:
    """Name of the network interface with this address.

    Raises: ConfigError if this machine has none.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(own.address == address for own in addresses):
            return name
    raise ConfigError(f"no network interface of this machine has the address {address}")
