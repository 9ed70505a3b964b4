"""The two public scripts of the race: where they are, the options that give them our settings, and
what stands in for what they miss on a CPU.

A script is not changed. Three places do not run on a CPU as they are, and a file
`sitecustomize.py`, which Python reads before the script, stands in for what they miss:

    torchvision     where its compiled half was built for another torch, two of its operators are
                    declared, without which it cannot be imported
    xformers        DiffusionDPO stops where it is not installed (train.py, line 614), and it needs
                    a GPU: it is said to be there, and switching it on does nothing, so that
                    attention is torch's own, as it is for ours
    wandb           the LoRA script imports it whatever its tracker is: an empty module, if missing

Its default of half precision, which CPUs are slow at, DiffusionDPO turns off by its own option."""

from __future__ import annotations

import hashlib
import inspect
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Settings of both sides.
BATCH = 8  # pairs an optimizer step
RATE = {'full': 1e-5, 'lora': 2e-4}  # as in row 1
BETA = 5000  # the default of both scripts, in the form that multiplies it by a half
RANK = 8  # of the LoRA


@dataclass(frozen=True)
class Course:
    "What both sides start from."

    model: Path  # pipeline folder in diffusers' format
    pairs: Path  # folder with a Parquet file that has Pick-a-Pic v2's columns
    count: int  # pairs in it
    pixels: int  # a side


@dataclass(frozen=True)
class Peer:
    "A public training script, and the options that give it our settings."

    name: str
    mode: str  # what it trains, as our `--mode` calls it
    source: str  # what is cloned
    commit: str  # that this race was written for
    digest: str  # SHA-256 of the script at that commit, its beginning
    places: tuple[str, ...]  # where the script may be in a folder
    options: tuple[object, ...]  # beside those that both scripts have


PEERS = (
    Peer(
        name='DiffusionDPO',
        mode='full',
        source='github.com/SalesforceAIResearch/DiffusionDPO',
        commit='5233e75919f9',
        digest='d8c57878c03debc1',
        places=('train.py',),
        options=('--train_batch_size', 1, '--gradient_accumulation_steps', BATCH)
        + ('--beta_dpo', BETA, '--proportion_empty_prompts', 0),
    ),
    Peer(
        name='diffusers LoRA',
        mode='lora',
        source='github.com/huggingface/diffusers',
        commit='58eb52c0803e',
        digest='3d84934230dab97a',
        places=(
            'train_diffusion_dpo.py',
            'examples/research_projects/diffusion_dpo/train_diffusion_dpo.py',
        ),
        options=('--train_batch_size', BATCH, '--gradient_accumulation_steps', 1)
        + ('--beta_dpo', BETA // 2, '--rank', RANK, '--dataset_split_name', 'train'),
    ),
)


def find_peer(folder: str | Path) -> tuple[Peer, Path]:
    "The peer whose script is in `folder`, and the script. Raises SystemExit if there is none."
    for peer in PEERS:
        for place in peer.places:
            script = Path(folder).resolve() / place
            if script.is_file() and has_options(script, peer.options):
                return peer, script
    known = ', '.join(f'{p.places[0]} of {p.name}' for p in PEERS)
    raise SystemExit(f"{folder}: no peer's script is in this folder: it should hold {known}")


def has_options(script: Path, options: tuple) -> bool:
    "Whether the text of a script names all of these options."
    text = script.read_text(encoding='utf-8', errors='replace')
    names = [word for word in options if str(word).startswith('--')]
    return all(name in text for name in names)


def is_known_file(peer: Peer, script: Path) -> bool:
    "Whether a script is the very file that this race was written for."
    return hashlib.sha256(script.read_bytes()).hexdigest().startswith(peer.digest)


def commit_of(script: Path) -> str:
    "The git commit that a script belongs to, '+' if the script was changed; 'unknown' without."

    def git(*words) -> str:
        command = ['git', '-C', str(script.parent), *words]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    if not shutil.which('git') or not git('ls-files', '--', script.name):
        return 'unknown'
    changed = git('status', '--porcelain', '--', script.name)
    return git('rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')


def peer_command(peer: Peer, script: Path, course: Course, steps: int, out: Path) -> list:
    "The peer's command line: its model goes to `out/model`."
    settings = {
        'pretrained_model_name_or_path': course.model,
        'dataset_name': course.pairs,
        'cache_dir': out / 'cache',
        'output_dir': out / 'model',
        'resolution': course.pixels,
        'max_train_steps': steps,
        'learning_rate': RATE[peer.mode],
        'lr_warmup_steps': 0,
        'mixed_precision': 'no',
        'seed': 0,
    }
    return [sys.executable, script, '--no_hflip', *as_words(settings), *peer.options]


def as_words(settings: dict[str, object]) -> list:
    "Settings as the words of a command line: '--name', value, and so on."
    words = []
    for name, value in settings.items():
        words += [f'--{name}', value]
    return words


# --- what stands in for what a script misses on a CPU; the source of these is its sitecustomize.py


def declare_torchvision_operators():
    "Declare the operators that torchvision asks for, where its compiled half does not load."
    import sys

    import torch

    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library('torchvision', 'FRAGMENT')
        torch.declared_for_torchvision = library  # it lives as long as torch does
        for name in ('nms', 'qnms'):
            library.define(f'{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        for name in [m for m in sys.modules if m.split('.')[0] == 'torchvision']:
            del sys.modules[name]
        import torchvision  # noqa: F401


def pretend_xformers():
    "Tell the script that xformers is there, and nobody else; to switch it on does nothing."
    import sys
    from importlib.machinery import ModuleSpec
    from importlib.util import module_from_spec

    import diffusers.models.attention  # noqa: F401, it asks for itself before
    from diffusers import ModelMixin
    from diffusers.utils import import_utils

    sys.modules['xformers'] = module_from_spec(ModuleSpec('xformers', None))
    sys.modules['xformers'].__version__ = '1'
    import_utils.is_xformers_available = lambda: True
    ModelMixin.enable_xformers_memory_efficient_attention = lambda *_, **__: None


def pretend_wandb():
    "An empty wandb, if there is none."
    import sys
    from importlib.machinery import ModuleSpec
    from importlib.util import find_spec, module_from_spec

    if find_spec('wandb') is None:
        sys.modules['wandb'] = module_from_spec(ModuleSpec('wandb', None))


STAND_INS = (declare_torchvision_operators, pretend_xformers, pretend_wandb)
# Read once, for a race is long and this file may be edited while it goes on.
SITECUSTOMIZE = '\n\n'.join(
    [inspect.getsource(f) for f in STAND_INS] + [f'{f.__name__}()\n' for f in STAND_INS]
)


def write_stand_ins(folder: Path) -> Path:
    "Write them as `sitecustomize.py` into a new folder, which is returned."
    folder.mkdir(parents=True)
    (folder / 'sitecustomize.py').write_text(SITECUSTOMIZE, encoding='utf-8')
    return folder
