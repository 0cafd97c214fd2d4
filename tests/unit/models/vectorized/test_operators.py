"""Operators for several agents at a time, compared with numpy for one agent after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from models.inspect.operators import Kind
from models.vectorized.axes import Array, UnsupportedError
from tests.unit.models.vectorized.running import AGENTS, run

_X = np.random.default_rng(1).normal(size=(AGENTS, 4, 5)).astype(np.float32)
_Y = np.random.default_rng(2).normal(size=(AGENTS, 4, 5)).astype(np.float32)
_IMAGES = np.random.default_rng(3).normal(size=(AGENTS, 2, 6, 5, 3)).astype(np.float32)


def _numbers(*numbers: int) -> Array:
    return np.array(numbers, np.int32)


def _same(found: Array, reference: Callable[[int], Array]) -> None:
    wanted = np.stack([reference(agent) for agent in range(AGENTS)])
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        (Kind.ADD, np.add),
        (Kind.SUB, np.subtract),
        (Kind.MUL, np.multiply),
        (Kind.DIV, np.divide),
        (Kind.MAXIMUM, np.maximum),
        (Kind.MINIMUM, np.minimum),
        (Kind.SQUARED_DIFFERENCE, lambda x, y: (x - y) ** 2),
    ],
)
def test_binary_operators_take_numbers_of_agents_and_shared_ones(
    kind: int, reference: Callable[[Array, Array], Array]
) -> None:
    both = run(kind, [_X, _Y], (4, 5), own=(0, 1))[0]
    _same(both, lambda a: reference(_X[a], _Y[a]))
    shared = run(kind, [_X, _Y[0]], (4, 5))[0]
    _same(shared, lambda a: reference(_X[a], _Y[0]))
    # Fewer axes: numbers of an agent are aligned at the end, as those of a program are.
    vector = run(kind, [_X[:, 0], _Y[0]], (4, 5))[0]
    _same(vector, lambda a: reference(_X[a, 0], _Y[0]))


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        (Kind.EQUAL, np.equal),
        (Kind.NOT_EQUAL, np.not_equal),
        (Kind.GREATER, np.greater),
        (Kind.GREATER_EQUAL, np.greater_equal),
        (Kind.LESS, np.less),
        (Kind.LESS_EQUAL, np.less_equal),
    ],
)
def test_comparisons_return_truth_values(
    kind: int, reference: Callable[[Array, Array], Array]
) -> None:
    one, other = np.sign(_X), np.sign(_Y)
    found = run(kind, [one, other], (4, 5), own=(0, 1), dtype=np.bool_)[0]
    assert found.dtype == np.bool_
    _same(found, lambda a: reference(one[a], other[a]))


def _sigmoid(x: Array) -> Array:
    found: Array = 1 / (1 + np.exp(-x))
    return found


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        (Kind.ABS, np.abs),
        (Kind.NEG, np.negative),
        (Kind.EXP, np.exp),
        (Kind.SQUARE, np.square),
        (Kind.SIN, np.sin),
        (Kind.COS, np.cos),
        (Kind.FLOOR, np.floor),
        (Kind.CEIL, np.ceil),
        (Kind.ROUND, np.rint),
        (Kind.TANH, np.tanh),
        (Kind.SIGN, np.sign),
        (Kind.LOGISTIC, _sigmoid),
        (Kind.RELU, lambda x: np.maximum(x, 0)),
        (Kind.RELU6, lambda x: np.clip(x, 0, 6)),
        (Kind.RELU_0_TO_1, lambda x: np.clip(x, 0, 1)),
        (Kind.RELU_N1_TO_1, lambda x: np.clip(x, -1, 1)),
        (Kind.ELU, lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)),
        (Kind.HARD_SWISH, lambda x: x * np.clip(x + 3, 0, 6) / 6),
    ],
)
def test_unary_operators(kind: int, reference: Callable[[Array], Array]) -> None:
    scaled = 4 * _X
    _same(run(kind, [scaled], (4, 5))[0], lambda a: reference(scaled[a]))


@pytest.mark.parametrize(
    ("kind", "reference"),
    [(Kind.LOG, np.log), (Kind.SQRT, np.sqrt), (Kind.RSQRT, lambda x: 1 / np.sqrt(x))],
)
def test_operators_on_positive_numbers(kind: int, reference: Callable[[Array], Array]) -> None:
    positive = np.abs(_X) + 0.1
    _same(run(kind, [positive], (4, 5))[0], lambda a: reference(positive[a]))


def test_logistic_of_huge_numbers_is_0_and_1() -> None:
    huge = np.tile(np.array([-1000.0, 0.0, 1000.0], np.float32), (AGENTS, 1))
    assert run(Kind.LOGISTIC, [huge], (3,))[0].tolist() == [[0, 0.5, 1]] * AGENTS


@pytest.mark.parametrize("slope", [0.25, 2.0])
def test_leaky_relu_reads_its_slope(slope: float) -> None:
    found = run(Kind.LEAKY_RELU, [_X], (4, 5), options={0: slope})[0]
    _same(found, lambda a: np.where(_X[a] > 0, _X[a], slope * _X[a]))


@pytest.mark.parametrize(
    ("code", "reference"),
    [
        (1, lambda x: np.maximum(x, 0)),
        (2, lambda x: np.clip(x, -1, 1)),
        (3, lambda x: np.clip(x, 0, 6)),
        (4, np.tanh),
    ],
)
def test_fused_activations(code: int, reference: Callable[[Array], Array]) -> None:
    found = run(Kind.ADD, [3 * _X, _Y], (4, 5), options={0: code}, own=(0, 1))[0]
    _same(found, lambda a: reference(3 * _X[a] + _Y[a]))


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="activation 5"):
        run(Kind.ADD, [_X, _Y], (4, 5), options={0: 5}, own=(0, 1))


def test_cast_cuts_decimals_and_turns_truth_into_numbers() -> None:
    found = run(Kind.CAST, [3 * _X], (4, 5), dtype=np.int32)[0]
    _same(found, lambda a: np.trunc(3 * _X[a]))
    found = run(Kind.CAST, [_X > 0], (4, 5))[0]
    _same(found, lambda a: (_X[a] > 0).astype(np.float32))


def test_add_n_takes_one_input_twice() -> None:
    found = run(Kind.ADD_N, [_X, _Y, _X], (4, 5), own=(0, 1, 2))[0]
    _same(found, lambda a: 2 * _X[a] + _Y[a])


@pytest.mark.parametrize("kind", [Kind.SELECT, Kind.SELECT_V2])
def test_select_chooses_number_by_number(kind: int) -> None:
    found = run(kind, [_X > 0, _X, _Y], (4, 5), own=(0, 1, 2))[0]
    _same(found, lambda a: np.where(_X[a] > 0, _X[a], _Y[a]))


def test_select_v2_broadcasts_and_select_chooses_rows() -> None:
    column = _X[:, :, :1] > 0
    found = run(Kind.SELECT_V2, [column, _X, np.zeros((), np.float32)], (4, 5), own=(0, 1))[0]
    _same(found, lambda a: np.where(column[a], _X[a], 0))
    found = run(Kind.SELECT, [column[:, :, 0], _X, _Y], (4, 5), own=(0, 1, 2))[0]
    _same(found, lambda a: np.where(column[a], _X[a], _Y[a]))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("axes", [(0,), (1,), (-1,), (0, 1)])
@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        (Kind.SUM, np.sum),
        (Kind.MEAN, np.mean),
        (Kind.REDUCE_MAX, np.max),
        (Kind.REDUCE_MIN, np.min),
        (Kind.REDUCE_PROD, np.prod),
    ],
)
def test_reductions(
    kind: int, reference: Callable[..., Array], axes: tuple[int, ...], keep: bool
) -> None:
    wanted = reference(_X[0], axis=axes, keepdims=keep)
    found = run(kind, [_X, _numbers(*axes)], wanted.shape, options={0: int(keep)})[0]
    _same(found, lambda a: reference(_X[a], axis=axes, keepdims=keep))


def test_reductions_over_axes_that_are_not_neighbours() -> None:
    found = run(Kind.SUM, [_IMAGES, _numbers(0, 2)], (6, 3))[0]
    _same(found, lambda a: _IMAGES[a].sum((0, 2)))


def test_any_and_all() -> None:
    found = run(Kind.REDUCE_ANY, [_X > 1, _numbers(1)], (4,), dtype=np.bool_)[0]
    _same(found, lambda a: (_X[a] > 1).any(1))
    found = run(Kind.REDUCE_ALL, [_X > -1, _numbers(0)], (5,), dtype=np.bool_)[0]
    _same(found, lambda a: (_X[a] > -1).all(0))


def test_positions_of_maxima_and_minima() -> None:
    found = run(Kind.ARG_MAX, [_X, np.array(-1, np.int32)], (4,), dtype=np.int32)[0]
    assert found.dtype == np.int32
    _same(found, lambda a: _X[a].argmax(-1))
    _same(
        run(Kind.ARG_MIN, [_X, np.array(0, np.int32)], (5,), dtype=np.int64)[0],
        lambda a: _X[a].argmin(0),
    )


def test_softmax_and_its_logarithm_of_large_numbers() -> None:
    large = 300 * _X
    wanted = np.exp(large.astype(np.float64) - large.max(-1, keepdims=True))
    wanted /= wanted.sum(-1, keepdims=True)
    _same(run(Kind.SOFTMAX, [large], (4, 5), options={0: 1.0})[0], lambda a: wanted[a])
    exact = large.astype(np.float64) - large.max(-1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(-1, keepdims=True))
    _same(run(Kind.LOG_SOFTMAX, [large], (4, 5))[0], lambda a: exact[a])


def test_rows_of_length_1_and_a_row_of_zeros() -> None:
    rows = _X.copy()
    rows[:, 1] = 0
    found = run(Kind.L2_NORMALIZATION, [rows], (4, 5))[0]
    norms = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-6)
    _same(found, lambda a: rows[a] / norms[a])


def test_running_sums() -> None:
    found = run(Kind.CUMSUM, [_X, np.array(1, np.int32)], (4, 5), options={0: 0, 1: 0})[0]
    _same(found, lambda a: _X[a].cumsum(1))


@pytest.mark.parametrize("own", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("flags", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_products_of_matrices(own: tuple[int, ...], flags: tuple[int, int]) -> None:
    left = np.random.default_rng(4).normal(size=(AGENTS, 4, 5)).astype(np.float32)
    right = np.random.default_rng(5).normal(size=(AGENTS, 5, 6)).astype(np.float32)
    given = [left.swapaxes(1, 2) if flags[0] else left, right.swapaxes(1, 2) if flags[1] else right]
    arrays = [array if at in own else array[0] for at, array in enumerate(given)]
    found = run(Kind.BATCH_MATMUL, arrays, (4, 6), options={0: flags[0], 1: flags[1]}, own=own)[0]
    _same(found, lambda a: left[a if 0 in own else 0] @ right[a if 1 in own else 0])


def test_products_of_stacks_of_matrices_broadcast() -> None:
    left = np.random.default_rng(6).normal(size=(AGENTS, 2, 7, 4, 5)).astype(np.float32)
    right = np.random.default_rng(7).normal(size=(AGENTS, 7, 5, 6)).astype(np.float32)
    found = run(Kind.BATCH_MATMUL, [left, right], (2, 7, 4, 6), own=(0, 1))[0]
    _same(found, lambda a: left[a] @ right[a])
    found = run(Kind.BATCH_MATMUL, [left, right[0, 0]], (2, 7, 4, 6))[0]
    _same(found, lambda a: left[a] @ right[0, 0])


def test_a_product_of_every_second_number_is_right() -> None:
    strided = np.random.default_rng(8).normal(size=(AGENTS, 8, 10)).astype(np.float32)[:, ::2, ::2]
    found = run(Kind.BATCH_MATMUL, [strided, _X.swapaxes(1, 2)], (4, 4), own=(0, 1))[0]
    _same(found, lambda a: strided[a] @ _X[a].T)


@pytest.mark.parametrize("own", [(0,), (0, 1), (0, 1, 2)])
def test_fully_connected_adds_its_bias_and_activates(own: tuple[int, ...]) -> None:
    weights = np.random.default_rng(9).normal(size=(AGENTS, 6, 5)).astype(np.float32)
    bias = np.random.default_rng(10).normal(size=(AGENTS, 6)).astype(np.float32)
    given = [array if at in own else array[0] for at, array in enumerate((_X, weights, bias))]
    found = run(Kind.FULLY_CONNECTED, given, (4, 6), options={0: 1}, own=own)[0]

    def reference(a: int) -> Array:
        mine = [array[a if at in own else 0] for at, array in enumerate((_X, weights, bias))]
        found: Array = np.maximum(mine[0] @ mine[1].T + mine[2], 0)
        return found

    _same(found, reference)


def test_fully_connected_keeps_axes_when_asked_and_flattens_them_else() -> None:
    weights = np.random.default_rng(11).normal(size=(2, 3)).astype(np.float32)
    kept = run(Kind.FULLY_CONNECTED, [_IMAGES, weights], (2, 6, 5, 2), options={2: 1})[0]
    _same(kept, lambda a: _IMAGES[a] @ weights.T)
    flat = run(Kind.FULLY_CONNECTED, [_IMAGES, weights], (60, 2))[0]
    _same(flat, lambda a: _IMAGES[a].reshape(60, 3) @ weights.T)


@pytest.mark.parametrize(
    ("options", "bounds", "reference"),
    [
        ({}, ((1, 0), (3, 5), (1, 2)), lambda x: x[1:3, 0:5:2]),
        ({0: 1, 1: 2}, ((9, 1), (2, 9), (1, 1)), lambda x: x[:2, 1:]),
        ({4: 1}, ((2, 0), (3, 5), (1, 1)), lambda x: x[2]),
        ({4: 2}, ((0, -1), (4, 0), (1, 1)), lambda x: x[:, -1]),
        ({0: 3, 1: 3}, ((0, 0), (0, 0), (1, -1)), lambda x: x[:, ::-1]),
    ],
)
def test_slices_with_masks(
    options: Mapping[int, int], bounds: Any, reference: Callable[[Array], Array]
) -> None:
    inputs = [_X, *(_numbers(*part) for part in bounds)]
    found = run(Kind.STRIDED_SLICE, inputs, reference(_X[0]).shape, options=options)[0]
    _same(found, lambda a: reference(_X[a]))


def test_slice_takes_the_rest_for_a_size_of_minus_1() -> None:
    found = run(Kind.SLICE, [_X, _numbers(1, 2), _numbers(2, -1)], (2, 3))[0]
    _same(found, lambda a: _X[a][1:3, 2:])


def test_splits_are_views() -> None:
    sizes, axis = _numbers(1, -1), np.array(1, np.int32)
    first, second = run(Kind.SPLIT_V, [_X, sizes, axis], (4, 1), outputs=2)
    _same(first, lambda a: _X[a][:, :1])
    _same(second, lambda a: _X[a][:, 1:])
    assert first.base is second.base is not None
    halves = run(Kind.SPLIT, [np.array(0, np.int32), _X], (2, 5), own=(1,), outputs=2)
    _same(halves[1], lambda a: _X[a][2:])


def test_packing_and_unpacking() -> None:
    found = run(Kind.PACK, [_X, _Y], (4, 2, 5), options={0: 2, 1: 1}, own=(0, 1))[0]
    _same(found, lambda a: np.stack([_X[a], _Y[a]], 1))
    parts = run(Kind.UNPACK, [_X], (5,), options={0: 4, 1: 0}, outputs=4)
    _same(parts[2], lambda a: _X[a][2])


def test_concatenation_of_agents_numbers_and_shared_ones() -> None:
    found = run(Kind.CONCATENATION, [_X, _Y[0]], (4, 10), options={0: -1})[0]
    _same(found, lambda a: np.concatenate([_X[a], _Y[0]], -1))


def test_padding_with_zeros_and_with_a_number() -> None:
    around = np.array([[1, 0], [0, 2]], np.int32)
    _same(run(Kind.PAD, [_X, around], (5, 7))[0], lambda a: np.pad(_X[a], ((1, 0), (0, 2))))
    found = run(Kind.PADV2, [_X, around, np.full((), 7, np.float32)], (5, 7))[0]
    _same(found, lambda a: np.pad(_X[a], ((1, 0), (0, 2)), constant_values=7))


def test_repeating_broadcasting_and_reversing() -> None:
    _same(run(Kind.TILE, [_X, _numbers(2, 3)], (8, 15))[0], lambda a: np.tile(_X[a], (2, 3)))
    found = run(Kind.BROADCAST_TO, [_X[:, 0], _numbers(2, 5)], (2, 5))[0]
    _same(found, lambda a: np.broadcast_to(_X[a, 0], (2, 5)))
    _same(run(Kind.REVERSE_V2, [_X, _numbers(1)], (4, 5))[0], lambda a: _X[a][:, ::-1])
    found = run(Kind.FILL, [_numbers(2, 2), _X[:, 0, 0]], (2, 2), own=(1,))[0]
    _same(found, lambda a: np.full((2, 2), _X[a, 0, 0]))


def test_transposing_and_reshaping_a_view() -> None:
    turned = run(Kind.TRANSPOSE, [_X, _numbers(1, 0)], (5, 4))[0]
    _same(turned, lambda a: _X[a].T)
    flat = run(Kind.RESHAPE, [_X.swapaxes(1, 2), _numbers(-1)], (20,))[0]
    _same(flat, lambda a: _X[a].T.reshape(-1))


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize(("on", "off"), [(1.0, 0.0), (2.0, -1.0)])
def test_one_hot_of_classes_and_of_numbers_out_of_range(axis: int, on: float, off: float) -> None:
    classes = np.array([[0, 2, 9, -1]] * AGENTS, np.int32)
    inputs = [classes, np.array(3, np.int32), *np.array([on, off], np.float32)[:, None]]
    shape = (4, 3) if axis == -1 else (3, 4)
    found = run(Kind.ONE_HOT, inputs, shape, options={0: axis})[0]
    wanted = np.where(classes[0][:, None] == np.arange(3), on, off)
    _same(found, lambda _: wanted if axis == -1 else wanted.T)


def test_gather_from_shared_rows_and_from_rows_of_each_agent() -> None:
    index = np.array([[3, 0], [1, 1], [2, 3]], np.int32)
    found = run(Kind.GATHER, [_X[0], index], (2, 5), own=(1,))[0]
    _same(found, lambda a: _X[0][index[a]])
    found = run(Kind.GATHER, [_X, index], (2, 5), own=(0, 1))[0]
    _same(found, lambda a: _X[a][index[a]])
    found = run(Kind.GATHER, [_X, index[0]], (2, 5))[0]
    _same(found, lambda a: _X[a][index[0]])
    found = run(Kind.GATHER, [_X, index[0]], (4, 2), options={0: 1, 1: 0})[0]
    _same(found, lambda a: _X[a][:, index[0]])


def _patches(image: Array, size: tuple[int, int], stride: int, *, same: bool) -> Array:
    """(rows, places, places, height, width, channels) of each window."""
    if same:
        around = [(0, 0)]
        for length, reach in zip(image.shape[1:3], size, strict=True):
            missing = max((-(-length // stride) - 1) * stride + reach - length, 0)
            around.append((missing // 2, missing - missing // 2))
        image = np.pad(image, [*around, (0, 0)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(image, size, axis=(1, 2))  # type: ignore[call-overload]
    found: Array = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    return found


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("own", [(0,), (0, 1)])
def test_convolutions(same: bool, own: tuple[int, ...]) -> None:
    filters = np.random.default_rng(12).normal(size=(AGENTS, 4, 3, 2, 3)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)

    def reference(a: int) -> Array:
        patches = np.nan_to_num(_patches(_IMAGES[a], (3, 2), 2, same=same))
        mine = filters[a if 1 in own else 0]
        found: Array = np.einsum("nhwijc,oijc->nhwo", patches, mine) + bias
        return found

    given = [_IMAGES, filters if 1 in own else filters[0], bias]
    options = {0: int(not same), 1: 2, 2: 2}
    found = run(Kind.CONV_2D, given, reference(0).shape, options=options, own=own)[0]
    _same(found, reference)


@pytest.mark.parametrize("own", [(2,), (1, 2)])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolutions(same: bool, stride: int, own: tuple[int, ...]) -> None:
    """Each input number adds the filters times itself at its place."""
    filters = np.random.default_rng(14).normal(size=(AGENTS, 4, 3, 2, 3)).astype(np.float32)
    rows, height, width, _ = _IMAGES[0].shape
    full = ((height - 1) * stride + 3, (width - 1) * stride + 2)
    sides = (height * stride, width * stride) if same else full

    def reference(a: int) -> Array:
        whole = np.zeros((rows, max(full[0], sides[0]), max(full[1], sides[1]), 4))
        mine = filters[a if 1 in own else 0]
        for h in range(height):
            for w in range(width):
                spread = np.einsum("nc,oijc->nijo", _IMAGES[a][:, h, w], mine)
                whole[:, h * stride : h * stride + 3, w * stride : w * stride + 2] += spread
        before = [max(f - s, 0) // 2 for f, s in zip(full, sides, strict=True)]
        found: Array = whole[:, before[0] : before[0] + sides[0], before[1] : before[1] + sides[1]]
        return found

    given = [_numbers(rows, *sides, 4), filters if 1 in own else filters[0], _IMAGES]
    options = {0: int(not same), 1: stride, 2: stride}
    found = run(Kind.TRANSPOSE_CONV, given, (rows, *sides, 4), options=options, own=own)[0]
    _same(found, reference)


@pytest.mark.parametrize("own", [(0,), (0, 1)])
def test_sums_by_class_add_up_rows_and_leave_out_other_classes(own: tuple[int, ...]) -> None:
    index = np.array([[0, 2, 2, 9], [1, 1, 1, 1], [-1, 0, 2, 0]], np.int32)

    def reference(a: int) -> Array:
        found = np.zeros((3, 5))
        for number, row in zip(index[a if 1 in own else 0], _X[a], strict=True):
            if 0 <= number < 3:
                found[number] += row
        return found

    given = [_X, index if 1 in own else index[0], np.array(3, np.int32)]
    _same(run(Kind.UNSORTED_SEGMENT_SUM, given, (3, 5), own=own)[0], reference)


@pytest.mark.parametrize("same", [False, True])
def test_depthwise_convolutions(same: bool) -> None:
    filters = np.random.default_rng(13).normal(size=(AGENTS, 1, 3, 3, 3)).astype(np.float32)

    def reference(a: int) -> Array:
        patches = np.nan_to_num(_patches(_IMAGES[a], (3, 3), 1, same=same))
        found: Array = np.einsum("nhwijc,ijc->nhwc", patches, filters[a, 0])
        return found

    options = {0: int(not same), 1: 1, 2: 1, 3: 1}
    found = run(
        Kind.DEPTHWISE_CONV_2D,
        [_IMAGES, filters, np.zeros(3, np.float32)],
        reference(0).shape,
        options=options,
        own=(0, 1),
    )[0]
    _same(found, reference)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize(
    ("kind", "reference"), [(Kind.MAX_POOL_2D, np.nanmax), (Kind.AVERAGE_POOL_2D, np.nanmean)]
)
def test_pooling_leaves_padding_out(kind: int, reference: Callable[..., Array], same: bool) -> None:
    def wanted(a: int) -> Array:
        return reference(_patches(_IMAGES[a], (2, 3), 2, same=same), axis=(3, 4))

    options = {0: int(not same), 1: 2, 2: 2, 3: 3, 4: 2}
    found = run(kind, [_IMAGES], wanted(0).shape, options=options)[0]
    _same(found, wanted)
