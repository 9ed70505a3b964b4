"""A run in two processes, as torchrun starts them, on two machines that may share no disk."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import balanceddpo
from balanceddpo.core.processes import free_port
from short_runs import settings

CHILD = """
import hashlib, importlib, json, sys
sys.path[:0] = {paths!r}
import torch; torch.set_num_threads(1)
from balanceddpo.core.errors import InputError
from balanceddpo.core.sharding import local_part, whole
from balanceddpo.models.encoding import EncodedPairs
from balanceddpo.training import loop
from balanceddpo.training.checkpoints import pack
from balanceddpo.training.config import TrainConfig
from balanceddpo.training.run import LabelledPairs, trained_state
from balanceddpo.voting.labels import read_labels
real = loop.refresh
def moments(run):
    return [v for kept in run.optimizer.state.values() for v in kept.values() if v.ndim]
def refresh(run):
    done = real(run)
    tensors = {{}}
    pack([trained_state(run), run.reference.state_dict()], tensors)
    weights = b''.join(whole(v.detach()).numpy().tobytes() for v in tensors.values())
    print('after step', run.step, hashlib.sha256(weights).hexdigest())
    held = (run.policy.parameters(), run.reference.tensors().values(), moments(run))
    print('holds', [sum(local_part(t).numel() for t in kind) for kind in held])
    return done
loop.refresh = refresh
for job in json.loads(sys.argv[1]):
    print('run', job['out'])
    labels, label_config = read_labels(job['labels'])
    pairs = LabelledPairs(EncodedPairs.open(job['encoded']), labels, label_config)
    try:
        named = [name.split(':') for name in job['callbacks']]
        watching = [getattr(importlib.import_module(m), maker)() for m, maker in named]
        config = TrainConfig(**job['config'])
        loop.train(config, pairs, job['out'], progress=False, callbacks=watching)
    except InputError as e:
        print('refused', e)
        if not job['may_fail']: raise
"""


def job(inputs, out, file=None, may_fail=False, callbacks=(), **changes):
    "A run for a process to train; `callbacks`, each MODULE:MAKER, are told of it."
    return dict(
        config=asdict(settings(inputs, **changes)),
        encoded=str(inputs.folder),
        labels=str(file or inputs.file),
        out=str(out),
        may_fail=may_fail,
        callbacks=list(callbacks),
    )


def start_two(*jobs):
    """Two processes that train one run after the other: (code, out, err) of each. `jobs`: those of
    each process."""
    paths = [str(Path(__file__).parent), str(Path(balanceddpo.__file__).parents[1])]
    meeting = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()), WORLD_SIZE='2')
    running = []
    for rank, mine in enumerate(jobs):
        place = meeting | dict(RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS='1')
        python = [sys.executable, '-X', 'faulthandler', '-W', 'ignore']
        words = [*python, '-c', CHILD.format(paths=paths), json.dumps(mine)]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(subprocess.Popen(words, env=os.environ | place, **pipes))
    ended = []
    for process in running:
        out, err = process.communicate(timeout=300)
        ended.append((process.returncode, out, err))
    return ended


def two_processes(inputs, outs, files=(None, None), **changes):
    "Train in two processes, each with its own folder (and labels file): (code, out, err) of each."
    return start_two(*[[job(inputs, o, f, **changes)] for o, f in zip(outs, files, strict=True)])
