"The statistics of tasks against the library's own and by brute force; what is refused."

import itertools

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.intervals import Bootstrap, bootstrap_interval, rate_interval, wilson
from balanceddpo.evaluation.tasks import (
    TASK_COLUMNS,
    check_tasks,
    mean_interval,
    spread_tasks,
    task_differences,
    task_scores,
)


def made(model, **tasks):
    rows = [
        (model, t, f'{t}{p}', i, x)
        for t, prompts in tasks.items()
        for p, row in enumerate(prompts)
        for i, x in enumerate(row)
    ]
    return pd.DataFrame(rows, columns=list(TASK_COLUMNS))


def drawn(model, seed, shares=(0.3, 0.8), prompts=12, images=3):
    rng = np.random.default_rng(seed)
    return made(
        model,
        **{
            f't{k}': (rng.random((prompts + 5 * k, images)) < p).tolist()
            for k, p in enumerate(shares)
        },
    )


def test_scores_and_intervals_are_those_of_the_library():
    table = drawn('m', 0)
    found = task_scores(table, Bootstrap(resamples=500, seed=3))
    assert found.task.tolist() == ['t0', 't1', 'overall']
    assert found.images.tolist() == [36, 51, 87]
    for row, task in zip(found.itertuples(), ('t0', 't1')):
        x = table[table.task == task].correct.to_numpy(float).reshape(-1, 3)
        assert row.score == pytest.approx(x.mean())
        assert row.prompts == len(x)
        # by the prompt, not by the image
        assert (row.low, row.high) == pytest.approx(wilson(x.mean(1).sum(), len(x)))
        assert (row.boot_low, row.boot_high) == rate_interval(
            x.sum(1), np.full(len(x), 3.0), 3, resamples=500, seed=3
        )
    assert found.score.iloc[2] == pytest.approx(found.score[:2].mean())


def test_the_overall_interval_is_that_of_all_resamples():
    "Two tasks of two and three prompts: every resample listed with its chance, 4 x 27 of them."
    a, b = np.array([0.0, 1]), np.array([0.0, 0.5, 1])
    means = sorted(
        np.mean(x) / 2 + np.mean(y) / 2
        for x in itertools.product(a, repeat=2)
        for y in itertools.product(b, repeat=3)
    )
    low, high = mean_interval([(a, np.ones(2)), (b, np.ones(3))], level=0.8, resamples=200_000)
    assert low == pytest.approx(means[round(0.1 * 108)], abs=0.02)
    assert high == pytest.approx(means[round(0.9 * 108) - 1], abs=0.02)


def test_a_task_with_few_prompts_counts_as_much_as_one_with_many():
    found = task_scores(made('m', few=[[1]], many=[[0]] * 99))
    assert found.score.tolist() == [1, 0, 0.5]


def test_the_order_of_rows_changes_nothing():
    table = pd.concat([drawn('a', 0), drawn('b', 1)])
    mixed = table.sample(frac=1, random_state=0)
    key = ['model', 'task']
    assert (
        task_scores(table)
        .set_index(key)
        .sort_index()
        .equals(task_scores(mixed).set_index(key).sort_index())
    )
    one, two = (
        task_differences(t, [('a', 'b')]).set_index('task').sort_index() for t in (table, mixed)
    )
    assert one.equals(two)


def test_differences_are_paired_by_the_prompt():
    table = pd.concat([drawn('a', 0), drawn('b', 1)])
    found = task_differences(table, [('a', 'b'), ('b', 'a')], Bootstrap(resamples=400))
    x, y = (
        table[(table.model == m) & (table.task == 't1')]
        .correct.to_numpy(float)
        .reshape(-1, 3)
        .mean(1)
        for m in 'ab'
    )
    row = found[(found.model_a == 'a') & (found.task == 't1')].iloc[0]
    assert (row.score_a, row.score_b, row.difference) == pytest.approx(
        (x.mean(), y.mean(), (x - y).mean())
    )
    assert (row.low, row.high) == pytest.approx(bootstrap_interval(x - y, resamples=400))
    ab, ba = found[found.model_a == 'a'].reset_index(), found[found.model_a == 'b'].reset_index()
    assert np.allclose(ab.difference, -ba.difference)
    assert ab.task.tolist() == ['t0', 't1', 'overall']
    assert ab.n.tolist() == [12, 17, 29]
    assert ab.difference[2] == pytest.approx(ab.difference[:2].mean())
    assert (
        task_differences(pd.concat([drawn('a', 0), drawn('b', 0)]), [('a', 'b')])[
            ['difference', 'low', 'high']
        ]
        == 0
    ).all(axis=None)


def test_only_like_with_like():
    a, b = (drawn(m, 0).assign(seed=range(87), sampler='{"steps": 20}') for m in 'ab')
    task_differences(pd.concat([a, b]), [('a', 'b')])
    with pytest.raises(InputError, match='seeds'):
        task_differences(pd.concat([a, b.assign(seed=b.seed + 1)]), [('a', 'b')])
    with pytest.raises(InputError, match='steps'):
        task_differences(pd.concat([a, b.assign(sampler='{"steps": 9}')]), [('a', 'b')])
    with pytest.raises(InputError, match='c'):
        task_differences(pd.concat([a, b]), [('a', 'c')])
    with pytest.raises(InputError, match="b has no images of the task 't1'"):
        task_scores(pd.concat([a, b[b.task == 't0']]))


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda t: t.drop(columns='correct'), "lacks the column 'correct'"),
        (lambda t: t[:0], 'no rows'),
        (lambda t: pd.concat([t, t[-1:]]), 'has image 0 twice'),
        (lambda t: t.assign(correct=[1, float('nan')]), 'neither correct nor wrong'),
        (lambda t: t.assign(correct=2), 'neither'),
    ],
)
def test_a_table_that_would_bend_a_score_is_refused(change, said):
    table = made('m', t=[[1], [0]])
    assert check_tasks(table) is table
    assert check_tasks(table.assign(correct=[True, False])) is not None
    with pytest.raises(InputError, match=said):
        task_scores(change(table))


def test_a_table_to_print_keeps_the_order():
    found = task_scores(pd.concat([drawn('z', 0), drawn('a', 1)]))
    wide = spread_tasks(found)
    assert list(wide.index) == ['z', 'a']
    assert list(wide.columns) == ['t0', 't1', 'overall']
    assert wide.loc['a', 'overall'] == 100 * found.score.iloc[-1]
