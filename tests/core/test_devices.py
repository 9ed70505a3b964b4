"""The torchvision repair: it acts on one failure only, and the libraries that stop without it work
after it."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import balanceddpo
from balanceddpo.core.devices import pick_device, pick_dtype, versions
from balanceddpo.core.errors import InputError

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"


def python(code, *path):
    "Run `code` in a fresh interpreter in which the folders in `path` come first."
    start = (
        f'import sys; sys.path[:0] = {[str(p) for p in path]!r}\n'
        'from balanceddpo.core.devices import ensure_torchvision\n'
    )
    return subprocess.run(
        [sys.executable, '-c', start + textwrap.dedent(code)], capture_output=True, text=True
    )


def pretend_torchvision(folder, source):
    (folder / 'torchvision').mkdir()
    (folder / 'torchvision/__init__.py').write_text(textwrap.dedent(source))
    return folder


def test_libraries_that_look_for_torchvision_import_after_the_repair():
    done = python("""
        tv = ensure_torchvision(); assert tv is ensure_torchvision() and tv.__version__
        import peft, open_clip, timm, diffusers, torch
        from transformers import CLIPModel, CLIPImageProcessor
        from torchvision.transforms import v2
        assert v2.functional.resize(torch.zeros(3, 8, 8), [4, 4]).shape == (3, 4, 4)
    """)
    assert done.returncode == 0, done.stderr


def test_a_torchvision_that_fits_is_left_alone(tmp_path):
    done = python(
        """
        import torch
        assert ensure_torchvision().fits
        assert not hasattr(torch.ops.torchvision, 'nms')
    """,
        pretend_torchvision(tmp_path, 'fits = True'),
    )
    assert done.returncode == 0, done.stderr


def test_the_two_operators_are_declared_when_they_are_missing(tmp_path):
    pretend_torchvision(
        tmp_path,
        f"""
        import torch, torchvision.part
        # a half-imported part must not survive the first attempt
        first = torchvision.part.count()
        if not hasattr(torch.ops.torchvision, 'nms'): {BROKEN}
        repaired = torch.ops.torchvision.qnms
        """,
    )
    (tmp_path / 'torchvision/part.py').write_text(
        'seen = []\ndef count(): seen.append(1); return len(seen)'
    )
    done = python(
        """
        import torch
        tv = ensure_torchvision()
        assert tv.repaired and tv.first == 1
        try:
            torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
            sys.exit('an operator without a kernel ran')
        except NotImplementedError as e: assert 'torchvision::nms' in str(e)
    """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    'source, told',
    [
        ("raise RuntimeError('something else')", 'something else'),
        ("raise ImportError('libjpeg.so')", 'libjpeg.so'),
        ('import no_such_part', 'no_such_part'),
        # still there after the repair: told, not tried for ever
        (BROKEN, 'torchvision::nms does not exist'),
    ],
)
def test_any_other_failure_is_told_as_it_is(tmp_path, source, told):
    done = python('ensure_torchvision()', pretend_torchvision(tmp_path, source))
    assert done.returncode == 1
    assert told in done.stderr.strip().splitlines()[-1]


def test_without_torchvision_there_is_nothing_to_do(tmp_path):
    done = python("""
        import importlib.abc
        class Hide(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split('.')[0] == 'torchvision':
                    text = "No module named 'torchvision'"
                    raise ModuleNotFoundError(text, name='torchvision')
        sys.meta_path.insert(0, Hide())
        assert ensure_torchvision() is None
    """)
    assert done.returncode == 0, done.stderr


def test_devices():
    assert pick_device('cpu') == torch.device('cpu')
    assert pick_device('auto').type == (
        'cuda'
        if torch.cuda.is_available()
        else 'mps'
        if torch.backends.mps.is_available()
        else 'cpu'
    )
    for wrong in ('gpu', 'cuda:99', '', 'cpu:1', 'xla'):
        with pytest.raises(InputError, match='use auto'):
            pick_device(wrong)


def test_precisions():
    assert [pick_dtype(n) for n in ('fp32', 'bf16', 'fp16')] == [
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    for wrong in ('float32', 'fp8', None):
        with pytest.raises(InputError, match='fp32, bf16 or fp16'):
            pick_dtype(wrong)


def test_versions_import_nothing_and_hide_the_build():
    done = python("""
        from balanceddpo.core.devices import versions
        v = versions()
        assert not {'torch', 'numpy'} & set(sys.modules)
        assert v['python'] == '%d.%d.%d' % sys.version_info[:3]
        assert not any('+' in x for x in v.values() if x)
    """)
    assert done.returncode == 0, done.stderr
    assert versions()['torch'] == torch.__version__.split('+')[0]


MEND = 'from balanceddpo.core.devices import mend_torchvision; print(mend_torchvision())'


def plain_python(code, *path):
    "As `python`, in processes started from there too, and without any repair."
    paths = [*map(str, path), str(Path(balanceddpo.__file__).parents[1])]
    env = os.environ | {'PYTHONPATH': os.pathsep.join(paths)}
    words = [sys.executable, '-W', 'ignore', '-c', code]
    return subprocess.run(words, capture_output=True, text=True, env=env)


def torchvision_of_another_build(folder):
    "A torchvision that fails as the one on PyPI does beside a CPU build of torch."
    pretend_torchvision(
        folder, 'import torchvision.extension\nfrom torchvision import _meta_registrations'
    )
    (folder / 'torchvision/extension.py').write_text('def _has_ops():\n    return False\n')
    (folder / 'torchvision/_meta_registrations.py').write_text(
        'import torch\nimport torch.library\n\nimport torchvision.extension  # noqa: F401\n\n\n'
        '@torch.library.register_fake("torchvision::nms")\n'
        'def meta_nms(dets, scores, iou_threshold):\n    return dets\n'
    )
    return folder


def test_installing_mends_torchvision_for_programs_that_know_nothing_of_it(tmp_path):
    folder = torchvision_of_another_build(tmp_path)
    assert 'nms does not exist' in plain_python('import torchvision', folder).stderr
    done = plain_python(MEND, folder)
    assert 'its two operators are declared in' in done.stdout, done.stderr
    assert plain_python('import torchvision', folder).returncode == 0
    mended = (folder / 'torchvision/_meta_registrations.py').read_text()
    assert 'nothing to mend' in plain_python(MEND, folder).stdout
    assert (folder / 'torchvision/_meta_registrations.py').read_text() == mended
    # a torch that fits comes later: nothing is declared twice
    (folder / 'torchvision/extension.py').write_text(
        'import torch\n_library = torch.library.Library("torchvision", "DEF")\n'
        '_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")\n'
        'def _has_ops():\n    return True\n'
    )
    assert plain_python('import torchvision', folder).returncode == 0


def test_another_failure_of_torchvision_is_not_mended(tmp_path):
    pretend_torchvision(tmp_path, "raise RuntimeError('no disk')")
    assert 'torchvision cannot be imported (RuntimeError: no disk)' in (
        plain_python(MEND, tmp_path).stderr
    )


@pytest.mark.skipif(
    not Path(sys.prefix, '.installed').exists(), reason='the environment was not made by make'
)
def test_accelerate_and_diffusers_start_in_this_environment():
    "`make install` ends with the mend."
    for code in (
        'from diffusers import StableDiffusionPipeline',
        'import accelerate.commands.accelerate_cli',
    ):
        done = plain_python(code)
        assert done.returncode == 0, done.stderr
