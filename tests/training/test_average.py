"""The exponential moving average of the trained weights, where it is the result."""

import pytest
from safetensors.torch import load_file

from balanceddpo.core.errors import InputError
from balanceddpo.training.checkpoints import checkpoints
from short_runs import go, same, settings

RUN = dict(mode='full', max_steps=4, checkpoint_every=1, keep_checkpoints=4, learning_rate=1e-3)
DECAYS = (0.0, 2 / 11, 0.2, 0.2)  # (1 + n) / (10 + n) after n further steps, and never above 0.2


def parts(out, name):
    "A part of each checkpoint of a run, oldest first."
    return [c.load(name) for c in checkpoints(out / 'checkpoints')]


def test_the_result_is_the_average_of_the_weights_after_each_step(made, tmp_path):
    out = go(made(), tmp_path / 'run', ema=0.2, **RUN)
    policies, averages = (parts(tmp_path / 'run', name) for name in ('policy', 'average'))
    result = load_file(out / 'unet/diffusion_pytorch_model.safetensors')
    for name, v in result.items():
        mean = policies[0][name].double()
        for decay, policy, average in zip(DECAYS, policies, averages, strict=True):
            mean = decay * mean + (1 - decay) * policy[name].double()
            assert average[name].double().allclose(mean, rtol=1e-6, atol=1e-9), name
        assert same(v, averages[-1][name])
    assert not same(averages[-1], policies[-1])


def test_it_leaves_the_training_as_it_is(made, tmp_path):
    go(made(), tmp_path / 'plain', **RUN)
    go(made(), tmp_path / 'run', ema=0.9, **RUN)
    for name in ('policy', 'reference', 'optimizer'):
        assert same(parts(tmp_path / 'run', name), parts(tmp_path / 'plain', name)), name


def test_a_run_goes_on_with_its_average(made, tmp_path):
    changes = RUN | dict(mode='lora', ema=0.2)
    whole = go(made(), tmp_path / 'whole', **changes)
    go(made(), tmp_path / 'run', **changes | dict(max_steps=2))
    again = go(made(), tmp_path / 'run', **changes)
    for name in ('policy', 'average'):
        assert same(parts(tmp_path / 'run', name), parts(tmp_path / 'whole', name)), name
    lora = 'pytorch_lora_weights.safetensors'
    assert same(load_file(again / lora), load_file(whole / lora))
    with pytest.raises(InputError, match='ema'):
        go(made(), tmp_path / 'run', **changes | dict(ema=0.3, max_steps=5))


def test_a_decay_of_one_is_refused(made):
    with pytest.raises(InputError, match='ema must be 0 or more and below 1, not 1'):
        settings(made(), ema=1.0)
