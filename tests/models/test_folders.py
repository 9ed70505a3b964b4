"""What is read from a pipeline folder."""

import json
import shutil
from pathlib import Path

import torch

from balanceddpo.core.files import asset
from balanceddpo.models.families import load_family
from balanceddpo.models.folders import local_folder, part_config, parts_of, pipeline_index


def test_an_older_config_gets_the_defaults_of_its_class(folders, tmp_path):
    folder = shutil.copytree(folders['sd15'], tmp_path / 'x')
    path = folder / 'vae' / 'config.json'
    path.write_text(
        json.dumps(
            {
                k: v
                for k, v in json.loads(path.read_text()).items()
                if k not in ('scaling_factor', 'shift_factor')
            }
        )
    )
    assert part_config(folder, 'vae')['scaling_factor'] == 0.18215
    assert 'unet' in parts_of(pipeline_index(folder))
    assert torch.equal(
        load_family(folder, device='cpu').latents(torch.ones(1, 8, 8, 8)),
        torch.full((1, 4, 8, 8), 0.18215),
    )


def test_a_folder_called_icons_does_not_hide_the_packaged_model(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folders['sd15'], 'icons')
    assert local_folder('icons') == asset('model')
    assert local_folder('./icons') == Path('icons')
    # what it gives is a folder again, not a name
    assert local_folder(local_folder('./icons')) == Path('icons')
