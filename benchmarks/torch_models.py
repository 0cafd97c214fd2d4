"""The zoo's models in PyTorch, for `training.py`: same shapes, same number of parameters."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class _Shaped(nn.Module):
    """Another shape or order of axes."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._change = change

    def forward(self, x: Tensor) -> Tensor:
        return self._change(x)


class _LastState(nn.Module):
    """A GRU's state after the last step."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self._cell = nn.GRU(inputs, units, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self._cell(x)
        return state[0]


def _channels() -> nn.Module:
    return _Shaped(lambda x: x.unsqueeze(1))


def _keyword_spotting() -> nn.Sequential:
    return nn.Sequential(
        _channels(),
        nn.ZeroPad2d((1, 1, 4, 5)),
        nn.Conv2d(1, 16, (10, 4), stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 24, 1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.Conv2d(24, 24, 1),
        nn.ReLU(),
        _Shaped(lambda x: x.amax((2, 3))),
        nn.Linear(24, 12),
    )


def _handwritten_digit_cnn() -> nn.Sequential:
    return nn.Sequential(
        _channels(),
        nn.Conv2d(1, 8, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def _wearable_activity() -> nn.Sequential:
    return nn.Sequential(
        _Shaped(lambda x: x.transpose(1, 2)),
        nn.Conv1d(6, 24, 21, stride=3),
        nn.ReLU(),
        _Shaped(lambda x: x.amax(2)),
        nn.Linear(24, 7),
    )


def _dense(*widths: int) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Flatten()]
    for inputs, units in pairwise(widths):
        parts += [nn.Linear(inputs, units), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _anomaly_autoencoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(420, 32),
        nn.ReLU(),
        nn.Linear(32, 8),
        nn.Linear(8, 32),
        nn.ReLU(),
        nn.Linear(32, 420),
        _Shaped(lambda x: x.reshape(-1, 30, 14)),
    )


#: Models by name; those with several inputs are left out.
BUILDERS: dict[str, Callable[[], nn.Sequential]] = {
    "anomaly_autoencoder": _anomaly_autoencoder,
    "comment_spam": lambda: _dense(1024, 1),
    "dense_64_128_10": lambda: _dense(64, 128, 10),
    "handwritten_digit": lambda: _dense(784, 200, 200, 10),
    "handwritten_digit_cnn": _handwritten_digit_cnn,
    "house_price": lambda: _dense(2, 1),
    "keyword_spotting": _keyword_spotting,
    "road_traffic": lambda: nn.Sequential(_LastState(3, 8), nn.Linear(8, 1)),
    "wearable_activity": _wearable_activity,
}
#: Keras's losses, from logits as is PyTorch's custom.
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sparse_categorical_crossentropy": lambda y, t: functional.cross_entropy(y, t.long()),
    "binary_crossentropy": lambda y, t: functional.binary_cross_entropy_with_logits(
        y.reshape(t.shape), t.float()
    ),
    "mean_squared_error": lambda y, t: functional.mse_loss(y.reshape(t.shape), t),
}


def eager_step(name: str, spec: Any, inputs: Any, target: Any, rate: float) -> Callable[[], float]:
    """One step of SGD in eager mode."""
    torch.set_num_threads(1)
    model = BUILDERS[name]()
    count = sum(parameter.numel() for parameter in model.parameters())
    if count != spec.size:
        raise ValueError(f"{name} has {spec.size} parameters, its twin in PyTorch {count}")
    x, t = torch.from_numpy(inputs), torch.from_numpy(target)
    loss_of = _LOSSES[spec.loss]
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model(x), t)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return float(loss.detach())

    return step
