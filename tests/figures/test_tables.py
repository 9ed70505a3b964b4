"""Tables and the words in them: the same numbers in every layout, the same bytes every time,
nothing that a name could break."""

import csv
import re

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.figures.tables import (
    adherence_caption,
    bold_cells,
    latex_table,
    markdown_table,
    save_gains,
    save_table,
    score_caption,
    table_cells,
    win_rate_table,
)
from figure_checks import made_up_rates


def test_layouts_hold_the_same_numbers():
    rates = made_up_rates()
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
    both = pd.concat([made_up_rates(), made_up_rates().assign(protocol='mean', win_rate=0.5)])
    with pytest.raises(InputError, match='choose one protocol'):
        win_rate_table(both)
    assert win_rate_table(both, ('comparison', 'prompt_set', 'scorer'), ('protocol',)).shape == (
        36,
        2,
    )


def read_csv(path):
    "The rows of a file, as dicts."
    with open(path) as file:
        return list(csv.DictReader(file))


def test_saved_numbers_read_back(tmp_path):
    rates = made_up_rates()
    low, high = (win_rate_table(rates, value=v) for v in ('low', 'high'))
    save_table(win_rate_table(rates), tmp_path / 't', 'c', 'l', interval=(low, high))
    rows = read_csv(tmp_path / 't.csv')
    assert float(rows[1]['HPD CLIP']) == pytest.approx(win_rate_table(rates).iat[1, 9], rel=1e-5)
    assert float(rows[1]['HPD CLIP low']) == pytest.approx(low.iat[1, 9], rel=1e-5)
    assert len(rows[0]) == 1 + 36
    for kind in ('md', 'tex'):
        text = (tmp_path / f't.{kind}').read_text()
        values, lows, highs = (t.to_numpy().ravel() for t in (win_rate_table(rates), low, high))
        for value, at_least, at_most in zip(values, lows, highs):
            assert f'{value:.1f} [{at_least:.0f}, {at_most:.0f}]' in text


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
    rows = {r['comparison']: r for r in read_csv(tmp_path / 'g.csv')}
    assert float(rows['a vs base']['HPD']) == 0.25
    assert float(rows['a vs base']['Pick-a-Pic low']) == -0.6
    assert rows['b vs base']['Pick-a-Pic'] == ''
    assert '0.250 [0.15, 0.35]' in (tmp_path / 'g.md').read_text()
    assert '**' not in (tmp_path / 'g.md').read_text()


def test_tables_are_the_same_bytes_and_leave_nothing_else(tmp_path):
    rates = made_up_rates()
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


def test_a_number_without_an_interval_stands_alone():
    table, low = (
        pd.DataFrame({'hps': [100.0, 50.0]}, ['a', 'b']),
        pd.DataFrame({'hps': [np.nan, 40.0]}, ['a', 'b']),
    )
    assert table_cells(table, 1, (low, low + 20))['hps'].tolist() == ['100.0', '50.0 [40, 60]']


def test_score_caption_order():
    assert (
        score_caption(
            {'aesthetic': 5.123, 'clip': 0.31, 'hps': 0.2749, 'pickscore': 21.03}
        ).replace('\xa0', ' ')
        == 'P 21.03  H 0.275  C 0.310  A 5.12'
    )


def test_captions_mark_each_part():
    caption = adherence_caption(('red apple', 'flat', 'blue'), ('red apple', 'noto', 'blue'))
    assert caption.replace(' \xa0', ' | ').replace('\xa0', ' ') == '✓ red apple | ✗ flat | ✓ blue'
    with pytest.raises(ValueError):
        adherence_caption(('a',), ('a', 'b'))
