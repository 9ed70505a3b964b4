"""Scorers: equal to the libraries they come from, indifferent to form and batch, economical with
towers, and unwilling to load programs."""

import json
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from balanceddpo.core.errors import InputError
from balanceddpo.scoring import scorers as scorers_module
from balanceddpo.scoring.encoders import (
    ImageBatch,
    Tower,
    ahead_in_threads,
    crop_to_square,
    in_threads,
    load_tower,
    write_random_clip,
)
from balanceddpo.scoring.scorers import (
    BaseScorer,
    ScorerSpec,
    aesthetic_head,
    check_spread,
    load_scorer,
    load_scorers,
    parse_scorer,
    register_scorer,
    score_items,
)

SIZES = [(32, 32), (64, 64), (97, 61), (33, 80), (31, 31), (200, 90), (40, 41), (45, 32)]
PROMPTS = [
    'a red apple',
    'A Red  Apple',
    '',
    'caf\u00e9 &amp; \U0001f98a!',
    'a very long prompt ' * 20,
    'fox',
    'apple fox',
    '12',
]
WORDS = ['a', 'red', 'apple', 'fox']


def noise(size=(40, 40), seed=0, mode='RGB'):
    "A picture with structure at several sizes, so that a different resize gives a different score."
    coarse = Image.frombytes('RGB', (7, 5), random.Random(seed).randbytes(7 * 5 * 3)).resize(
        size, Image.Resampling.NEAREST
    )
    return Image.blend(
        coarse,
        Image.frombytes('RGB', size, random.Random(-seed - 1).randbytes(size[0] * size[1] * 3)),
        0.3,
    ).convert(mode)


def close(a, b, tolerance=1e-6):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), atol=tolerance, rtol=0)


def sharpen(folder, name, factor=12.0):
    "Random towers see all images alike; larger weights make their scores differ as real ones do."
    weights = load_file(folder / name)
    save_file(
        {
            k: v * factor if k.endswith('weight') and v.ndim == 2 and 'embedding' not in k else v
            for k, v in weights.items()
        },
        folder / name,
        metadata={'format': 'pt'},
    )


def random_head(folder, widths=(32, 64, 16, 1), seed=0):
    "An aesthetic head in LAION's layout, dropout's places in the numbering left out."
    g = torch.Generator().manual_seed(seed)
    places = (0, 2, 4, 6, 7)
    head = {
        f'layers.{places[i]}.{part}': torch.randn(shape, generator=g) / b**0.5
        for i, (a, b) in enumerate(zip(widths, widths[1:]))
        for part, shape in (('weight', (b, a)), ('bias', (b,)))
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(head, folder / 'head.safetensors')
    (folder / 'aesthetic.json').write_text(json.dumps({'backbone': '../clip'}))
    return head


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    "A folder with hps (open_clip), clip, pickscore (transformers) and aesthetic, random weights."
    root = tmp_path_factory.mktemp('models')
    for kind, library, weights in (
        ('hps', 'open_clip', 'open_clip_model'),
        ('clip', 'transformers', 'model'),
        ('pickscore', 'transformers', 'model'),
    ):
        sharpen(
            write_random_clip(root / kind, library, WORDS, seed=len(kind)), f'{weights}.safetensors'
        )
    random_head(root / 'aesthetic')
    return root


def four(models, **options):
    return load_scorers(
        [f'{k}={models / k}' for k in scorers_module.PAPER_SCORERS], device='cpu', **options
    )


@pytest.fixture(scope='module')
def cases():
    return [noise(size, i) for i, size in enumerate(SIZES)], PROMPTS


# --- equal to the originals


def transformers_logits(folder, images, prompts):
    "What the library itself says: its own PIL preprocessing, tokenizer, and `CLIPModel.forward`."
    model, processor, tokenizer = (
        CLIPModel.from_pretrained(folder).eval(),
        CLIPImageProcessorPil.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.no_grad():
        out = model(
            **processor(images=images, return_tensors='pt'),
            **tokenizer(prompts, padding=True, truncation=True, max_length=24, return_tensors='pt'),
        )
    return out.logits_per_image.diagonal(), model.logit_scale.exp().item()


def test_clip_and_pickscore_equal_transformers(models, cases):
    for kind, scaled in (('clip', False), ('pickscore', True)):
        logits, scale = transformers_logits(models / kind, *cases)
        ours = load_scorer(f'{kind}={models / kind}', device='cpu').score(*cases)
        close(ours, logits if scaled else logits / scale, 2e-6 * (scale if scaled else 1))
        assert scale > 10
        assert (logits / scale).std() > 0.02  # the cases can tell a mistake
    close(
        load_scorer(f'pickscore={models / "pickscore"}@cosine', device='cpu').score(*cases),
        logits / scale,
        2e-6,
    )


@pytest.mark.parametrize('kind', ['pickscore', 'hps'])
def test_half_precision_does_not_round_the_scale(models, kind):
    "In bf16 the logarithm of 100 is that of 98.9: a PickScore of 20.5 would be 0.23 too low."
    towers = [
        load_scorer(f'{kind}={models / kind}', device='cpu', dtype=d).tower
        for d in ('fp32', 'bf16', 'fp16')
    ]
    assert towers[0].scale == towers[1].scale == towers[2].scale
    # the weights can tell
    raw = towers[0].scale
    assert abs(torch.tensor(raw).log().bfloat16().float().exp().item() - raw) > 1e-3 * raw
    assert (
        load_scorer(f'pickscore={models / "pickscore"}', device='cpu', dtype='bf16').scale
        == load_scorer(f'pickscore={models / "pickscore"}', device='cpu').scale
    )


def test_clip_view_equals_transformers_pixel_for_pixel(models):
    processor = CLIPImageProcessorPil.from_pretrained(models / 'clip', do_normalize=False)
    for i, size in enumerate(SIZES + [(33, 47), (47, 33), (10, 9), (500, 40)]):
        image = noise(size, i)
        close(
            crop_to_square(image, 32),
            torch.as_tensor(processor(images=[image], return_tensors='pt')['pixel_values'][0]),
            1e-7,
        )


def test_clip_equals_open_clip(models, cases):
    images, prompts = cases
    model, preprocess = open_clip.create_model_from_pretrained(f'local-dir:{models / "hps"}')
    tokens = open_clip.get_tokenizer(f'local-dir:{models / "hps"}')(prompts)
    with torch.no_grad():
        image, text, _ = model.eval()(torch.stack([preprocess(i) for i in images]), tokens)
    close(
        load_scorer(f'clip={models / "hps"}', device='cpu').score(images, prompts),
        (image * text).sum(-1),
    )


def test_padded_clip_is_the_view_of_hps(models, cases):
    folder = models / 'hps'
    close(
        load_scorer(f'clip={folder}@pad', device='cpu').score(*cases),
        load_scorer(f'hps={folder}', device='cpu').score(*cases),
    )
    wide = [noise((90, 30))]
    padded, cropped = (
        load_scorer(f'clip={models / "clip"}{v}', device='cpu').score(wide, ['a fox'])
        for v in ('@pad', '')
    )
    assert abs(padded - cropped) > 1e-3


def test_aesthetic_equals_a_hand_written_forward(models, cases):
    images, prompts = cases
    head = load_file(models / 'aesthetic' / 'head.safetensors')
    mlp = nn.Sequential(
        nn.Linear(32, 64), nn.Dropout(0.2), nn.Linear(64, 16), nn.Dropout(0.2), nn.Linear(16, 1)
    ).eval()
    mlp.load_state_dict({k.removeprefix('layers.'): v for k, v in head.items()})
    model, processor = (
        CLIPModel.from_pretrained(models / 'clip').eval(),
        CLIPImageProcessorPil.from_pretrained(models / 'clip'),
    )
    with torch.no_grad():
        pixels = torch.as_tensor(processor(images=images, return_tensors='pt')['pixel_values'])
        embedding = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        expected = mlp(embedding / embedding.norm(dim=-1, keepdim=True))[:, 0]
    close(
        load_scorer(f'aesthetic={models / "aesthetic"}', device='cpu').score(images, prompts),
        expected,
        5e-6,
    )
    assert expected.std() > 0.01


def test_published_aesthetic_heads_in_their_own_files(models, tmp_path, cases):
    """LAION's version 2 is a pickle with widths 768-1024-128-64-16-1, version 1 a bare Linear; both
    with the backbone beside them."""
    v2 = random_head(tmp_path / 'v2', (32, 1024, 128, 64, 16, 1))
    v1 = {'weight': torch.randn(1, 32), 'bias': torch.randn(1)}
    name = 'sac+logos+ava1-l14-linearMSE.pth'
    torch.save(v2, tmp_path / name)
    torch.save(v1, tmp_path / 'v1.pth')
    embedding = load_tower(models / 'clip', device='cpu').images(ImageBatch(cases[0]))
    x = embedding
    for i in (0, 2, 4, 6, 7):
        x = x @ v2[f'layers.{i}.weight'].T + v2[f'layers.{i}.bias']
    close(
        load_scorer(f'aesthetic={tmp_path / name}+{models / "clip"}', device='cpu').score(*cases),
        x[:, 0],
        5e-6,
    )
    close(
        load_scorer(f'aesthetic={tmp_path / "v1.pth"}+{models / "clip"}', device='cpu').score(
            *cases
        ),
        (embedding @ v1['weight'].T + v1['bias'])[:, 0],
        5e-6,
    )


# --- form, batch and precision


def test_form_of_the_images_does_not_matter(models):
    images = [noise((48, 40), i) for i in range(3)]
    pixels = torch.stack([ImageBatch(images).pixels(i) for i in range(3)])
    forms = [
        images,
        pixels,
        pixels / 255,
        (pixels / 255).double(),
        (pixels / 255).half(),
        list(pixels),
        tuple(images),
        [images[0], pixels[1], pixels[2] / 255],
    ]
    for s in four(models):
        expected = s.score(images, PROMPTS[:3])
        for form in forms:
            if s.tower is not None:
                s.tower.forget()
            close(s.score(form, PROMPTS[:3]), expected, 1e-6)
    assert ImageBatch(pixels).ids == ImageBatch(images).ids == ImageBatch((pixels / 255).half()).ids


def test_batch_size_and_order_do_not_matter(models):
    images, prompts = (
        [noise((40, 40), i) for i in range(64)],
        [PROMPTS[i % len(PROMPTS)] for i in range(64)],
    )
    order = random.Random(0).sample(range(64), 64)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for one, seven, all64 in zip(*(four(models, batch_size=b) for b in (1, 7, 64))):
            a, b, c = (s.score(images, prompts) for s in (one, seven, all64))
            all64.tower.forget()
            shuffled = all64.score([images[i] for i in order], [prompts[i] for i in order])
            # the promise is about the cosine; PickScore multiplies it
            tolerance = 1e-5 if one.name != 'pickscore' else 1e-5 * one.tower.scale
            close(a, b, tolerance)
            close(a, c, tolerance)
            close(shuffled, a[order], tolerance)
            votes, decided = (
                [(s[::2] >= s[1::2]) for s in (a, b, c)],
                (a[::2] - a[1::2]).abs() > 1e-3,
            )
            assert (votes[0] == votes[1])[decided].all()
            assert (votes[0] == votes[2])[decided].all()
            assert decided.sum() > 20


@pytest.mark.parametrize('dtype', ['bf16', 'fp16'])
def test_half_precision_towers_end_in_float32(models, dtype):
    images, prompts = [noise((40, 40), i) for i in range(48)], ['a red apple'] * 48
    for full, half in zip(four(models), four(models, dtype=dtype)):
        a, b = full.score(images, prompts), half.score(images, prompts)
        assert half.tower.dtype == {'bf16': torch.bfloat16, 'fp16': torch.float16}[dtype]
        assert b.dtype == torch.float32
        assert full.key != half.key
        assert len(set(b.tolist())) == 48  # distinct images do not tie
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9
        assert not torch.equal(a, b)
        assert not torch.equal(b, b.to(half.tower.dtype).float())  # not on the coarse grid


def test_views_in_threads_are_the_same(monkeypatch):
    monkeypatch.setattr('os.cpu_count', lambda: 8)
    batch = ImageBatch([noise((60, 50), i) for i in range(40)])
    close(
        torch.stack(in_threads(lambda i: crop_to_square(batch[i], 32), range(40))),
        torch.stack([crop_to_square(batch[i], 32) for i in range(40)]),
        0,
    )


# --- what a tower is asked to do


def test_towers_are_shared_and_asked_once(models):
    hps, clip, pickscore, aesthetic = scorers = four(models)
    assert clip.tower is aesthetic.tower
    assert len({id(s.tower) for s in scorers}) == 3
    images = {f'i{n}': noise((40, 40), n) for n in range(6)}
    items = [(name, image, prompt) for prompt in PROMPTS[:5] for name, image in images.items()]
    score_items(scorers, items, batch_size=4)
    assert [t.image_passes for t in (hps.tower, clip.tower, pickscore.tower)] == [6, 6, 6]
    assert [t.text_passes for t in (hps.tower, clip.tower, pickscore.tower)] == [5, 5, 5]
    alone = clip.score([i for _, i, _ in items], [p for *_, p in items])
    close(score_items([clip], items)['clip'], alone, 1e-6)


def test_ids_hold_for_one_call_only(models):
    clip = load_scorer(f'clip={models / "clip"}', device='cpu')
    a, b = (score_items([clip], [('0', noise(seed=n), 'a fox')])['clip'] for n in (1, 2))
    assert abs(a - b) > 1e-4
    close(b, clip.score([noise(seed=2)], ['a fox']), 1e-6)


def test_memory_of_a_tower_is_bounded():
    tower = Tower(
        't',
        lambda x: x.flatten(1),
        lambda texts: torch.tensor([[len(t), 1.0] for t in texts]),
        lambda batch, i: batch.pixels(i) / 255,
        remember=3,
    )
    images = [Image.new('RGB', (1, 1), (i + 1, 7, 9)) for i in range(8)]
    first = tower.images(ImageBatch(images), batch_size=2)
    tower.texts([str(i) * i for i in range(8)])
    assert len(tower._images) == len(tower._texts) == 3
    assert tower.image_passes == 8
    # the last three were known
    close(tower.images(ImageBatch(images)), first, 0)
    assert tower.image_passes == 8 + 8 - 3


def test_same_content_elsewhere_is_the_same_tower_and_other_content_is_not(models, tmp_path):
    towers, copy = {}, tmp_path / 'copy'
    shutil.copytree(models / 'clip', copy)
    (copy / 'README.md').write_text('a note changes nothing')
    original, other = (
        load_scorer(f'clip={p}', device='cpu', towers=towers) for p in (models / 'clip', copy)
    )
    assert original.tower is other.tower
    assert original.key == other.key
    keys = {original.key}
    settings = json.loads((copy / 'processor_config.json').read_text())
    settings['image_processor']['image_mean'] = [0.5, 0.5, 0.5]
    for change in (
        lambda: (copy / 'processor_config.json').write_text(json.dumps(settings)),
        lambda: sharpen(copy, 'model.safetensors', 2.0),
    ):
        change()
        keys.add(load_scorer(f'clip={copy}', device='cpu', towers=towers).key)
    keys |= {
        load_scorer(f'clip={copy}{v}', 'cpu', d).key for v, d in (('@pad', 'fp32'), ('', 'bf16'))
    }
    assert len(keys) == 5


# --- images that are refused


@pytest.mark.parametrize(
    'wrong, says',
    [
        (lambda x: x * 2 - 1, 'undo the normalisation'),
        (lambda x: x * 255, 'divide'),
        (lambda x: x / 255, 'divided by 255 twice'),
        (lambda x: x * float('nan'), 'no numbers'),
        (lambda x: x[0], 'shape'),
        (lambda x: x.permute(0, 2, 3, 1), 'shape'),
        (lambda x: (x * 255).int(), 'uint8 or float'),
        (lambda x: x[:, :1], 'shape'),
        (lambda x: 'image.png', 'sequence'),
        (lambda x: [b'bytes'], 'PIL'),
        (lambda x: noise(), 'sequence'),
    ],
)
def test_bad_images_are_refused(models, wrong, says):
    clip = load_scorer(f'clip={models / "clip"}', device='cpu')
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=says) as error:
        clip.score(wrong(x), ['a', 'b'])
    assert '\n' not in str(error.value)


def test_one_dark_image_among_bright_ones_is_found_and_black_and_uint8_pass(models):
    clip = load_scorer(f'clip={models / "clip"}', device='cpu')
    x = torch.rand(3, 3, 8, 8)
    x[2] /= 255
    with pytest.raises(InputError, match='image 2'):
        clip.score(x, ['a'] * 3)
    x[2] = 0
    assert clip.score(x, ['a'] * 3).isfinite().all()
    # level 1 of 255, known to be so
    assert clip.score(torch.ones(1, 3, 8, 8, dtype=torch.uint8), ['a']).isfinite().all()
    assert clip.score([], []).shape == (0,)
    assert score_items([clip], [])['clip'].shape == (0,)


def test_prompts_are_checked(models):
    clip = load_scorer(f'clip={models / "clip"}', device='cpu')
    with pytest.raises(InputError, match='2 images but 1 prompts'):
        clip.score([noise()] * 2, ['a'])
    with pytest.raises(InputError, match='must be text'):
        clip.score([noise()], [None])
    # a string is one prompt, not its letters
    with pytest.raises(InputError, match='2 images but 1 prompts'):
        clip.score([noise()] * 2, 'ab')


def test_scores_that_do_not_spread_are_reported():
    class Flat(BaseScorer):
        usual = 0.46

        def measure(self, batch, prompts):
            return torch.arange(len(batch)) * 1e-4

    images = [Image.new('RGB', (2, 2), (i, 0, 0)) for i in range(64)]
    with pytest.warns(UserWarning, match='64 distinct images'):
        Flat('flat', 'k').score(images, [''] * 64)
    with pytest.warns(UserWarning, match='flat') as caught:
        score_items(
            [Flat('flat', 'k')], ((i, im, '') for i, im in enumerate(images)), batch_size=16
        )
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Flat('flat', 'k').score(images[:63], [''] * 63)  # too few to tell
        Flat('flat', 'k').score(images[:1] * 64, [''] * 64)  # one image, often
        check_spread('x', torch.randn(100), range(100), 1.0)


# --- weights that are refused


class Bomb:
    "Unpickling it creates a file."

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def plant(kind, models, tmp_path, canary):
    "A scorer whose weights are a program, in each format that can hold one."
    bomb = {'state_dict': Bomb(canary), 'weight': Bomb(canary)}
    if kind == 'hps file':
        torch.save(bomb, tmp_path / 'hps.pt')
        return f'hps={tmp_path / "hps.pt"}+ViT-S-32'
    if kind == 'aesthetic file':
        torch.save(bomb, tmp_path / 'head.pth')
        return f'aesthetic={tmp_path / "head.pth"}+{models / "clip"}'
    library, old, new = {
        'open_clip folder': ('hps', 'open_clip_model.safetensors', 'open_clip_pytorch_model.bin'),
        'transformers folder': ('clip', 'model.safetensors', 'pytorch_model.bin'),
    }[kind]
    folder = shutil.copytree(models / library, tmp_path / 'bombed')
    (folder / old).unlink()
    torch.save(bomb, folder / new)
    return f'{library}={folder}'


@pytest.mark.parametrize(
    'kind', ['hps file', 'aesthetic file', 'open_clip folder', 'transformers folder']
)
def test_pickle_bombs_do_not_go_off(kind, models, tmp_path):
    canary = tmp_path / 'canary'
    spec = plant(kind, models, tmp_path, canary)
    with pytest.raises(InputError) as error:
        load_scorer(spec, device='cpu')
    assert not canary.exists()
    assert '\n' not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_weights_that_are_missing_or_do_not_fit_are_refused(models, tmp_path):
    def broken(library, change):
        folder = Path(
            shutil.copytree(
                models / library, tmp_path / f'{library}{len(list(tmp_path.iterdir()))}'
            )
        )
        change(folder)
        with pytest.raises(InputError) as error:
            load_scorer(f'{library}={folder}', device='cpu')
        assert '\n' not in str(error.value)
        assert str(folder) in str(error.value)
        return str(error.value)

    def lose_one(folder):
        name = next(folder.glob('*.safetensors'))
        weights = load_file(name)
        weights.pop(sorted(weights)[-1])
        save_file(weights, name, metadata={'format': 'pt'})

    def resize(folder):
        settings = json.loads((folder / 'processor_config.json').read_text())
        settings['image_processor']['crop_size'] = {'height': 24, 'width': 24}
        (folder / 'processor_config.json').write_text(json.dumps(settings))

    for library in ('hps', 'clip'):
        broken(library, lose_one)
        broken(library, lambda folder: next(folder.glob('*.safetensors')).unlink())
        broken(library, lambda folder: next(folder.glob('*.safetensors')).write_bytes(b'cut short'))
    assert 'processor makes 24 pixels' in broken('clip', resize)
    assert 'preprocessor_config' in broken(
        'clip', lambda folder: (folder / 'processor_config.json').unlink()
    )
    broken('hps', lambda folder: (folder / 'open_clip_config.json').write_text('{'))


@pytest.mark.parametrize('backbone', ['../../clip', '/etc', 3, None, 'link'])
def test_an_aesthetic_folder_cannot_lead_out(models, tmp_path, backbone):
    folder = Path(shutil.copytree(models / 'aesthetic', tmp_path / 'a' / 'aesthetic'))
    if backbone == 'link':
        (folder / 'link').symlink_to(models / 'clip')
    (folder / 'aesthetic.json').write_text(json.dumps({'backbone': backbone}))
    with pytest.raises(InputError, match='backbone must be a relative path'):
        load_scorer(f'aesthetic={folder}', device='cpu')


def test_without_the_hub_published_scorers_say_what_to_do():
    for name in scorers_module.PAPER_SCORERS:
        with pytest.raises(InputError, match='give the path of a downloaded copy') as error:
            load_scorer(name, device='cpu')
        assert '\n' not in str(error.value)
    with pytest.raises(InputError, match='no such file or folder'):
        load_scorer('clip=./nowhere', device='cpu')


def test_heads_that_are_none_are_refused():
    one = {'layers.0.weight': torch.ones(1, 4), 'layers.0.bias': torch.ones(1)}
    for wrong, says in (
        ({**one, 'visual.proj': torch.ones(2)}, 'visual.proj'),
        ({'layers.0.weight': torch.ones(1, 4)}, 'a weight and a bias'),
        ({**one, 'layers.2.weight': torch.ones(1, 5), 'layers.2.bias': torch.ones(1)}, 'chain'),
    ):
        with pytest.raises(InputError, match=says):
            aesthetic_head(wrong)


# --- names


def test_specs():
    assert parse_scorer('hps') == ScorerSpec('hps', '', 'hps')
    assert parse_scorer('clip=openai/clip-vit-large-patch14@pad') == ScorerSpec(
        'clip', 'openai/clip-vit-large-patch14', 'clip', None, 'pad'
    )
    assert parse_scorer('pickscore=me/pick+laion/clip') == ScorerSpec(
        'pickscore', 'me/pick', 'pickscore', 'laion/clip'
    )
    assert parse_scorer('clip=hf-hub:laion/x+y/z').source == 'hf-hub:laion/x'
    assert parse_scorer('b:aesthetic=/x/sac+logos+ava1.pth') == ScorerSpec(
        'b', '/x/sac+logos+ava1.pth', 'aesthetic'
    )
    assert parse_scorer('hps=my@home/model.pt').source == 'my@home/model.pt'
    assert parse_scorer('hps=my@model.pt').source == 'my@model.pt'
    for wrong in ('', 'beauty', 'hps@v3', 'hps=', 'a:b:hps'):
        with pytest.raises(InputError):
            parse_scorer(wrong)


def test_a_path_with_plus_signs_is_found(tmp_path):
    (tmp_path / 'a+b').mkdir()
    assert parse_scorer(f'clip={tmp_path / "a+b"}').source == str(tmp_path / 'a+b')
    assert parse_scorer(f'clip={tmp_path / "a+b"}+c') == ScorerSpec(
        'clip', str(tmp_path / 'a+b'), 'clip', 'c'
    )


def test_own_scorers(monkeypatch):
    monkeypatch.setattr(scorers_module, '_REGISTERED', {})

    @register_scorer('wide')
    def wide(images, prompts):
        return [im.width / im.height for im in images]

    @register_scorer('gain')
    class Gain:
        def __init__(self, source, device, dtype):
            self.gain = float(source or 1)

        def score(self, images, prompts):
            return [self.gain * len(p) for p in prompts]

    @register_scorer('bad')
    def bad(images, prompts):
        return [[1.0, 2.0]] * len(images)

    @register_scorer('unsure')
    def unsure(images, prompts):
        return [float('nan')] * len(images)

    images = [noise((20, 10)), noise((10, 20))]
    loaded = load_scorers(['wide', 'gain', 'double:gain=2', 'unsure'])
    assert [s.name for s in loaded] == ['wide', 'gain', 'double', 'unsure']
    assert len({s.key for s in loaded}) == 4
    table = score_items(loaded, [(i, im, 'abc') for i, im in enumerate(images)])
    close(table['wide'], torch.tensor([2.0, 0.5]))
    close(table['double'], torch.tensor([6.0, 6.0]))
    assert (table['unsure'] != table['unsure']).all()
    assert all(v.dtype == 'float32' for v in table.values())
    with pytest.raises(InputError, match='give one number an image'):
        load_scorer('bad').score(images, ['', ''])
    for name in ('hps', '9', 'a b'):
        with pytest.raises(InputError):
            register_scorer(name)
    key = load_scorer('wide').key
    register_scorer('wide', version='2')(wide)
    assert load_scorer('wide').key != key
    with pytest.raises(InputError, match="called 'wide'"):
        load_scorers(['wide', 'wide'])


def test_a_class_of_ones_own_file_has_a_new_key_when_its_code_changes(tmp_path, monkeypatch):
    """As `--register FILE` loads it: the class belongs to no module, so Python does not find its
    text."""
    import linecache
    import runpy

    monkeypatch.setattr(scorers_module, '_REGISTERED', {})
    file, keys = tmp_path / 'mine.py', []
    for gain, times in ((1, 1), (1, 1), (2, 1), (2, 3)):
        file.write_text(f"""from balanceddpo.scoring.scorers import register_scorer
@register_scorer('mine')
class Mine:
    times = {times}
    def __init__(self, source, device, dtype): pass
    def score(self, images, prompts): return [{gain}. for _ in images]
""")
        linecache.clearcache()
        runpy.run_path(str(file))
        keys.append(load_scorer('mine').key)
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_importing_is_light():
    code = (
        'import sys, balanceddpo.scoring.encoders, balanceddpo.scoring.scorers, balanceddpo.scoring.tables;'
        " print({'torch', 'numpy', 'transformers', 'open_clip', 'pandas', 'pyarrow'} &"
        ' set(sys.modules))'
    )
    assert (
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip()
        == 'set()'
    )


def test_work_ahead_keeps_the_order_its_bound_and_the_place_of_an_error():
    begun = []

    def f(i):
        begun.append(i)
        if i == 7:
            raise ValueError('the seventh')
        return i

    stream = ahead_in_threads(f, iter(range(1000)), ahead=5)
    seen = [next(stream) for _ in range(7)]
    assert seen == list(range(7))
    assert max(begun) <= 7 + 5
    with pytest.raises(ValueError, match='the seventh'):
        next(stream)
    assert list(ahead_in_threads(str, range(3), ahead=10)) == ['0', '1', '2']
    assert list(ahead_in_threads(str, [])) == []


def test_towers_that_look_alike_share_a_view_and_others_do_not():
    batch, made = ImageBatch(torch.randint(0, 256, (2, 3, 9, 7), dtype=torch.uint8)), []

    def make(name, i):
        return batch.view(name, i, lambda: made.append((name, i)) or len(made))

    assert [make('crop', 0), make('crop', 0), make('crop', 1), make('pad', 0), make('crop', 1)] == [
        1,
        1,
        2,
        3,
        2,
    ]
    assert made == [('crop', 0), ('crop', 1), ('pad', 0)]
