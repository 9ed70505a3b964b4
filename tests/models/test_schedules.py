"""The table of schedules: every row against the library, and everything else refused by name."""

import inspect
import shutil

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.models import sampling
from balanceddpo.models.config import SampleConfig
from balanceddpo.models.families import check_drawing, check_family, load_family
from balanceddpo.models.schedules import (
    DROPPED,
    SCHEDULERS,
    SCHEDULES,
    check_sampler,
    check_schedule,
    make_scheduler,
)
from tiny_models import rewritten_copy

# as Stable Diffusion's folders have them
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear')
DISCRETE = [key for key in SCHEDULES if key[1] != 'flow']
CONFIG = 'scheduler/scheduler_config.json'
# Playground v2.5
EDM = dict(
    _class_name='EDMDPMSolverMultistepScheduler',
    sigma_min=0.002,
    sigma_max=80.0,
    sigma_data=0.5,
    prediction_type='epsilon',
)
# what the scheduler_config.json of published models says
PUBLISHED = {
    'SD1.5': dict(
        _class_name='PNDMScheduler',
        clip_sample=False,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
        trained_betas=None,
        **BETAS,
    ),
    'SD2.1': dict(
        _class_name='DDIMScheduler',
        prediction_type='v_prediction',
        clip_sample=False,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
        **BETAS,
    ),
    'SDXL': dict(
        _class_name='EulerDiscreteScheduler',
        prediction_type='epsilon',
        interpolation_type='linear',
        sample_max_value=1.0,
        timestep_spacing='leading',
        use_karras_sigmas=False,
        **BETAS,
    ),
    'SD-Turbo': dict(
        _class_name='EulerDiscreteScheduler',
        prediction_type='epsilon',
        timestep_spacing='trailing',
        **BETAS,
    ),
    'SDXL-Turbo': dict(
        _class_name='EulerAncestralDiscreteScheduler',
        prediction_type='epsilon',
        timestep_spacing='trailing',
        **BETAS,
    ),
    'SD3': dict(_class_name='FlowMatchEulerDiscreteScheduler', shift=3.0),
    'FLUX.1-dev': dict(
        _class_name='FlowMatchEulerDiscreteScheduler',
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
        shift=3.0,
        use_dynamic_shifting=True,
    ),
}


def levels(scheduler):
    "alpha_bar of a scheduler, but for the last, which some keep from being 0."
    return scheduler.alphas_cumprod[:-1]


@pytest.mark.parametrize('name, prediction', DISCRETE)
def test_every_row_has_the_noise_levels_that_training_reads(name, prediction):
    import diffusers

    own = getattr(diffusers, name)(prediction_type=prediction, **BETAS)
    config = {**own.config, '_class_name': name}
    check_schedule(config, 'a model')
    read = diffusers.DDPMScheduler.from_config(config)
    torch.testing.assert_close(levels(read), levels(own), rtol=0, atol=0)
    for sampler in SCHEDULES[name, prediction]:
        ours = make_scheduler(sampler, config)
        torch.testing.assert_close(levels(ours), levels(own), rtol=0, atol=0)
        assert ours.config.prediction_type == prediction


@pytest.mark.parametrize('model', PUBLISHED)
def test_the_published_models_are_in_the_table(model):
    config = PUBLISHED[model]
    check_schedule(config, model)
    flow = config['_class_name'].startswith('Flow')
    for sampler in ('euler',) if flow else SCHEDULERS:
        check_sampler(sampler, config, steps=1000)
        make_scheduler(sampler, config)


def test_what_is_said_to_be_dropped_is_what_the_classes_do_not_have():
    import diffusers

    settings = ('rescale_betas_zero_snr', 'thresholding', 'trained_betas', *BETAS)
    for name, (class_name, _) in SCHEDULERS.items():
        taken = inspect.signature(getattr(diffusers, class_name).__init__).parameters
        lacking = tuple(s for s in settings if s not in taken)
        assert lacking == DROPPED.get(name, ()), name


@pytest.mark.parametrize(
    'kind, changes, says',
    [
        (
            'sdxl',
            EDM,
            r'EDMDPMSolverMultistepScheduler \(its noise levels are sigmas .* is not supported',
        ),
        (
            'sdxl',
            EDM | dict(_class_name='EDMEulerScheduler'),
            r'EDMEulerScheduler \(its noise levels are sigmas .* is not supported',
        ),
        (
            'sd15',
            dict(_class_name='LCMScheduler'),
            "LCMScheduler with 'epsilon' prediction is not supported",
        ),
        ('sd15', dict(rescale_betas_zero_snr=True), 'rescale_betas_zero_snr.* epsilon'),
        (
            'sdxl',
            dict(timestep_type='continuous'),
            "timestep_type = 'continuous' is not supported, only 'discrete'",
        ),
        ('sdxl', dict(use_flow_sigmas=True), 'use_flow_sigmas = True is not supported'),
        (
            'sd3',
            dict(_class_name='FlowMatchHeunDiscreteScheduler'),
            "FlowMatchHeunDiscreteScheduler with 'flow' prediction is not supported",
        ),
        ('flux', dict(use_karras_sigmas=True), 'use_karras_sigmas = True is not supported'),
        ('sd3', dict(shift_terminal=0.1), 'shift_terminal = 0.1 is not supported, only None'),
    ],
)
def test_any_other_schedule_is_refused_before_anything_is_loaded(
    folders, tmp_path, kind, changes, says
):
    folder = rewritten_copy(folders[kind], tmp_path / 'x', CONFIG, **changes)
    for part in ('unet', 'transformer', 'vae'):  # nothing of these is looked at
        shutil.rmtree(folder / part, ignore_errors=True)
    for refused in (
        lambda: load_family(folder, device='cpu'),
        lambda: check_family(folder, kind),
        lambda: check_drawing(folder, 'euler', 2),
    ):
        with pytest.raises(InputError, match=says) as error:
            refused()
        assert '\n' not in str(error.value)
        assert str(folder) in str(error.value)


def test_a_sampler_that_would_drop_a_setting_is_refused(folders, tmp_path):
    folder = rewritten_copy(folders['sd21'], tmp_path / 'x', CONFIG, rescale_betas_zero_snr=True)
    for name in ('ddim', 'dpm++', 'euler'):
        check_drawing(folder, name, 2)
    with pytest.raises(InputError, match="'pndm' would drop the model's rescale_betas_zero_snr: "):
        check_drawing(folder, 'pndm', 2)
    config = dict(_class_name='DDIMScheduler', thresholding=True, **BETAS)
    assert make_scheduler('dpm++', config).config.thresholding
    for name in ('pndm', 'euler'):
        with pytest.raises(InputError, match='thresholding: use ddim, dpm'):
            make_scheduler(name, config)
    with pytest.raises(InputError, match="'euler': sigmoid is not implemented"):
        make_scheduler('euler', dict(_class_name='DDPMScheduler', beta_schedule='sigmoid'))


@pytest.mark.parametrize('kind', ['sd15', 'sd3'])
def test_more_steps_than_timesteps_are_refused_before_a_folder_is_made(folders, tmp_path, kind):
    config = SampleConfig(model=str(folders[kind]), steps=5000, scheduler='euler', device='cpu')
    with pytest.raises(InputError, match='5000 steps are more than the 1000 timesteps'):
        sampling.sample(config, out=tmp_path / 'o', progress=False)
    assert not (tmp_path / 'o').exists()
