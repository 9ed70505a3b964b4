"""The public scripts of the race: how they are found, and what stands in for what they miss."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ['BENCH_SIZE'] = 'tiny'
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))
peers, race = (importlib.import_module(f'benchmarks.{name}') for name in ('peers', 'race'))


def write_script(path, peer):
    "A file that names the options of a peer, in the place of its script."
    path.write_text(' '.join(map(str, peer.options)))


@pytest.fixture
def clone(tmp_path):
    "A folder with a script as if it were DiffusionDPO's."
    folder = tmp_path / 'clone'
    folder.mkdir()
    write_script(folder / 'train.py', peers.PEERS[0])
    return folder


def test_a_peer_is_recognised_by_its_script(tmp_path, clone):
    peer, script = peers.find_peer(clone)
    assert (peer.name, script) == ('DiffusionDPO', clone / 'train.py')
    assert not peers.is_known_file(peer, script)
    below = tmp_path / 'diffusers' / 'examples' / 'research_projects' / 'diffusion_dpo'
    below.mkdir(parents=True)
    write_script(below / 'train_diffusion_dpo.py', peers.PEERS[1])
    for folder in (below, tmp_path / 'diffusers'):
        assert peers.find_peer(folder)[0].name == 'diffusers LoRA'


@pytest.mark.parametrize('text', [None, "print('another train.py')"])
def test_other_folders_are_refused_in_one_line(tmp_path, text):
    if text:
        (tmp_path / 'train.py').write_text(text)
    with pytest.raises(SystemExit, match="no peer's script is in this folder") as e:
        peers.find_peer(tmp_path)
    assert '\n' not in str(e.value)
    assert 'train.py of DiffusionDPO' in str(e.value)


def test_the_commit_of_a_peer(clone):
    script = clone / 'train.py'
    assert peers.commit_of(script) == 'unknown'
    git = ['git', '-C', str(clone), '-c', 'user.name=a', '-c', 'user.email=a@b']
    for words in (['init', '-q'], ['add', 'train.py'], ['commit', '-q', '-m', 'one']):
        subprocess.run([*git, *words], check=True)
    found = peers.commit_of(script)
    assert len(found) == 12
    assert int(found, 16) >= 0
    script.write_text(script.read_text() + '\n')
    assert peers.commit_of(script) == found + '+'


def test_the_help_of_the_race_says_what_to_clone():
    for peer in peers.PEERS:
        assert f'{peer.source}  ' in race.__doc__
        assert f'  {peer.commit}  ' in race.__doc__


def test_settings_become_words():
    assert peers.as_words({'seed': 0, 'dataset_name': 'd'}) == ['--seed', 0, '--dataset_name', 'd']


def test_each_peer_is_given_a_step_of_eight_pairs():
    "In the words of its own command line: one pair at a time and eight times, or eight at once."
    course = peers.Course(Path('model'), Path('pickapic_24'), 24, 64)
    for peer, at_once in zip(peers.PEERS, (1, 8)):
        command = peers.peer_command(peer, Path('script.py'), course, 3, Path('out'))
        assert command[:3] == [sys.executable, Path('script.py'), '--no_hflip']
        words = command[3:]
        options = dict(zip(words[::2], words[1::2]))
        assert options['--train_batch_size'] == at_once
        assert at_once * options['--gradient_accumulation_steps'] == 8
        assert options['--max_train_steps'] == 3
        assert options['--output_dir'] == Path('out/model')


def test_what_scripts_miss_is_there(tmp_path):
    "In the process of a script, and the package's own modules do not see xformers."
    code = (
        'import wandb, torchvision, xformers\n'
        'from diffusers import UNet2DConditionModel\n'
        'from diffusers.models import attention\n'
        'from diffusers.utils.import_utils import is_xformers_available\n'
        'assert is_xformers_available() and not attention.is_xformers_available()\n'
        'UNet2DConditionModel.enable_xformers_memory_efficient_attention(None)\n'
        'print(xformers.__version__)'
    )
    path = str(peers.write_stand_ins(tmp_path / 'stand_ins'))
    environment = race.ENVIRONMENT | {'PYTHONPATH': path}
    command = [sys.executable, '-c', code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == '1\n', done.stderr
