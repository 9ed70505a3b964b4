"""The words of short commands, and the tiny world in which they run."""

from pathlib import Path

from balanceddpo.data.pairs import make_pair, write_pairs
from short_runs import picture
from tiny_models import tiny_folder
from tiny_scorers import write_tiny_scorers

KINDS = ('hps', 'clip', 'pickscore', 'aesthetic')
CAPTIONS = ('a red cat', 'a dog', 'red dogs')
TRAIN = (
    '--resolution 32 --max-steps 2 --batch-size 4 --micro-batch-size 2 --refresh-every 1'
    ' --checkpoint-every 2 --device cpu --tracker none --learning-rate 1e-3'.split()
)
DRAW = '--images-per-prompt 2 --steps 2 --resolution 32 --batch-size 4 --device cpu'.split()


def make_tiny_world(root):
    """A folder with a tiny pipeline (model), scorers, pairs.parquet and prompts.txt; nothing of the
    icon world."""
    write_tiny_scorers(root)
    tiny_folder(root / 'model')
    write_pairs(
        [
            make_pair(
                CAPTIONS[i % 3], (picture(2 * i), picture(2 * i + 1)), float(i % 2), ('a', 'b')
            )
            for i in range(8)
        ],
        root / 'pairs.parquet',
    )
    (root / 'prompts.txt').write_text('a red cat\na dog\n')
    return root


def scorer_texts(world, kinds=KINDS):
    return [f'{k}={world / k}' for k in kinds]


def label_words(world, *more):
    return ['label', '--pairs', f'{world}/pairs.parquet', '--device', 'cpu', *more]


def encode_words(world, *more):
    words = f'encode --pairs {world}/pairs.parquet --model {world}/model --resolution 32'
    return [*words.split(), *more]


def train_words(world, place, *more):
    "Train on the labels and the encoded pairs in a folder."
    words = f'train --model {world}/model --labels {place}/labels.parquet --encoded {place}/encoded'
    return [*words.split(), *TRAIN, *more]


def file_times(folder):
    "When each file in a folder was written, locks left out."
    return {
        p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
        for p in Path(folder).rglob('*')
        if p.is_file() and p.name != '.lock'
    }
