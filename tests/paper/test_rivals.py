"""What a method costs, who is compared, and a clock whose run is not kept."""

import os
from dataclasses import replace

import pandas as pd
import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import read_json
from balanceddpo.core.stages import runs_root
from balanceddpo.data.sources import read_pairs
from balanceddpo.losses.inversion import INVERSIONS
from balanceddpo.losses.methods import LOSSES
from balanceddpo.models.weights import merged_weights
from balanceddpo.paper import experiments, rivals, scales
from balanceddpo.recipes.table import RECIPES
from balanceddpo.training import batches
from balanceddpo.training import loop as training

TINY = replace(scales.SMOKE, n_pairs=8)


@pytest.fixture(scope='module')
def groups(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('BALANCEDDPO_RUNS', str(tmp_path_factory.mktemp('groups')))
        yield experiments.draw_groups(TINY, n_prompts=3, n_images=4)


def test_groups_are_captions_of_the_pairs_with_all_their_scores(groups):
    captions = list(dict.fromkeys(p.caption for p in read_pairs('icons', 8)))[:3]
    assert groups.store.index.prompt.drop_duplicates().tolist() == captions
    assert groups.scores.shape == (3, 4, 4)
    assert groups.scorers == ('hps', 'clip', 'pickscore', 'aesthetic')
    assert all(groups.scores[g, :, k].std() > 0 for g in range(3) for k in range(4))


def test_the_rivals_have_every_loss_and_the_elections_every_way_to_vote_on_groups():
    named = {RECIPES[name].loss for name in rivals.RIVALS}
    # the safeguard once, on DPO
    assert named == set(LOSSES) - {'dmpo_safeguarded', 'dspo_safeguarded'}
    assert not {*rivals.ELECTIONS} & {*rivals.RIVALS}
    of_groups = {name for name, row in RECIPES.items() if row.groups and row.loss == 'dpo'}
    assert {*rivals.ELECTIONS} == of_groups


def test_the_rows_below_balanced_dpo_are_like_it():
    below = rivals.RIVALS[rivals.RIVALS.index('BalancedDPO') + 1 :]
    assert {RECIPES[name].like for name in below} == {'BalancedDPO'}


def test_soup_is_the_mean_of_four_models_that_share_the_steps(groups):
    with pytest.raises(InputError, match='CaPO makes its pairs from groups'):
        experiments.align(TINY, 'CaPO')
    before = trained()
    soup = experiments.align(TINY, 'SOUP', 'soup of four', groups)
    assert soup.name == 'soup of four'
    parts = [runs_root() / 'train' / name / 'model' for name in trained() - before]
    assert len(parts) == 4
    weights = [merged_weights(part) for part in parts]
    mean = {n: sum(w[n].detach() for w in weights) / 4 for n in weights[0]}
    for n, w in merged_weights(soup.folder).items():
        torch.testing.assert_close(w.detach(), mean[n], atol=1e-6, rtol=0)
    # 4 steps shared by 4 models
    assert all(len((p.parent / 'metrics.jsonl').read_text().splitlines()) == 1 for p in parts)


def trained():
    "The names of the runs that are there."
    return {p.name for p in (runs_root() / 'train').glob('*')}


def test_a_rival_is_trained_by_its_own_labels_and_loss():
    model = experiments.align(TINY, 'SmPO-Diffusion', max_steps=1)
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
    settings = experiments.training_settings(TINY, name, max_steps=1)
    experiments.align(TINY, name, max_steps=1, seed=77)
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
    experiments.align(TINY, 'DiffusionDPO', max_steps=4, warmup_steps=0)
    kept = trained()
    monkeypatch.setattr(
        rivals, 'training_log', lambda model: pd.DataFrame({'seconds': [90.0, 2.0, 40.0, 6.0]})
    )
    assert rivals.seconds_per_pair(TINY, name, groups, steps=4) == 6 / 8  # a batch of 8 pairs
    assert kept == trained() != set()


def test_a_rival_that_is_tried_is_trained_drawn_and_measured():
    model, distance = rivals.try_rival(TINY, 'DiffusionDPO', title='tried', seed=3)
    assert model == experiments.align(TINY, 'DiffusionDPO', 'tried', seed=3)
    assert distance == experiments.distance_from_base(TINY, model) > 0
    store = experiments.draw(TINY, model, dict(TINY.prompts)['hpd'])
    assert len(store) == TINY.n_prompts * TINY.images_per_prompt


def test_a_row_of_groups_is_not_timed_without_them():
    with pytest.raises(InputError, match='CaPO makes its pairs from groups'):
        rivals.seconds_per_pair(TINY, 'CaPO')


def test_a_clock_that_was_stopped_is_set_again(monkeypatch):
    folder = experiments.run_folder(
        experiments.align(TINY, 'DiffusionDPO', max_steps=3, warmup_steps=0, keep_checkpoints=1)
    )
    (folder / 'stale').touch()
    os.utime(folder / 'metrics.jsonl', (0, 0))
    stale = []

    def log(model):
        stale.append((experiments.run_folder(model) / 'stale').exists())
        return pd.DataFrame({'seconds': [1.0, 1.0, 1.0]})

    monkeypatch.setattr(rivals, 'training_log', log)
    rivals.seconds_per_pair(TINY, 'DiffusionDPO', steps=3)
    assert stale == [False]
    assert not folder.exists()
