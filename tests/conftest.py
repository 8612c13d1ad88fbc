from collections.abc import Iterator

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--device cuda`: the same tests, their models on a GPU."""
    parser.addoption("--device", default="cpu", help="where models live: cpu or cuda")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Where a test that can choose puts its models."""
    return str(request.config.getoption("--device"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads cost tiny tensors more than they save: on busy cores 3x the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
