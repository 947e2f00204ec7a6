"""Objects from config sections."""

import pytest
from ml_collections import ConfigDict

from data.errors import UserError
from train.components import bind, build, call


class Part:
    def __init__(self, size: int, colour: str = "red", seed: int = -1):
        self.size, self.colour, self.seed = size, colour, seed


def test_components_from_sections():
    kind = f"{__name__}:Part"
    part = build({"type": kind, "size": 3}, "data", seed=7, unwanted=1)
    assert (part.size, part.colour, part.seed) == (3, "red", 7)
    assert bind({"type": kind, "colour": "blue"}, "model")(size=1).colour == "blue"
    for section, message in (
        ({"type": kind, "sise": 3}, r"config\.data\.sise is not a key of .*Part; it takes size, colour, seed"),
        ({"type": kind}, r"config\.data needs the key\(s\) size for .*Part"),
        ({"type": kind, "size": 1, "seed": 2}, r"config\.data\.seed is set by the run itself"),
        ({"type": "tests.train.nowhere:Part"}, "there is no module"),
        ({"type": f"{__name__}:Prat"}, r"test_components has .*Part"),
        ({"type": "Part"}, 'expected "module:Class"'),
        ({}, 'expected "module:Class"'),
    ):
        with pytest.raises(UserError, match=message):
            build(section, "data", seed=7)
    with pytest.raises(UserError, match=r"config\.colour is not a key"):
        call(lambda size: size, {"colour": 1}, "")


def test_parts_of_a_bound_component_are_constructors():
    kind = f"{__name__}:Part"
    inner = {"type": kind, "colour": {"type": kind, "size": 2}}
    outer = bind(ConfigDict({"type": kind, "colour": inner}), "model")(size=1)
    part = outer.colour(size=5)
    assert (outer.size, part.size, part.colour().size) == (1, 5, 2)
    with pytest.raises(UserError, match=r"config\.model\.colour\.shade is not a key"):
        bind({"type": kind, "colour": inner | {"shade": 1}}, "model")
