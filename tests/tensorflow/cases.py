"""Cases of the exporter's tests: layers whose exported gradient is compared with Keras's own.

`docs/models.md` shows these cases as a table (`python -m tests.tensorflow.cases` prints it). Cases
of one frame are branches of one model, so that a test does not pay for an export of its own.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from models.export.backend import keras

layers = keras.layers

#: A piece of a model: tensor to tensor.
Piece = Callable[[Any], Any]

#: Input of one row and what comes before the tested layer, which then needs an input gradient too.
FRAMES: dict[str, tuple[tuple[int, ...], str, Piece | None]] = {
    "vector": ((6,), "float32", lambda x: layers.Dense(8)(x)),
    "steps": ((3, 3), "float32", lambda x: layers.Dense(4)(x)),
    "long": ((37, 3), "float32", lambda x: layers.Dense(4)(x)),
    "series": ((13, 3), "float32", lambda x: layers.Conv1D(4, 3)(x)),
    "image": ((10, 9, 2), "float32", lambda x: layers.Conv2D(4, 3)(x)),
    "words": ((5,), "int32", None),
}


@dataclass(frozen=True)
class Case:
    """One layer or expression to compare.

    Attributes:
        family: row of the table.
        layer: what is tested, a Keras class where it is one.
        options: in which form; "" is Keras's defaults. The table has what is before the colon.
        frame: a key of `FRAMES`.
        piece: the layer at work.
    """

    family: str
    layer: str
    options: str
    frame: str
    piece: Piece

    @property
    def name(self) -> str:
        """For the test's id."""
        return " ".join(filter(None, (self.layer, self.options)))


def _each(kinds: list[str], *sizes: Any, **options: Any) -> Iterator[tuple[str, Piece]]:
    for kind in kinds:
        yield kind, partial(_apply, kind, sizes, options)


def _apply(kind: str, sizes: Any, options: Any, x: Any) -> Any:
    return getattr(layers, kind)(*sizes, **options)(x)


def _dense() -> Iterator[Case]:
    make = partial(Case, "dense")
    yield make("Dense", "", "vector", layers.Dense(5))
    yield make("Dense", "on the last axis", "series", layers.Dense(5))
    yield make("Dense", "one of many", "vector", lambda x: layers.Dense(1)(layers.Dense(80)(x)))
    yield make("Dense", "of one number", "vector", lambda x: layers.Dense(5)(_one_number(x)))
    yield make(
        "EinsumDense", "", "series", layers.EinsumDense("abc,cd->abd", (11, 5), bias_axes="d")
    )
    yield make(
        "EinsumDense", "two new axes", "series", layers.EinsumDense("abc,cde->abde", (11, 2, 3))
    )


def _one_number(x: Any) -> Any:
    return keras.ops.expand_dims(keras.ops.sum(x, -1), -1)


def _convolutions() -> Iterator[Case]:
    make = partial(Case, "convolutions")
    for padding in ("valid", "same"):
        for size, stride in ((3, 1), (3, 2), (2, 3)):
            text = padding if stride == 1 else f"{padding}, strides: {stride} of {size}"
            options = {"strides": stride, "padding": padding}
            yield make("Conv1D", text, "series", layers.Conv1D(5, size, **options))
            yield make("Conv2D", text, "image", layers.Conv2D(5, size, **options))
            depthwise = layers.DepthwiseConv2D(size, depth_multiplier=2, **options)
            yield make("DepthwiseConv2D", text, "image", depthwise)
        # Made of the operators above: one form each.
        text, options = f"{padding}, strides", {"strides": 2, "padding": padding}
        yield make("DepthwiseConv1D", text, "series", layers.DepthwiseConv1D(3, **options))
        yield make("SeparableConv1D", text, "series", layers.SeparableConv1D(5, 3, **options))
        yield make("SeparableConv2D", text, "image", layers.SeparableConv2D(5, 3, **options))
        dilated = {"dilation_rate": 2, "padding": padding}
        text = f"{padding}, dilated"
        yield make("Conv2D", text, "image", layers.Conv2D(3, 3, **dilated))
        yield make("DepthwiseConv1D", text, "series", layers.DepthwiseConv1D(2, **dilated))
        yield make("DepthwiseConv2D", text, "image", layers.DepthwiseConv2D(2, **dilated))
        yield make("SeparableConv2D", text, "image", layers.SeparableConv2D(3, 3, **dilated))
        grouped = layers.Conv2D(6, (3, 2), groups=2, strides=2, padding=padding)
        yield make("Conv2D", f"{padding}, groups", "image", grouped)
        transposed = layers.Conv2DTranspose(4, (3, 4), strides=2, padding=padding)
        yield make("Conv2DTranspose", padding, "image", transposed)
        yield make("Conv1D", f"{padding}, dilated", "series", layers.Conv1D(3, 3, **dilated))
        dilated_apart = layers.SeparableConv1D(3, 3, **dilated)
        yield make("SeparableConv1D", f"{padding}, dilated", "series", dilated_apart)
        grouped = layers.Conv1D(6, 3, groups=2, padding=padding)
        yield make("Conv1D", f"{padding}, groups", "series", grouped)
    causal = layers.Conv1D(5, 3, padding="causal", dilation_rate=2)
    yield make("Conv1D", "causal, dilated", "series", causal)
    grouped = layers.Conv1D(6, 3, groups=2, padding="causal", dilation_rate=2)
    yield make("Conv1D", "causal, dilated, groups", "series", grouped)
    yield make("Conv1DTranspose", "", "series", layers.Conv1DTranspose(5, 3, strides=2))


def _pooling() -> Iterator[Case]:
    make = partial(Case, "pooling")
    for padding in ("valid", "same"):
        for size, stride in ((3, 3), (3, 2), (3, 1), (2, 3)):
            form = "overlapping" if stride < size else "with gaps"
            text = padding if stride == size else f"{padding}, {form}: {stride} of {size}"
            options = {"strides": stride, "padding": padding}
            if stride != 1:
                for kind, piece in _each(["MaxPooling1D", "AveragePooling1D"], size, **options):
                    yield make(kind, text, "series", piece)
            for kind, piece in _each(["MaxPooling2D", "AveragePooling2D"], (size, 2), **options):
                yield make(kind, text, "image", piece)
    for kind, piece in _each(["GlobalMaxPooling1D", "GlobalAveragePooling1D"]):
        yield make(kind, "", "series", piece)
    for kind, piece in _each(["GlobalMaxPooling2D", "GlobalAveragePooling2D"]):
        yield make(kind, "", "image", piece)


def _normalizing() -> Iterator[Case]:
    make = partial(Case, "normalizing")
    yield make("LayerNormalization", "", "series", layers.LayerNormalization())
    yield make("LayerNormalization", "of a vector", "vector", layers.LayerNormalization())
    yield make("RMSNormalization", "", "series", layers.RMSNormalization())
    yield make("UnitNormalization", "", "series", layers.UnitNormalization())
    over_steps = layers.LayerNormalization(axis=[1, 2])
    yield make("LayerNormalization", "over two axes", "series", over_steps)
    yield make("GroupNormalization", "", "image", layers.GroupNormalization(2))
    yield make("GroupNormalization", "one group", "series", layers.GroupNormalization(1))
    yield make("GroupNormalization", "a group per channel", "image", layers.GroupNormalization(-1))
    yield make("BatchNormalization", "", "image", layers.BatchNormalization())
    yield make("BatchNormalization", "of a vector", "vector", layers.BatchNormalization())
    plain = layers.BatchNormalization(momentum=0.8, scale=False, center=False)
    yield make("BatchNormalization", "without scale", "series", plain)


def _recurrent() -> Iterator[Case]:
    make = partial(Case, "recurrent")
    for kind, piece in _each(["SimpleRNN", "GRU", "LSTM"], 3):
        yield make(kind, "", "steps", piece)
    yield make("GRU", "reset before", "steps", layers.GRU(3, reset_after=False))
    backwards = layers.LSTM(3, return_sequences=True, go_backwards=True)
    yield make("LSTM", "sequences, backwards", "steps", backwards)
    yield make("Bidirectional", "", "steps", layers.Bidirectional(layers.GRU(3)))
    for mode in ("sum", "mul", "ave"):
        both = layers.Bidirectional(layers.LSTM(3, return_sequences=True), merge_mode=mode)
        yield make("Bidirectional", mode, "steps", both)

    def masked(x: Any) -> Any:
        # Some steps of a row are skipped: ReLU makes them zero.
        return layers.GRU(3)(layers.Masking(0.0)(layers.Dense(1, activation="relu")(x)))

    yield make("Masking", "GRU", "steps", masked)
    cells = [layers.LSTMCell(3), layers.SimpleRNNCell(2)]
    yield make("RNN", "stacked cells", "steps", layers.RNN(cells))
    # More steps than are unrolled: loops, some with steps left over.
    make = partial(Case, "recurrent, long")
    for kind, piece in _each(["SimpleRNN", "GRU", "LSTM"], 3):
        yield make(kind, "", "long", piece)
    backwards = layers.LSTM(3, return_sequences=True, go_backwards=True)
    yield make("LSTM", "sequences, backwards", "long", backwards)
    both = layers.Bidirectional(layers.GRU(2, return_sequences=True, reset_after=False))
    yield make("Bidirectional", "sequences, reset before", "long", both)
    cells = [layers.LSTMCell(2), layers.SimpleRNNCell(3)]
    yield make("RNN", "stacked cells", "long", layers.RNN(cells))
    yield make("GRU", "sequences", "long", layers.GRU(3, return_sequences=True))
    yield make("GRU", "states from an LSTM's", "long", _from_states)
    make = partial(Case, "recurrent, long, masked")
    masking = {
        "GRU": layers.GRU(3),
        "LSTM, sequences, backwards": layers.LSTM(3, return_sequences=True, go_backwards=True),
        "Bidirectional GRU": layers.Bidirectional(layers.GRU(2, return_sequences=True)),
    }
    for text, piece in masking.items():
        yield make("Masking", text, "long", partial(_after_masking, piece))


def _after_masking(piece: Any, x: Any) -> Any:
    # Some steps of a row are skipped: ReLU makes them zero.
    found = piece(layers.Masking(0.0)(layers.Dense(1, activation="relu")(x)))
    # A sequence's mask ends here.
    return layers.GRU(2)(found) if len(found.shape) == 3 else found


def _from_states(x: Any) -> Any:
    found, hidden, _ = layers.LSTM(3, return_sequences=True, return_state=True)(x)
    return layers.GRU(3)(found, initial_state=hidden)


def _random() -> Iterator[Case]:
    make = partial(Case, "random")
    yield make("Dropout", "", "series", layers.Dropout(0.3))
    yield make("Dropout", "noise_shape", "series", layers.Dropout(0.3, noise_shape=(None, 1, None)))
    for kind, piece in _each(
        ["SpatialDropout1D", "GaussianDropout", "GaussianNoise", "AlphaDropout"], 0.3
    ):
        yield make(kind, "", "series", piece)
    yield make("SpatialDropout2D", "", "image", layers.SpatialDropout2D(0.3))


def _embedding() -> Iterator[Case]:
    make = partial(Case, "embedding")
    yield make("Embedding", "", "words", layers.Embedding(9, 4))

    def masked(x: Any) -> Any:
        return layers.GlobalAveragePooling1D()(layers.Embedding(9, 4, mask_zero=True)(x))

    yield make("Embedding", "mask_zero, average", "words", masked)

    def masked_gru(x: Any) -> Any:
        return layers.GRU(3)(layers.Embedding(9, 4, mask_zero=True)(x))

    yield make("Embedding", "mask_zero, GRU", "words", masked_gru)


def _attention() -> Iterator[Case]:
    def attend(x: Any, dropout: float = 0.0) -> Any:
        return layers.MultiHeadAttention(2, 3, dropout=dropout)(x, x)

    def across(x: Any) -> Any:
        heads = layers.MultiHeadAttention(2, 3, value_dim=2, output_shape=5)
        return heads(layers.Dense(4)(x[:, :6]), x)

    def causally(x: Any) -> Any:
        return layers.MultiHeadAttention(2, 3)(x, x, use_causal_mask=True)

    yield Case("attention", "MultiHeadAttention", "", "series", attend)
    yield Case("attention", "MultiHeadAttention", "of two inputs", "series", across)
    yield Case("attention", "MultiHeadAttention", "causal", "series", causally)
    for kind in ("Attention", "AdditiveAttention"):
        yield Case("attention", kind, "", "series", partial(_attend_simply, kind))
    yield Case("random", "MultiHeadAttention", "dropout", "series", partial(attend, dropout=0.3))


def _attend_simply(kind: str, x: Any) -> Any:
    return getattr(layers, kind)()([layers.Dense(4)(x), x])


_SLICES: tuple[tuple[str, str, Piece], ...] = (
    ("steps", "image", lambda x: x[:, 1::3, :-1:2]),
    ("backwards", "series", lambda x: x[:, ::-1, 3:0:-2]),
    ("ellipsis", "image", lambda x: x[..., 1:3]),
    ("one of an axis", "image", lambda x: x[:, -2, ..., 0]),
    ("new axes", "series", lambda x: x[:, None, 2:, ..., None]),
)


def _shapes() -> Iterator[Case]:
    make = partial(Case, "shape")
    yield make("Flatten", "", "image", layers.Flatten())
    yield make("Permute", "", "series", layers.Permute((2, 1)))
    yield make("Reshape", "", "series", layers.Reshape((4, 11)))
    yield make("RepeatVector", "", "vector", layers.RepeatVector(3))
    yield make("UpSampling1D", "", "series", layers.UpSampling1D(2))
    yield make("UpSampling2D", "nearest", "image", layers.UpSampling2D((2, 3)))
    yield make("ZeroPadding1D", "", "series", layers.ZeroPadding1D((1, 2)))
    yield make("ZeroPadding2D", "", "image", layers.ZeroPadding2D(2))
    yield make("Cropping1D", "", "series", layers.Cropping1D((0, 1)))
    yield make("Cropping2D", "", "image", layers.Cropping2D(((1, 2), (0, 1))))
    yield make("TimeDistributed", "", "series", layers.TimeDistributed(layers.Dense(3)))
    normal = layers.TimeDistributed(layers.BatchNormalization())
    yield make("TimeDistributed", "BatchNormalization", "series", normal)
    pictures = layers.TimeDistributed(layers.Conv1D(2, 2))
    yield make("TimeDistributed", "Conv1D", "image", pictures)
    for text, frame, piece in _SLICES:
        yield make("x[...]", text, frame, piece)
    for axis in (1, -1):
        take = partial(keras.ops.take, indices=np.array([[0, 3], [2, 3]]), axis=axis)
        yield make("keras.ops.take", f"axis {axis}", "series", take)


def _joining() -> Iterator[Case]:
    for kind in (
        *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Concatenate"),
        "Dot",
    ):
        yield Case("joining", kind, "", "vector", partial(_join, kind))


def _join(kind: str, x: Any) -> Any:
    layer = layers.Dot(-1) if kind == "Dot" else getattr(layers, kind)()
    return layer([layers.Dense(4)(x), layers.Dense(4)(x)])


def _activations() -> Iterator[Case]:
    make = partial(Case, "activation layers")
    yield make("ReLU", "", "vector", layers.ReLU(max_value=1.0, negative_slope=0.1))
    yield make("LeakyReLU", "", "vector", layers.LeakyReLU(0.2))
    yield make("ELU", "", "vector", layers.ELU(0.7))
    yield make("PReLU", "", "vector", layers.PReLU())
    yield make("Softmax", "", "series", layers.Softmax(axis=1))
    for name in (
        *("relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh"),
        *("sigmoid", "hard_sigmoid", "hard_silu", "softmax", "log_softmax", "softplus"),
        *("softsign", "exponential"),
    ):
        yield Case("activations", name, "", "vector", layers.Activation(name))


def all_cases() -> list[Case]:
    """Returns every case, with new layers."""
    families = (
        *(_dense, _convolutions, _pooling, _normalizing, _recurrent, _embedding, _attention),
        *(_random, _shapes, _joining, _activations),
    )
    return [case for family in families for case in family()]


def table() -> str:
    """Returns the table of `docs/models.md`."""
    rows: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for case in all_cases():
        forms = rows[case.family][case.layer]
        form = case.options.split(":")[0]
        if form and form not in forms:
            forms.append(form)
    lines = ["| | compared with Keras |", "|---|---|"]
    for family, kinds in rows.items():
        cells = [
            f"`{kind}` ({'; '.join(forms)})" if forms else f"`{kind}`"
            for kind, forms in kinds.items()
        ]
        lines.append(f"| {family} | {', '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
