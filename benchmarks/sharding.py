"""A target over several ranks beside the same one whole: text, memory, speed.

    python -m benchmarks.sharding SOURCE --ranks 3

Each rank is a process of one thread on this machine, in float32, connected by gloo over loopback.
Memory is what a process has for itself (unique set size) once all texts are made.
"""

import argparse
import multiprocessing
import os
import time
from multiprocessing.queues import SimpleQueue

import psutil

from s2d_serve.config import TargetConfig
from s2d_serve.engine.assemble import load_follower, load_target
from s2d_serve.engine.messages import SequenceStart, Shard
from s2d_serve.engine.sharding import ShardGroup, follow, open_store
from s2d_serve.engine.step import ReferenceLoop
from s2d_serve.engine.target import TargetModel
from s2d_serve.speculation.params import SamplingParams
from tests.engine.test_identity import encode

HOST = "127.0.0.1"
MB = 2**20
NUM_PROMPTS = 20


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    options = parser.parse_args()
    config = TargetConfig(
        source=options.source,
        dtype="float32",
        num_threads=1,
        max_context=512,
        max_sequences=1,
        tensor_parallel_size=options.ranks,
        collective_timeout_s=60,
    )
    context = multiprocessing.get_context("spawn")
    whole: SimpleQueue[list[list[int]]] = context.SimpleQueue()
    alone = context.Process(target=_whole, args=(config, options.tokens, whole))
    alone.start()
    expected = whole.get()
    alone.join()
    store = open_store(HOST)
    shards = [Shard(rank, options.ranks, HOST, store.port, HOST) for rank in range(options.ranks)]
    followers = [
        context.Process(target=_follow, args=(shard, config), daemon=True) for shard in shards[1:]
    ]
    for process in followers:
        process.start()
    target, checkpoint = load_target(config, ShardGroup(shards[0], config, store))
    prompts = encode(checkpoint, NUM_PROMPTS)
    texts = _generate("sharded", target, prompts, options.tokens)
    num_equal = sum(text == other for text, other in zip(texts, expected, strict=True))
    print(f"same text: {num_equal} of {len(texts)}")
    for rank, pid in enumerate([os.getpid(), *(process.pid for process in followers)]):
        print(f"rank {rank}: {psutil.Process(pid).memory_full_info().uss / MB:.0f} MB")
    for process in followers:  # they wait for their next pass
        process.kill()
    os._exit(0)


def _whole(config: TargetConfig, num_tokens: int, texts: "SimpleQueue[list[list[int]]]") -> None:
    target, checkpoint = load_target(config.model_copy(update={"tensor_parallel_size": 1}))
    prompts = encode(checkpoint, NUM_PROMPTS)
    texts.put(_generate("whole", target, prompts, num_tokens))
    print(f"whole: {psutil.Process().memory_full_info().uss / MB:.0f} MB", flush=True)


def _follow(shard: Shard, config: TargetConfig) -> None:
    group = ShardGroup(shard, config)
    follow(load_follower(config, group), group)


def _generate(
    name: str, target: TargetModel, prompts: list[list[int]], num_tokens: int
) -> list[list[int]]:
    """Greedy texts, and how fast they came."""
    texts: list[list[int]] = []
    started = time.monotonic()
    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.0)
        start = SequenceStart(f"{name}-{number}", 0, tuple(prompt), len(prompt), params, num_tokens)
        texts.append(
            [t for _, outcome in ReferenceLoop(target).generate([start]) for t in outcome.token_ids]
        )
    seconds = time.monotonic() - started
    print(f"{name}: {sum(map(len, texts)) / seconds:.2f} tokens/s", flush=True)
    return texts


if __name__ == "__main__":
    main()
