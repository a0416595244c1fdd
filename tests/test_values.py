import pytest

from merging.values import covers, leaves, resolve, value_problem, with_leaves


@pytest.mark.parametrize(
    ("value", "name", "position", "expected"),
    [
        (0.3, "x", 0.5, 0.3),
        ([0.0, 1.0], "x", 0.25, 0.25),
        ([0.0, 0.5, 1.0], "x", 0.75, 0.75),
        ([1, 3], "x", 1.0, 3),
        ([0.7], "x", 0.4, 0.7),
        ([True, False], "x", 0.99, True),
        ([True, False], "x", 1.0, False),
        (["a", "b", "c"], "x", 0.5, "b"),
        ([{"filter": "mlp", "value": 0.1}, {"value": 0.9}], "a.mlp.b", 0.0, 0.1),
        ([{"filter": "mlp", "value": 0.1}, {"value": 0.9}], "a.attn.b", 0.0, 0.9),
        ([{"filter": "a", "value": 1}, {"filter": "a.mlp", "value": 2}], "a.mlp", 0.0, 1),
        ([{"filter": "layers.1", "value": 1}], "layers.10.w", 0.0, 1),
        ([{"filter": "*", "value": [0, 1]}], "x", 0.5, 0.5),
        ([{"filter": "mlp", "value": 1}], "attn", 0.0, None),
    ],
)
def test_values_of_a_tensor(value, name, position, expected):
    assert resolve(value, name, position) == expected


@pytest.mark.parametrize(("position", "expected"), [(0.0, 1), (0.99, 1), (1.0, 0)])
def test_a_parameter_that_is_no_number_has_steps(position, expected):
    assert resolve([1, 0], "x", position, steps=True) == expected
    assert resolve({"filter": "x", "value": [1, 0]}, "x", position, steps=True) == expected


def test_a_level_gradient_is_exactly_level():
    assert {resolve([0.3, 0.3, 0.3], "x", step / 97) for step in range(98)} == {0.3}


@pytest.mark.parametrize(
    ("value", "found", "everywhere"),
    [
        (0.5, [0.5], True),
        ([0, 1], [0, 1], True),
        ([{"filter": "a", "value": [0, 1]}, {"value": 2}], [0, 1, 2], True),
        ([{"filter": "a", "value": [0, 1]}], [0, 1], False),
        ({"filter": "*", "value": True}, [True], True),
    ],
)
def test_what_a_value_may_come_to(value, found, everywhere):
    assert list(leaves(value)) == found
    assert covers(value) is everywhere
    doubled = with_leaves(value, lambda leaf: leaf * 2)
    assert list(leaves(doubled)) == [leaf * 2 for leaf in found]
    assert covers(doubled) is everywhere


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        [[1]],
        [1, {"value": 2}],
        [{"filter": "x"}],
        [{"value": 1, "extra": 2}],
        [{"value": [{"value": 1}]}],
    ],
)
def test_shapes_that_mean_nothing(value):
    assert value_problem(value)
