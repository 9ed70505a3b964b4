"""A source whose files were written to: what was kept of it is compared, not trusted."""

import json
import os

import pytest
from PIL import Image

from balanceddpo.data.sources import PairSource
from balanceddpo.pipeline import label
from balanceddpo.scoring.scorers import FunctionScorer
from balanceddpo.voting.config import LabelConfig


def test_images_exchanged_in_place_are_noticed(tmp_path, monkeypatch):
    """Names, sizes and times of change stay: the key is the same, the state is not, and labels
    follow the pictures."""
    monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / 'runs'))
    for n in range(8):
        for slot, grey in ((0, 50 + n), (1, 200 - n)):
            Image.new('L', (8, 8), grey).save(tmp_path / f'{n}_{slot}.bmp')
    rows = [
        dict(caption=f'{n}', jpg_0_file_name=f'{n}_0.bmp', jpg_1_file_name=f'{n}_1.bmp')
        for n in range(8)
    ]
    (tmp_path / 'metadata.jsonl').write_text(''.join(json.dumps(r) + '\n' for r in rows))
    source = PairSource(str(tmp_path))
    before = source.named
    assert source.named == before
    scorer = FunctionScorer('light', 'k', lambda images, _: [i.getpixel((0, 0))[0] for i in images])

    def labels():
        return label(source, [scorer], LabelConfig('single', scorer='light')).s.tolist()

    assert labels() == [-1] * 8
    for n in range(8):
        first, second = (tmp_path / f'{n}_{slot}.bmp' for slot in (0, 1))
        times = [(p.stat().st_atime_ns, p.stat().st_mtime_ns) for p in (first, second)]
        contents = second.read_bytes(), first.read_bytes()
        for path, content, time in zip((first, second), contents, times):
            path.write_bytes(content)
            os.utime(path, ns=time)
    assert source.named.key == before.key
    assert source.named.state != before.state
    with pytest.warns(UserWarning, match='have changed since'):
        assert labels() == [1] * 8
    assert labels() == [1] * 8  # kept, and not warned of again
