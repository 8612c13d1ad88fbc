"""A memory that forgets the oldest."""

from collections import OrderedDict
from typing import Any

MAX_REMEMBERED = 4096
"""Ended sequences, and lanes' last replies, that an executor remembers."""


class Remembered(OrderedDict[str, Any]):
    """The latest `MAX_REMEMBERED` entries."""

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > MAX_REMEMBERED:
            self.popitem(last=False)
