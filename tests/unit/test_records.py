"""Records: what `@dataclass(slots=True)` makes, without code that is built at import."""

import pytest

from virtiopy.records import Record


class Point(Record):
    x: int
    y: int = 2


class Line(Point):
    end: Point = Point(3)
    name: str = "a"


def test_values_are_given_by_place_by_name_or_by_default() -> None:
    line = Line(1, name="b")
    assert (line.x, line.y, line.end.x, line.end.y, line.name) == (1, 2, 3, 2, "b")
    assert repr(line) == "Line(x=1, y=2, end=Point(x=3, y=2), name='b')"


def test_a_default_that_is_a_record_is_each_one_s_own() -> None:
    first, second = Line(1), Line(1)
    first.end.x = 9
    assert second.end.x == Line(1).end.x == 3


def test_equal_are_those_of_one_class_with_the_same_values() -> None:
    assert Point(1) == Point(1, 2)
    assert Point(1) != Point(2)
    assert Line(1) != Point(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


def test_another_has_the_same_values_but_for_those_given() -> None:
    line = Line(1)
    other = line.replace(x=5)
    assert (other.x, other.name, line.x) == (5, "a", 1)
    assert line.replace() == line


def test_values_can_be_set_and_no_other_attribute() -> None:
    point = Point(1)
    point.y = 7
    assert point == Point(1, 7)
    with pytest.raises(AttributeError):
        point.z = 1  # type: ignore[attr-defined]


def test_match_takes_them_by_place() -> None:
    match Line(1, 5):
        case Line(x, y):
            assert (x, y) == (1, 5)


@pytest.mark.parametrize(
    ("values", "named", "said"),
    [
        ((), {}, "lacks 'x'"),
        ((1, 2, 3), {}, "takes 2 values"),
        ((1,), {"x": 1}, "'x'"),
        ((1,), {"z": 1}, "'z'"),
    ],
)
def test_what_is_given_wrongly_is_refused(
    values: tuple[int, ...], named: dict[str, int], said: str
) -> None:
    with pytest.raises(TypeError, match=said):
        Point(*values, **named)


def test_a_slot_of_a_classs_own_is_no_value_of_the_record() -> None:
    class Told(Point):
        __slots__ = ("told",)

        def __init__(self, told: str) -> None:
            super().__init__(1, 2)
            self.told = told

    made = Told("where")
    assert made.told == "where"
    assert made == Told("there")
    with pytest.raises(AttributeError):
        made.another = 1  # type: ignore[attr-defined]
