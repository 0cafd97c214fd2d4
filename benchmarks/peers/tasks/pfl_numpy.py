"""pfl-research with its numpy operations: SimulatedBackend and FederatedAveraging.

pfl-research brings no model and no SGD for numpy: the model is written here as its StatefulModel,
and the local steps are those of the plain loop.
"""

import contextlib
import io

from measured import Meter, given
from mlp import join, one_hot, sgd_step, split
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.base import StatefulModel
from pfl.stats import MappedVectorStatistics

meter = Meter()
work = given()
labels = one_hot(work.y)
NAMES = ("kernel_1", "bias_1", "kernel_2", "bias_2")


class Mlp(StatefulModel):
    """The four arrays, and what pfl-research asks of a model with state."""

    def __init__(self, parts):
        super().__init__()
        self.parts = dict(zip(NAMES, parts, strict=True))

    def get_parameters(self, placeholders=None):
        if placeholders is None:
            return MappedVectorStatistics({n: part.copy() for n, part in self.parts.items()})
        for name, part in self.parts.items():
            placeholders[name][...] = part
        return placeholders

    def set_parameters(self, w):
        for name, part in self.parts.items():
            part[...] = w[name]

    def get_model_difference(self, other_parameters, clone=False):
        return MappedVectorStatistics({n: p - other_parameters[n] for n, p in self.parts.items()})

    def apply_model_update(self, statistics):
        for name, part in self.parts.items():
            part += statistics[name]
        return self, Metrics()

    def evaluate(self, dataset, name_formatting_fn, eval_params=None):
        return Metrics()

    def save(self, dir_path): ...

    def load(self, dir_path): ...


class NumpyAveraging(FederatedAveraging):
    """FedAvg whose local steps are taken in numpy."""

    def train_one_user(self, initial_model_state, model, user_dataset, central_context):
        parameters = central_context.model_train_params
        for x, y in user_dataset.iter(parameters.get("local_batch_size")):
            sgd_step(list(model.parts.values()), x, y, parameters.get("local_learning_rate"))
        return model.get_model_difference(initial_model_state), Metrics()


class Marks(TrainingProcessCallback):
    """Marks the rounds."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        meter.round()
        return False, Metrics()


def make_dataset(user_id):
    """A client's rows in the order of its round."""
    round_index, client = user_id
    order = work.orders[round_index, client]
    return Dataset((work.x[client].take(order, 0), labels[client].take(order, 0)), str(client))


everyone = iter([(n, client) for n in range(work.rounds) for client in range(work.clients)])
data = FederatedDataset(make_dataset, lambda: next(everyone))
algorithm = NumpyAveraging()
with contextlib.redirect_stdout(io.StringIO()):
    model = algorithm.run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds + 1,
            train_cohort_size=work.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(data, None),
        Mlp(split(work.theta.copy())),
        NNTrainHyperParams(
            local_batch_size=work.batch, local_num_epochs=1, local_learning_rate=work.rate
        ),
        callbacks=[Marks()],
        send_metrics_to_platform=False,
    )
meter.finish(join(list(model.parts.values())), "pfl", "numpy")
