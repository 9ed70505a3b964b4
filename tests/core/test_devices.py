"""The torchvision repair: it acts on one failure only, and the libraries that stop without it work
after it."""

import subprocess
import sys
import textwrap

import pytest
import torch

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
