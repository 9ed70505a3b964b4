"""What a page shows, from tables worked by hand; and that it is written safely."""

import json
import re
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from balanceddpo.core.files import package_folder
from balanceddpo.evaluation.comparison import compare_models
from balanceddpo.evaluation.ranking import prompt_points, rank_models
from balanceddpo.page.cautions import above_ceiling, carried_by_one, ceilings, gained_by_one
from balanceddpo.page.contents import About, contents_of
from balanceddpo.page.pictures import KeptPictures
from balanceddpo.page.writing import SCRIPTS, escaped_json, policy, render, source_hash, style_of
from made_pages import SCORERS, bare_page, made_evaluation

SETS = {'hpd': ['a', 'b', 'c'], 'mine': ['d', 'e']}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return made_evaluation(tmp_path_factory.mktemp('made'), SETS, ('base', 'one', 'two'), per=2)


@pytest.fixture(scope='module')
def page(made):
    return contents_of(made.found, made.scores, made.drawn)


def test_images_are_in_columns_row_by_row_model_by_model(made, page):
    assert page.rows['prompt'] == ['a', 'b', 'c', 'd', 'e']
    assert page.rows['set'] == [0, 0, 0, 1, 1]
    assert page.per == 2
    n = 0
    for row, (prompt_set, prompt) in enumerate((s, p) for s, ps in SETS.items() for p in ps):
        assert page.rows['id'][row] == sha256(prompt.encode()).hexdigest()[:16]
        for model in ('base', 'one', 'two'):
            (store,) = (d for m, s, d in made.drawn if (m, s) == (model, prompt_set))
            own = store.index[store.index.prompt == prompt]
            assert page.images['sha256'][n : n + 2] == list(own.sha256)
            assert page.images['seed'][n : n + 2] == list(own.seed)
            at = list(SETS[prompt_set]).index(prompt)
            expected = made.grid(model, 'clip', prompt_set)[at]
            np.testing.assert_allclose(page.images['scores']['clip'][n : n + 2], expected, 1e-6)
            n += 2
    assert n == len(page.images['sha256'])


def test_sets_with_fewer_images_have_gaps(tmp_path):
    from made_pages import Made

    many = made_evaluation(tmp_path / 'a', {'x': ['p']}, per=3)
    few = made_evaluation(tmp_path / 'b', {'y': ['q', 'r']}, per=1)
    scores = pd.concat([many.scores, few.scores], ignore_index=True)
    both = Made(compare_models(scores, ['base', 'ours'], SCORERS), scores, many.drawn + few.drawn)
    page = contents_of(both.found, scores, both.drawn)
    there = [bool(sha) for sha in page.images['sha256']]
    assert there == [True] * 6 + 4 * [True, False, False]
    assert page.images['seed'][7] is None
    assert page.images['scores']['hps'][7] is None
    assert dict(page.facts)['Images'] == '1 to 3 a prompt and model, 10 in all'


def test_rates_gains_and_ranks_are_those_of_the_evaluation(made, page):
    rates = made.found.rates
    assert len(page.rates) == len(rates) == 3 * 2 * 3
    for shown, row in zip(page.rates, rates.itertuples()):
        assert (shown['model_a'], shown['scorer']) == (row.model_a, row.scorer)
        for name in ('win_rate', 'low', 'high', 'gain', 'gain_low', 'p_holm'):
            assert shown[name] == pytest.approx(getattr(row, name), rel=1e-6)
    assert {row['scorer'] for row in page.gains} == {'mean of 3'}
    here = made.scores[made.scores.prompt_set == 'hpd']
    models = ['base', 'one', 'two']
    own = rank_models(prompt_points(here, models, ['clip']), models, anchor='base')
    ranks = [r for r in page.ranks if (r['prompt_set'], r['scorer']) == ('hpd', 'clip')]
    assert [(r['model'], r['rank']) for r in ranks] == list(zip(own['model'], own['rank']))
    assert len(page.ranks) == 3 * (1 + 2 * 3)  # all together, and two sets by three scorers


def test_a_unit_of_a_margin_is_that_of_a_gain(made, page):
    sd = made.grid('base', 'hps', 'hpd').std(ddof=1)
    assert page.units['hpd']['hps'] == pytest.approx(sd, rel=1e-6)


def test_the_digest_is_of_what_is_voted_on(made, page):
    again = contents_of(made.found, made.scores, made.drawn, About(title='another title'))
    assert again.digest == page.digest
    fewer = [d for d in made.drawn if d[1] == 'hpd']
    scores = made.scores[made.scores.prompt_set == 'hpd']
    found = compare_models(scores, ['base', 'one', 'two'], SCORERS)
    assert contents_of(found, scores, fewer).digest != page.digest


def test_truth_is_a_check_and_no_scorer(made):
    truth = np.arange(len(made.scores)) % 2
    scores = made.scores.assign(recognised=truth)
    page = contents_of(made.found, scores, made.drawn, About(truth='recognised'))
    assert page.scorers == list(SCORERS)
    assert page.images['truth'] == [0, 1] * (len(scores) // 2)
    told = [check['told'] for check in page.checks]
    assert 'true to the prompt (recognised): base 50 %, one 50 %, two 50 %' in told


def test_what_is_flagged_or_not_finite_is_told(made):
    (model, name, store), *rest = made.drawn
    from dataclasses import replace

    flagged = replace(store, index=store.index.assign(flagged=[True] + [False] * 5))
    page = contents_of(made.found, made.scores, [(model, name, flagged), *rest])
    assert page.images['flagged'][:3] == [1, 0, 0]
    (bad,) = [check['told'] for check in page.checks if not check['sound']]
    assert bad.startswith('base, hpd: 1 of 6 images cannot be judged')


# cautions


def rates_of(*rows):
    columns = ['scorer', 'win_rate', 'low', 'high']
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(model_a='ours', model_b='base', prompt_set='hpd')


def test_one_scorer_carries_it_only_if_one_is_ahead_and_one_behind():
    up, down, open_ = ('a', 0.8, 0.6, 0.9), ('b', 0.2, 0.1, 0.4), ('c', 0.5, 0.3, 0.7)
    (told,) = carried_by_one(rates_of(up, down, open_))
    assert told.text == (
        'On HPD ours beats base by a (80 % [60, 90]) alone, and loses by b (20 % [10, 40]).'
    )
    assert carried_by_one(rates_of(up, open_)) == []
    assert carried_by_one(rates_of(down, open_)) == []
    assert carried_by_one(rates_of(up, up, down)) == []
    # an end at a half is not beyond it
    assert carried_by_one(rates_of(('a', 0.8, 0.5, 0.9), down)) == []


@pytest.mark.parametrize(
    'gains, low, told',
    [
        ((0.9, -0.1, -0.2), 0.1, True),
        ((0.9, 0.1, -0.1), 0.1, True),  # nothing is left without it
        ((0.9, 0.2, -0.1), 0.1, False),
        ((0.9, -0.1, -0.2), -0.1, False),  # whether there is a gain at all is open
        ((0.9, -0.1), 0.1, False),  # of two scorers one always carries more
    ],
)
def test_a_gain_that_one_scorer_carries(gains, low, told):
    names = list('abc')[: len(gains)]
    frame = pd.DataFrame({'scorer': [*names, 'mean'], 'gain': [*gains, np.mean(gains)], 'low': low})
    frame = frame.assign(model_a='ours', model_b='base', prompt_set='hpd')
    assert bool(gained_by_one(frame, names)) == told


def test_a_gain_above_that_of_the_true_pictures_is_told():
    base = pd.DataFrame({'model': 'base', 'prompt_set': 'hpd', 'a': [0.0, 2.0], 'b': [1.0, 1.0]})
    true = pd.DataFrame({'prompt_set': 'hpd', 'a': [2.0, 2.0], 'b': [5.0, 5.0]})
    most = ceilings(true, base, ['a', 'b'], 'base')
    # by hand: (2 - 1) / sqrt(2); b has no unit
    assert most.scorer.tolist() == ['a']
    assert most.gain[0] == pytest.approx(2**-0.5)
    row = dict(model_a='ours', model_b='base', prompt_set='hpd', scorer='a', low=0.1, high=2.0)
    (told,) = above_ceiling(pd.DataFrame([row | {'gain': 0.8}]), most, 'base')
    assert told.text.endswith(
        'gains +0.80 s.d. over base by a; the true pictures themselves are at +0.71.'
    )
    assert above_ceiling(pd.DataFrame([row | {'gain': 0.7}]), most, 'base') == []
    assert above_ceiling(pd.DataFrame([row | {'gain': 0.8, 'low': -0.1}]), most, 'base') == []


# the file


def test_json_in_the_page_ends_nothing_and_stays_what_it_is():
    values = [
        '</script>',
        '<!--',
        ']]>',
        '&lt;',
        '\u2028\u2029',
        '\U0001f98a',
        '"\\',
    ]
    text = escaped_json(values)
    assert not set('<>&\u2028\u2029') & set(text)
    assert json.loads(text) == values
    with pytest.raises(ValueError):
        escaped_json(float('nan'))


def test_the_policy_names_the_only_script_and_style_and_no_address():
    page, _ = bare_page(['a'])
    html = render(page, KeptPictures({}, {}))
    (css,) = re.findall(r'<style>(.*?)</style>', html, re.S)
    (js,) = re.findall(r'<script type="module">(.*?)</script>', html, re.S)
    told = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    told = told.replace('&#39;', "'").replace('&#43;', '+').replace('&#x27;', "'")
    assert told == policy(css, js)
    assert source_hash(js) in told
    assert 'unsafe' not in told
    assert 'http' not in told
    assert "default-src 'none'" in told
    # nothing to load from anywhere
    assert not re.search(r'(src|href)\s*=\s*"(?!#)', html.replace(js, ''))
    assert 'url(' not in css
    assert '@import' not in css


def test_the_scripts_never_take_text_for_html():
    assets = package_folder() / 'page' / 'assets'
    assert {p.stem for p in assets.glob('*.js')} == set(SCRIPTS)
    for path in assets.glob('*.js'):
        text = path.read_text()
        for way in ('innerHTML', 'outerHTML', 'insertAdjacentHTML', 'document.write', 'eval('):
            assert way not in text.replace('there is no innerHTML', ''), path.name
        assert '</script' not in text
        assert max(map(len, text.splitlines())) <= 100, path.name


def test_the_colours_are_those_of_the_figures():
    seaborn = pytest.importorskip('seaborn')
    css = style_of('page')
    light = dict(re.findall(r'--(blue|orange|green|red): light-dark\((#\w{6}), ', css))
    palette = seaborn.color_palette('colorblind').as_hex()
    expected = dict(zip(('blue', 'orange', 'green', 'red'), palette))
    assert light == expected
