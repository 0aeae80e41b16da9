"""Options, seeds and files that all tests share."""

import os
from pathlib import Path

# Before torch: idle OpenMP threads spin, and make two test processes slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)
hypothesis.settings.register_profile("slams", deadline=None, derandomize=True)
hypothesis.settings.load_profile("slams")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", help="torch device of tests with the fixture `device`")
    parser.addoption("--dtype", default="float32", help="torch dtype of tests with the fixture `dtype`")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device named by --device."""
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The floating-point type named by --dtype."""
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture
def rng(device: torch.device) -> torch.Generator:
    """A generator with a fixed seed: each test draws the same numbers, alone or with the others."""
    return torch.Generator(device=device).manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real fields and stations: SLAMS_REALDATA, by default a neighbour of the repository."""
    folder = Path(os.environ.get("SLAMS_REALDATA", ROOT.parent / "shared" / "realdata"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set SLAMS_REALDATA to the folder that holds them")
    return folder
