from __future__ import annotations

import pytest

from models.package.package import ModelPackage
from models.runtime.interpreters import available_runtimes
from models.runtime.wheels import DEVICE_RUNTIMES
from models.zoo import load_zoo


@pytest.fixture(params=DEVICE_RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    if request.param not in available_runtimes():
        pytest.skip(f"{request.param} is not installed")
    name: str = request.param
    return name


@pytest.fixture
def package() -> ModelPackage:
    return load_zoo("house_price")
