"""Pushing to the Hub: what is refused before, what goes up, and what never does. The Hub is one of
this machine."""

import pytest
from local_hub import TOKEN, local_hub, use_hub

from balanceddpo.core.commands import running, told_command
from balanceddpo.core.publishing import (
    HubOptions,
    check_push,
    end_push,
    open_repository,
    push,
    without_token,
)
from made_pairs import refused


@pytest.fixture
def result(tmp_path):
    "A folder as a training leaves it."
    folder = tmp_path / 'model'
    (folder / 'unet').mkdir(parents=True)
    (folder / 'README.md').write_text('# mine\n')
    (folder / 'unet/weights.safetensors').write_bytes(b'\0' * 100)
    (folder / 'manifest.json').write_text('{}')
    (folder / '.lock').touch()
    (folder / '.holder').write_text('12 on host')  # of one that was killed
    return folder


def test_a_result_goes_up_whole_and_private(hub, result):
    url = push(result, 'me/mine')
    assert url == f'{hub.url}/me/mine'
    assert hub.private == {'me/mine': True}
    assert hub.cards == ['# mine\n']
    assert hub.files['me/mine'] == {
        'README.md': b'# mine\n',
        'unet/weights.safetensors': b'\0' * 100,
    }


def test_public_is_what_one_asks_for(hub, result):
    push(result, 'me/mine', public=True)
    assert hub.private == {'me/mine': False}


def test_a_public_repository_is_not_written_to_by_mistake(hub, result):
    open_repository('me/mine', public=True)
    assert 'is public: add --public' in refused(push, result, 'me/mine')
    assert hub.files['me/mine'] == {}
    push(result, 'me/mine', public=True)
    assert len(hub.files['me/mine']) == 2


def test_the_same_push_again_sends_nothing_and_a_change_alone(hub, result):
    push(result, 'me/mine')
    push(result, 'me/mine')
    assert hub.commits == 1
    (result / 'README.md').write_text('# better\n')
    push(result, 'me/mine')
    assert hub.commits == 2
    assert hub.files['me/mine']['README.md'] == b'# better\n'


def test_a_single_file_goes_up_under_its_name(hub, result):
    push(result / 'unet/weights.safetensors', 'me/mine')
    assert list(hub.files['me/mine']) == ['weights.safetensors']


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, result, capfd):
    hub.refuses_commits = True
    says = refused(push, result, 'me/mine')
    assert 'cut off' in says
    assert {auth for _, _, auth in hub.asked} == {f'Bearer {TOKEN}'}
    printed = ''.join(capfd.readouterr())
    assert TOKEN not in says + printed
    assert not any(TOKEN.encode() in f.read_bytes() for f in result.rglob('*') if f.is_file())
    place = HubOptions(push_to_hub='me/mine', public=False)
    says = refused(end_push, place, result)
    assert says.endswith(f'balanceddpo export {result} --push-to-hub me/mine')


def test_a_long_error_is_cut_after_the_token_is_gone_from_it(hub):
    for n in range(150, 200):
        assert 'hf_' not in without_token(RuntimeError('x' * n + TOKEN))


@pytest.mark.parametrize('name', ['mine', 'a/b/c', 'me/my model', 'me/..', 'me/a--b', '/mine', ''])
def test_a_name_that_the_hub_does_not_take_is_refused_at_once(hub, name):
    assert 'is no name of a repository' in refused(check_push, name)
    assert hub.asked == []


def test_without_a_token_or_offline_nothing_begins(hub, monkeypatch):
    from huggingface_hub import constants

    check_push('me/mine')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE' in refused(check_push, 'me/mine')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    assert 'no token of the Hub' in refused(check_push, 'me/mine')
    assert 'name the repository' in refused(check_push, None, public=True)
    check_push(None)
    assert hub.asked == []


def test_other_processes_of_a_run_do_not_push(hub, result, monkeypatch):
    monkeypatch.setenv('BALANCEDDPO_SHARE', '1/2')
    end_push(HubOptions(push_to_hub='me/mine'), result)
    assert hub.asked == []


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch, result):
    with local_hub() as hub:
        pass  # and is gone
    use_hub(hub, monkeypatch)
    assert 'could not be opened on the Hub' in refused(push, result, 'me/mine')


def test_the_command_is_told_without_the_places_of_this_machine(tmp_path):
    words = ['train', '--labels', tmp_path / 'labels.parquet', f'--out={tmp_path}/run', '--seed', 3]
    with running(words):
        assert told_command() == 'balanceddpo train --labels labels.parquet --out=run --seed 3'
    with running(['label', '--pairs', 'https://me:secret@host/p.parquet?token=abc']):
        assert told_command() == 'balanceddpo label --pairs https://host/p.parquet'
    assert told_command() == ''
