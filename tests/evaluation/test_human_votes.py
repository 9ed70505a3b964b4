"""Votes of people, by hand and by the libraries: rates, agreement, reliability."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import cohen_kappa_score

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.human_votes import (
    agreement_of_people,
    agreement_with_scorers,
    human_win_rates,
    joined_choices,
    people_table,
    reliabilities,
)
from balanceddpo.evaluation.intervals import Bootstrap
from balanceddpo.evaluation.vote_files import read_votes
from balanceddpo.evaluation.win_rates import compare, score_table
from balanceddpo.voting.labels import confidence_votes
from made_votes import side, vote, votes_for, write_votes

PROMPTS = ('kite', 'fox', 'dog', 'cat')
# three people, four prompts; the shares for ours, alike a half: 1, 1/2, 1/3, 1
CHOICES = {'anna': [1, 1, -1, 1], 'ben': [1, 0, -1, 1], 'carl': [1, -1, 1, None]}


def voted(folder, choices, prompts=PROMPTS, **changes):
    "The table of votes of people, by way of files."
    files = [
        write_votes(folder / f'{name}.json', votes_for(cast, prompts, **changes))
        for name, cast in choices.items()
    ]
    return read_votes(files)


@pytest.fixture
def votes(tmp_path):
    return voted(tmp_path, CHOICES)


@pytest.fixture
def many(tmp_path):
    "Three people of different reliability on 200 prompts of two sets, with some alike."
    rng = np.random.default_rng(4)
    truth = rng.choice([1, -1], 200, p=[0.7, 0.3])
    choices = {}
    for name, right in (('anna', 0.95), ('ben', 0.8), ('carl', 0.6)):
        cast = np.where(rng.random(200) < right, truth, -truth)
        choices[name] = np.where(rng.random(200) < 0.1, 0, cast).tolist()
    found = voted(tmp_path, choices, [f'p{k}' for k in range(200)])
    found['prompt_set'] = np.where(found.prompt_id.str[1:].astype(int) < 80, 'hpd', 'parti')
    return found


@pytest.mark.parametrize(
    'ties, points, out_of',
    [
        ('split', [1, 1 / 2, 1 / 3, 1], [1, 1, 1, 1]),
        ('loss', [1, 1 / 3, 1 / 3, 1], [1, 1, 1, 1]),
        ('drop', [1, 1 / 3, 1 / 3, 1], [1, 2 / 3, 1, 1]),
    ],
)
def test_win_rates_by_hand(votes, ties, points, out_of):
    row = human_win_rates(votes, ties).iloc[0]
    assert (row.model_a, row.model_b, row.prompt_set) == ('ours', 'base', 'hpd')
    assert (row.people, row.votes, row.n, row.tie_rule) == (3, 11, 4, ties)
    assert row.win_rate == pytest.approx(sum(points) / sum(out_of))
    assert row.alike == pytest.approx((1 / 3) / 4)
    assert row.p == 1  # two prompts for ours, one against, one even
    assert row.low < row.win_rate < row.high


def test_one_person_is_a_scorer_that_prefers_an_image(tmp_path, many):
    "Votes of one person count as scores of which the better image has the larger: the same row."
    one = many[many.voter == 'anna']
    tables = []
    for model, sign in (('ours', 1), ('base', -1)):
        for name, here in one.groupby('prompt_set'):
            x = sign * here.vote.to_numpy(float)[:, None]
            tables.append(score_table(model, {'anna': x}, here.prompt_id, prompt_set=name))
    scores = pd.concat(tables)
    for ties in ('split', 'drop', 'loss'):
        wanted = compare(scores, [('ours', 'base')], ['anna'], ties=ties)
        found = human_win_rates(one, ties)
        for column in ('n', 'win_rate', 'low', 'high', 'boot_low', 'boot_high'):
            assert np.allclose(found[column][:2], wanted[column]), column
    tied = wanted.ties / wanted.n
    assert np.allclose(found.alike[:2], tied)


def test_without_ties_the_interval_is_wilsons_as_scipy_has_it(tmp_path):
    votes = voted(tmp_path, {'anna': [1, 1, -1, 1]})
    row = human_win_rates(votes).iloc[0]
    wanted = binomtest(3, 4).proportion_ci(0.95, 'wilson')
    assert (row.low, row.high) == pytest.approx((wanted.low, wanted.high))
    assert row.p == pytest.approx(binomtest(3, 4).pvalue)


def test_the_bootstrap_is_over_prompts_as_scipys(many):
    row = human_win_rates(many, bootstrap=Bootstrap(seed=1)).iloc[-1]
    shares = ((many.vote + 1) / 2).groupby([many.prompt_set, many.prompt_id]).mean()
    assert len(shares) == row.n == 200
    assert row.win_rate == pytest.approx(shares.mean())
    wanted = bootstrap(
        (shares.to_numpy(),), np.mean, method='percentile', random_state=2
    ).confidence_interval
    assert row.boot_low == pytest.approx(wanted.low, abs=0.005)
    assert row.boot_high == pytest.approx(wanted.high, abs=0.005)


def test_sets_alone_and_together(many):
    rates = human_win_rates(many)
    assert rates.prompt_set.tolist() == ['hpd', 'parti', 'all sets']
    assert rates.n.tolist() == [80, 120, 200]
    mean = (80 * rates.win_rate[0] + 120 * rates.win_rate[1]) / 200
    assert rates.win_rate[2] == pytest.approx(mean)
    small, large = sorted(rates.p[:2])
    assert sorted(rates.p_holm[:2]) == pytest.approx([2 * small, max(large, 2 * small)])
    assert np.isnan(rates.p_holm[2])


def test_more_votes_on_a_prompt_do_not_make_it_count_more(tmp_path):
    "A second person who agrees on one prompt leaves the rate and its interval as they were."
    few = voted(tmp_path, {'anna': [1, -1, -1, 1]})
    more = voted(tmp_path, {'anna': [1, -1, -1, 1], 'ben': [1, None, None, None]})
    columns = ['n', 'win_rate', 'low', 'high', 'boot_low', 'boot_high', 'p']
    assert human_win_rates(few)[columns].equals(human_win_rates(more)[columns])


def test_joined_choices_by_hand(votes):
    joined = joined_choices(votes)
    assert joined.prompt_id.tolist() == list(PROMPTS)
    assert joined.share.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 1])
    assert joined.choice.tolist() == [1, 0, -1, 1]
    assert joined.people.tolist() == [3, 3, 3, 2]
    assert {'sha256_a', 'sha256_b', 'model_a', 'model_b', 'image_a', 'image_b'} < set(joined)


def test_joining_by_reliability_is_dawid_and_skene(many):
    joined = joined_choices(many, 'reliability')
    matrix = many.pivot(index='pair', columns='voter', values='vote').loc[joined.pair]
    chance, accuracy = confidence_votes(matrix.to_numpy())
    assert joined.share.tolist() == pytest.approx(chance.tolist())
    assert (joined.choice == np.sign(chance - 0.5)).all()
    assert accuracy[0] > accuracy[1] > accuracy[2]
    # Anna alone outweighs the two others, who outvote her
    anna = matrix['anna'].to_numpy()
    assert (joined.choice == anna)[anna != 0].all()
    assert not (joined_choices(many).choice == anna)[anna != 0].all()
    nobody = joined_choices(many.assign(vote=0).astype({'vote': 'int8'}))
    assert set(nobody.choice) == {0}
    assert set(nobody.share) == {0.5}


def test_reliability_needs_three_people_with_common_pairs(votes, many, tmp_path):
    found = reliabilities(many)
    assert found['anna'] > found['ben'] > found['carl'] > 0.5
    assert people_table(many).reliability.tolist() == found.tolist()
    assert reliabilities(votes[votes.voter != 'carl']).isna().all()
    apart = {'a': [1, 1, None, None], 'b': [1, 1, None, None], 'c': [None, None, 1, 1]}
    assert reliabilities(voted(tmp_path, apart)).isna().all()
    with pytest.raises(InputError, match='from three on'):
        joined_choices(votes[votes.voter != 'carl'], 'reliability')


def test_people_agree_as_scikit_learn_says(many):
    found = agreement_of_people(many)
    assert list(zip(found.a, found.b)) == [('anna', 'ben'), ('anna', 'carl'), ('ben', 'carl')]
    wide = many.pivot(index='pair', columns='voter', values='vote')
    for row in found.itertuples():
        both = wide[(wide[row.a] != 0) & (wide[row.b] != 0)]
        assert row.n == len(both) < 200
        assert row.agreement == pytest.approx((both[row.a] == both[row.b]).mean())
        assert row.kappa == pytest.approx(cohen_kappa_score(both[row.a], both[row.b]))
        assert row.low < row.agreement < row.high


def test_the_interval_of_agreement_is_over_prompts(tmp_path):
    "Two images of each prompt, on which they agree alike: twice as many pairs tell no more."
    choices = {'anna': [1, 1, -1, 1], 'ben': [1, -1, -1, 1]}
    once = agreement_of_people(voted(tmp_path, choices)).iloc[0]
    votes = []
    for index in (0, 1):
        found = voted(tmp_path, choices)
        votes.append(found.assign(image_a=index, image_b=index, pair=found.pair + str(index)))
    twice = agreement_of_people(pd.concat(votes)).iloc[0]
    assert (once.n, twice.n) == (4, 8)
    assert (once.agreement, once.low, once.high) == (twice.agreement, twice.low, twice.high)
    all_agree = [
        agreement_of_people(v.assign(vote=1)).iloc[0] for v in (votes[0], pd.concat(votes))
    ]
    assert all_agree[0].low == pytest.approx(all_agree[1].low)
    assert all_agree[0].low == pytest.approx(binomtest(4, 4).proportion_ci(0.95, 'wilson').low)
    assert all_agree[0].high == 1


def scores_of(ours, base, ids=PROMPTS, prompt_set='hpd', scorer='hps'):
    tables = [
        score_table(name, {scorer: np.array(x, float)[:, None]}, ids, prompt_set=prompt_set)
        for name, x in (('ours', ours), ('base', base))
    ]
    return pd.concat(tables)


def test_agreement_with_a_scorer_by_hand(votes):
    "The people are for ours, even, for base, for ours; the scorer for ours but on the last."
    found = agreement_with_scorers(joined_choices(votes), scores_of([2, 2, 2, 0], [1, 1, 1, 1]))
    row = found.iloc[0]
    assert (row.a, row.b, row.n) == ('people', 'hps', 3)
    assert row.agreement == pytest.approx(1 / 3)
    assert row.kappa == pytest.approx(cohen_kappa_score([1, -1, 1], [1, 1, -1]))
    tied = agreement_with_scorers(joined_choices(votes), scores_of([1, 2, 2, 0], [1, 1, 1, 1]))
    assert tied.n.tolist() == [2]  # a scorer with equal scores has not chosen


def test_a_scorer_is_asked_about_the_images_that_were_voted_on(tmp_path):
    rows = [vote('kite', side('ours', 1), side('base', 1), 'left')]
    votes = read_votes([write_votes(tmp_path / 'anna.json', rows)])
    scores = pd.concat(
        score_table(name, {'hps': [x]}, ['kite'], prompt_set='hpd')
        for name, x in (('ours', [0.0, 3.0]), ('base', [1.0, 2.0]))
    )
    assert agreement_with_scorers(joined_choices(votes), scores).agreement.tolist() == [1]
    with pytest.raises(InputError, match="no score of 'ours' for prompt kite"):
        agreement_with_scorers(joined_choices(votes), scores[scores.image_index == 0])


def test_each_person_by_hand(votes):
    people = people_table(votes).set_index('voter')
    assert people.votes.tolist() == [4, 4, 3]
    assert people.alike.tolist() == [0, 0.25, 0]
    # base is left at even places: Anna's choices are right, left, left, left, Carl's all right
    assert people.left.tolist() == pytest.approx([3 / 4, 2 / 3, 0])
    assert people.seconds.tolist() == [2.5] * 3


def test_pairs_have_no_win_rate(tmp_path):
    rows = [vote('p', side(0), side(1), 'left', pair_id='p')]
    votes = read_votes([write_votes(tmp_path / 'anna.json', rows)])
    with pytest.raises(InputError, match='no win rate'):
        human_win_rates(votes)
    assert joined_choices(votes).share.tolist() == [1]
