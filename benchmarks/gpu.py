"""The rows for a GPU, with goals for one H200: SD1.5 and SDXL geometry with random weights, made on the device. `python -m benchmarks.gpu [NAME ...]` runs these parts, or all; without a GPU it
prints counts.

Every rate is held against the useful work of a step with cached inputs (6.42 TFLOP a pair for SD1.5, whatever an arm wastes) and against an 8192^3 bf16 product
measured in the same run. Inputs are normal numbers: zeros run faster than anything real does. Each part has a file of rows of its own."""
from __future__ import annotations
import tempfile, time
from functools import partial
from pathlib import Path
from benchmarks.step import compare, gate, injected, make_world, our_step, start_ours, train_config, R1, R2
from benchmarks.timing import BUDGET, ROUNDS, START, WARMUPS, Log, asked, device_wait
from benchmarks.world import SD15, SDXL, RandomPairs, flops, make_family, per_pair, synthetic_pairs

ROW = 'GPU'                                             # in the place of a row's number
PEAK = 790e12                                           # FLOP/s of an 8192^3 bf16 product assumed for one H200 until it is measured in the same run; the limits below are for it
MICROS = (8, 16, 32, 4, 1)                              # pairs at once, of `STEP_PAIRS` an optimizer step; one at a time is by far the slowest, so it is last
STEP_PAIRS = 32
EAGER, COMPILED, XL_GOAL, SAMPLE_GOAL = '>= 43', '>= 55', '>= 5', '>= 4'
# Four scorers, by the network of CLIP, and the pairs/s that we aim at. The default `clip` is a ViT-H/14 and Aesthetic sits on OpenAI's ViT-L/14, so nothing is shared;
# `clip@l14` is that ViT-L/14. Both goals are the same share, 49 %, of what the counted FLOPs allow at `PEAK`.
LABELLING = {'H': ('the default scorers, four networks', 157), 'L': ('clip@l14, three networks', 220)}
SETTINGS = {'eager': {}, 'channels_last': dict(channels_last=True), 'checkpointing': dict(gradient_checkpointing=True),
            'compiled, channels_last': dict(compiled='whole', channels_last=True), 'compiled': dict(compiled='whole'), 'blocks compiled': dict(compiled='blocks')}


# ---- what can be counted without a GPU

def counted() -> list:
    "(what, TFLOP an item, limit in items/s at `PEAK`, goal, the goal's share of the peak) for every rate."
    small, large = flops(SD15), flops(SDXL)
    image = 2 * 50 * small['unet'] + small['decode'] + 2 * small['text']                                     # 50 steps with guidance
    work = {'SD1.5 step, cached inputs, pairs/s eager': (per_pair(small)['cached'], 43), 'SD1.5 step, cached inputs, pairs/s compiled': (per_pair(small)['cached'], 55),
            'SD1.5 step, encoders in the loop, pairs/s': (per_pair(small)['in_loop'], None), 'SDXL 1024 step, cached inputs, pairs/s': (per_pair(large)['cached'], 5),
            **{f'labelling by {which}, pairs/s': (scorer_flops(clip), goal) for clip, (which, goal) in LABELLING.items()},
            'SD1.5 sampling, 50 steps with guidance, images/s': (image, 4)}
    return [(what, f / 1e12, PEAK / f, goal, goal and goal * f / PEAK) for what, (f, goal) in work.items()]


def clip_flops(kind) -> tuple:
    "FLOPs of an image and of a caption through a CLIP."
    import torch
    from benchmarks.world import meta_flops
    return (meta_flops(partial(make_clip, kind), lambda m: features(m.get_image_features(pixel_values=torch.empty(1, 3, 224, 224)))),
            meta_flops(partial(make_clip, kind), lambda m: features(m.get_text_features(input_ids=torch.zeros(1, 77, dtype=torch.long)))))


def scorer_flops(clip='H') -> float:
    "FLOPs a pair: HPS and PickScore on a ViT-H/14 each, Aesthetic on a ViT-L/14, CLIP on a ViT-H/14 of its own or (`clip@l14`) on Aesthetic's; every caption once."
    cost = {k: clip_flops(k) for k in 'HL'}
    seeing, reading = 'HHL' if clip == 'L' else 'HHLH', 'HH' + clip                                          # Aesthetic reads no captions
    return float(sum(2 * cost[k][0] for k in seeing) + sum(cost[k][1] for k in reading))


def tell() -> None:
    "Print and keep the counted rows, and say what was not run."
    log = Log('counted')
    print(f'No GPU here: not yet run. Counted, with the limit at {PEAK / 1e12:.0f} TFLOP/s (an 8192^3 bf16 product on one H200):')
    for what, tera, limit, goal, share in counted():
        log.add(row=ROW, counted=what, tflop=tera, limit=limit, goal=goal, share=share)
        print(f'  {what:<60} {tera:8.2f} TFLOP   limit {limit:7.1f}/s' + (f'   goal {goal}/s, {share:.0%} of the peak' if goal else ''))
    print(f'With a GPU: python -m benchmarks.gpu, or some parts of it: {" ".join(PARTS)}')


# ---- one step

def gib() -> float:
    import torch
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.


def timed(work, items, rounds=ROUNDS) -> tuple:
    "(items a second of each round, seconds of the first call, peak GiB). The first call compiles; it and two more are warm-up."
    import torch
    if torch.cuda.is_available(): torch.cuda.reset_peak_memory_stats()
    took = []
    for _ in range(WARMUPS + rounds):
        device_wait(); began = time.perf_counter(); work(); device_wait()
        took.append(time.perf_counter() - began)
    return [items / s for s in took[WARMUPS:]], took[0], gib()


def keep(log, what, goal, result, flop=None, matmul=None, **facts) -> float:
    "A row a round: the rate, its share of the measured product, the peak memory. Returns the median rate."
    from statistics import median
    rates, first, peak = result
    for n, rate in enumerate(rates):
        share = rate * flop / matmul if flop and matmul else None
        log.add(row=ROW, what=what, goal=goal, round=n, value=rate, share=share, peak_gib=peak, first_call=first, **facts)
    print(f'{what}: {median(rates):.2f}/s' + (f', {median(rates) * flop / matmul:.0%} of the product' if flop and matmul else '') + f', {peak:.1f} GiB', flush=True)
    return median(rates)


def matmul_rate(log, n=8192, device='cuda') -> float:
    "FLOP/s of an n^3 bf16 product of normal numbers: the roof that all shares are taken of."
    import torch
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in 'ab')
    def ten():
        for _ in range(10): a @ b
    return keep(log, f'{n}^3 bf16 products', '', timed(ten, 10)) * 2 * n**3


def config_for(geometry, micro, device, precision='bf16', batch=STEP_PAIRS, **changes):
    return train_config(geometry, 'full', batch, precision, device, micro, log_every=10, **changes)       # the distance to the reference is read with the metrics


def one_setting(log, world, what, goal, micro, folder, matmul, flop, device='cuda', precision='bf16', batch=STEP_PAIRS, optimizer='adamw', **setting) -> float:
    "Start a run with these settings and time its optimizer steps; a setting that does not fit into memory, or is reached after `BENCH_SECONDS`, is kept as a note."
    import gc, torch
    if time.perf_counter() - START > BUDGET: log.add(row=ROW, note=f'{what}: left out, the time was up'); return 0.
    run = start_ours(world, config_for(world.geometry, micro, device, precision, batch, optimizer=optimizer, **setting), Path(folder)/'run')
    try: return keep(log, what, goal, timed(lambda: our_step(run), batch), flop, matmul, micro=micro)
    except torch.OutOfMemoryError: log.add(row=ROW, note=f'{what}: out of memory'); return 0.
    finally:
        del run; gc.collect(); torch._dynamo.reset()
        if torch.cuda.is_available(): torch.cuda.empty_cache()


def sweep(log, device='cuda', geometry=SD15, micros=MICROS, batch=STEP_PAIRS, precision='bf16', settings=SETTINGS) -> None:
    "Micro-batch in eager mode; then every setting at the best of them."
    matmul, flop = matmul_rate(log, 8192 if device == 'cuda' else 64, device), per_pair(flops(geometry))['cached']
    with tempfile.TemporaryDirectory() as folder:
        world, rates = make_world(geometry, folder, device), {}
        measure = partial(one_setting, log, world, folder=folder, matmul=matmul, flop=flop, device=device, precision=precision, batch=batch)
        for m in micros: rates[m] = measure(f'{geometry.name} step, eager, micro-batch {m}', EAGER if m == max(micros) else '', m)
        best = max(rates, key=rates.get)
        for name, setting in settings.items():
            if setting: measure(f'{geometry.name} step, {name}, micro-batch {best}', COMPILED if setting.get('compiled') else '', best, **setting)


def pairs_at_once() -> int:
    "Pairs that a step of SD1.5 works on at once beside a rival's: 32 on a card of 100 GiB or more, for which the goals are, and 8 on a smaller one."
    import torch
    return 32 if not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory > 100 * 2**30 else 8


def rivals(log, mode, device='cuda', geometry=SD15, batch=None, precision='bf16', eager=False, **options) -> None:
    "Against R1 (full) or R2 (lora): the gate in fp32 with two pairs, then in bf16, then the clock; ours compiled with channels_last, or `eager` as the rival is."
    import torch
    batch = batch or pairs_at_once()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(geometry, folder, device)
        fast = {} if eager else dict(compiled='whole' if device == 'cuda' else 'no', channels_last=True)
        run = start_ours(world, train_config(geometry, mode, 2, 'fp32', device, **fast), Path(folder)/'fp32')
        name, rival = ('R1', R1) if mode == 'full' else ('R2', R2)
        gate(log, f'{name}, fp32 on the device', run, rival(world, run.config, 2, injected, run=run), ROW); del run
        compare(log, world, mode, folder, batch, precision, device, goals=(None, None) if eager else (1.6, 3.), row=ROW, changes=fast, how='' if eager else ', compiled, channels_last', **options)


def sdxl(log, device='cuda', geometry=SDXL, micros=(1, 2, 4), batch=8, precision='bf16') -> None:
    "SDXL at 1024 pixels, all weights: with and without checkpointing, eager and compiled. Adafactor, as the preset."
    import pandas as pd
    from benchmarks.step import World
    matmul, flop = matmul_rate(log, 8192 if device == 'cuda' else 64, device), per_pair(flops(geometry))['cached']
    with tempfile.TemporaryDirectory() as folder:
        family = make_family(geometry, Path(folder)/'model', device)
        encoded = RandomPairs(batch, geometry.pixels, {'prompt_embeds': (geometry.tokens, geometry.unet['cross_attention_dim']), 'pooled': (1280,)})
        world = World(geometry, family, encoded, pd.DataFrame({'pair_id': encoded.pair_ids, 'w0': 1., 'w1': 0.}), None, None, None)
        for m in micros:
            for name, setting in {'checkpointing': dict(gradient_checkpointing=True), 'eager': {}, 'compiled, channels_last': dict(compiled='whole', channels_last=True)}.items():
                one_setting(log, world, f'{geometry.name} full fine-tune, {name}, micro-batch {m}', XL_GOAL, m, folder, matmul, flop, device, precision, batch, 'adafactor', **setting)


def refresh(log, device='cuda', geometry=SD15) -> None:
    "Seconds of a refresh of the reference, full copy."
    with tempfile.TemporaryDirectory() as folder:
        world = make_world(geometry, folder, device, n=2); run = start_ours(world, config_for(geometry, 1, device, batch=2), Path(folder)/'run')
        for n in range(WARMUPS + ROUNDS):
            device_wait(); began = time.perf_counter(); run.reference.refresh(); device_wait()
            if n >= WARMUPS: log.add(row=ROW, what=f'{geometry.name}: milliseconds of a refresh', goal='<= 5', round=n, value=1e3 * (time.perf_counter() - began))


# ---- scorers and sampling

CLIP_SIZES = {'L': dict(vision=(1024, 4096, 24, 16), text=(768, 3072, 12, 12), patch=14, projection=768),
              'H': dict(vision=(1280, 5120, 32, 16), text=(1024, 4096, 24, 16), patch=14, projection=1024),
              'tiny': dict(vision=(32, 64, 2, 2), text=(32, 64, 2, 2), patch=56, projection=32)}


def make_clip(kind):
    "A `CLIPModel` of ViT-L/14, ViT-H/14 or tiny geometry, 224 pixels, random weights."
    from transformers import CLIPConfig, CLIPModel
    size = CLIP_SIZES[kind]
    def side(s): return dict(zip(('hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'), size[s]), projection_dim=size['projection'])
    return CLIPModel(CLIPConfig(projection_dim=size['projection'], text_config=side('text'),
                                vision_config=side('vision') | dict(patch_size=size['patch'], image_size=224)))


def features(out):
    "transformers 5 wraps an embedding, transformers 4 does not."
    return getattr(out, 'pooler_output', out)


def make_tower(kind, view, device, dtype):
    "A `Tower` with random weights, made on the device; `view` is 'pad' (HPS) or 'crop'."
    import torch
    from balanceddpo.towers import Tower, crop_to_square, normalised, pad_to_square, word_tokenizer
    from benchmarks.world import WORDS
    with torch.device(device): model = make_clip(kind).to(dtype).eval().requires_grad_(False)
    tokenizer = word_tokenizer(WORDS, 77)
    def encode_texts(prompts):
        ids = tokenizer(list(prompts), padding='max_length', truncation=True, max_length=77, return_tensors='pt').input_ids
        return features(model.get_text_features(input_ids=ids.to(device)))
    make = (lambda batch, i: pad_to_square(batch.pixels(i), 224)) if view == 'pad' else (lambda batch, i: crop_to_square(batch[i], 224))
    def look(batch, i): return batch.view((view, 224), i, lambda: make(batch, i))                       # towers that look alike share it, as the package's own
    return Tower(f'{kind}-{view}', lambda x: features(model.get_image_features(pixel_values=x)), encode_texts,
                 normalised(look, (.48, .46, .41), (.27, .26, .28)), 100., device, dtype)


def real_scorers(device, dtype, clip='H', large='L', huge='H') -> list:
    "HPS and PickScore on a ViT-H/14 each, Aesthetic on a ViT-L/14; CLIP on another ViT-H/14, as by default, or ('L', as `clip@l14`) on Aesthetic's network."
    import torch
    from balanceddpo.scorers import AestheticScorer, PromptScorer
    tower, width, batch = make_tower(large, 'crop', device, dtype), CLIP_SIZES[large]['projection'], 256
    seen = tower if clip == 'L' else make_tower(huge, 'crop', device, dtype)
    head = [(torch.randn(1, width), torch.zeros(1))]
    return [PromptScorer('hps', 'hps', make_tower(huge, 'pad', device, dtype), batch_size=batch), PromptScorer('clip', 'clip', seen, batch_size=batch),
            PromptScorer('pickscore', 'pickscore', make_tower(huge, 'crop', device, dtype), 100., batch), AestheticScorer('aesthetic', 'aesthetic', tower, head, batch)]


def labelling(log, device='cuda', n=512, pixels=512, rounds=5, make=real_scorers) -> None:
    "From a Parquet file of JPEGs to scores, captions coming again fourteen times as in Pick-a-Pic; and the same with the towers alone, to tell reading from scoring."
    import torch, warnings
    from itertools import count
    from balanceddpo.pairs import read_pairs, write_pairs
    from balanceddpo.score_tables import score_pairs
    warnings.simplefilter('ignore')                                            # random networks hardly tell images apart, and say so
    runs = count()
    with tempfile.TemporaryDirectory() as folder:
        source = write_pairs(synthetic_pairs(n, pixels, max(1, n // 14)), Path(folder)/'pairs.parquet')
        keep(log, 'reading and checking alone, pairs', '', timed(lambda: sum(1 for _ in read_pairs(source)), n, rounds))
        for clip, (which, goal) in LABELLING.items():
            scorers = make(device, torch.bfloat16 if device == 'cuda' else torch.float32, clip)
            score = lambda: score_pairs(read_pairs(source), scorers, Path(folder)/f'scores-{next(runs)}', progress=False, batch_size=256)
            keep(log, f'labelling from JPEG of {pixels} pixels by {which}, pairs', f'>= {goal}', timed(score, n, rounds))
            keep(log, f'towers alone, {which}, pairs', '', timed(lambda: see_all(scorers, n, device), n, rounds))


def see_all(scorers, n, device) -> None:
    "Random images for `n` pairs through every distinct network."
    import torch
    with torch.no_grad():
        for t in {id(s.tower): s.tower for s in scorers}.values():
            for _ in range(2 * n // 256 or 1): t.encode_images(torch.randn(256 if n >= 128 else 2, 3, 224, 224, device=device, dtype=t.dtype))


def sampling(log, device='cuda', geometry=SD15, batches=(1, 4, 16, 32), steps=50, precision='bf16', rounds=3) -> None:
    "Images by the package's `generate`, from prompts to PIL: guidance, autoencoder included; eager, and at the best batch with the denoiser compiled."
    import torch
    from balanceddpo.backends import pick_dtype
    from balanceddpo.families import plain_pipeline
    from balanceddpo.pairs import PromptSet
    from balanceddpo.sampling import SampleConfig, generate, make_scheduler
    with tempfile.TemporaryDirectory() as folder:
        family = make_family(geometry, Path(folder), device)
        for part in ('unet', 'vae', 'text_encoder'): family.parts[part].to(pick_dtype(precision))
        pipeline, rates = plain_pipeline(family, make_scheduler('ddim', family.scheduler_config)), {}
        def draw(n):
            config, names = SampleConfig(model='benchmark', images_per_prompt=1, steps=steps, batch_size=n, dtype=precision), tuple(f'a red apple {i}' for i in range(n))
            return lambda: list(generate(family, pipeline, PromptSet('made', names), config, {(i, 0) for i in range(n)}))
        for n in batches:
            what, goal = f'{geometry.name} sampling, {steps} steps with guidance, {n} images at once', SAMPLE_GOAL if n == max(batches) else ''
            rates[n] = keep(log, what, goal, timed(draw(n), n, rounds))
        best = max(rates, key=rates.get)
        family.model.to(memory_format=torch.channels_last)
        if device == 'cuda': family.model.compile()
        keep(log, f'{geometry.name} sampling, compiled, channels_last, {best} images at once', SAMPLE_GOAL, timed(draw(best), best, rounds))


PARTS = {'sweep': sweep, 'rivals_full_eager': partial(rivals, mode='full', eager=True), 'rivals_lora_eager': partial(rivals, mode='lora', eager=True),
         'rivals_full': partial(rivals, mode='full'), 'rivals_lora': partial(rivals, mode='lora'), 'sdxl': sdxl,
         'labelling': labelling, 'sampling': sampling, 'refresh': refresh}


def main() -> None:
    parts = asked(__doc__, PARTS).names or PARTS
    import torch
    from balanceddpo.backends import ensure_torchvision
    ensure_torchvision()
    if not torch.cuda.is_available(): return tell()
    for part in parts: PARTS[part](Log(f'gpu_{part}'))


if __name__ == '__main__': main()
