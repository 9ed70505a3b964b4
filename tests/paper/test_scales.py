"""Scales: how large a study is, and what replaces their settings."""

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.paper.scales import ICONS, SMOKE, few_prompts, scale_of, shortened

GIVEN = dict(model='model', pairs='pairs', prompts=['pickapic=a.txt', 'hpd=b.txt'])


def test_a_scale_has_no_more_prompts_than_before():
    smoke = few_prompts(SMOKE, n_prompts=50, images=3)
    assert (smoke.n_prompts, smoke.images_per_prompt) == (SMOKE.n_prompts, 3)
    assert smoke.prompts == SMOKE.prompts
    assert few_prompts(SMOKE, n_prompts=4, images=1).n_prompts == 4


def test_a_scale_without_a_limit_gets_one_and_the_first_set_alone():
    whole = scale_of('sd15', GIVEN)
    few = few_prompts(whole, n_prompts=50, images=2, sets=1)
    assert whole.n_prompts is None
    assert (few.n_prompts, few.prompts) == (50, (('pickapic', 'a.txt'),))


def test_changes_replace_what_they_name_and_nothing_else():
    scale = scale_of(
        'sdxl',
        GIVEN,
        mode='lora',
        train=['max_steps=10', 'learning_rate=1e-6'],
        scorers=['hps=HPS.pt', 'clip=folder'],
        steps=20,
        n_pairs=1000,
    )
    assert scale.train == (('max_steps', 10), ('learning_rate', 1e-6), ('mode', 'lora'))
    assert scale.scorers == ('hps=HPS.pt', 'clip=folder')
    assert (scale.steps, scale.n_pairs, scale.guidance) == (20, 1000, 7.5)
    assert (scale.resolution, scale.dtype, scale.values) == (1024, 'bf16', 'sdxl_lora')
    assert scale_of('icons', {}) == ICONS
    of_smoke = scale_of('smoke', train=['max_steps=6']).train
    assert dict(of_smoke) == dict(SMOKE.train) | {'max_steps': 6}


@pytest.mark.parametrize(
    'name, changes, says',
    [
        ('sd15', {}, 'needs model and pairs and prompts: give --model ... --pairs ... --prompts'),
        ('sd15', GIVEN | {'model': ''}, "scale 'sd15' needs model: give --model ..."),
        ('sd3', GIVEN, "unknown scale 'sd3'"),
        ('icons', {'step': 4}, "a scale has no setting 'step': did you mean steps?"),
        ('icons', {'steps': 'many'}, "steps must be a whole number, not 'many'"),
        ('icons', {'steps': 0}, 'must be at least 1'),
        ('icons', {'n_pairs': 0}, 'n_pairs must be at least 1, not 0'),
        (
            'icons',
            {'mode': 'lora', 'train': ['mode=full']},
            'mode is given twice: lora, and',
        ),
        ('icons', {'mode': 'half'}, 'mode must be one of full, lora'),
        ('icons', {'prompts': ['a.txt']}, "'a.txt' has no name or no value: write NAME=FILE"),
        ('icons', {'prompts': ['a=1', 'a=2']}, 'a is given twice: 1 and 2'),
        ('icons', {'train': ['max_step=1']}, "training has no setting 'max_step': did you mean"),
        ('icons', {'train': ['max_steps=few']}, "max_steps must be a whole number, not 'few'"),
    ],
)
def test_wrong_changes_are_refused(name, changes, says):
    with pytest.raises(InputError) as refused:
        scale_of(name, changes)
    assert says in str(refused.value)


def test_a_shortened_scale_is_as_long_as_smoke_and_no_longer_than_it_was():
    assert scale_of('icons', shortened(ICONS, 32)) == scale_of(
        'icons',
        n_pairs=64,
        n_prompts=6,
        images_per_prompt=2,
        steps=6,
        train=[f'{k}={v}' for k, v in SMOKE.train],
    )
    short = scale_of('sd15', GIVEN | shortened(scale_of('sd15', GIVEN, steps=4), 2))
    assert (short.steps, short.n_prompts) == (4, 6)
    assert dict(short.train)['micro_batch_size'] == 2
    lora = scale_of('sd15', GIVEN, mode='lora', train=['learning_rate=1e-6', 'max_steps=900'])
    training = dict(scale_of('sd15', GIVEN | shortened(lora, 8)).train)
    assert training == dict(SMOKE.train) | {'mode': 'lora', 'learning_rate': 1e-6}
