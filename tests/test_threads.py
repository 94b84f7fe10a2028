"""Work in threads comes in order, not far ahead, and ends with its iterator."""

from __future__ import annotations

import threading
import time

import pytest

from xai_abn.threads import in_order


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_the_order_of_the_items(workers):
    """Whichever is done first."""

    def slow(number):
        time.sleep(0.01 * (number % 3 == 0))
        return number * 2

    assert list(in_order(slow, iter(range(30)), workers, ahead=4)) == [number * 2 for number in range(30)]


def test_threads_make_them_and_the_caller_takes_the_items():
    """So a generator of items may run a network, whose hooks act in one thread alone."""
    takers, makers = set(), set()

    def items():
        for number in range(8):
            takers.add(threading.get_ident())
            yield number

    list(in_order(lambda _: makers.add(threading.get_ident()), items(), 2))
    assert takers == {threading.get_ident()}
    assert threading.get_ident() not in makers
    assert 1 <= len(makers) <= 2


def test_no_more_items_are_taken_than_allowed():
    """At most so many are under way or done beyond those asked for, so memory stays flat."""
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = in_order(lambda number: number, items(), 3, ahead=5)
    for asked in range(1, 20):
        next(results)
        assert len(taken) <= asked + 5
    results.close()
    assert len(taken) < 30


def test_what_has_not_begun_when_it_is_closed_is_left_out():
    """What has begun is finished, so no file stays half written, and the iterator may be closed in any thread."""
    begun, go = [], threading.Event()

    ended = threading.Event()

    def wait(number):
        begun.append(number)
        if number:
            go.wait(10)
            results.close()
            ended.set()
        return number

    results = in_order(wait, range(9), 1, ahead=8)
    assert next(results) == 0
    while len(begun) < 2:
        time.sleep(0.001)
    go.set()
    assert ended.wait(10)
    assert begun == [0, 1]
    assert list(results) == []


def test_an_error_ends_it():
    """The caller sees what the function raised, behind the results before it."""

    def odd(number):
        if number == 3:
            raise ValueError("three")
        return number

    found = in_order(odd, range(9), 2)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(found)
