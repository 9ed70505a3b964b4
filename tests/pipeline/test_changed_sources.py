"""A source whose files were written to: what was kept of it is compared, not trusted."""

import json
import os

import pytest
import torch
from PIL import Image

from balanceddpo.data.sources import PairSource
from balanceddpo.models.config import EncodeConfig
from balanceddpo.pipeline import encode, label
from balanceddpo.scoring.scorers import FunctionScorer
from balanceddpo.voting.config import LabelConfig
from tiny_models import tiny_folder

N = 8


@pytest.fixture
def folder(tmp_path):
    "Pairs of a dark and a light image, as files of one size."
    folder = tmp_path / 'pairs'
    folder.mkdir()
    rows = []
    for n in range(N):
        for slot, grey in ((0, 50 + n), (1, 200 - n)):
            Image.new('L', (8, 8), grey).save(folder / f'{n}_{slot}.bmp')
        images = {f'jpg_{slot}_file_name': f'{n}_{slot}.bmp' for slot in (0, 1)}
        rows.append({'caption': f'{n}', **images})
    (folder / 'metadata.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    return folder


def exchange(folder):
    "The two images of each pair in each other's place; names, sizes and times of change stay."
    for n in range(N):
        first, second = (folder / f'{n}_{slot}.bmp' for slot in (0, 1))
        times = [(p.stat().st_atime_ns, p.stat().st_mtime_ns) for p in (first, second)]
        contents = second.read_bytes(), first.read_bytes()
        for path, content, time in zip((first, second), contents, times):
            path.write_bytes(content)
            os.utime(path, ns=time)


def test_the_key_stays_and_the_state_does_not(folder):
    source = PairSource(str(folder))
    before = source.named
    assert source.named == before
    exchange(folder)
    assert source.named.key == before.key
    assert source.named.state != before.state


def test_labels_follow_the_pictures(folder):
    scorer = FunctionScorer('light', 'k', lambda images, _: [i.getpixel((0, 0))[0] for i in images])

    def labels():
        config = LabelConfig('single', scorer='light')
        return label(PairSource(str(folder)), [scorer], config).s.tolist()

    assert labels() == [-1] * N
    exchange(folder)
    with pytest.warns(UserWarning, match='have changed since; made again'):
        assert labels() == [1] * N
    assert labels() == [1] * N  # kept, and not warned of again


def test_latents_follow_the_pictures(folder, tmp_path):
    config = EncodeConfig(str(tiny_folder(tmp_path / 'sd15')), 32, storage='fp32')

    def moments():
        return encode(PairSource(str(folder)), config, device='cpu').moments(range(N))

    before = moments()
    exchange(folder)
    with pytest.warns(UserWarning, match='have changed since; made again'):
        after = moments()
    torch.testing.assert_close(after, before.flip(1))
    assert torch.equal(moments(), after)
