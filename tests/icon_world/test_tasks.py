"""Icon tasks: what their prompts may say, what must not be among them, and the recogniser's
verdicts by hand."""

from string import Formatter

import pandas as pd
import pytest
import torch
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.data.prompts import prompt_id, read_prompts
from balanceddpo.data.sources import read_pairs
from balanceddpo.evaluation.tasks import prompt_file, task_scores
from balanceddpo.figures.style import Look
from balanceddpo.icon_world import tasks as icon_tasks
from balanceddpo.icon_world import world as icons
from balanceddpo.icon_world.tasks import (
    PHRASES,
    TASKS,
    IconPrompt,
    check_pictures,
    check_store,
    check_true_renders,
    fitting_icons,
    icon_prompt,
    part_table,
    plot_tasks,
    task_candidates,
    task_prompts,
)
from balanceddpo.icon_world.world import Icon
from balanceddpo.models.image_store import ImageStore, image_file
from balanceddpo.models.sampling import image_seed


def test_a_phrase_names_what_its_task_asks_for_and_nothing_else():
    part = {'thing': 'concept', 'c': 'concept', 's': 'style', 'b': 'background'}
    assert list(PHRASES) == list(TASKS)
    for task, templates in PHRASES.items():
        for template in templates:
            assert sorted(
                part[name] for _, name, _, _ in Formatter().parse(template) if name
            ) == sorted(TASKS[task]), template


def test_no_prompt_is_of_an_evaluation_or_tuning_set_and_unseen_is_unseen():
    prompts = task_prompts(60)
    shipped = {text for name in icons.PROMPT_SETS for text in read_prompts(f'icons:{name}').prompts}
    assert not shipped & {p.prompt for p in prompts}
    assert not {icons.truth_of(t) for t in shipped} & {p.wanted for p in prompts}
    trained = {icons.truth_of(p.caption) for p in read_pairs('icons')}
    assert trained == icon_tasks.pair_icons()
    for p in prompts:
        if None not in p.wanted:
            assert icons.truth_of(p.prompt) == p.wanted
            assert icons.held_out(Icon(*p.wanted)) == (p.task == 'unseen combination')
        if p.task == 'unseen combination':
            assert p.wanted not in trained


def test_prompts_are_drawn_by_a_seed():
    few, many = task_prompts(5), task_prompts(9)
    for task in TASKS:
        assert [p for p in many if p.task == task][:5] == [p for p in few if p.task == task]
    assert len({p.prompt for p in many}) == len({prompt_id(p.prompt) for p in many}) == 45
    assert not set(few) & set(task_prompts(5, seed=1)[5:])
    assert len(task_prompts(160)) == 800
    assert len(task_candidates('concept')) == 160
    for n in (0, -1, 161):
        with pytest.raises(InputError, match='from 1 to 160'):
            task_prompts(n)


def test_what_is_drawn_is_what_is_checked(tmp_path):
    prompts = task_prompts(3)
    assert read_prompts(prompt_file(prompts, tmp_path / 'p.json')).prompts == tuple(
        p.prompt for p in prompts
    )


@pytest.mark.parametrize('wanted', [(3, None, None), (3, 2, None), (3, None, 6), (3, 2, 6)])
def test_all_icons_that_fit(wanted):
    assert fitting_icons(wanted) == [
        i for i in icons.all_icons() if all(w in (None, k) for w, k in zip(wanted, i))
    ]


@pytest.fixture
def says(monkeypatch):
    "Put words into the recogniser's mouth."

    def put(named):
        monkeypatch.setattr(
            icon_tasks,
            'recognise',
            lambda pictures: torch.tensor([named(k) for k in range(len(pictures))]),
        )

    return put


ANY = torch.zeros(4, 3, 64, 64)


def test_only_what_is_asked_for_counts(says):
    says(lambda k: [(44, 1, 2), (44, 1, 3), (44, 0, 3), (7, 1, 2)][k])
    verdicts = {
        wanted: check_pictures(ANY, [IconPrompt('t', 'p', wanted)] * 4)
        for wanted in ((44, None, None), (44, 1, None), (44, None, 2), (44, 1, 2))
    }
    assert [v.correct.tolist() for v in verdicts.values()] == [
        [True] * 3 + [False],
        [True, True, False, False],
        [True, False, False, False],
        [True, False, False, False],
    ]
    full, alone = verdicts[44, 1, 2], verdicts[44, None, None]
    assert full[['concept', 'style', 'background']].values.tolist() == [
        [1, 1, 1],
        [1, 1, 0],
        [1, 0, 0],
        [0, 1, 1],
    ]
    assert alone[['style', 'background']].isna().all(axis=None)
    assert full.reason[1].split() == '✓ fox ✓ twemoji ✗ green'.split()
    assert alone.reason[3].split()[0] == '✗'
    with pytest.raises(ValueError):
        check_pictures(ANY, [IconPrompt('t', 'p', (44, 1, 2))] * 3)


def test_a_recogniser_that_errs_bounds_the_score(says):
    """It takes every style for the first one: right in 8 of 32 renders of a concept with any style,
    in none that ask for another."""
    prompts = [
        icon_prompt('concept', (5, None, None), '{thing}'),
        *(icon_prompt('concept + style', (5, s, None), '{thing}, {s} style') for s in (0, 2)),
    ]
    truth = [icon for p in prompts for icon in fitting_icons(p.wanted)]
    says(lambda k: (truth[k][0], 0, truth[k][2]))
    table = check_true_renders(prompts)
    assert table.groupby('task', sort=False).size().tolist() == [32, 16]
    assert task_scores(table).score.tolist() == [1, 0.5, 0.75]
    parts = part_table(table)
    assert parts['true renders'].to_dict() == {
        ('concept', 'concept'): 100,
        ('concept + style', 'concept'): 100,
        ('concept + style', 'style'): 50,
    }


def test_true_renders_drawn_by_a_model_are_right(tmp_path):
    prompts, rows = task_prompts(2), []
    for p in prompts:
        icon = fitting_icons(p.wanted)[-1]
        path = tmp_path / image_file(pid := prompt_id(p.prompt), 0)
        path.parent.mkdir(parents=True)
        # a larger image is scaled down
        Image.fromarray(icons.true_render(icon).permute(1, 2, 0).numpy()).resize(
            (128, 128), 0
        ).save(path)
        rows.append(('m', pid, p.prompt, 0, image_seed(pid, 0), image_file(pid, 0), ''))
    store = ImageStore(
        tmp_path,
        {'model': {}, 'prompts': 'k'},
        pd.DataFrame(
            rows, columns=['model', 'prompt_id', 'prompt', 'image_index', 'seed', 'file', 'sha256']
        ),
    )
    table = check_store(store, prompts, 'perfect')
    assert table.correct.mean() >= 0.9
    assert table.task.tolist() == [p.task for p in prompts]
    assert table.prompt_id.tolist() == [prompt_id(p.prompt) for p in prompts]
    with pytest.raises(InputError, match='not among these'):
        check_store(store, prompts[1:])


def texts_outside(fig):
    "The texts of a figure that do not lie wholly inside it."
    fig.draw_without_rendering()
    page = fig.bbox
    hidden = {
        t
        for ax in fig.axes
        for x, t in zip(ax.get_xticks(), ax.get_xticklabels())
        if not ax.get_xlim()[0] <= x <= ax.get_xlim()[1]
    }
    boxes = [
        (t.get_text(), t.get_window_extent())
        for t in fig.findobj(lambda a: hasattr(a, 'get_text'))
        if t.get_text().strip() and t not in hidden
    ]
    return [
        text
        for text, b in boxes
        if b.x0 < -0.5 or b.y0 < -0.5 or b.x1 > page.width + 0.5 or b.y1 > page.height + 0.5
    ]


def test_the_figure_shows_the_scores():
    shifts, tasks = (
        (('base', 0), ('DiffusionDPO', 0.1), ('BalancedDPO', 0.2)),
        (('concept', 0.6), ('concept + background', 0.4), ('overall', 0.5)),
    )
    scores = pd.DataFrame(
        [(m, t, s + shift) for m, shift in shifts for t, s in tasks],
        columns=['model', 'task', 'score'],
    )
    scores = scores.assign(low=scores.score - 0.1, high=scores.score + 0.05)
    bound = scores[:3].assign(score=0.98)
    fig = plot_tasks(
        scores,
        bound,
        'grey: a bound',
        Look('A title that is long enough to need a second line on a column'),
    )
    (ax,) = fig.axes
    assert texts_outside(fig) == []
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() in list('osD')]
    assert dots == pytest.approx([100 * s for s in scores.score])
    spans = [
        tuple(line.get_xdata())
        for line in ax.lines
        if line.get_marker() == 'None' and len(line.get_xdata()) == 2 and line.get_linewidth() > 1
    ]
    assert spans == [pytest.approx((100 * r.low, 100 * r.high)) for r in scores.itertuples()]
    assert [t.get_text() for t in ax.texts] == [f'{100 * s:.0f}' for s in scores.score]
    assert ax.get_xlim() == (30, 100)
    assert len(ax.collections) == 3
    assert plot_tasks(scores).axes[0].get_xlim() == (30, 90)
