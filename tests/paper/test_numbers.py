"The paper's tables as data: their shapes, what its text quotes, and whole numbers of prompts."

import pytest

from balanceddpo.paper.numbers import PAPER, fits


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
