"""Router, draft and targets on hosts of their own."""

import os
import signal
import time
from typing import Any

import pytest

from tests.hosts.conftest import Hosts

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(600)]

PROMPTS = ["the thing", "stop the string, ", "é " * 40, "in the thing " * 30]


def text_of(completion: dict[str, Any]) -> str:
    text: str = completion["choices"][0]["text"]
    return text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_target_over_two_hosts_gives_the_whole_ones_text(
    hosts: Hosts, temperature: float
) -> None:
    for prompt in PROMPTS:
        body = {"prompt": prompt, "max_tokens": 60, "temperature": temperature, "seed": 3}
        sharded = hosts.ask("tiny-sharded", **body)
        assert text_of(sharded) == text_of(
            hosts.ask("tiny", **body, speculation={"enabled": False})
        )
        assert sharded["metrics"]["speculative_decoding"]["num_accepted_draft_tokens"] > 10
