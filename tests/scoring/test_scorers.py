"""Scorers: equal to the libraries they come from, indifferent to form and batch, economical with
encoders."""

import io
import random
import subprocess
import sys
import threading
import warnings

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

from balanceddpo.core.errors import InputError
from balanceddpo.data.pairs import decode
from balanceddpo.scoring.encoders import load_encoder
from balanceddpo.scoring.pictures import ImageBatch
from balanceddpo.scoring.registry import (
    PAPER_SCORERS,
    load_scorer,
    load_scorers,
)
from balanceddpo.scoring.scorers import (
    BaseScorer,
    FunctionScorer,
    aesthetic_head,
    check_spread,
    cut_texts,
    score_items,
    tell_cut_texts,
)
from tiny_scorers import PROMPTS, SIZES, close, noise, random_head


def four(models, **options):
    return load_scorers([f'{k}={models / k}' for k in PAPER_SCORERS], device='cpu', **options)


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
        scorer = load_scorer(f'{kind}={models / kind}', device='cpu')
        ours = scorer.score(*cases)
        close(ours, logits if scaled else logits / scale, 2e-6 * (scale if scaled else 1))
        close(ours / scorer.unit, logits / scale, 2e-6)  # the published unit is the cosine
        assert scale > 10
        assert (logits / scale).std() > 0.02  # the cases can tell a mistake
    close(
        load_scorer(f'pickscore={models / "pickscore"}@cosine', device='cpu').score(*cases),
        logits / scale,
        2e-6,
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
        nn.Linear(32, 64), nn.Dropout(0.2), nn.Linear(64, 16), nn.Linear(16, 1)
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
    embedding = load_encoder(models / 'clip', device='cpu').images(ImageBatch(cases[0]))
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
            if s.encoder is not None:
                s.encoder.forget()
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
            all64.encoder.forget()
            shuffled = all64.score([images[i] for i in order], [prompts[i] for i in order])
            # the promise is about the cosine; PickScore multiplies it
            tolerance = 1e-5 if one.name != 'pickscore' else 1e-5 * one.encoder.scale
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
def test_half_precision_encoders_end_in_float32(models, dtype):
    images, prompts = [noise((40, 40), i) for i in range(48)], ['a red apple'] * 48
    for full, half in zip(four(models), four(models, dtype=dtype)):
        a, b = full.score(images, prompts), half.score(images, prompts)
        assert half.encoder.dtype == {'bf16': torch.bfloat16, 'fp16': torch.float16}[dtype]
        assert b.dtype == torch.float32
        assert full.key != half.key
        assert len(set(b.tolist())) == 48  # distinct images do not tie
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.9
        assert not torch.equal(a, b)
        assert not torch.equal(b, b.to(half.encoder.dtype).float())  # not on the coarse grid


# --- what an encoder is asked to do


def test_encoders_are_shared_and_asked_once(models):
    hps, clip, pickscore, aesthetic = scorers = four(models)
    assert clip.encoder is aesthetic.encoder
    assert len({id(s.encoder) for s in scorers}) == 3
    images = {f'i{n}': noise((40, 40), n) for n in range(6)}
    items = [(name, image, prompt) for prompt in PROMPTS[:5] for name, image in images.items()]
    score_items(scorers, items, batch_size=4)
    assert [t.image_passes for t in (hps.encoder, clip.encoder, pickscore.encoder)] == [6, 6, 6]
    assert [t.text_passes for t in (hps.encoder, clip.encoder, pickscore.encoder)] == [5, 5, 5]
    alone = clip.score([i for _, i, _ in items], [p for *_, p in items])
    close(score_items([clip], items)['clip'], alone, 1e-6)


def test_views_are_made_once_in_other_threads_and_change_no_score(models, monkeypatch):
    "Each way of looking once for each distinct image, before the networks ask for it."
    made, main = [], threading.get_ident()
    view = ImageBatch.view

    def counted(batch, name, i, make):
        def really():
            made.append((name, batch.ids[i].split('/')[-1], threading.get_ident() == main))
            return make()

        return view(batch, name, i, really)

    monkeypatch.setattr(ImageBatch, 'view', counted)
    scorers = four(models)
    items = [(f'i{n % 6}', noise((40, 30), n % 6), PROMPTS[n % 5]) for n in range(9)]
    found = score_items(scorers, items, batch_size=4)
    views = {s.encoder.view.name for s in scorers}
    assert len(views) == 2
    assert sorted(made) == sorted((v, f'i{n}', False) for v in views for n in range(6))
    for s in scorers:
        alone = [s.score([image], [prompt])[0] for _, image, prompt in items]
        close(found[s.name], torch.stack(alone), 1e-6)


def test_ids_hold_for_one_call_only(models):
    clip = load_scorer(f'clip={models / "clip"}', device='cpu')
    a, b = (score_items([clip], [('0', noise(seed=n), 'a fox')])['clip'] for n in (1, 2))
    assert abs(a - b) > 1e-4
    close(b, clip.score([noise(seed=2)], ['a fox']), 1e-6)


# --- prompts and spread


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


def test_a_file_its_picture_and_its_pixels_have_one_score(models):
    "Transparent, 16 bits, lying on its side, in grey, with a palette: scores were 0.44 or 0.75."
    scorer = load_scorer(f'clip={models / "clip"}', device='cpu')
    disc = noise((40, 40), 1).convert('RGBA')
    disc.putalpha(Image.linear_gradient('L').resize((40, 40)))
    ramp = Image.fromarray(np.linspace(0, 65535, 1600).reshape(40, 40).astype('uint16'))
    turned = Image.Exif()
    turned[0x0112] = 6
    for image, options in (
        (disc, {}),
        (ramp, {}),
        (noise((48, 40), 2), {'exif': turned}),
        (noise((40, 40), 3).convert('L'), {}),
        (noise((40, 40), 4).quantize(8), {}),
    ):
        file = io.BytesIO()
        image.save(file, 'PNG', **options)
        decoded = decode(file.getvalue())
        tensor = torch.from_numpy(np.array(decoded)).permute(2, 0, 1)[None]
        opened = Image.open(file)
        scores = [scorer.score(form, ['x']) for form in ([decoded], [opened], tensor)]
        close(scores[1], scores[0], 1e-6)
        close(scores[2], scores[0], 1e-6)
    with pytest.raises(InputError, match='image 0: floating-point pixels'):
        scorer.score([Image.new('F', (8, 8))], ['x'])


@pytest.mark.parametrize('kind', ['hps', 'clip'])
def test_texts_longer_than_an_encoder_reads_are_named(models, kind):
    "What comes after has no influence, by open_clip and by transformers."
    own = FunctionScorer('own', 'k', lambda images, prompts: [0] * len(prompts))
    scorer = load_scorer(f'{kind}={models / kind}', device='cpu')
    image = noise((32, 32), 0)
    longest = scorer.encoder.longest_text
    word = PROMPTS[1].split()[0]
    one = scorer.encoder.count_tokens([word])[0] - 2  # without the beginning and the end
    fits = ' '.join([word] * ((longest - 2) // one))
    beyond = [f'{fits} {word} {word} {PROMPTS[2]}', f'{fits} {word} {word}']
    assert scorer.cut_texts([word, fits, *beyond]) == beyond
    scores = scorer.score([image] * 2, beyond)
    assert scores[0] == scores[1]  # what is cut makes no difference
    assert cut_texts([scorer, own], [word, *beyond, beyond[0]]) == {kind: [3, beyond[0]]}
    with pytest.warns(UserWarning, match=f'{kind} does not read 3 of the prompts to the end'):
        tell_cut_texts(cut_texts([scorer], [*beyond, beyond[0]]), 'prompts')


# --- weights that are refused


def test_a_head_with_relus_is_not_chained_without_them(models, tmp_path, cases):
    "ava+logos-l14-reluMSE of improved-aesthetic-predictor, as its authors write it down."
    widths = (32, 1024, 128, 64, 16, 1)
    torch.manual_seed(5)
    parts = []
    for a, b in zip(widths, widths[1:]):
        parts += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.2)]
    mlp = nn.Sequential(*parts[:-4], parts[-3]).eval()  # no dropout before the last, no ReLU after
    state = {f'layers.{k}': v for k, v in mlp.state_dict().items()}
    assert {int(k.split('.')[1]) for k in state} == {0, 3, 6, 9, 11}
    torch.save(state, tmp_path / 'ava+logos-l14-reluMSE.pth')
    spec = f'aesthetic={tmp_path / "ava+logos-l14-reluMSE.pth"}+{models / "clip"}'
    embedding = load_encoder(models / 'clip', device='cpu').images(ImageBatch(cases[0]))
    with torch.no_grad():
        close(load_scorer(spec, device='cpu').score(*cases), mlp(embedding)[:, 0], 5e-6)


def test_a_head_of_another_width_is_refused_when_it_is_loaded(models, tmp_path):
    "sa_0_4_vit_b_32_linear takes 512 numbers: named on another encoder it was a traceback, later."
    torch.save({'weight': torch.randn(1, 48), 'bias': torch.randn(1)}, tmp_path / 'b_32.pth')
    with pytest.raises(InputError, match='takes embeddings of 48 numbers, those of .*clip have 32'):
        load_scorer(f'aesthetic={tmp_path / "b_32.pth"}+{models / "clip"}', device='cpu')


def test_heads_that_are_none_are_refused():
    one = {'layers.0.weight': torch.ones(1, 4), 'layers.0.bias': torch.ones(1)}
    for wrong, says in (
        ({**one, 'visual.proj': torch.ones(2)}, 'visual.proj'),
        ({'layers.0.weight': torch.ones(1, 4)}, 'a weight and a bias'),
        ({**one, 'layers.2.weight': torch.ones(1, 5), 'layers.2.bias': torch.ones(1)}, 'chain'),
        ({**one, 'layers.2.weight': torch.ones(1, 1), 'layers.2.bias': torch.ones(1)}, r'\[0, 2\]'),
    ):
        with pytest.raises(InputError, match=says):
            aesthetic_head(wrong)


def test_importing_loads_no_model_library():
    code = (
        'import sys, balanceddpo.scoring.tables;'
        " print({'transformers', 'open_clip', 'diffusers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'set()'
