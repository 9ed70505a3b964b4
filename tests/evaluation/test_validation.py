"""A run that is watched: the same bits as one that is not, the pictures that its model draws, gains
worked by hand, the best model kept, and a stop at the same step however often it is interrupted."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from two_processes import two_processes
from watchers import Noting, contrast, scripted, two_scorers, watching

from balanceddpo.core.errors import InputError
from balanceddpo.core.stages import verify_manifest
from balanceddpo.data.prompts import read_prompts
from balanceddpo.evaluation.validation import log_pictures, validation_of
from balanceddpo.models.config import SampleConfig
from balanceddpo.models.sampling import sample
from balanceddpo.scoring.scorers import FunctionScorer
from balanceddpo.training.checkpoints import checkpoints
from balanceddpo.training.validation_config import ValidationConfig
from short_runs import SIZE, assert_equal_runs, go, settings, spawn

PROMPTS = read_prompts('icons:tuning', limit=3)


def rows(out):
    return [json.loads(line) for line in (out / 'validation.jsonl').read_text().splitlines()]


def pixels(path):
    return np.asarray(Image.open(path), float)


@pytest.mark.parametrize(
    'changes',
    [
        dict(refresh_every=3),
        dict(mode='lora', refresh_every=3),
        dict(mode='lora', precision='bf16'),
        dict(precision='bf16', optimizer='adafactor'),
        dict(ema=0.9),
        dict(noise='inpo_code', max_steps=4),
    ],
    ids=['full', 'lora', 'lora-bf16', 'bf16', 'ema', 'inversion'],
)
def test_a_watched_run_is_to_the_bit_what_it_is_unwatched(made, tmp_path, changes):
    changes = dict(max_steps=6) | changes
    go(made(), tmp_path / 'a', **changes)
    go(made(), tmp_path / 'b', callbacks=[watching(validate_every=2)], **changes)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert len(rows(tmp_path / 'b')) == changes['max_steps'] // 2


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_so_is_one_that_is_stopped_between_two_validations(made, tmp_path, mode):
    changes = dict(mode=mode, refresh_every=3)
    go(made(), tmp_path / 'a', max_steps=6, callbacks=[watching(validate_every=2)], **changes)
    for steps in (3, 5, 6):
        every = watching(validate_every=2)
        go(made(), tmp_path / 'b', max_steps=steps, callbacks=[every], **changes)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    drop = ('seconds', 'best')
    on_grid = [row for row in rows(tmp_path / 'b') if row['step'] % 2 == 0]
    for ours, whole in zip(on_grid, rows(tmp_path / 'a'), strict=True):
        assert {k: v for k, v in ours.items() if k not in drop} == {
            k: v for k, v in whole.items() if k not in drop
        }


def test_a_run_killed_unwatched_goes_on_watched(made, tmp_path):
    "The base model draws, though the policy is past its seventh step."
    child = spawn(made(), tmp_path / 'b', kill_at=17, checkpoint_every=7, max_steps=10)
    go(made(), tmp_path / 'a', max_steps=10, callbacks=[watching(validate_every=5)])
    child.communicate(timeout=600)
    assert [c.step for c in checkpoints(tmp_path / 'b' / 'checkpoints')] == [7]
    go(made(), tmp_path / 'b', max_steps=10, callbacks=[watching(validate_every=5)])
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [row['step'] for row in rows(tmp_path / 'b')] == [10]
    for name in ('base', 'step_000010'):
        for file in (tmp_path / 'a' / 'validation' / name).glob('*.png'):
            other = tmp_path / 'b' / 'validation' / name / file.name
            assert file.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    'kind, changes',
    [
        ('sd15', {}),
        ('sd15', dict(mode='lora')),
        ('sd15', dict(ema=0.5)),
        ('sd21', {}),
        ('sdxl', {}),
        ('sd3', dict(validation_scheduler='auto')),
        ('flux', dict(validation_scheduler='auto')),
    ],
    ids=['sd15', 'lora', 'ema', 'sd21', 'sdxl', 'sd3', 'flux'],
)
def test_the_pictures_are_those_that_the_saved_model_draws(made, tmp_path, kind, changes):
    "A fresh pipeline, with `sample`, from the files alone."
    watched = {k: changes[k] for k in changes if k.startswith('validation')}
    trained = {k: v for k, v in changes.items() if k not in watched}
    inputs, out = made(kind), tmp_path / 'run'
    callbacks = [watching(validate_every=2, **watched)]
    model = go(inputs, out, max_steps=2, callbacks=callbacks, **trained)
    scheduler = 'euler' if watched else 'ddim'
    drawing = dict(images_per_prompt=1, steps=2, scheduler=scheduler, resolution=SIZE)
    config = SampleConfig(str(inputs.base), device='cpu', batch_size=2, **drawing)
    lora = trained.get('mode') == 'lora'
    ours = replace(config, lora=str(model)) if lora else replace(config, model=str(model))
    for folder, settings_of in (('base', config), ('step_000002', ours)):
        store = sample(settings_of, PROMPTS, progress=False)
        for n, prompt_id in enumerate(PROMPTS.ids):
            drawn = np.asarray(store.image(prompt_id, 0), float)
            live = pixels(out / 'validation' / folder / f'{n:03d}-0.png')
            assert np.abs(live - drawn).max() <= 1, (folder, n)
    # and training has changed what is drawn
    first, last = (out / 'validation' / f / '000-0.png' for f in ('base', 'step_000002'))
    assert not np.array_equal(pixels(first), pixels(last))


def test_gains_are_those_of_the_pictures_on_the_disk(made, tmp_path):
    go(made(), tmp_path, max_steps=2, callbacks=[watching(validate_every=2, validation_images=2)])
    (row,) = rows(tmp_path)
    folders = [tmp_path / 'validation' / name for name in ('base', 'step_000002')]
    files = [f'{n:03d}-{i}.png' for n in range(3) for i in range(2)]
    for scorer in two_scorers():
        base, ours = (
            scorer.score([Image.open(folder / file) for file in files], [''] * 6).double().numpy()
            for folder in folders
        )
        gain = (ours.mean() - base.mean()) / np.std(base, ddof=1)
        assert row['gain'][scorer.name] == pytest.approx(gain, rel=1e-12)
        assert row['score'][scorer.name] == pytest.approx(ours.mean(), rel=1e-12)
    assert row['mean'] == pytest.approx(np.mean(list(row['gain'].values())), rel=1e-12)
    assert row['worst'] == min(row['gain'].values())
    low, high = row['mean_interval']
    assert low <= row['mean'] <= high


@pytest.mark.parametrize('mode', ['full', 'lora'])
def test_the_distance_to_the_base_is_that_of_the_saved_weights(made, tmp_path, mode):
    "Also where the reference has followed, and is near."
    from balanceddpo.models.weights import merged_weights

    inputs = made()
    changes = dict(mode=mode, refresh_every=2, max_steps=4)
    model = go(inputs, tmp_path, callbacks=[watching(validate_every=4)], **changes)
    (row,) = rows(tmp_path)
    assert row['distance'] == 0
    base = merged_weights(str(inputs.base))
    if mode == 'full':
        ours = merged_weights(str(model))
        names = list(base)
    else:
        file = model / 'pytorch_lora_weights.safetensors'
        ours = merged_weights(str(inputs.base), str(file))
        names = [n for n in base if not np.array_equal(base[n], ours[n])]
    apart = sum(((ours[n] - base[n]).double() ** 2).sum() for n in names) ** 0.5
    size = sum((base[n].double() ** 2).sum() for n in names) ** 0.5
    assert row['distance_to_base'] == pytest.approx(float(apart / size), rel=1e-3)


GAINS = {'hps': [0.1, 0.4, 0.3, 0.5, 0.1], 'clip': [0.2, 0.2, -0.1, -0.2, 0.0]}


@pytest.mark.parametrize(
    'rule, last',
    [
        ('worst scorer < 0 for 2', 4),
        ('clip < 0 for 1', 3),
        ('no better mean for 2', 4),
        ('mean < 0 for 1', 5),
    ],
)
def test_a_rule_stops_a_run_where_it_says_also_if_it_is_interrupted(made, tmp_path, rule, last):
    watched = scripted(GAINS, stop_when=rule)
    out = go(made(), tmp_path / 'a', max_steps=5, callbacks=[watched])
    assert [row['gain']['hps'] for row in rows(tmp_path / 'a')] == pytest.approx(
        GAINS['hps'][:last]
    )
    facts = json.loads((out / 'training.json').read_text())
    assert facts['step'] == last
    assert (last < 5) == ('stopped' in facts)
    if last < 5:
        assert facts['stopped']['why'].startswith(f'{rule} (mean gain')
        assert f'ended before: {rule.split()[0]}' in (out / 'README.md').read_text()
    # stopped after two steps by hand, and gone on: the script goes on where it was
    go(made(), tmp_path / 'b', max_steps=2, callbacks=[scripted(GAINS, stop_when=rule)])
    rest = scripted({name: gains[2:] for name, gains in GAINS.items()}, stop_when=rule)
    for scorer in rest.judges.scorers:
        scorer.ahead.pop(0)  # the base model has drawn
    go(made(), tmp_path / 'b', max_steps=5, callbacks=[rest])
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [row['step'] for row in rows(tmp_path / 'b')] == list(range(1, last + 1))


@pytest.mark.parametrize('best_by, step, mean', [('mean', 3, 0.45), ('worst', 2, 0.3)])
def test_the_best_model_is_kept_whole_beside_the_last_and_named(
    made, tmp_path, best_by, step, mean
):
    gains = {'hps': [0.1, 0.4, 1.0, 0.5], 'clip': [0.2, 0.2, -0.1, -0.2]}
    out = go(made(), tmp_path / 'a', max_steps=4, callbacks=[scripted(gains, best_by=best_by)])
    best = tmp_path / 'a' / 'best'
    assert verify_manifest(best)['step'] == step
    alone = go(made(), tmp_path / 'b', max_steps=step)
    weights = 'unet/diffusion_pytorch_model.safetensors'
    assert (best / weights).read_bytes() == (alone / weights).read_bytes()
    assert (best / weights).read_bytes() != (out / weights).read_bytes()
    assert {p.name for p in best.iterdir()} == {p.name for p in out.iterdir()}
    text = (out / 'README.md').read_text()
    assert f'that of step {step}; its model is kept in the folder `best`' in text
    assert f'| {step} | {mean:+.2f} [' in text
    assert f'{step} optimizer steps' in (best / 'README.md').read_text()


def test_the_others_are_told_and_an_early_validation_is_made_up_for(made, tmp_path):
    noting = Noting()
    go(made(), tmp_path, max_steps=2)
    changes = dict(callbacks=[watching(validate_every=2), noting], max_steps=3)
    go(made(), tmp_path, **changes)
    told = [t for t in noting.told if t[0] in ('start', 'validation')]
    assert told == [('validation', 2), ('start', 2), ('validation', 3)]


def test_two_processes_share_a_watched_run(made, tmp_path):
    more = dict(mode='lora', batch_size=4, max_steps=2)
    watched = dict(callbacks=['watchers:watching_every_second'])
    both = two_processes(made(), [tmp_path / 'a'] * 2, **more, **watched)
    assert [code for code, _, _ in both] == [0, 0], both[0][2][-2000:]
    two_processes(made(), [tmp_path / 'b'] * 2, **more)
    assert_equal_runs(tmp_path / 'a', tmp_path / 'b')
    assert [row['step'] for row in rows(tmp_path / 'a')] == [2]


def test_other_prompts_in_the_same_folder_are_refused(made, tmp_path):
    go(made(), tmp_path, max_steps=2, callbacks=[watching(validate_every=2)])
    with pytest.raises(InputError, match='validation was made with steps = 2, not 3'):
        more = watching(validate_every=2, validation_steps=3)
        go(made(), tmp_path, max_steps=3, callbacks=[more])


def flat(images, prompts):
    return [1.0] * len(images)


@pytest.mark.parametrize(
    'scorers, more, says',
    [
        (None, dict(validation_limit=1), 'two pictures or more'),
        (None, dict(stop_when='hps < 0 for 2'), "there is no scorer 'hps'"),
        (None, dict(validation_prompts='nowhere.txt'), 'no such file of prompts'),
        ((), {}, 'needs a scorer'),
    ],
)
def test_what_cannot_be_judged_is_refused_before_a_model_is_loaded(scorers, more, says):
    with pytest.raises(InputError, match=says):
        watching(scorers, **more)


def test_a_scorer_without_a_spread_is_named(made, tmp_path):
    same = FunctionScorer('flat', 'flat', flat)
    with pytest.raises(InputError, match="the same score by 'flat'"):
        go(made(), tmp_path, max_steps=2, callbacks=[watching([same], validate_every=2)])
    assert not (tmp_path / 'validation' / 'base' / 'scores.json').exists()


def test_weights_in_parts_are_refused_in_one_line(made, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '0')
    watched = ValidationConfig(validation_prompts='icons:tuning')
    with pytest.raises(InputError, match='set sharding to no, or leave out validation_prompts'):
        validation_of(watched, settings(made(), sharding='fsdp'))


def test_a_tracker_gets_numbers_and_pairs_of_pictures(made, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scorers = [FunctionScorer('contrast', 'contrast', contrast)]
    watched = watching(scorers, validate_every=2)
    go(made(), tmp_path, max_steps=4, callbacks=[watched], tracker='tensorboard')
    events = EventAccumulator(str(tmp_path / 'tensorboard'), size_guidance={'images': 0})
    events.Reload()
    told = events.Scalars('validation/gain/contrast')
    assert [event.step for event in told] == [2, 4]
    values = [row['gain']['contrast'] for row in rows(tmp_path)]
    assert [event.value for event in told] == pytest.approx(values, rel=1e-6)
    (tag,) = {t.split('/')[0] for t in events.Tags()['images']}
    shown = events.Images(next(t for t in events.Tags()['images'] if t.startswith(tag)))
    assert [event.step for event in shown] == [2, 4]
    # three pairs in a row, in each the base model's picture on the left
    assert (shown[0].width, shown[0].height) == (3 * 2 * SIZE, SIZE)


class Takes:
    "A tracker that notes what it is given."

    def __init__(self, name):
        self.name, self.given = name, {}

    def log_images(self, values, step):
        self.given = {name: np.shape(value) for name, value in values.items()}


def test_each_kind_of_tracker_gets_its_own_form():
    from types import SimpleNamespace

    trackers = [Takes('wandb'), Takes('aim'), SimpleNamespace(name='mlflow')]
    run = SimpleNamespace(accelerator=SimpleNamespace(trackers=trackers), step=3)
    log_pictures(run, [Image.new('RGB', (8, 4))] * 2, ['a', 'b'])
    assert list(trackers[0].given.values()) == [(2, 4, 8, 3)]
    assert list(trackers[1].given.values()) == [(4, 8, 3)] * 2
