"""Scales and shared artefacts: made once, found again, made anew when something they depend on
changes."""

from dataclasses import replace
from pathlib import Path

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.core.jobs import processes_here, rehearsal, run_jobs
from balanceddpo.models.weights import merged_weights
from balanceddpo.paper import experiments, scales
from balanceddpo.recipes.settings import variant
from balanceddpo.voting.config import LabelConfig

TINY = replace(scales.SMOKE, n_pairs=12, n_prompts=2, images_per_prompt=1, steps=2)


GIVEN = dict(model='m', pairs='p', prompts=['pickapic=a.txt'])


def test_the_second_base_model_is_icons_xl_or_the_one_given():
    assert scales.sdxl_scale_of('smoke') == replace(scales.SMOKE, model='icons-xl')
    assert scales.sdxl_scale_of('smoke', {'model': 'm'}).model == 'm'
    assert scales.sdxl_scale_of('sdxl', GIVEN) == scales.scale_of('sdxl', GIVEN)
    with pytest.raises(InputError, match="use scale 'sdxl'"):
        scales.sdxl_scale_of('sd15', GIVEN)
    with pytest.raises(InputError, match='needs model and pairs and prompts'):
        scales.sdxl_scale_of('sdxl')


def test_a_scale_sets_what_training_and_encoding_see(monkeypatch):
    scale = scales.scale_of('sdxl', GIVEN, mode='lora', resolution=512, device='cpu', vae='other')
    settings = experiments.training_settings(scale, 'BalancedDPO')
    assert (settings.mode, settings.resolution, settings.device) == ('lora', 512, 'cpu')
    assert settings.learning_rate == 1e-5  # the LoRA's, not the full fine-tune's
    asked = []
    monkeypatch.setattr(experiments.pipeline, 'encode', lambda *words, **_: asked.append(words[1]))
    experiments.encoded_pairs(scale, settings)
    (encoding,) = asked
    assert (encoding.vae, encoding.resolution, encoding.dtype) == ('other', 512, 'bf16')
    assert encoding.sizes  # a LoRA of SDXL is told the size of each picture
    longer = replace(scale, train=(*scale.train, ('max_steps', 7)))
    assert experiments.training_settings(longer, 'BalancedDPO').max_steps == 7


def test_diffusion_dpo_keeps_its_reference_whatever_the_scale_says():
    assert experiments.training_settings(TINY, 'DiffusionDPO').refresh_every == 0
    assert experiments.training_settings(TINY, 'BalancedDPO').refresh_every == 2


def test_a_model_is_trained_once_and_anew_with_other_labels(tmp_path):
    first = experiments.align(TINY, 'DiffusionDPO', 'a')
    again = experiments.align(TINY, 'DiffusionDPO', 'b')
    voted = variant('DiffusionDPO', 'c', labels=LabelConfig('majority'))
    other = experiments.align(TINY, voted)
    assert first.folder == again.folder != other.folder


def test_images_and_scores_are_shared_by_name_of_model_not_made_again():
    base = experiments.base_model(TINY)
    store = experiments.draw(TINY, base, 'icons:pickapic')
    stamps = [f.stat().st_mtime_ns for f in sorted(store.folder.rglob('*.png'))]
    scores = experiments.score_models(
        TINY, [base, replace(base, name='same')], (('pickapic', 'icons:pickapic'),)
    )
    assert stamps == [f.stat().st_mtime_ns for f in sorted(store.folder.rglob('*.png'))]
    columns = [*experiments.scorer_names(TINY), *TINY.checks]
    a, b = (scores[scores.model == m][columns].to_numpy() for m in ('base', 'same'))
    assert (a == b).all()
    assert len(a) == 2


def test_a_lora_is_merged_into_the_weights_it_adapts():
    "Against the published form of the file: W + B A (alpha equals the rank, so the scale is 1)."
    import torch
    from safetensors.torch import load_file

    model = experiments.model_of(TINY, 'BalancedDPO', mode='lora', learning_rate=1e-2)
    base = merged_weights(TINY.model)
    merged, lora = merged_weights(model.folder, model.lora), load_file(model.lora)
    ups = {n: n.replace('.down.', '.up.') for n in lora if '.lora.down.' in n}
    change = {
        n.removeprefix('unet.').replace('.lora.down.weight', '.weight'): lora[up] @ lora[n]
        for n, up in ups.items()
    }
    assert change
    assert change.keys() < base.keys() == merged.keys()
    for name, p in base.items():
        assert torch.allclose(merged[name], p + change.get(name, torch.zeros(())), atol=1e-5), name
    size = sum(p.double().square().sum() for p in base.values()).sqrt()
    moved = sum(c.double().square().sum() for c in change.values()).sqrt()
    distance = experiments.distance_from_base(TINY, model)
    assert 0 < distance == pytest.approx(float(moved / size), rel=1e-3)
    run = experiments.run_folder(model)
    stamp = (run / 'metrics.jsonl').stat().st_mtime_ns
    # a finished run keeps its model and its log, and is found again
    assert not list((run / 'checkpoints').glob('step-*'))
    assert experiments.model_of(TINY, 'BalancedDPO', mode='lora', learning_rate=1e-2) == model
    assert (run / 'metrics.jsonl').stat().st_mtime_ns == stamp
    log = experiments.training_log(model)
    assert log.step.tolist() == [1, 2, 3, 4]
    assert log.refreshed.tolist() == [False, True, False, True]


def test_prompt_sets_of_ones_own_at_the_scale_of_the_icons(tmp_path):
    scale = scales.scale_of('smoke', prompts=[f'mine={tmp_path / "a.txt"}'])
    assert scale.prompts == (('mine', str(tmp_path / 'a.txt')),)
    assert scale.prompts[:1] == scale.prompts
    assert hash(scale)


def test_the_keys_of_the_checks_name_what_they_compute_with(monkeypatch, tmp_path):
    import shutil

    from balanceddpo.core.files import asset
    from balanceddpo.icon_world import checks
    from balanceddpo.scoring.registry import load_scorer

    def keys():
        return [load_scorer(n, device='cpu').key for n in checks.register_checks()]

    before = keys()
    assert keys() == before
    other = shutil.copytree(asset('recogniser'), tmp_path / 'recogniser')
    (other / 'more.txt').write_text('x')
    monkeypatch.setattr(
        checks, 'asset', lambda *parts: other if parts == ('recogniser',) else asset(*parts)
    )
    assert not set(keys()) & set(before)
    monkeypatch.undo()
    assert keys() == before
    monkeypatch.setattr(checks, 'CHECKS', 2)
    assert not set(keys()) & set(before)


def test_the_steps_of_a_scale_are_those_of_a_run_of_100():
    assert [experiments.steps_of(scales.ICONS, k) for k in (50, 0, 7, 100)] == [50, 0, 7, 100]


def test_a_prompt_set_that_a_scale_has_not_is_refused():
    assert scales.only_set(TINY, 'hpd').prompts == (('hpd', 'icons:hpd'),)
    with pytest.raises(InputError, match="has no prompt set 'nowhere'"):
        scales.only_set(TINY, 'nowhere')


def test_a_scale_says_on_which_device_its_models_are_trained():
    assert (
        experiments.training_settings(replace(TINY, device='cuda'), 'DiffusionDPO').device == 'cuda'
    )
    assert experiments.training_settings(TINY, 'DiffusionDPO').device == 'cpu'
    assert (
        experiments.training_settings(
            replace(TINY, train=(('device', 'mps'),)), 'DiffusionDPO'
        ).device
        == 'mps'
    )


def test_a_training_of_a_study_may_be_shared_by_processes(monkeypatch, tmp_path):
    "It gives the model of one process, but for the rounding of gradients, under the same key."
    with rehearsal() as asked:
        model = experiments.align(TINY, 'BalancedDPO')
    ((key, job),) = asked.items()
    assert model.folder.endswith(key)
    made = {}
    for each in (1, 2):
        monkeypatch.setenv('BALANCEDDPO_RUNS', str(tmp_path / str(each)))
        made[each] = run_jobs(asked, 1, place=processes_here(1, each=each))[key]
    one, two = (Path(made[each].folder) for each in (1, 2))
    assert one.relative_to(tmp_path / '1') == two.relative_to(tmp_path / '2')
    one, two, base = (merged_weights(str(f)) for f in (one, two, TINY.model))
    apart = sum((w - two[n]).norm() ** 2 for n, w in one.items())
    moved = sum((w - base[n]).norm() ** 2 for n, w in one.items())
    assert apart < 1e-6 * moved
