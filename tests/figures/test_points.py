"Names beside points: placement against brute force, drawn values against the table."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.figures.points import (
    NEAR,
    Guides,
    _length_inside,
    leaders,
    overlap,
    place_names,
    plot_points,
)
from balanceddpo.figures.style import Interval, Look, text_size


def boxes(places, names):
    return [(x, y, x + text_size(n, 6.5)[0], y + 6.5) for (x, y), n in zip(places, names)]


def test_overlap_against_counting_cells():
    draw = np.random.default_rng(0)
    for _ in range(50):
        a, b = (np.sort(draw.integers(0, 12, (2, 2)), axis=0).ravel() for _ in range(2))
        cells = sum(
            a[0] <= x < a[2] and a[1] <= y < a[3] and b[0] <= x < b[2] and b[1] <= y < b[3]
            for x in range(12)
            for y in range(12)
        )
        assert overlap(a, b) == cells


def test_names_cover_neither_each_other_nor_points_where_there_is_room():
    draw = np.random.default_rng(1)
    points = [tuple(p) for p in draw.uniform(20, 180, (11, 2))]
    names = [f'model number {i}' for i in range(11)]
    placed = boxes(place_names(points, names, (200, 200)), names)
    assert all(overlap(a, b) == 0 for i, a in enumerate(placed) for b in placed[:i])
    assert all(
        overlap(box, (x - 2.4, y - 2.4, x + 2.4, y + 2.4)) == 0 for box in placed for x, y in points
    )
    assert all(b[0] >= 0 and b[1] >= 0 and b[2] <= 200 and b[3] <= 200 for b in placed)


def test_a_way_through_boxes_against_counting_steps():
    # two along the axes
    draw = np.random.default_rng(2)
    start, ends = draw.uniform(0, 100, 2), draw.uniform(0, 100, (20, 2))
    ends[0] = start[0], 70
    ends[1] = 3, start[1]
    solid = np.sort(draw.uniform(0, 100, (15, 2, 2)), axis=1).reshape(-1, 4)
    way = start + np.linspace(0, 1, 20001)[:, None, None] * (ends - start)
    counted = [
        [
            ((way[:, i] > b[:2]) & (way[:, i] < b[2:])).all(-1).mean()
            * np.hypot(*(ends[i] - start))
            for b in solid
        ]
        for i in range(20)
    ]
    assert np.abs(_length_inside(start, ends, solid) - counted).max() < 0.02
    assert np.max(counted) > 30


def test_a_leader_reaches_the_nearest_part_of_a_far_name_and_a_near_one_has_none():
    end, long = leaders((60, 60, 90, 66.5), (50, 52), mark=2)
    _, none = leaders((50 + 2 + NEAR, 50, 90, 60), (50, 52), mark=2)
    assert end.tolist() == [60, 60]
    assert long == pytest.approx(np.hypot(10, 8) - 2)
    assert none == 0


# five points among whose intervals there is no room, two of which nearly coincide: as models on one
# map of Table III
CROWD = pd.DataFrame(
    {
        'm': [
            'Normalized (z-score)',
            'Normalized (min-max)',
            'Vanilla (scores)',
            'BalancedDPO',
            'Random',
            'HPS',
            'alone',
        ],
        'x': [93, 93, 92, 97, 95, 76, 60.0],
        'y': [61.3, 61, 63.7, 62.3, 56, 65, 30],
    }
).assign(
    lo=lambda t: t.y - 6, hi=lambda t: t.y + 6, left=lambda t: t.x - 6, right=lambda t: t.x + 4
)


def drawn(fig):
    """In pixels: the boxes of the names, the leaders [2, 2], the places of the points, and the
    intervals as boxes a pixel wide."""
    fig.draw_without_rendering()
    (ax,) = fig.axes
    names = {t.get_text(): t.get_window_extent().extents for t in ax.texts}
    lines = [
        ax.transAxes.transform(line.get_xydata())
        for line in ax.lines
        if line.get_transform() == ax.transAxes
    ]
    places = dict(zip(CROWD.m, ax.transData.transform(CROWD[['x', 'y']])))
    bars = [ax.transData.transform(c.get_segments()[0]) for c in ax.collections]
    return names, lines, places, [(*b.min(0) - 0.5, *b.max(0) + 0.5) for b in bars]


def test_names_in_a_crowd_cover_nothing_and_lead_to_their_points():
    x, y = Interval('x', 'left', 'right'), Interval('y', 'lo', 'hi')
    look = Look(width=4.6, height=3.6)
    fig = plot_points(CROWD, x, y, 'm', look=look, guides=Guides(level=50))
    names, lines, places, bars = drawn(fig)
    points, found = 150 / 72, list(names.items())  # pixels a point
    assert all(overlap(a, b) == 0 for i, (_, a) in enumerate(found) for _, b in found[:i])
    assert all(overlap(box, bar) == 0 for box in names.values() for bar in bars)
    marks = {m: np.concatenate([p - 2.25 * points, p + 2.25 * points]) for m, p in places.items()}
    assert all(overlap(box, mark) == 0 for box in names.values() for mark in marks.values())
    for name, box in found:
        gap = np.hypot(*(np.clip(places[name], box[:2], box[2:]) - places[name])) / points
        mine = [
            (start, end)
            for start, end in lines
            if np.allclose(start, places[name])
            and (np.abs(end - np.clip(end, box[:2], box[2:])) < 2 * points).all()
        ]
        # the mark, NEAR, and what letters lack to their box
        assert len(mine) == (gap > 8) or 5 < gap < 8, name
        for start, end in mine:  # and it runs over no other name
            others = np.array([b for n, b in found if n != name])
            assert _length_inside(start, end[None], others).max() < 1e-6
    assert 3 <= len(lines) < len(names)
    assert not any(np.allclose(start, places['alone']) for start, _ in lines)


@pytest.mark.parametrize('apart', [(-0.8, 0.6), (0.7, 0.4), (1.5, 0), (-2, -1), (0, -3)])
def test_of_two_points_that_nearly_coincide_each_has_the_name_on_its_side(apart):
    points, names = np.array([(100.0, 60), np.add((100, 60), apart)]), ['the one', 'the other one']
    # intervals both ways: only the corners are free
    cross = [
        o
        for x, y in points
        for o in ((x - 1, y - 40, x + 1, y + 40), (x - 40, y - 1, x + 40, y + 1))
    ]
    placed = boxes(place_names(points, names, (220, 120), obstacles=cross), names)
    for box, own, other in zip(placed, points, points[::-1]):
        _, none = leaders(box, own)
        assert none == 0
        assert np.hypot(*(np.clip(own, box[:2], box[2:]) - own)) < np.hypot(
            *(np.clip(other, box[:2], box[2:]) - other)
        )


def test_names_stay_where_they_are_from_call_to_call():
    points = np.random.default_rng(3).uniform(80, 120, (12, 2))
    names = [f'number {i}' for i in range(12)]
    assert place_names(points, names, (200, 200)) == place_names(
        points.tolist(), names, (200, 200), obstacles=[]
    )
    assert place_names([], [], (200, 200)) == []


def test_names_stay_clear_of_the_diagonal_and_its_text():
    frame = pd.DataFrame(
        {
            'm': ['the first of two', 'the second of two', 'another one'],
            'x': [20.0, 60, 78],
            'y': [20.0, 58, 79],
        }
    )
    fig = plot_points(
        frame, Interval('x'), Interval('y'), 'm', guides=Guides(diagonal='same on all')
    )
    fig.draw_without_rendering()
    (ax,) = fig.axes
    steps = ax.transData.transform(np.linspace(10, 90, 2000)[:, None] * [1, 1])
    boxes = {t.get_text().strip(): t.get_window_extent().extents for t in ax.texts}
    text = boxes.pop('same on all')
    # half the letters' height above the line
    way = steps[-1] - steps[0]
    above = steps + np.array([-way[1], way[0]]) / np.hypot(*way) * 4 * 150 / 72
    above = above[((above > text[:2]) & (above < text[2:])).all(1)]
    assert set(boxes) == set(frame.m)
    assert len(above) > 100
    for dots in (steps, above):
        assert not any(((dots > b[:2]) & (dots < b[2:])).all(1).any() for b in boxes.values())


def test_points_and_intervals_are_where_the_table_says():
    frame = pd.DataFrame(
        {
            'm': ['a', 'b'],
            'x': [1.0, 3.0],
            'y': [10.0, 40.0],
            'lo': [5.0, 30.0],
            'hi': [20.0, 45.0],
            'k': ['u', 'v'],
        }
    )
    y = Interval('y', 'lo', 'hi')
    (ax,) = plot_points(frame, Interval('x'), y, 'm', 'k', guides=Guides(level=50)).axes
    marks = [
        tuple(map(float, np.ravel(line.get_xydata())))
        for line in ax.lines
        if line.get_marker() not in (None, 'None')
    ]
    assert marks == [(1, 10), (3, 40)]
    assert [c.get_segments()[0].tolist() for c in ax.collections] == [
        [[1, 5], [1, 20]],
        [[3, 30], [3, 45]],
    ]
    assert {'a', 'b'} <= {t.get_text() for t in ax.texts}
    assert ax.get_ylim()[1] > 50
    with pytest.raises(InputError, match='no row'):
        plot_points(frame[:0], Interval('x'), y, 'm')
