"Work ahead in threads keeps its order, its bound and the place of an error."

import pytest

from balanceddpo.core.parallel import ahead_in_threads


def test_work_ahead_keeps_the_order_its_bound_and_the_place_of_an_error():
    begun = []

    def f(i):
        begun.append(i)
        if i == 7:
            raise ValueError('the seventh')
        return i

    stream = ahead_in_threads(f, iter(range(1000)), ahead=5)
    seen = [next(stream) for _ in range(7)]
    assert seen == list(range(7))
    assert max(begun) <= 7 + 5
    with pytest.raises(ValueError, match='the seventh'):
        next(stream)
    assert list(ahead_in_threads(str, range(3), ahead=10)) == ['0', '1', '2']
    assert list(ahead_in_threads(str, [])) == []
