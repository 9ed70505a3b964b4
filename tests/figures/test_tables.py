"""Tables, figures and the paper's numbers: same bytes every time, nothing outside the page, nothing
that a name could break."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.win_rates import wilson
from balanceddpo.figures.tables import (
    COLUMN,
    PAGE,
    beside_paper,
    bold_cells,
    figure_style,
    image_grid,
    latex_table,
    markdown_table,
    plot_win_rates,
    save_figure,
    save_gains,
    save_table,
    score_caption,
    style_settings,
    table_cells,
    text_size,
    title_lines,
    win_rate_table,
    write_key,
    write_provenance,
    write_title,
)
from balanceddpo.paper.numbers import PAPER, PROMPT_SETS, SCORERS, fits

PAIRS = (('DiffusionDPO', 'base'), ('BalancedDPO', 'base'), ('BalancedDPO', 'DiffusionDPO'))


def synthetic(pairs=PAIRS, sets=PROMPT_SETS, n=150):
    "Made-up win rates in the form of evaluation.compare."
    rows, rng = [], np.random.default_rng(0)
    for name in sets:
        for a, b in pairs:
            for k in SCORERS:
                wins = int(rng.integers(60, 130))
                low, high = wilson(wins, n)
                rows.append(
                    dict(
                        model_a=a,
                        model_b=b,
                        prompt_set=name,
                        scorer=k,
                        protocol='best',
                        tie_rule='split',
                        n=n,
                        wins=wins,
                        ties=0,
                        win_rate=wins / n,
                        low=low,
                        high=high,
                        boot_low=low,
                        boot_high=high,
                    )
                )
    return pd.DataFrame(rows)


# --- the paper


def test_shapes_of_the_papers_tables():
    assert {k: (t.number, len(t.rows), len(t.columns)) for k, t in PAPER.items()} == {
        'table1': ('I', 3, 12),
        'table2': ('II', 3, 12),
        'table3': ('III', 8, 8),
        'table4': ('IV', 4, 4),
        'table5': ('V', 3, 4),
        'table6': ('VI', 4, 4),
    }
    for t in PAPER.values():
        assert all(len(v) == len(t.columns) for v in t.rows.values())
        assert t.frame()['value'].notna().all()


@pytest.mark.parametrize(
    'a,b,values',
    [
        # SIV-B and SI quote these from Table I
        (
            'BalancedDPO',
            'SD1.5',
            {
                ('pickapic', 'hps'): 85.19,
                ('pickapic', 'clip'): 78.45,
                ('pickapic', 'pickscore'): 64.31,
                ('pickapic', 'aesthetic'): 69.36,
                ('partiprompts', 'hps'): 70.06,
                ('partiprompts', 'aesthetic'): 62.18,
                ('hpd', 'hps'): 72.67,
                ('hpd', 'clip'): 72.67,
                ('hpd', 'pickscore'): 60.67,
                ('hpd', 'aesthetic'): 63.33,
            },
        ),
        (
            'DiffusionDPO',
            'SD1.5',
            {
                ('pickapic', 'hps'): 70.71,
                ('pickapic', 'clip'): 57.24,
                ('partiprompts', 'hps'): 67.76,
                ('partiprompts', 'aesthetic'): 50.49,
                ('hpd', 'hps'): 74.00,
                ('hpd', 'clip'): 50.67,
                ('hpd', 'pickscore'): 47.33,
                ('hpd', 'aesthetic'): 56.00,
            },
        ),
    ],
)
def test_table_1_is_what_the_text_quotes(a, b, values):
    cells = (
        PAPER['table1'].frame().set_index(['model_a', 'model_b', 'prompt_set', 'scorer'])['value']
    )
    for (name, k), value in values.items():
        assert cells[a, b, name, k] == value


def test_table_2_is_what_the_text_quotes():
    rows = PAPER['table2'].rows
    assert rows['BalancedDPO', 'SDXL'] == (98, 88, 62, 44, 96, 94, 76, 66, 97, 78, 50, 42)
    assert rows['BalancedDPO', 'DiffusionDPO'] == (82, 77, 64, 81, 88, 86, 80, 93, 80, 74, 75, 83)


def test_tables_3_4_5_are_what_the_text_quotes():
    three, four = PAPER['table3'].rows, PAPER['table4'].rows
    assert three[('HPS',)][0] == 89.90
    assert three[('HPS',)][4] == 87.54
    assert three[('HPS',)][3] == 14.48
    assert three[('CLIP',)][1] == 57.91
    assert three[('Vanilla',)][:4] == (69.70, 31.65, 53.54, 53.54)
    assert three[('Vanilla',)][5] == 26.60
    assert four['without several metrics', True, False] == (82.49, 62.29, 46.13, 43.43)
    assert [four['without reference update', False, True][i] for i in (0, 2, 3)] == [
        62.96,
        47.14,
        53.87,
    ]
    assert PAPER['table5'].rows[('BalancedDPO',)] == (0.2745, 0.3771, 0.1899, 4.5034)


def test_every_percentage_is_a_whole_number_of_prompts():
    """297, 1129, 150 and 100 prompts explain all of Tables I, II and IV, and of III all but the row
    Normalized: a wrong digit would not fit."""
    for name in ('table1', 'table2', 'table3', 'table4'):
        wrong = [
            c for c in PAPER[name].frame().to_dict('records') if not fits(c['value'], c['prompts'])
        ]
        assert {c['model_a'] for c in wrong} == ({'Normalized'} if name == 'table3' else set())
    assert [
        n
        for n in range(250, 330)
        if all(fits(v, n) for v in PAPER['table1'].rows['BalancedDPO', 'SD1.5'][:4])
    ] == [297]


# --- tables


def test_layouts_hold_the_same_numbers():
    rates = synthetic()
    wide, tall = (
        win_rate_table(rates),
        win_rate_table(rates, ('prompt_set', 'scorer'), ('comparison',)),
    )
    assert wide.shape == (3, 12)
    assert tall.shape == (12, 3)
    assert np.array_equal(wide.to_numpy().T, tall.to_numpy())
    assert list(wide.columns.get_level_values(0).unique()) == ['Pick-a-Pic', 'PartiPrompts', 'HPD']
    assert wide.index[2] == 'BalancedDPO vs DiffusionDPO'
    for row in rates.itertuples():
        names = {
            'hps': 'HPS',
            'clip': 'CLIP',
            'pickscore': 'PickScore',
            'aesthetic': 'Aesthetic',
            'pickapic': 'Pick-a-Pic',
            'partiprompts': 'PartiPrompts',
            'hpd': 'HPD',
        }
        assert (
            wide.loc[f'{row.model_a} vs {row.model_b}', (names[row.prompt_set], names[row.scorer])]
            == 100 * row.win_rate
        )


def test_protocols_can_be_columns_but_not_share_a_cell():
    both = pd.concat([synthetic(), synthetic().assign(protocol='mean', win_rate=0.5)])
    with pytest.raises(InputError, match='choose one protocol'):
        win_rate_table(both)
    with pytest.raises(InputError, match='choose one protocol'):
        plot_win_rates(both)
    assert win_rate_table(both, ('comparison', 'prompt_set', 'scorer'), ('protocol',)).shape == (
        36,
        2,
    )


def test_beside_paper_joins_by_name():
    rates = synthetic()
    both = beside_paper(rates, 'table1', {'base': 'SD1.5'})
    assert len(both) == 36
    assert set(both['model_b']) == {'base', 'DiffusionDPO'}  # our names stay
    cell = both[
        (both.model_a == 'BalancedDPO')
        & (both.model_b == 'base')
        & (both.prompt_set == 'hpd')
        & (both.scorer == 'clip')
    ].iloc[0]
    assert cell.paper == 72.67
    assert cell.difference == cell.ours - 72.67
    assert (cell.paper_low, cell.paper_high) == pytest.approx(
        [100 * v for v in wilson(109.005, 150)]
    )
    assert len(beside_paper(rates, PAPER['table2'], {'base': 'SDXL'})) == 36
    assert len(beside_paper(rates, 'table1')) == 12
    with pytest.raises(InputError, match='table9'):
        beside_paper(rates, 'table9')


def test_saved_numbers_read_back(tmp_path):
    rates = synthetic()
    low, high = (win_rate_table(rates, value=v) for v in ('low', 'high'))
    save_table(win_rate_table(rates), tmp_path / 't', 'c', 'l', low=low, high=high)
    rows = list(csv.DictReader(open(tmp_path / 't.csv')))
    assert float(rows[1]['HPD CLIP']) == pytest.approx(win_rate_table(rates).iat[1, 9], rel=1e-5)
    assert float(rows[1]['HPD CLIP low']) == pytest.approx(low.iat[1, 9], rel=1e-5)
    assert len(rows[0]) == 1 + 36
    for kind in ('md', 'tex'):
        text = (tmp_path / f't.{kind}').read_text()
        assert all(
            f'{v:.1f} [{l:.0f}, {h:.0f}]' in text
            for v, l, h in zip(*(t.to_numpy().ravel() for t in (win_rate_table(rates), low, high)))
        )


def test_gains_are_saved_with_their_intervals(tmp_path):
    gains = pd.DataFrame(
        [
            {
                'model_a': m,
                'model_b': 'base',
                'prompt_set': s,
                'gain': g,
                'low': g - 0.1,
                'high': g + 0.1,
            }
            for m, s, g in (('a', 'hpd', 0.25), ('a', 'pickapic', -0.5), ('b', 'hpd', 1.0))
        ]
    )
    save_gains(gains, tmp_path / 'g', 'c', 'l')
    rows = {r['comparison']: r for r in csv.DictReader(open(tmp_path / 'g.csv'))}
    assert float(rows['a vs base']['HPD']) == 0.25
    assert float(rows['a vs base']['Pick-a-Pic low']) == -0.6
    assert rows['b vs base']['Pick-a-Pic'] == ''
    assert '0.250 [0.15, 0.35]' in (tmp_path / 'g.md').read_text()
    assert '**' not in (tmp_path / 'g.md').read_text()


def test_tables_are_the_same_bytes_and_leave_nothing_else(tmp_path):
    rates = synthetic()
    first = [p.read_bytes() for p in save_table(win_rate_table(rates), tmp_path / 't', 'c', 'l')]
    assert [
        p.read_bytes() for p in save_table(win_rate_table(rates), tmp_path / 't', 'c', 'l')
    ] == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ['t.csv', 't.md', 't.tex']


NASTY = pd.DataFrame(
    {'a_b & c': [1.0, 2.0, np.nan], r'100 % \frac{$x$} | #~^': [3.0, 3.04, -1.0]},
    index=['{row}', 'p|q\nr', '50 %'],
)


def test_nothing_in_a_name_breaks_latex():
    text = latex_table(table_cells(NASTY), bold_cells(NASTY), r'100 % of a_b & $', 'tab:x')
    body = text.split('\\toprule\n')[1].split('\\bottomrule')[0]
    # what is escaped is gone
    plain = re.sub(
        r'\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\\[&%$#_{}]', '', text
    )
    assert all(c not in plain for c in '$#~^')
    assert plain.count('%') == 1
    assert '_' not in plain
    assert plain.count('{') == plain.count('}')
    assert all(
        re.sub(r'\\&', '', row).count('&') == 2 for row in body.splitlines() if row.endswith(r'\\')
    )
    assert text.count(r'\textbf{') == 3
    assert r'\textbf{3.0} ' in text  # 3 and 3.04 print alike


def test_nothing_in_a_name_breaks_markdown():
    lines = markdown_table(table_cells(NASTY), bold_cells(NASTY)).splitlines()
    assert len(lines) == 5
    assert {re.sub(r'\\\|', '', line).count('|') for line in lines} == {4}
    assert '**2.0**' in lines[3]


def test_bold_rules():
    assert bold_cells(NASTY, 'min').to_numpy().tolist() == [
        [True, False],
        [False, False],
        [False, True],
    ]
    assert not bold_cells(NASTY, None).to_numpy().any()
    named = pd.DataFrame([[True, False]], index=['50 %'], columns=NASTY.columns)
    assert bold_cells(NASTY, named).to_numpy().sum() == 1
    assert bold_cells(NASTY, named).iat[2, 0]
    words = pd.DataFrame({'update': [True, False], 'who': ['a', 'b'], 'x': [1, 2]})
    assert bold_cells(words).to_numpy().tolist() == [[False, False, False], [False, False, True]]
    assert table_cells(words).iat[0, 0] == 'True'
    with pytest.raises(InputError, match='best'):
        bold_cells(NASTY, 'best')


# --- figures


def texts_outside(fig):
    "The texts of a figure that do not lie wholly inside it."
    fig.canvas.draw()
    page = fig.bbox
    found = [
        t
        for t in fig.findobj(lambda a: hasattr(a, 'get_text'))
        if t.get_visible() and t.get_text().strip()
    ]
    boxes = [(t.get_text(), t.get_window_extent()) for t in found]
    return [
        text
        for text, b in boxes
        if b.x0 < -0.5 or b.y0 < -0.5 or b.x1 > page.width + 0.5 or b.y1 > page.height + 0.5
    ]


def page(width, height=1.0):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # at fewer dots the letters are set to whole ones
    fig = Figure(figsize=(width, height), dpi=300)
    FigureCanvasAgg(fig)
    return fig


def extents(fig):
    return [t.get_window_extent() for t in fig.texts]


@pytest.mark.parametrize('width', [COLUMN, PAGE])
def test_a_title_fits_its_figure(width):
    from matplotlib import rc_context

    text = 'a title that goes on and on about differences and their intervals ' * 2
    lines, fig = title_lines(text, width), page(width)
    assert ' '.join(lines) == text.strip()
    assert len(lines) > 1
    assert title_lines(text, width, 1) == [lines[0][:-1] + '…']
    with rc_context(style_settings()):
        write_title(fig, lines)
        boxes = extents(fig)
    assert texts_outside(fig) == []
    assert all(a.y0 > b.y0 and not a.overlaps(b) for a, b in zip(boxes, boxes[1:]))


def test_a_text_is_as_wide_as_it_is_drawn():
    from matplotlib import rc_context

    fig = page(7.0)
    with rc_context(style_settings()):
        for i, size in enumerate((6.5, 7, 20)):
            fig.text(0, 0.2 * i, 'Normalized (z-score) $5', fontsize=size, parse_math=False)
        drawn = [box.width * 72 / fig.dpi for box in extents(fig)]
    assert drawn == pytest.approx(
        [text_size('Normalized (z-score) $5', size)[0] for size in (6.5, 7, 20)], rel=0.03
    )


def test_the_names_of_a_key_stand_apart_in_one_line():
    from matplotlib import rc_context

    names, colors = (
        ['base', 'Normalized (z-score)', 'BalancedDPO minus DiffusionDPO', 'i'],
        ['C0', 'C1', 'C2'],
    )
    fig = page(7.0)
    with rc_context(style_settings()):
        write_key(fig, names, colors, 0.4)
        boxes = extents(fig)
    marks = [mark.get_xdata()[0] * fig.bbox.width for mark in fig.artists]
    assert [t.get_text() for t in fig.texts] == names
    assert texts_outside(fig) == []
    assert len({t.get_position()[1] for t in fig.texts}) == 1
    assert all(mark < box.x0 for mark, box in zip(marks, boxes))
    assert all(box.x1 < mark for box, mark in zip(boxes, marks[1:]))
    assert [t.get_color() for t in fig.texts] == [*colors, 'C0']
    assert [mark.get_marker() for mark in fig.artists] == list('osD^')


@pytest.mark.parametrize('width', [COLUMN, PAGE])
@pytest.mark.parametrize(
    'pairs,sets',
    [
        (PAIRS, PROMPT_SETS),
        (PAIRS[2:], PROMPT_SETS),
        (PAIRS, PROMPT_SETS[:1]),
        (PAIRS[:1], ('hpd',)),
    ],
)
def test_everything_lies_on_the_page(width, pairs, sets):
    rates = synthetic(pairs, sets)
    rates.loc[0, ['win_rate', 'low', 'high']] = 1, 0.97, 1
    rates.loc[1, ['win_rate', 'low', 'high']] = 0, 0, 0.03
    fig = plot_win_rates(
        rates,
        beside_paper(rates, 'table1', {'base': 'SD1.5'}),
        'A title that is too long for a single line of a column, $so',
        width=width,
    )
    assert texts_outside(fig) == []
    assert fig.get_figwidth() == width
    assert len(fig.axes) == len(sets)
    for a in fig.axes:
        for b in fig.axes:
            assert a is b or not a.get_window_extent().overlaps(b.get_window_extent())


def test_the_figure_shows_the_numbers():
    rates = synthetic()
    fig = plot_win_rates(rates, beside_paper(rates, 'table1', {'base': 'SD1.5'}))
    for ax, name in zip(fig.axes, PROMPT_SETS):
        here = rates[rates.prompt_set == name]
        filled = [
            x.get_xdata()[0]
            for x in ax.lines
            if x.get_marker() in 'osD' and x.get_markeredgewidth() == 0
        ]
        hollow = [x.get_xdata()[0] for x in ax.lines if x.get_markerfacecolor() == 'white']
        assert sorted(filled) == pytest.approx(sorted(100 * here.win_rate))
        assert len(hollow) == 12
        spans = sorted(
            tuple(x.get_xdata())
            for x in ax.lines
            if x.get_linewidth() == 1.3 and len(x.get_xdata()) == 2
        )
        assert np.allclose(spans, sorted(zip(100 * here.low, 100 * here.high)))
        numbers = {(t.get_text(), t.get_fontweight()) for t in ax.texts}
        assert {
            (f'{100 * r.win_rate:.0f}', 'bold' if r.low > 0.5 or r.high < 0.5 else 'normal')
            for r in here.itertuples()
        } <= numbers
        assert [t.get_text() for t in ax.get_yticklabels()] == [
            'HPS',
            'CLIP',
            'PickScore',
            'Aesthetic',
        ]


def test_figures_are_the_same_bytes_in_any_process(tmp_path):
    program = """
import sys; sys.path.insert(0, sys.argv[1])
from test_tables import *
rates = synthetic()
fig = plot_win_rates(rates, beside_paper(rates, 'table1', {'base': 'SD1.5'}), 'title')
if sys.argv[3] == 'drawn': fig.canvas.draw()
save_figure(fig, sys.argv[2])
import matplotlib.pyplot
assert matplotlib.pyplot.get_fignums() == []  # nothing that pyplot knows of, or would show
"""
    here, hashes = os.path.dirname(__file__), set()
    for seed, how in ((1, 'plain'), (2, 'drawn')):
        env = os.environ | {
            'PYTHONHASHSEED': str(seed),
            'MPLBACKEND': ('svg', 'tkagg')[seed - 1],
            'TZ': f'UTC+{seed}',
        }
        subprocess.run(
            [sys.executable, '-c', program, here, str(tmp_path / how), how], check=True, env=env
        )
        hashes.add(((tmp_path / f'{how}.pdf').read_bytes(), (tmp_path / f'{how}.png').read_bytes()))
    assert len(hashes) == 1
    pdf, _ = hashes.pop()
    assert b'/FontFile2' in pdf
    assert b'/Type3' not in pdf
    assert b'CreationDate' not in pdf
    box = [float(v) for v in re.search(rb'/MediaBox \[ ?([\d. ]+)\]', pdf)[1].split()]
    assert box[2] == pytest.approx(72 * COLUMN)  # printed at its own width


def test_plots_leave_the_session_alone(monkeypatch):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_win_rates(synthetic())
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context():
        figure_style()
        blue = matplotlib.rcParams['axes.prop_cycle'].by_key()['color'][0]
        # colour-blind palette
        assert matplotlib.rcParams['pdf.fonttype'] == 42
        assert matplotlib.colors.to_hex(blue) == '#0173b2'
    monkeypatch.setitem(sys.modules, 'seaborn', None)
    with pytest.raises(InputError, match='pip install'):
        style_settings()


def test_low_and_high_choose_the_interval():
    rates = synthetic(PAIRS[:1], ('hpd',)).assign(boot_low=0.51, boot_high=0.52)
    spans = [
        tuple(x.get_xdata())
        for x in plot_win_rates(rates, low='boot_low', high='boot_high').axes[0].lines
        if x.get_linewidth() == 1.3 and len(x.get_xdata()) == 2
    ]
    assert np.allclose(spans, [(51, 52)] * 4)


# --- grids


def picture(w, h=None, color='red'):
    from PIL import Image

    return Image.new('RGB', (w, h or w), color)


PROMPTS = [
    'a red apple',
    r'$5 and $6 \frac{ unbalanced_ ^ & % # <img onerror=x>',
    'a very long prompt ' * 40,
]


@pytest.mark.parametrize('size', [64, 512])
@pytest.mark.parametrize('width,models', [(COLUMN, 3), (PAGE, 3), (PAGE, 7)])
def test_grids_keep_to_the_page(size, width, models):
    images = [[picture(size) for _ in range(models)] for _ in PROMPTS]
    captions = [[score_caption({k: 0.2 for k in SCORERS})] * models for _ in PROMPTS]
    fig = image_grid(
        images, PROMPTS, ['BalancedDPO'] * models, captions, [picture(size)] * 3, width=width
    )
    assert texts_outside(fig) == []
    assert len(fig.axes) == 3 * (models + 1)
    assert fig.get_figwidth() == width
    boxes = [ax.get_window_extent() for ax in fig.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert np.ptp([(b.width, b.height) for b in boxes]) < 0.01


def test_icons_are_enlarged_by_whole_pixels_and_photos_reduced():
    icon = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype='uint8')
    shown = np.asarray(
        image_grid([[icon]], ['p'], ['m'], width=COLUMN).axes[0].images[0].get_array()
    )
    factor = shown.shape[0] // 64
    assert shown.shape == (64 * factor, 64 * factor, 3)
    assert factor > 1
    assert np.array_equal(shown[::factor, ::factor], icon)
    assert np.array_equal(shown, icon.repeat(factor, 0).repeat(factor, 1))
    large = np.asarray(
        image_grid([[picture(1024)] * 3], ['p'], list('abc'), width=COLUMN, dpi=100)
        .axes[0]
        .images[0]
        .get_array()
    )
    assert large.shape[0] < 120


def test_shape_of_pictures_and_empty_cells():
    fig = image_grid(
        [[picture(64, 32), None], [picture(32, 64), picture(64)]], ['a', 'b'], ['x', 'y']
    )
    ratios = [ax.get_window_extent().height / ax.get_window_extent().width for ax in fig.axes]
    assert sorted(round(r, 2) for r in ratios) == [0.5, 1, 2]
    assert len(image_grid([[None]], [''], ['']).axes) == 0


def test_grids_are_the_same_bytes(tmp_path):
    make = lambda: image_grid(
        [[picture(64), picture(64, color='blue')]] * 2,
        ['a', 'b'],
        ['x', 'y'],
        truth=[picture(64)] * 2,
        width=COLUMN,
    )
    assert [p.read_bytes() for p in save_figure(make(), tmp_path / 'a')] == [
        p.read_bytes() for p in save_figure(make(), tmp_path / 'b')
    ]


@pytest.mark.parametrize(
    'wrong',
    [
        dict(columns=['x']),
        dict(rows=['a']),
        dict(captions=[['c']]),
        dict(truth=[]),
        dict(images=[[np.zeros((4, 4, 3))] * 2] * 2),
    ],
)
def test_wrong_shapes_and_floats_are_refused(wrong):
    with pytest.raises(InputError):
        image_grid(
            **(dict(images=[[picture(8)] * 2] * 2, rows=['a', 'b'], columns=['x', 'y']) | wrong)
        )


def test_score_caption_order():
    assert (
        score_caption(
            {'aesthetic': 5.123, 'clip': 0.31, 'hps': 0.2749, 'pickscore': 21.03}
        ).replace('\xa0', ' ')
        == 'P 21.03  H 0.275  C 0.310  A 5.12'
    )


def test_a_number_without_an_interval_stands_alone():
    table, low = (
        pd.DataFrame({'hps': [100.0, 50.0]}, ['a', 'b']),
        pd.DataFrame({'hps': [np.nan, 40.0]}, ['a', 'b']),
    )
    assert table_cells(table, 1, low, low + 20)['hps'].tolist() == ['100.0', '50.0 [40, 60]']


# --- provenance


def test_provenance_tells_all_but_the_place(tmp_path):
    from dataclasses import dataclass
    from hashlib import sha256

    @dataclass
    class Settings:
        steps: int = 20

    (tmp_path / 'model').mkdir()
    (tmp_path / 'model/w.bin').write_bytes(b'w')
    (tmp_path / 't.md').write_bytes(b'table')
    path = write_provenance(
        tmp_path,
        't.provenance',
        'balanceddpo reproduce table1',
        Settings(),
        seeds=range(2),
        inputs=[tmp_path / 'model'],
        outputs=[tmp_path / 't.md'],
        seconds=3,
    )
    note = json.loads(path.read_text())
    assert note['outputs'] == {'t.md': sha256(b'table').hexdigest()}
    assert list(note['inputs']) == ['model']
    assert note['seeds'] == [0, 1]
    assert note['parameters'] == {'steps': 20}
    assert note['versions']['python']
    assert note['versions']['matplotlib']
    assert note['finished'].endswith('+00:00')
    assert str(tmp_path) not in path.read_text()
    with pytest.raises(InputError, match='absent'):
        write_provenance(tmp_path, 'x', outputs=[tmp_path / 'absent'])
