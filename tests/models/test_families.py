"""Which family a folder is of, what is loaded of it, and what is refused."""

import json
import shutil

import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.models.families import check_family, load_family, part_digests
from balanceddpo.training import loop as training
from tiny_models import rewritten_copy, some_images


@pytest.mark.parametrize(
    'kind, name, prediction',
    [('sd15', 'sd15', 'epsilon'), ('sd21', 'sd21', 'v_prediction'), ('sdxl', 'sdxl', 'epsilon')],
)
def test_the_folder_says_what_it_is(folders, kind, name, prediction):
    family = load_family(folders[kind], device='cpu')
    assert (family.name, family.prediction, family.n_train_timesteps, family.latent_shape(128)) == (
        name,
        prediction,
        1000,
        (4, 16, 16),
    )
    assert not any(p.requires_grad for p in family.model.parameters())
    assert not family.model.training


def test_training_needs_the_denoiser_only(folders):
    family = load_family(folders['sdxl'], device='cpu', components=('denoiser',))
    assert set(family.parts) == {'unet'}
    assert family.latents(torch.ones(1, 8, 8, 8)).shape == (1, 4, 8, 8)
    assert family.latent_shape(64) == (4, 8, 8)
    with pytest.raises(InputError, match='vae .* was not loaded'):
        family.encode_images(some_images())


def test_the_packaged_models_are_of_two_families():
    for name, family, width in (('icons', 'sd15', 128), ('icons-xl', 'sdxl', 256)):
        found = load_family(name, components=('text',), device='cpu')
        assert found.name == family
        assert found.encode_prompts(['a fox'])['prompt_embeds'].shape == (
            1,
            24,
            width,
        )


def test_the_class_and_the_settings_of_a_pipeline_are_part_of_what_it_is(folders, tmp_path):
    """The embedding of the empty prompt, and so every guided image, depends on a setting of SDXL's
    model_index.json."""
    folder = shutil.copytree(folders['sdxl'], tmp_path / 'sdxl')
    before = part_digests(folder, ('vae',))
    index = json.loads((folder / 'model_index.json').read_text())

    def now(**changes):
        (folder / 'model_index.json').write_text(json.dumps(index | changes))
        return part_digests(folder, ('vae',))

    assert (
        now()
        == now(_diffusers_version='0.1', _name_or_path='elsewhere')
        == before
        == part_digests(folders['sdxl'], ('vae',))
    )
    assert {
        k
        for k, v in now(
            force_zeros_for_empty_prompt=not index.get('force_zeros_for_empty_prompt', True)
        ).items()
        if v != before[k]
    } == {'pipeline'}


@pytest.mark.parametrize('kind', ['sd15', 'sd21', 'sdxl'])
def test_a_family_that_is_asked_for_is_the_models_or_refused(folders, kind):
    check_family(folders[kind], kind)
    with pytest.raises(InputError, match=f'is of the family {kind}, not flux'):
        check_family(folders[kind], 'flux')
    with pytest.raises(InputError, match="unknown family 'sd4': use sd15, sd21, sdxl, sd3, flux"):
        check_family(folders[kind], 'sd4')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'unet': ['my_module', 'UNet']}, "unet is of 'my_module'"),
        (
            {'unet': ['diffusers', 'NoSuchModel']},
            'NoSuchModel, which the installed diffusers does not have',
        ),
        ({'_class_name': 'FooPipeline'}, 'is a FooPipeline'),
    ],
)
def test_an_index_that_names_foreign_code_is_refused(folders, tmp_path, changes, message):
    folder = rewritten_copy(folders['sd15'], tmp_path / 'x', 'model_index.json', **changes)
    (folder / 'unet' / 'my_module.py').write_text(
        f'open({str(tmp_path / "canary")!r}, "w")\nclass UNet: pass\n'
    )
    with pytest.raises(InputError, match=message):
        load_family(folder, device='cpu')
    assert not (tmp_path / 'canary').exists()


def test_refusals_are_one_line_and_say_where(folders, tmp_path):
    def refused(pattern, *args, **kwargs):
        with pytest.raises(InputError, match=pattern) as error:
            load_family(*args, device='cpu', **kwargs)
        assert '\n' not in str(error.value)

    (tmp_path / 'empty').mkdir()
    refused('empty is not a diffusers pipeline folder', tmp_path / 'empty')
    refused("no model 'no-such': use icons, icons-xl, or a folder", 'no-such')
    refused("unknown precision 'fp8'", folders['sd15'], dtype='fp8')
    refused(
        "prediction type 'sample'",
        rewritten_copy(
            folders['sd15'],
            tmp_path / 'a',
            'scheduler/scheduler_config.json',
            prediction_type='sample',
        ),
    )
    cut = shutil.copytree(folders['sd15'], tmp_path / 'b')
    weights = cut / 'vae' / 'diffusion_pytorch_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    refused('vae could not be loaded', cut)
    weights.unlink()
    refused('vae could not be loaded', cut)


def test_only_the_families_know_a_family():
    """Training, encoding and sampling do not know a family: no name of a part, pipeline or
    architecture in their source."""
    import inspect

    from balanceddpo.losses import diffusion_dpo
    from balanceddpo.models import encoding, sampling
    from balanceddpo.training import batches, card, reference, resume
    from balanceddpo.training import run as training_run

    known = (
        "'unet'",
        "'transformer'",
        'UNet2D',
        'Flux',
        'FLUX',
        'StableDiffusion3',
        'guidance_embeds',
        "'to_q'",
        'pooled',
    )
    for module in (
        training,
        training_run,
        batches,
        resume,
        card,
        encoding,
        diffusion_dpo,
        reference,
        sampling,
    ):
        source = inspect.getsource(module)
        assert not [word for word in known if word in source], module.__name__
