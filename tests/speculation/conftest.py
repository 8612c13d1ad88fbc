import pytest


@pytest.fixture(autouse=True)
def tensors_are_tiny(one_thread: None) -> None:
    """All tests of this room."""
