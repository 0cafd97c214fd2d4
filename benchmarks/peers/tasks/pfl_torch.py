"""pfl-research on PyTorch: its own PyTorchModel, FederatedAveraging and SimulatedBackend."""

import contextlib
import io

import torch
from measured import Meter, given
from mlp import CLASSES, FEATURES, HIDDEN, join, split
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

meter = Meter()
work = given()
torch.set_num_threads(1)


class Mlp(torch.nn.Module):
    """64-32-10."""

    def __init__(self, theta):
        super().__init__()
        self.first = torch.nn.Linear(FEATURES, HIDDEN)
        self.second = torch.nn.Linear(HIDDEN, CLASSES)
        kernel_1, bias_1, kernel_2, bias_2 = (torch.tensor(part) for part in split(theta))
        with torch.no_grad():
            self.first.weight.copy_(kernel_1.T)
            self.first.bias.copy_(bias_1)
            self.second.weight.copy_(kernel_2.T)
            self.second.bias.copy_(bias_2)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))

    def loss(self, x, y, is_eval=False):
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x, y):
        return {}

    def theta(self):
        layers = [self.first.weight.T, self.first.bias, self.second.weight.T, self.second.bias]
        return join([part.detach().numpy() for part in layers])


class Marks(TrainingProcessCallback):
    """Marks the rounds."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        meter.round()
        return False, Metrics()


def make_dataset(user_id):
    """A client's rows in the order of its round."""
    round_index, client = user_id
    x, y = work.rows(round_index, client)
    tensors = (torch.from_numpy(x), torch.from_numpy(y).long())
    return PyTorchTensorDataset(tensors, user_id=str(client))


everyone = iter([(n, client) for n in range(work.rounds) for client in range(work.clients)])
module = Mlp(work.theta)
with contextlib.redirect_stdout(io.StringIO()):
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds + 1,
            train_cohort_size=work.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(FederatedDataset(make_dataset, lambda: next(everyone)), None),
        # A central step of 1 along the mean update is FedAvg.
        PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0)),
        NNTrainHyperParams(
            local_batch_size=work.batch, local_num_epochs=1, local_learning_rate=work.rate
        ),
        callbacks=[Marks()],
        send_metrics_to_platform=False,
    )
meter.finish(module.theta(), "pfl", "torch", "numpy")
