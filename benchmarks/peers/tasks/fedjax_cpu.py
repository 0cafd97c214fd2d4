"""FedJAX on its CPU backend: `fedjax.algorithms.fed_avg`, the model from haiku."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import fedjax
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
from measured import Meter, given
from mlp import CLASSES, FEATURES, HIDDEN, join, split

meter = Meter()
work = given()


def forward(batch):
    """64-32-10."""
    return hk.Sequential([hk.Linear(HIDDEN), jax.nn.relu, hk.Linear(CLASSES)])(batch["x"])


def loss(batch, scores):
    """Cross-entropy of each row."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), batch["y"][:, None], 1)
    return -chosen[:, 0]


def dataset(round_index, client):
    """A client's rows in the order of its round."""
    x, y = work.rows(round_index, client)
    return fedjax.ClientDataset({"x": x, "y": y})


model = fedjax.create_model_from_haiku(
    transformed_forward_pass=hk.transform(forward),
    sample_batch={"x": np.zeros((1, FEATURES), np.float32)},
    train_loss=loss,
)
algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    fedjax.model_grad(model),
    client_optimizer=fedjax.optimizers.sgd(work.rate),
    server_optimizer=fedjax.optimizers.sgd(1.0),
    client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
        batch_size=work.batch, num_epochs=1, skip_shuffle=True
    ),
)
kernel_1, bias_1, kernel_2, bias_2 = (jnp.asarray(part) for part in split(work.theta))
names = sorted(model.init(jax.random.PRNGKey(0)))
layers = [{"w": kernel_1, "b": bias_1}, {"w": kernel_2, "b": bias_2}]
state = algorithm.init(dict(zip(names, layers, strict=True)))
keys = jax.random.split(jax.random.PRNGKey(0), work.clients)
for round_index in range(work.rounds):
    clients = [(str(n), dataset(round_index, n), keys[n]) for n in range(work.clients)]
    state, _ = algorithm.apply(state, clients)
    jax.block_until_ready(state.params)
    meter.round()
parts = [np.asarray(state.params[name][key]) for name in names for key in ("w", "b")]
meter.finish(join(parts), "fedjax", "jax", "dm-haiku", "numpy")
