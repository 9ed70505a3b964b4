"""Training on a GPU: steps of SD1.5 and SDXL with random weights, ours alone and beside the public
orders of `benchmarks.step`, and the icon world's own trainings."""

from __future__ import annotations

import multiprocessing
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.gpu_clock import ROW, rows_path, whole_rows
from benchmarks.gpu_rates import (
    ROUNDS,
    Rate,
    device,
    fits,
    forget_peak,
    free,
    goal,
    measure,
    measure_product,
    peak_gib,
    seconds_of,
    sizes,
)
from benchmarks.step import (
    World,
    gate,
    make_world,
    our_random_numbers,
    our_step,
    public_order,
    start_ours,
    train_config,
)
from benchmarks.timing import Arm, Log, time_arms
from benchmarks.world import RandomPairs, flops, make_family, per_pair, pooled_width
from random_networks import Geometry

COMPILED = {'channels_last': True}  # and `compiled`, as the sizes say
USUAL_MICRO = 16  # pairs at once where no rows say what is best
LONGEST_START = 60.0  # seconds for the trainings of `side_by_side` to begin


# --- runs


def start_alone(world: World, config, folder: str | Path):
    "A run that trains the world's denoiser itself, with nothing else in memory, as `train` has it."
    from balanceddpo.training.loop import start
    from balanceddpo.training.run import LabelledPairs
    from balanceddpo.voting.config import LabelConfig

    family, out = replace(world.family, parts={'unet': world.family.model}), Path(folder) / 'run'
    pairs = LabelledPairs(world.encoded, world.labels, LabelConfig())
    return start(config, pairs, out, family=family)


def sd15_run(folder: str | Path, micro: int, **setting):
    "A run of all weights of SD1.5, alone."
    s = sizes()
    world = make_world(s.sd15, folder, device())
    config = train_config(s.sd15, 'full', s.batch, s.precision, device(), micro, **setting)
    return start_alone(world, config, folder)


def random_world(geometry: Geometry, folder: str | Path, pairs: int) -> World:
    "A world of SDXL's geometry whose latents and embeddings are drawn: it has no text encoders."
    import pandas as pd

    family = make_family(geometry, Path(folder) / 'model', device())
    text = (geometry.tokens, geometry.unet['cross_attention_dim'])
    shapes = {'prompt_embeds': text, 'pooled': (pooled_width(geometry),)}
    encoded = RandomPairs(pairs, geometry.pixels, shapes)
    labels = pd.DataFrame({'pair_id': encoded.pair_ids, 'w0': 1.0, 'w1': 0.0})
    return World(geometry, family, encoded, labels, None, None, None)


def measure_step(log: Log, run, what: str, flop: float, wanted: str) -> None:
    "Rows for the optimizer steps of a run with the micro-batch of its config."
    micro, batch = run.config.micro_batch_size, run.config.batch_size
    rate = Rate(f'{what}, micro-batch {micro}', batch, flop, wanted, {'micro': micro})
    measure(log, rate, lambda: our_step(run))


def set_micro_batch(run, micro: int) -> None:
    "Let the next steps work on `micro` pairs at once; what an interrupted step left is dropped."
    run.config = replace(run.config, micro_batch_size=micro)
    for parameter in run.parameters:
        parameter.grad = None


# --- the parts


def step(log: Log) -> None:
    "The product that shares are taken of, SD1.5's step by micro-batch, a refresh of the reference."
    s, what = sizes(), f'{sizes().sd15.name} step, eager'
    measure_product(log)
    flop = per_pair(flops(s.sd15))['cached']
    with TemporaryDirectory() as folder:
        run = None
        with fits(log, f'{what}, start'):
            run = sd15_run(folder, s.micros[0])
        if run is None:
            return  # the row says that not even the start fits
        for micro in s.micros:
            with fits(log, f'{what}, micro-batch {micro}'):
                set_micro_batch(run, micro)
                measure_step(log, run, what, flop, goal('eager'))
        set_micro_batch(run, s.micros[0])
        free()
        measure_refresh(log, run)


def measure_refresh(log: Log, run) -> None:
    "Milliseconds in which the reference, a full copy, moves to the policy."
    run.reference.refresh()
    for number in range(ROUNDS):
        value = 1e3 * seconds_of(run.reference.refresh)
        what = f'{sizes().sd15.name}: milliseconds of a refresh'
        log.add(row=ROW, what=what, goal=goal('refresh'), round=number, value=value)


def best_micro(rows: list[dict]) -> int:
    "Pairs at once with the highest median rate in the rows of `step`; `USUAL_MICRO` without rows."
    rates = {}
    for row in rows:
        if 'micro' in row:
            rates.setdefault(row['micro'], []).append(row['value'])
    return max(rates, key=lambda micro: median(rates[micro])) if rates else USUAL_MICRO


def compiled(log: Log) -> None:
    "SD1.5's step, the whole denoiser compiled, channels last, at the best micro-batch of `step`."
    s = sizes()
    micro = min(best_micro(whole_rows(rows_path('step'))), s.batch)
    what = f'{s.sd15.name} step, compiled, channels_last'
    flop = per_pair(flops(s.sd15))['cached']
    with TemporaryDirectory() as folder, fits(log, f'{what}, micro-batch {micro}'):
        run = sd15_run(folder, micro, compiled=s.compiled, **COMPILED)
        measure_step(log, run, what, flop, goal('compiled'))


def sdxl(log: Log) -> None:
    "Steps of SDXL, 1024 pixels, all weights, Adafactor: with checkpointing and without."
    s, run = sizes(), None
    flop = per_pair(flops(s.sdxl))['cached']
    with TemporaryDirectory() as folder:
        with fits(log, f'{s.sdxl.name} full fine-tune, start'):
            world = random_world(s.sdxl, folder, s.sdxl_batch)
            some = dict(precision=s.precision, device=device(), optimizer='adafactor')
            config = train_config(s.sdxl, 'full', s.sdxl_batch, **some)
            run = start_alone(world, config, folder)
            del world  # and with it the autoencoder
        if run is None:
            return
        for name, micro in s.sdxl_micros:
            what = f'{s.sdxl.name} full fine-tune, {name}'
            with fits(log, f'{what}, micro-batch {micro}'):
                set_micro_batch(run, micro)
                set_checkpointing(run.policy, name == 'checkpointing')
                measure_step(log, run, what, flop, goal('sdxl'))


def offloaded(log: Log) -> None:
    "SD1.5's step with the reference on the device and in main memory: rate, and memory as counted."
    s = sizes()
    flop = per_pair(flops(s.sd15))['cached']
    for place, offload in (('on the device', False), ('in main memory', True)):
        what = f'{s.sd15.name} step, reference {place}'
        with TemporaryDirectory() as folder, fits(log, what):
            run = sd15_run(folder, s.micros[0], offload_reference=offload)
            measure_step(log, run, what, flop, '')
            compare_with_plan(log, run, what)
            del run


def counted_memory(run, **changes) -> int:
    "Bytes that the plan of a run counts for the middle of a step, with some other settings."
    from balanceddpo.training import memory

    config = replace(run.config, **changes)
    return memory.counted_memory(Path(run.family.folder), config).total


def compare_with_plan(log: Log, run, what: str) -> None:
    "A row for the most memory of the last steps over what the plan counts; none without a GPU."
    if peak := peak_gib() * 2**30:
        ratio, words = peak / counted_memory(run), f'{what}: memory over the plan'
        log.add(row=ROW, what=words, goal='<= 1.15', round=0, value=ratio)


def set_checkpointing(model, on: bool) -> None:
    "Recompute activations in the backward pass, or keep them."
    if on:
        model.enable_gradient_checkpointing()
    else:
        model.disable_gradient_checkpointing()


# --- beside a public order


def rivals(log: Log, mode: str, compiled: bool = False) -> None:
    """Ours against R1 (mode 'full') or R2 ('lora'), at equal batch and as it ships.

    Gates come first and stop nothing: rows after one in fp32 that fails are marked, `same_work`
    false. It is left out where ours is compiled, for it would compile twice."""
    s = sizes()
    fast = {'compiled': s.compiled, **COMPILED} if compiled else {}
    with TemporaryDirectory() as folder:
        world = make_world(s.sd15, folder, device())
        if not compiled:
            log.marks['same_work'] = False  # until the gate has shown it
            with fits(log, f'{mode}, gate in fp32'):
                log.marks['same_work'] = gate_in_fp32(log, world, mode, folder)
        config = train_config(s.sd15, mode, s.rival_batch, s.precision, device(), **fast)
        with fits(log, f'{mode} against the public order'):
            time_against(log, world, config, folder)


def gate_in_fp32(log: Log, world: World, mode: str, folder: str) -> bool:
    "Whether ours and the rival do the same work, by two pairs in plain fp32 (no TF32)."
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    kind, name = public_order(mode)
    config = train_config(world.geometry, mode, 2, 'fp32', device())
    run = start_ours(world, config, Path(folder) / 'fp32')
    rival = kind(world, run.config, 2, our_random_numbers, run=run)
    return gate(log, f'{name}, fp32', run, rival, ROW, stop=False)


def time_against(log: Log, world: World, config, folder: str) -> None:
    "Time ours and the rival's arms in turns; an arm that does not fit into memory is left out."
    kind, name = public_order(config.mode)
    run = start_ours(world, config, Path(folder) / 'timed')
    rival = kind(world, config, config.batch_size, our_random_numbers, run=run)
    gate(log, f'{name}, {config.precision}', run, rival, ROW, stop=False)
    rival.inject = None
    free()
    arms = rival_arms(rival, name, config)
    if config.mode == 'lora':
        recomputing = kind(world, config, config.batch_size, run=run, checkpointing=True)
        what = f'{name}, equal batch, checkpointing as its README'
        arms.append((Arm(what, recomputing.update), goal('as it ships')))
    how = ', compiled, channels_last' if config.channels_last else ''
    ours = Arm(f'{world.geometry.name} step, {config.mode}{how}', lambda: our_step(run))
    fitting = [(arm, wanted) for arm, wanted in [(ours, ''), *arms] if runs_once(log, arm)]
    if len(fitting) < 2 or fitting[0][0] is not ours:
        return  # nothing to compare: the rows say what did not fit
    goals = {arm.name: wanted for arm, wanted in fitting}
    rounds = time_arms(log, ROW, goals, [arm for arm, _ in fitting], count=ROUNDS, warmups=0)
    for arm, _ in fitting[1:]:
        ratio = median(took[arm.name] / took[ours.name] for took in rounds)
        print(f'{ours.name} against {arm.name}: {ratio:.3g}', flush=True)


def rival_arms(rival, name: str, config) -> list[tuple[Arm, str]]:
    "The rival at equal batch and one pair at a time, with goals: one network, so that both fit."

    def update(micro):
        rival.micro = micro
        rival.update()

    batch, ships = config.batch_size, goal('as it ships') if config.mode == 'full' else ''
    return [
        (Arm(f'{name}, equal batch of {batch}', partial(update, batch)), goal('equal batch')),
        (Arm(f'{name}, one pair at a time', partial(update, 1)), ships),
    ]


def runs_once(log: Log, arm: Arm) -> bool:
    "Whether an arm fits into memory; the call is its warm-up, whose seconds and GiB are a row."
    forget_peak()
    with fits(log, arm.name):
        first = seconds_of(arm.work)
        log.add(row=ROW, arm=arm.name, first_call=first, peak_gib=peak_gib())
        return True
    return False


# --- the icon world


def icon_run(folder: str | Path, precision: str = 'fp32', pairs: int = 64):
    "A run of BalancedDPO in the icon world on this device, on the first pairs as labelled."
    import pandas as pd

    from balanceddpo.data.sources import read_pairs
    from balanceddpo.models.config import EncodeConfig
    from balanceddpo.models.encoding import encode_pairs
    from balanceddpo.models.families import load_family
    from balanceddpo.recipes.settings import settings_of
    from balanceddpo.training.loop import start
    from balanceddpo.training.run import LabelledPairs
    from balanceddpo.voting.config import LabelConfig

    found = list(read_pairs('icons', limit=pairs, keep_ties=False))
    config = EncodeConfig(model='icons', resolution=64)
    encoders = load_family('icons', device=device(), components=('text', 'vae'))
    encoded = encode_pairs(found, encoders, config, out=Path(folder) / 'encoded', progress=False)
    first = [float(p.label_0 == 1) for p in found]
    labels = pd.DataFrame({'pair_id': encoded.pair_ids, 'w0': first, 'w1': [1 - w for w in first]})
    changes = dict(precision=precision, device=device(), tracker='none', max_steps=10**6)
    batch = sizes().icon_batch
    changes |= dict(batch_size=batch, micro_batch_size=batch)
    settings = settings_of('BalancedDPO', 'icons', **changes)
    pairs = LabelledPairs(encoded, labels, LabelConfig())
    return start(settings, pairs, Path(folder) / precision)


def icons(log: Log) -> None:
    "The icon world's training step, in fp32 as in its recipe and in bf16; trainings side by side."
    for precision in ('fp32', 'bf16'):
        with TemporaryDirectory() as folder, fits(log, f'icon world step, {precision}'):
            measure_icon_step(log, folder, precision)
    side_by_side(log)


def measure_icon_step(log: Log, folder: str, precision: str) -> None:
    "Pairs a second of one training."
    run = icon_run(folder, precision)
    rate = Rate(f'icon world step, {precision}: pairs', run.config.batch_size)
    measure(log, rate, lambda: our_step(run))


def side_by_side(log: Log) -> None:
    "Steps a second of several trainings of the icon world, each a process of its own, on one card."
    s = sizes()
    with TemporaryDirectory() as folder:
        trainers = [start_trainer(Path(folder) / str(n)) for n in range(max(s.trainings))]
        for trainer in trainers:
            next_answer(trainer, LONGEST_START)
        for count in s.trainings:
            what = f'icon world, fp32: steps of {count} trainings side by side'
            some = trainers[:count]
            work = partial(train_side_by_side, some, s.icon_steps)
            rate = Rate(what, count * s.icon_steps, facts={'trainings': count})
            measure(log, rate, work, min(ROUNDS, 3))
        for trainer in trainers:
            trainer.send(0)


def start_trainer(folder: Path):
    "The near end of a pipe to a new process that trains in `folder`."
    context = multiprocessing.get_context('spawn')  # what has used CUDA must not be forked
    near, far = context.Pipe()
    context.Process(target=train_on_demand, args=(far, str(folder)), daemon=True).start()
    far.close()
    return near


def do_steps(run, steps: int) -> None:
    "So many optimizer steps of a run."
    for _ in range(steps):
        our_step(run)


def train_on_demand(pipe, folder: str) -> None:
    "Say when a run is ready; then do as many steps as the pipe asks for, and answer; 0 ends it."
    from balanceddpo.core.devices import ensure_torchvision

    ensure_torchvision()
    with closing(pipe):
        run = icon_run(folder)
        our_step(run)
        pipe.send('ready')
        while steps := pipe.recv():
            seconds_of(partial(do_steps, run, steps))
            pipe.send(steps)


def next_answer(pipe, seconds: float):
    "What a trainer says. Raises TimeoutError if it is silent for `seconds`, EOFError if it died."
    if not pipe.poll(seconds):
        raise TimeoutError(f'a training said nothing for {seconds:.0f} s')
    return pipe.recv()


def train_side_by_side(trainers, steps: int) -> None:
    "Let all trainers do `steps` steps at the same time, and wait for them."
    for trainer in trainers:
        trainer.send(steps)
    for trainer in trainers:
        next_answer(trainer, LONGEST_START)
