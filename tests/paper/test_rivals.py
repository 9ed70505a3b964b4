"""Groups become ordinary pairs with the targets that were meant, and averages of models are
averages."""

from dataclasses import replace

import numpy as np
import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.data.pairs import read_pairs
from balanceddpo.losses.inversion import INVERSIONS
from balanceddpo.losses.methods import LOSSES
from balanceddpo.paper import experiments, rivals
from balanceddpo.voting.groups import calibrated_rewards, capo_labels, frontiers, group_table

TINY = replace(experiments.SMOKE, n_pairs=8)
SCALE = [100.0, 100.0, 1.0, 1.0]


@pytest.fixture(scope='module')
def groups(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('BALANCEDDPO_RUNS', str(tmp_path_factory.mktemp('groups')))
        yield rivals.draw_groups(TINY, n_prompts=3, n_images=4)


def rule(scores, ids, visit):
    return capo_labels(scores, ids, SCALE, seed=0, step=visit)


def test_groups_are_captions_of_the_pairs_with_all_their_scores(groups):
    captions = list(dict.fromkeys(p.caption for p in read_pairs('icons', 8)))[:3]
    assert groups.store.index.prompt.drop_duplicates().tolist() == captions
    assert groups.scores.shape == (3, 4, 4)
    assert np.isfinite(groups.scores).all()
    assert groups.scorers == ('hps', 'clip', 'pickscore', 'aesthetic')
    assert all(groups.scores[g, :, k].std() > 0 for g in range(3) for k in range(4))


def test_the_pairs_that_are_written_are_those_that_are_labelled(groups):
    tables = [rule(groups.scores, groups.prompt_ids, v) for v in range(5)]
    path, labels = rivals.group_pairs(groups, tables)
    pairs = list(read_pairs(str(path)))
    assert [p.pair_id for p in pairs] == labels.pair_id.tolist()
    assert labels.pair_id.is_unique
    rewards = calibrated_rewards(groups.scores, SCALE).mean(axis=2)
    upper, lower = frontiers(groups.scores)
    drawn = [r for t in tables for r in t.itertuples() if r.i >= 0]
    assert len(drawn) == len(pairs) > 5
    for row, pair, label in zip(drawn, pairs, labels.itertuples()):
        g = groups.prompt_ids.index(row.group_id)
        assert pair.images == tuple(
            rivals.image_bytes_of(groups.store, row.group_id, k) for k in (row.i, row.j)
        )
        assert upper[g, row.i]
        assert lower[g, row.j]
        assert label.w0 - label.w1 == pytest.approx(rewards[g, row.i] - rewards[g, row.j], abs=1e-6)
    assert rivals.group_pairs(groups, tables)[0] == path


def test_no_pair_at_all_is_an_error(groups):
    none = group_table(groups.prompt_ids, np.full((3, 2), -1), np.zeros((3, 2)))
    with pytest.raises(InputError, match='no group has a pair'):
        rivals.group_pairs(groups, [none])


def test_capo_trains_on_groups_and_soup_is_the_mean(groups):
    a, b = (
        rivals.align_groups(
            TINY,
            groups,
            f'CaPO {seed}',
            rule,
            visits=4,
            seed=seed,
            learning_rate=1e-3,
            method='capo',
        )
        for seed in (1, 2)
    )
    soup = rivals.average_models([a, b], 'SOUP')
    x, y, mean = (experiments.merged_weights(m) for m in (a, b, soup))
    name = max(x, key=lambda n: (x[n] - y[n]).abs().max())
    assert (x[name] - y[name]).abs().max() > 1e-4
    for n in x:
        np.testing.assert_allclose(mean[n].detach(), (x[n].detach() + y[n].detach()) / 2, atol=1e-6)


def test_a_rule_that_says_the_same_at_each_visit_is_asked_once(groups, monkeypatch):
    seen = []

    class Enough(Exception):
        pass

    def stop(groups, tables):
        seen.append(len(tables))
        raise Enough

    monkeypatch.setattr(rivals, 'group_pairs', stop)
    for rules, expected in (
        (rivals.sum_rules, 1),
        (rivals.election_rules('borda'), 1),
        (rivals.majority_rules, 7),
        (rivals.frontier_rules, 7),
    ):
        with pytest.raises(Enough):
            rivals.align_groups(TINY, groups, 'none', rules(groups)[0], visits=7)
        assert seen.pop() == expected


# by name


def test_the_rivals_are_the_rows_of_losses_and_variants_of_balanced_dpo():
    from balanceddpo.losses.methods import LOSSES

    named = {rivals.rival_settings(TINY, name).method for name in rivals.RIVALS}
    # the safeguard once, on DPO
    assert named == set(LOSSES) - {'dmpo_safeguarded', 'dspo_safeguarded'}
    assert rivals.RIVALS['DiffusionDPO'].labels.method == 'human'
    assert rivals.rival_settings(TINY, 'DiffusionDPO').refresh_every == 0
    with pytest.raises(InputError, match="no rival 'GRPO': use Supervised"):
        rivals.rival_settings(TINY, 'GRPO')


def test_the_rows_below_balanced_dpo_differ_from_it_in_one_thing():
    from dataclasses import asdict

    ours, plain = (
        rivals.RIVALS['BalancedDPO'],
        asdict(rivals.rival_settings(experiments.ICONS, 'BalancedDPO')),
    )
    names = list(rivals.RIVALS)
    for name in names[names.index('BalancedDPO') + 1 :]:
        other = asdict(rivals.rival_settings(experiments.ICONS, name))
        changed = {k for k in plain if plain[k] != other[k]}
        assert changed <= {'refresh_every', 'refresh_alpha', 'refresh_drift'}
        assert bool(changed) != (rivals.RIVALS[name].labels != ours.labels)
    average = rivals.rival_settings(experiments.ICONS, 'Moving average')
    assert (
        1 / average.refresh_alpha
        == rivals.rival_settings(experiments.ICONS, 'BalancedDPO').refresh_every / 2
    )


def test_rules_of_groups(groups):
    scores, ids = groups.scores, groups.prompt_ids
    (rule,) = rivals.frontier_rules(groups)
    np.testing.assert_array_equal(
        rule(scores, ids, 3).to_numpy(object),
        capo_labels(scores, ids, SCALE, step=3).to_numpy(object),
    )
    (rule,) = rivals.target_one_rules(groups)
    t = rule(scores, ids, 0)
    assert set(t.w0[t.i >= 0]) == {1.0}
    assert set(t.w1) == {0.0}
    (rule,) = rivals.sum_rules(groups)
    t = rule(scores, ids, 0)
    total = scores @ SCALE
    assert t.i.tolist() == total.argmax(axis=1).tolist()
    assert t.j.tolist() == total.argmin(axis=1).tolist()
    for k, rule in enumerate(rivals.single_rules(groups)):
        t = rule(scores, ids, 0)
        assert t.i.tolist() == scores[..., k].argmax(axis=1).tolist()
        assert t.j.tolist() == scores[..., k].argmin(axis=1).tolist()
    assert k == 3


def test_elections_take_the_pairs_that_their_rules_choose(groups):
    from balanceddpo.voting.elections import RANK_LABELS, RANK_RULES, rank_labels

    scores, ids = groups.scores, groups.prompt_ids
    for name, rule, label in (
        ('Condorcet', 'condorcet', 'hard'),
        ('Kemeny', 'kemeny', 'hard'),
        ('Borda, margin', 'borda', 'margin'),
    ):
        (made,) = rivals.ELECTIONS[name].rules(groups)
        np.testing.assert_array_equal(
            made(scores, ids, 5).to_numpy(object),
            rank_labels(scores, ids, rule, label).to_numpy(object),
        )
    assert len(rivals.ELECTIONS) == 1 + len(RANK_RULES) + len(RANK_LABELS) - 1
    assert not rivals.ELECTIONS.keys() & rivals.RIVALS.keys()


def test_the_plain_majority_votes_on_a_pair_of_each_group(groups):
    (rule,) = rivals.majority_rules(groups)
    seen = set()
    for visit in range(40):
        for row in rule(groups.scores, groups.prompt_ids, visit).itertuples():
            if row.i < 0:
                assert row.w0 == row.w1 == 0
                continue
            x = groups.scores[groups.prompt_ids.index(row.group_id)]
            lead = (np.sign(x[row.i] - x[row.j])).sum()
            assert row.i < row.j
            assert (row.w0, row.w1) == ((1, 0) if lead > 0 else (0, 1))
            assert lead != 0
            seen.add((row.i, row.j))
    assert len(seen) > 3


def test_soup_shares_the_steps_and_groups_must_be_given(groups):

    with pytest.raises(InputError, match='CaPO makes its pairs from groups'):
        rivals.align_rival(TINY, 'CaPO')
    soup = rivals.align_rival(TINY, 'SOUP', groups, title='soup of four')
    assert soup.name == 'soup of four'
    # 4 steps of 8 pairs, by 4; 3 groups
    shorter = dict(max_steps=1, warmup_steps=rivals.rival_settings(TINY, 'SOUP').warmup_steps // 4)
    parts = [
        rivals.align_groups(TINY, groups, 'part', rule, 3, 'capo', **shorter)
        for rule in rivals.single_rules(groups)
    ]
    mean = {
        n: sum(w[n].detach() for w in map(experiments.merged_weights, parts)) / 4
        for n in experiments.merged_weights(parts[0])
    }
    for n, w in experiments.merged_weights(soup).items():
        np.testing.assert_allclose(w.detach(), mean[n], atol=1e-6)
    assert all(len(experiments.training_log(p)) == 1 for p in parts)


@pytest.mark.parametrize('name', rivals.RIVALS)
def test_every_rival_has_settings_for_stable_diffusion(name):
    "Where nobody published a preset for the method: DiffusionDPO's with the method's own beta."
    c, method = (
        rivals.rival_settings(replace(TINY, preset='sd15', train=()), name),
        rivals.rival_settings(TINY, name).method,
    )
    published = {'dpo', 'smpo', 'inpo', 'dspo', 'kto', 'dpo_safeguarded', 'dmpo'}
    assert c.method == method
    assert c.resolution == 512
    assert method in published or c.beta == LOSSES[method].defaults['beta']


def test_a_rival_is_trained_by_its_own_labels_and_loss():
    model = rivals.align_rival(TINY, 'SmPO-Diffusion', max_steps=1)
    from balanceddpo.core.files import read_json

    made = read_json(experiments.run_folder(model) / 'model' / 'training.json')
    assert made['config']['method'] == 'smpo'
    assert made['config']['noise'] == 'smpo_code'
    assert made['label_config']['method'] == 'smoothed'
    assert made['label_config']['scorer'] == 'pickscore'


@pytest.mark.parametrize(
    'name',
    [
        'Supervised fine-tuning',
        'DiffusionDPO',
        'DDIM-InPO',
        'SmPO-Diffusion',
        'MaPO',
        'BalancedDPO',
    ],
)
def test_passes_are_those_that_training_makes(name, monkeypatch):
    """Every call of the denoiser in one step is counted, forward twice more where it has a
    gradient. At timestep 0 an inversion is one step; the mean is test_inversion's."""
    import torch

    from balanceddpo.training import batches
    from balanceddpo.training import loop as training

    made, prediction = [], training.model_prediction

    def counted(run, model, noisy, *more):
        made.append(len(noisy) * (3 if torch.is_grad_enabled() and model is run.policy else 1))
        return prediction(run, model, noisy, *more)

    for module in (batches, training):
        monkeypatch.setattr(module, 'model_prediction', counted)
    monkeypatch.setattr(
        batches,
        'draw_timesteps',
        lambda seed, step, ids, n, density=None: torch.zeros(len(ids), dtype=torch.int64),
    )
    settings = rivals.rival_settings(TINY, name, max_steps=1)
    rivals.align_rival(TINY, name, max_steps=1, seed=77)
    one, mean = {
        'random': (0, 0),
        'inpo_code': (1, INVERSIONS['inpo_code'].passes()),
        'smpo_code': (2, INVERSIONS['smpo_code'].passes()),
    }[settings.noise]
    assert sum(made) / settings.batch_size == pytest.approx(
        rivals.passes_per_pair(settings) + 2 * (one - mean)
    )


@pytest.mark.parametrize('name', ['DiffusionDPO', 'SOUP'])
def test_the_pace_is_the_median_of_all_steps_but_the_first_and_its_run_is_not_kept(
    groups, monkeypatch, name
):
    import pandas as pd

    from balanceddpo.core.files import runs_root

    def runs():
        return {p.name for p in (runs_root() / 'train').glob('*')}

    rivals.align_rival(TINY, 'DiffusionDPO', max_steps=4, warmup_steps=0)
    kept = runs()
    monkeypatch.setattr(
        rivals, 'training_log', lambda model: pd.DataFrame({'seconds': [90.0, 2.0, 40.0, 6.0]})
    )
    assert rivals.seconds_per_pair(TINY, name, groups, steps=4) == 6 / 8  # a batch of 8 pairs
    assert kept == runs() != set()


def test_a_rival_that_is_tried_is_trained_drawn_and_measured():
    model, distance = rivals.try_rival(TINY, 'DiffusionDPO', seed=3)
    assert model == rivals.align_rival(TINY, 'DiffusionDPO', seed=3)
    assert distance == experiments.distance_from_base(TINY, model) > 0
    store = experiments.draw(TINY, model, dict(TINY.prompts)['hpd'])
    assert len(store) == TINY.n_prompts * TINY.images_per_prompt


def test_a_clock_that_was_stopped_is_set_again(monkeypatch):
    import os

    import pandas as pd

    folder = experiments.run_folder(
        rivals.align_rival(TINY, 'DiffusionDPO', max_steps=3, warmup_steps=0, keep_checkpoints=1)
    )
    (folder / 'stale').touch()
    os.utime(folder / 'metrics.jsonl', (0, 0))
    stale = []
    monkeypatch.setattr(
        rivals,
        'training_log',
        lambda model: (
            stale.append((experiments.run_folder(model) / 'stale').exists())
            or pd.DataFrame({'seconds': [1.0, 1.0, 1.0]})
        ),
    )
    rivals.seconds_per_pair(TINY, 'DiffusionDPO', steps=3)
    assert stale == [False]
    assert not folder.exists()
