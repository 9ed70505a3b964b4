"Training curves: drawn values against the table, smoothing against numpy."

import numpy as np
import pandas as pd
import pytest

from balanceddpo.figures.curves import plot_training, smooth


def test_curves_are_drawn_smoothed_and_refreshes_marked():
    log = pd.DataFrame(
        {
            'step': range(1, 31),
            'loss': np.random.default_rng(0).random(30),
            'refreshed': [s % 10 == 0 for s in range(1, 31)],
        }
    )
    every = log.assign(refreshed=True)
    marked, crowded = plot_training({'ten': log, 'one': every}, window=5).axes
    along = [line.get_xdata() for line in marked.lines]
    upright = [x[0] for x in along if x[0] == x[-1]]
    assert upright == [10, 20, 30]
    # the means between refreshes
    first, second, third = (line.get_ydata() for line in marked.lines[-3:])
    assert second[4] == pytest.approx(log.loss[12:17].mean())
    assert second[0] == pytest.approx(log.loss[10:13].mean())
    assert first[9] == pytest.approx(log.loss[7:10].mean())
    assert '30 refreshes' in [t.get_text() for t in crowded.texts]
    assert len(crowded.lines) == 2
    assert marked.get_ylim() == crowded.get_ylim()


def test_smoothing_against_numpy():
    x = np.random.default_rng(0).random(40)
    assert smooth(x, 9) == pytest.approx([x[max(0, i - 4) : i + 5].mean() for i in range(40)])
    assert smooth(x, 1) == pytest.approx(x)
