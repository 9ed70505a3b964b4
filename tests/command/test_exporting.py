"""balanceddpo export, and --push-to-hub of the verbs that train: files that others load, cards,
and a Hub of this machine."""

import pytest
from huggingface_hub import ModelCard
from local_hub import TOKEN
from safetensors.torch import load_file

from balanceddpo.models.config import SampleConfig
from balanceddpo.models.sampling import sample
from short_commands import encode_words, label_words, train_words
from short_runs import go
from tiny_models import diffusers_pipeline, draw_array

LORA = 'pytorch_lora_weights.safetensors'


@pytest.fixture(scope='module')
def trained(made, tmp_path_factory):
    "The folder of a run of a LoRA, of one step."
    place = tmp_path_factory.mktemp('trained') / 'run'
    go(made(), place, max_steps=1, mode='lora')
    return place


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    "A folder of win rates, as evaluate leaves it."
    folder = tmp_path_factory.mktemp('results')
    (folder / 'comparisons.csv').write_text(
        'model_a,model_b,prompt_set,scorer,n,win_rate,low,high\nours,base,p,hps,9,0.75,0.5,0.9\n'
    )
    return folder


@pytest.fixture(scope='module')
def samples(world, tmp_path_factory):
    "A folder of images, as sample leaves it."
    config = SampleConfig(
        str(world / 'model'),
        str(world / 'prompts.txt'),
        images_per_prompt=2,
        steps=2,
        resolution=32,
        device='cpu',
    )
    return sample(config, out=tmp_path_factory.mktemp('samples') / 'images', progress=False).folder


def test_a_run_becomes_a_lora_in_kohyas_keys(made, trained, tmp_path, run):
    out = tmp_path / 'lora.safetensors'
    assert f'kohya: {out}' in run('export', trained, '--to', 'kohya', '--out', out)
    n = len(load_file(trained / 'model' / LORA))
    assert len(load_file(out)) == n * 3 / 2  # and an alpha for each two
    pipelines = [diffusers_pipeline(made().base) for _ in range(2)]
    for pipeline, file in zip(pipelines, (trained / 'model' / LORA, out)):
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    assert (draw_array(pipelines[0]) == draw_array(pipelines[1])).all()


def test_a_merged_folder_has_the_card_of_the_lora_in_its_own_words(
    made, trained, results, samples, tmp_path, run
):
    source, out = f'{made().base}+{trained}', tmp_path / 'merged'
    words = ['export', source, '--to', 'merged', '--out', out]
    run(*words, '--results', results, '--samples', samples)
    card = ModelCard((out / 'README.md').read_text())
    assert 'DiffusionPipeline.from_pretrained("this folder")' in card.text
    assert 'lora' not in card.data.tags
    assert card.data.eval_results[0].metric_value == 0.75
    shown = sorted(p.name for p in (out / 'samples').iterdir())
    assert shown == ['0.png', '1.png']  # of two prompts
    assert '![a red cat](samples/0.png)' in card.text
    assert diffusers_pipeline(out)
    # the run is as it was
    assert not (trained / 'model/samples').exists()
    assert 'Results' not in (trained / 'model/README.md').read_text()


def test_a_finished_run_goes_to_the_hub(hub, trained, results, samples, run):
    said = run('export', trained, '--push-to-hub', 'me/mine')
    assert f'pushed: {hub.url}/me/mine' in said
    assert hub.private == {'me/mine': True}
    files = hub.files['me/mine']
    assert set(files) == {'README.md', LORA, 'training.json'}
    assert files[LORA] == (trained / 'model' / LORA).read_bytes()
    # with win rates and pictures: the card is new, the weights are there already
    run(
        *('export', trained, '--push-to-hub', 'me/mine'),
        *('--results', results, '--samples', samples),
    )
    assert {'samples/0.png', 'samples/1.png'} < set(files)
    assert ModelCard(files['README.md'].decode()).data.eval_results[0].metric_value == 0.75
    assert files[LORA] == (trained / 'model' / LORA).read_bytes()
    assert hub.commits == 2


def test_another_form_is_written_and_pushed(hub, made, trained, tmp_path, run):
    out = tmp_path / 'half'
    source = f'{made().base}+{trained}'
    run('export', source, '--to', 'fp16', '--out', out, '--push-to-hub', 'me/half', '--public')
    assert hub.private == {'me/half': False}
    assert 'unet/diffusion_pytorch_model.fp16.safetensors' in hub.files['me/half']
    assert b'variant="fp16"' in hub.files['me/half']['README.md']
    file = tmp_path / 'lora.safetensors'
    run('export', trained, '--to', 'comfyui', '--out', file, '--push-to-hub', 'me/half', '--public')
    assert hub.files['me/half']['lora.safetensors'] == file.read_bytes()


def test_training_ends_on_the_hub_with_the_command_in_the_card(hub, world, tmp_path, run):
    run(*label_words(world, '--method', 'human', '--out', tmp_path / 'labels.parquet'))
    run(*encode_words(world, '--device', 'cpu', '--out', tmp_path / 'encoded'))
    words = train_words(world, tmp_path, '--mode', 'lora', '--out', tmp_path / 'run')
    said = run(*words, '--push-to-hub', 'me/mine')
    assert f'pushed: {hub.url}/me/mine\n' in said
    card = hub.files['me/mine']['README.md'].decode()
    assert '--push-to-hub me/mine' in card
    assert '--model model' in card
    assert str(world) not in card
    assert TOKEN not in card + said
    # pushed later by the same command: it finds all done
    hub.files.clear()
    run(*words, '--push-to-hub', 'me/again')
    assert LORA in hub.files['me/again']


@pytest.mark.parametrize(
    'verb', ['align DiffusionDPO --model icons --pairs icons', 'train --model icons']
)
def test_a_push_that_cannot_be_is_refused_before_anything_is_done(
    hub, encoded, run, monkeypatch, verb
):
    place = f'--labels {encoded}/labels.parquet --encoded {encoded}/encoded'
    words = verb.split() + (place.split() if verb.startswith('train') else [])
    says = run(*words, '--push-to-hub', 'no-owner', code=2)
    assert 'is no name of a repository on the Hub' in says
    assert 'name the repository with --push-to-hub' in run(*words, '--public', code=2)
    monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
    assert 'run hf auth login' in run(*words, '--push-to-hub', 'me/mine', code=2)
    assert hub.asked == []


@pytest.mark.parametrize(
    'words, says',
    [
        ('export', 'model'),
        ('export {w}/model', 'name a form with --to'),
        ('export {w}/none --to fp16', 'no such folder or file'),
        ('export {w}/model --to onnx', 'onnx'),
        ('export {w}/model --to kohya', 'has no lora'),
        ('export {w}/model --push-to-hub mine', 'is no name of a repository'),
        ('export {w}/model --public --to fp16', '--public is for a push'),
        ('export {w}/model --to fp16 --out {w}/scorers.txt/x --results {w}', 'comparisons.csv'),
        ('export {w}/model --to fp16 --out {w}/x --samples {w}', 'no finished set of images'),
        ('export {w}/model --to fp16 --out {w}', 'is there already'),
        ('export {w}/model --to fp16 --out {w}/prompts.txt', 'is there already'),
    ],
)
def test_what_cannot_be_exported_is_one_line(refused, words, says):
    assert says in refused(words)


def test_a_packaged_model_is_not_pushed_as_it_is(hub, run):
    says = run('export', 'icons', '--push-to-hub', 'me/mine', code=2)
    assert 'cannot be pushed as it is' in says
    assert hub.asked == []


def test_a_dry_run_says_what_would_be_done(hub, trained, tmp_path, run):
    said = run('export', trained, '--to', 'kohya', '--push-to-hub', 'me/mine', '--dry-run')
    place = tmp_path / 'runs/export/run-kohya.safetensors'
    assert f'as kohya to {place}' in said
    assert f'push {place} to me/mine on the Hub, private' in said
    assert not place.exists()
    assert hub.asked == []
