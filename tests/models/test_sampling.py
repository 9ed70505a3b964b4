"""Images against the library's own pipelines; seeds, batches, interruption, damage and refusals of
the image store."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from balanceddpo.core.errors import InputError
from balanceddpo.core.stages import locked
from balanceddpo.data.prompts import PromptSet
from balanceddpo.models import image_store, sampling
from balanceddpo.models.config import SampleConfig
from balanceddpo.models.families import load_family
from balanceddpo.models.image_store import image_file, open_images
from balanceddpo.models.sampling import (
    image_seed,
    initial_latents,
    plan_batches,
    sample,
)
from balanceddpo.models.saving import save_pipeline
from balanceddpo.models.schedules import SCHEDULERS, make_scheduler

PROMPTS = PromptSet('some', ('a red cat', 'a dog', '../../x', 'two\0dogs', 'y' * 300))


@pytest.fixture
def config(folders):
    return SampleConfig(
        model=str(folders['sd15']),
        images_per_prompt=2,
        steps=3,
        guidance=4.0,
        batch_size=4,
        device='cpu',
    )


def draw(config, out, prompts=PROMPTS):
    return sample(config, prompts, out, progress=False)


def pixels(store):
    return np.stack([np.asarray(image, int) for _, image, _ in store.items()])


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob('*')
        if p.is_file() and p.name != '.lock'
    }


def plain(config, prompts, seeds, lora=None):
    "The images of the library's own pipeline, prompts in one batch, one generator per image."
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(config.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = make_scheduler(config.scheduler, pipe.scheduler.config)
    if lora:
        pipe.load_lora_weights(lora)
    generators = [torch.Generator().manual_seed(int(s)) for s in seeds]
    size = {k: config.resolution or 64 for k in ('height', 'width')}
    images = pipe(
        list(prompts),
        num_inference_steps=config.steps,
        guidance_scale=config.guidance,
        generator=generators,
        **size,
    ).images
    return np.stack([np.asarray(i, int) for i in images])


@pytest.mark.parametrize(
    'kind, options',
    [
        *(('sd15', dict(scheduler=s)) for s in SCHEDULERS),
        ('sd15', dict(guidance=1.0)),
        ('sd15', dict(resolution=96)),
        ('sd21', {}),
        ('sd21', dict(scheduler='dpm++')),
        ('sdxl', {}),
        ('sdxl', dict(scheduler='euler')),
    ],
)
def test_images_are_those_of_the_plain_pipeline(folders, config, tmp_path, kind, options):
    config = replace(config, model=str(folders[kind]), images_per_prompt=1, **options)
    store = draw(config, tmp_path / 'o', PROMPTS.head(3))
    theirs = plain(config, store.index.prompt, store.index.seed)
    assert np.abs(pixels(store) - theirs).max() <= 1
    assert theirs.std() > 10  # 1 of 255: rounding


def test_samplers_are_on_the_models_schedule_and_do_not_clip(folders):
    # an Euler config: it says nothing of clipping
    config = json.loads((folders['sdxl'] / 'scheduler' / 'scheduler_config.json').read_text())
    assert 'clip_sample' not in config
    ddim = make_scheduler('ddim', config)
    assert not ddim.config.clip_sample
    assert ddim.config.beta_schedule == 'scaled_linear'
    assert ddim.config.steps_offset == 1
    v = make_scheduler(
        'dpm++', json.loads((folders['sd21'] / 'scheduler' / 'scheduler_config.json').read_text())
    )
    assert v.config.prediction_type == 'v_prediction'
    assert v.config.solver_order == 2
    with pytest.raises(InputError, match="unknown scheduler 'dpm'"):
        make_scheduler('dpm', config)


def test_one_ddim_step_by_hand(folders):
    "With eps = 0 a step from t to s only rescales: x_s = sqrt(alpha_s / alpha_t) x_t, unclipped."
    ddim = make_scheduler(
        'ddim', json.loads((folders['sd15'] / 'scheduler' / 'scheduler_config.json').read_text())
    )
    ddim.set_timesteps(2)
    assert ddim.timesteps.tolist() == [501, 1]
    x, a = torch.full((1, 4, 8, 8), 3.0), ddim.alphas_cumprod
    torch.testing.assert_close(
        ddim.step(torch.zeros_like(x), 501, x).prev_sample,
        3 * (a[1] / a[501]).sqrt() * torch.ones_like(x),
    )


@pytest.mark.parametrize('n, m, b', [(3, 2, 4), (5, 5, 16), (2, 5, 3), (7, 1, 4), (1, 1, 1)])
def test_the_plan_has_every_image_once_and_batches_within_the_size(n, m, b):
    planned = list(plan_batches(n, m, b))
    assert [j for _, batches in planned for batch in batches for j in batch] == [
        (p, i) for p in range(n) for i in range(m)
    ]
    assert all(
        len(batch) <= b and {p for p, _ in batch} <= set(numbers)
        for numbers, batches in planned
        for batch in batches
    )
    # each prompt is encoded once
    assert [p for numbers, _ in planned for p in numbers] == list(range(n))


def test_an_image_does_not_depend_on_its_batch(config, tmp_path):
    stores = [draw(replace(config, batch_size=b), tmp_path / str(b)) for b in (1, 3, 16)]
    assert stores[0].inputs == stores[1].inputs == stores[2].inputs
    for other in stores[1:]:
        assert np.abs(pixels(stores[0]) - pixels(other)).max() <= 1


def test_seeds_are_equal_over_models_and_differ_over_images(folders, config, tmp_path):
    a, b = (
        draw(config, tmp_path / 'a'),
        draw(replace(config, model=str(folders['sd21'])), tmp_path / 'b'),
    )
    keys = ['prompt_id', 'image_index', 'seed', 'prompt', 'file']
    assert a.index[keys].equals(b.index[keys])
    assert a.settings == b.settings
    assert a.model != b.model
    assert a.index.seed.nunique() == len(a) == 10
    assert not np.array_equal(pixels(a), pixels(b))
    other = draw(replace(config, seed=1), tmp_path / 'c')
    assert not set(other.index.seed) & set(a.index.seed)
    assert other.settings != a.settings


def test_seeds_are_stable_and_of_32_bits():
    "Fixed for ever: published images are found by their seed."
    assert [image_seed('0123456789abcdef', i) for i in (0, 1)] == [3373111394, 1103238521]
    assert all(0 <= image_seed(f'{i:016x}', 0, 7) < 2**32 for i in range(100))
    assert torch.equal(
        initial_latents([5], (4, 8, 8)),
        torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5)),
    )


def counted(monkeypatch, fail_at=None):
    "Count the images drawn; fail in the batch number `fail_at`."
    calls, draw_images = [], sampling.draw_images

    def wrapped(family, pipeline, conditioning, empty, latents, config):
        calls.append(len(latents))
        if len(calls) == fail_at:
            raise OSError(28, 'No space left on device')
        return draw_images(family, pipeline, conditioning, empty, latents, config)

    monkeypatch.setattr(sampling, 'draw_images', wrapped)
    return calls


def test_an_interrupted_run_goes_on_and_ends_byte_identical(config, tmp_path, monkeypatch):
    draw(config, tmp_path / 'whole')
    with monkeypatch.context() as m, pytest.raises(OSError):
        counted(m, fail_at=3)
        draw(config, tmp_path / 'cut')
    with pytest.raises(InputError, match='no finished set of images'):
        open_images(tmp_path / 'cut')
    calls = counted(monkeypatch)
    draw(config, tmp_path / 'cut')
    assert calls == [2]
    assert contents(tmp_path / 'cut') == contents(tmp_path / 'whole')
    draw(config, tmp_path / 'cut')
    assert calls == [2]  # a finished store draws nothing


def damage(path, how):
    from PIL import Image

    data = path.read_bytes()
    if how == 'missing':
        path.unlink()
    elif how == 'other picture':
        Image.new('RGB', (64, 64)).save(path)
    else:
        path.write_bytes(
            {
                'truncated': data[: len(data) // 2],
                'flipped': data[:200] + bytes([data[200] ^ 1]) + data[201:],
                'empty': b'',
            }[how]
        )


@pytest.mark.parametrize(
    'how, finished',
    [
        ('missing', True),
        ('truncated', True),
        ('flipped', True),
        ('empty', True),
        ('other picture', True),
        ('missing', False),
        ('truncated', False),
        ('flipped', False),
        ('empty', False),
    ],
)
def test_what_is_lost_or_damaged_is_drawn_again_and_nothing_else(config, tmp_path, how, finished):
    store = draw(config, tmp_path / 'o')
    before = contents(tmp_path / 'o')
    hurt = [store.index.file[1], store.index.file[8]]
    for name in hurt:
        damage(tmp_path / 'o' / name, how)
    if finished:
        with pytest.raises(InputError, match=hurt[0] if hurt[0] < hurt[1] else hurt[1]):
            open_images(tmp_path / 'o')
    else:
        (tmp_path / 'o' / 'manifest.json').unlink()
    times = {n: (tmp_path / 'o' / n).stat().st_mtime_ns for n in store.index.file if n not in hurt}
    draw(config, tmp_path / 'o')
    assert contents(tmp_path / 'o') == before
    assert all((tmp_path / 'o' / n).stat().st_mtime_ns == t for n, t in times.items())


@pytest.fixture
def packed(monkeypatch):
    "From four images on they lie in tars, of four or more."
    monkeypatch.setattr(sampling, 'PACKED_FROM', 4)
    monkeypatch.setattr(sampling, 'SHARD_IMAGES', 4)


def test_many_images_lie_in_tars_the_same_to_the_byte(config, tmp_path, monkeypatch):
    loose = draw(config, tmp_path / 'loose')
    monkeypatch.setattr(sampling, 'PACKED_FROM', 4)
    monkeypatch.setattr(sampling, 'SHARD_IMAGES', 4)
    store = draw(replace(config, png=True), tmp_path / 'o')
    names = ['images-00000.tar', 'images-00001.tar', 'images-00002.tar']
    assert sorted(p.name for p in (tmp_path / 'o').iterdir() if p.suffix == '.tar') == names
    assert not (tmp_path / 'o' / 'images').exists() or not [*(tmp_path / 'o' / 'images').iterdir()]
    columns = ['model', 'prompt_id', 'prompt', 'image_index', 'seed', 'sha256', 'flagged']
    assert store.index[columns].equals(loose.index[columns])
    for row in store.index.itertuples():
        png = (tmp_path / 'loose' / image_file(row.prompt_id, row.image_index)).read_bytes()
        assert store.png(row.prompt_id, row.image_index) == png
        asked = tmp_path / 'o-png' / image_file(row.prompt_id, row.image_index)
        assert asked.read_bytes() == png
    assert (pixels(store) == pixels(loose)).all()


def test_tars_are_what_webdataset_is(config, tmp_path, packed, monkeypatch):
    monkeypatch.setenv('HF_HOME', str(tmp_path / 'hf'))
    import datasets

    store = draw(config, tmp_path / 'o', PROMPTS.head(2))
    files = sorted(map(str, (tmp_path / 'o').glob('*.tar')))
    rows = datasets.load_dataset(
        'webdataset', data_files=files, split='train', cache_dir=str(tmp_path / 'cache')
    )
    assert [r['txt'] for r in rows] == store.index.prompt.tolist()
    assert (np.stack([np.asarray(r['png'], int) for r in rows]) == pixels(store)).all()


@pytest.mark.parametrize('finished', [True, False])
@pytest.mark.parametrize('how', ['missing', 'truncated', 'flipped', 'empty', 'note'])
def test_a_damaged_tar_is_drawn_again_alone(config, tmp_path, packed, how, finished):
    draw(config, tmp_path / 'o')
    before = contents(tmp_path / 'o')
    tar = tmp_path / 'o' / 'images-00001.tar'
    if how == 'note':
        tar.with_suffix('.json').write_text('{')
    else:
        damage(tar, how)
    if finished:
        with pytest.raises(InputError, match='images-00001'):
            open_images(tmp_path / 'o')
    else:
        (tmp_path / 'o' / 'manifest.json').unlink()
    others = [tmp_path / 'o' / f'images-0000{k}.tar' for k in (0, 2)]
    times = [p.stat().st_mtime_ns for p in others]
    draw(config, tmp_path / 'o')
    assert contents(tmp_path / 'o') == before
    assert [p.stat().st_mtime_ns for p in others] == times


def test_what_was_drawn_before_a_stop_is_packed_and_not_drawn_again(
    config, tmp_path, packed, monkeypatch
):
    drawn, real = [], image_store.write_image

    def stops(path, image):
        if len(drawn) == 6:
            raise OSError(28, 'No space left on device')
        drawn.append(path)
        real(path, image)

    monkeypatch.setattr(image_store, 'write_image', stops)
    with pytest.raises(OSError):
        draw(config, tmp_path / 'o')
    monkeypatch.setattr(image_store, 'write_image', lambda *a: drawn.append(a[0]) or real(*a))
    draw(config, tmp_path / 'o')
    assert len(drawn) == len(set(drawn)) == 10
    draw(config, tmp_path / 'whole')
    assert contents(tmp_path / 'o') == contents(tmp_path / 'whole')


@pytest.mark.parametrize(
    'change',
    [
        dict(steps=4),
        dict(guidance=5.0),
        dict(scheduler='euler'),
        dict(resolution=96),
        dict(seed=1),
        dict(images_per_prompt=3),
        dict(dtype='bf16'),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(config, tmp_path, change):
    ((field, value),) = change.items()
    draw(config, tmp_path / 'o', PROMPTS.head(1))
    with pytest.raises(
        InputError, match=f'made with {field} = {getattr(config, field)!r}, not {value!r}'
    ):
        draw(replace(config, **change), tmp_path / 'o', PROMPTS.head(1))


def test_another_model_or_prompt_set_is_refused_by_name_and_a_copy_is_not(
    folders, config, tmp_path
):
    draw(config, tmp_path / 'o')
    with pytest.raises(InputError, match='made with prompts = '):
        draw(config, tmp_path / 'o', PROMPTS.head(2))
    policy = load_family(config.model, device='cpu').model
    policy.conv_out.bias.data += 1
    trained = save_pipeline(config.model, policy, tmp_path / 'trained')
    with pytest.raises(InputError, match=r'made with model\.unet = '):
        draw(replace(config, model=str(trained)), tmp_path / 'o')
    copy = shutil.copytree(folders['sd15'], tmp_path / 'copy')
    assert (
        draw(replace(config, model=str(copy), batch_size=2), tmp_path / 'o').model
        == open_images(tmp_path / 'o').model
    )


def test_prompts_never_name_files_and_are_kept_as_they_are(config, tmp_path):
    store = draw(config, tmp_path / 'deep' / 'o')
    assert list(dict.fromkeys(store.index.prompt)) == list(PROMPTS.prompts)
    assert {p.name for p in (tmp_path).iterdir()} == {'deep'}
    assert {p.name for p in (tmp_path / 'deep').iterdir()} == {'o'}
    assert {p.name for p in (tmp_path / 'deep' / 'o' / 'images').iterdir()} == set(PROMPTS.ids)


@pytest.mark.parametrize('name', ['../../../etc', '0123456789abcde/', 'ABCDEF0123456789', ''])
def test_an_index_cannot_lead_out_of_its_folder(config, tmp_path, name):
    store = draw(config, tmp_path / 'o', PROMPTS.head(1))
    with pytest.raises(InputError, match='not a prompt id'):
        store.image(name)


def test_a_lora_draws_what_the_plain_pipeline_draws_with_it(folders, config, tmp_path):
    from peft import LoraConfig

    model = load_family(config.model, device='cpu').model
    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=['to_q', 'to_v']))
    for n, p in model.named_parameters():
        if 'lora_B' in n:
            p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    lora = save_pipeline(config.model, model, tmp_path / 'lora', adapter='default')
    config, prompts = replace(config, lora=str(lora), images_per_prompt=1), PROMPTS.head(2)
    store = draw(config, tmp_path / 'o', prompts)
    assert np.abs(pixels(store) - plain(config, prompts.prompts, store.index.seed, lora)).max() <= 1
    without = draw(replace(config, lora=None), tmp_path / 'w', prompts)
    assert np.abs(pixels(store) - pixels(without)).max() > 5
    assert store.model != without.model
    assert store.settings == without.settings
    as_file = draw(
        replace(config, lora=str(lora / 'pytorch_lora_weights.safetensors')),
        tmp_path / 'f',
        prompts,
    )
    assert np.array_equal(pixels(as_file), pixels(store))
    with pytest.raises(InputError, match='neither a LoRA'):
        draw(replace(config, lora=str(folders['sd15'])), tmp_path / 'x', prompts)
    foreign = replace(
        config, lora=str(folders['sd15'] / 'vae' / 'diffusion_pytorch_model.safetensors')
    )
    with pytest.raises(InputError, match='does not fit this model'):
        draw(foreign, tmp_path / 'y', prompts)


@pytest.fixture
def with_checker(folders, tmp_path):
    "The SD1.5 folder with a safety checker that flags everything."
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = dict(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        projection_dim=8,
    )
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    for name in ('concept_embeds_weights', 'special_care_embeds_weights'):
        getattr(checker, name).data.fill_(-2.0)
    folder = shutil.copytree(folders['sd15'], tmp_path / 'checked')
    checker.save_pretrained(folder / 'safety_checker')
    CLIPImageProcessor(
        size={'shortest_edge': 32}, crop_size={'height': 32, 'width': 32}
    ).save_pretrained(folder / 'feature_extractor')
    index = json.loads((folder / 'model_index.json').read_text())
    parts = {
        'safety_checker': ['stable_diffusion', 'StableDiffusionSafetyChecker'],
        'feature_extractor': ['transformers', 'CLIPImageProcessor'],
    }
    (folder / 'model_index.json').write_text(json.dumps(index | parts))
    return folder


def test_a_safety_checker_runs_only_when_it_is_there_and_asked_for(config, with_checker, tmp_path):
    checked, prompts = replace(config, model=str(with_checker)), PROMPTS.head(1)
    family, pipeline = sampling.load_generator(checked)
    assert pipeline.safety_checker is None
    assert 'safety_checker' not in family.parts
    assert pixels(draw(checked, tmp_path / 'a', prompts)).any()
    # flagged: black
    assert not pixels(draw(replace(checked, safety_checker=True), tmp_path / 'b', prompts)).any()
    with pytest.raises(InputError, match='has no safety_checker'):
        draw(replace(config, safety_checker=True), tmp_path / 'c', prompts)


def test_what_is_flagged_or_of_one_colour_is_counted(config, with_checker, tmp_path, monkeypatch):
    "And what is flagged is known after an interruption, from the PNG itself."
    store = draw(config, tmp_path / 'plain')
    assert not store.index[['flagged', 'constant']].to_numpy().any()
    checked = replace(config, model=str(with_checker), safety_checker=True)
    with monkeypatch.context() as m, pytest.raises(OSError):
        counted(m, fail_at=3)
        draw(checked, tmp_path / 'cut')
    calls = counted(monkeypatch)
    store = draw(checked, tmp_path / 'cut')
    assert calls == [2]
    assert len(store) == 10
    assert store.index.flagged.all()
    assert store.index.constant.all()
    draw(checked, tmp_path / 'whole')
    assert contents(tmp_path / 'cut') == contents(tmp_path / 'whole')


def damaged_model(source, target, part, value):
    "A copy of an SD1.5 folder whose autoencoder or denoiser gives what is not finite."
    from safetensors.torch import load_file, save_file

    file = shutil.copytree(source, target) / part / 'diffusion_pytorch_model.safetensors'
    tensors = load_file(file)
    name = {'vae': 'decoder.conv_out.bias', 'unet': 'conv_out.bias'}[part]
    tensors[name][-1] = value
    save_file(tensors, file, metadata={'format': 'pt'})
    return str(target)


@pytest.mark.parametrize('part', ['vae', 'unet'])
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_pixels_that_are_not_finite_are_refused_with_prompt_and_seed(
    folders, config, tmp_path, part, value, recwarn
):
    broken = damaged_model(folders['sd15'], tmp_path / 'broken', part, value)
    seed = image_seed(PROMPTS.ids[0], 0)
    with pytest.raises(InputError, match=f"'a red cat' with seed {seed} has pixels that are not"):
        draw(replace(config, model=broken), tmp_path / 'o')
    assert not list((tmp_path / 'o').rglob('*.png'))
    with pytest.raises(InputError, match='no finished set of images'):
        open_images(tmp_path / 'o')
    assert not [w for w in recwarn if 'invalid value' in str(w.message)]


def test_the_first_image_that_is_not_finite_is_the_one_that_is_named():
    finite = [torch.tensor([True, True]), torch.tensor([False, True])]
    with pytest.raises(InputError, match="'c' with seed 3 "):
        sampling.refuse_infinite(finite, 'abcd', [1, 2, 3, 4])
    sampling.refuse_infinite(finite[:1], 'ab', [1, 2])


@pytest.mark.parametrize('kind', ['sd15', 'sdxl', 'sd3', 'flux'])
def test_looking_at_the_pixels_does_not_change_a_bit(folders, config, kind, tmp_path):
    "Against the same pipeline without us, and the library's own PNG of its picture."
    config = replace(config, model=str(folders[kind]), scheduler='euler')
    family, pipeline = sampling.load_generator(config)
    with torch.inference_mode():
        texts, empty = family.encode_prompts(['a red cat', 'a dog']), family.empty_conditioning()
        noise = initial_latents([1, 2], family.latent_shape())
        arguments = family.pipeline_arguments(
            texts, {k: v.expand(2, *v.shape[1:]) for k, v in empty.items()}, noise, 4.0
        )
        size = dict(height=family.default_size, width=family.default_size)
        theirs = pipeline(**arguments, **size, num_inference_steps=3, output_type='pil').images
    with sampling.watched_pixels(pipeline) as finite:
        ours = sampling.draw_images(family, pipeline, texts, empty, noise, config)
    assert torch.cat(finite).tolist() == [True, True]
    for a, b in zip(ours, theirs, strict=True):
        image_store.write_image(tmp_path / 'ours.png', a)
        b.save(tmp_path / 'theirs.png')
        assert (tmp_path / 'ours.png').read_bytes() == (tmp_path / 'theirs.png').read_bytes()
    assert not pipeline.vae.decoder._forward_hooks


def test_a_second_process_and_empty_requests_are_refused(config, tmp_path):
    with locked(tmp_path / 'o'), pytest.raises(InputError, match='in use by process'):
        draw(config, tmp_path / 'o')
    for change in (dict(images_per_prompt=0), dict(batch_size=0), dict(steps=0)):
        with pytest.raises(InputError, match='at least 1'):
            draw(replace(config, **change), tmp_path / 'p')
    with pytest.raises(InputError, match='resolution 100 is not a multiple of 8'):
        draw(replace(config, resolution=100), tmp_path / 'q')
