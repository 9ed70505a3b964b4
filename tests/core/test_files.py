"""What `core.files` promises when a process dies, the disk is full, or a file is damaged."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import SafetensorError

from balanceddpo.core import files as store
from balanceddpo.core.errors import InputError
from balanceddpo.core.files import (
    asset,
    content_digest,
    digest,
    read_json,
    staged,
    write_json,
)
from balanceddpo.core.stages import verify_manifest, write_manifest


def python(code, *args, **kwargs):
    return subprocess.run(
        [sys.executable, '-c', textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        **kwargs,
    )


def strays(folder):
    return sorted(p.name for p in Path(folder).iterdir() if '.tmp-' in p.name or '.old-' in p.name)


# digests


@dataclass(frozen=True)
class Inner:
    path: Path = Path('a/b')


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    names: tuple = ('x', 'y')


def test_digest_is_of_the_value_not_of_its_python_form():
    assert digest(Outer()) == digest({'names': ['x', 'y'], 'inner': {'path': 'a/b'}})
    assert digest('é') == digest('\u00e9')
    assert len(digest()) == 16
    assert (
        len({digest(v) for v in (None, True, 1, 1.0, '1', [1], {'a': 1}, b'1', 0, False, '')}) == 11
    )


@pytest.mark.parametrize('value', [{1, 2}, object(), Outer, {1: 'a'}, [{'a': (1j,)}], lambda: 0])
def test_digest_refuses_what_has_no_canonical_form(value):
    with pytest.raises(TypeError):
        digest(value)


def test_digest_does_not_change_between_processes():
    code = "from balanceddpo.core.files import digest; print(digest({'b': [1, 2.5], 'a': 'x'}))"
    seen = {python(code, env={**os.environ, 'PYTHONHASHSEED': s}).stdout.strip() for s in '123'}
    assert seen == {digest({'a': 'x', 'b': (1, 2.5)})}


def test_content_digest_of_a_folder(tmp_path):
    a = tmp_path / 'a'
    (a / 'sub').mkdir(parents=True)
    (a / 'sub/1').write_bytes(b'1')
    (a / '2').write_bytes(b'2')
    first = content_digest(a)
    (a / 'sub/1').rename(a / '1')
    assert content_digest(a) != first  # names count
    (a / '1').rename(a / 'sub/1')
    assert content_digest(a) == first
    write_manifest(a)
    (a / '.lock').touch()
    assert content_digest(a) == first  # ours do not
    # only the folder's own manifest is ours
    (a / 'sub/manifest.json').touch()
    assert content_digest(a) != first
    with pytest.raises(InputError, match='nowhere'):
        content_digest(tmp_path / 'nowhere')


def test_content_digest_follows_links_to_files(tmp_path):
    (tmp_path / 'blob').write_bytes(b'weights')
    (tmp_path / 'a').mkdir()
    (tmp_path / 'b').mkdir()
    (tmp_path / 'a/w').symlink_to(tmp_path / 'blob')
    (tmp_path / 'b/w').write_bytes(b'weights')
    assert content_digest(tmp_path / 'a') == content_digest(tmp_path / 'b')


# staged: killed or failing at any moment


def test_staged_creates_parents_and_replaces(tmp_path):
    target = tmp_path / 'x/y/file'
    for text in ('one', 'two'):
        with staged(target) as t:
            assert t.parent == target.parent
            assert t != target
            t.write_text(text)
        assert target.read_text() == text
        assert [p.name for p in target.parent.iterdir()] == ['file']


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_staged_leaves_nothing_on_error(tmp_path, error):
    (tmp_path / 'f').write_text('old')
    with pytest.raises(error), staged(tmp_path / 'f') as t:
        t.write_text('new')
        raise error
    with pytest.raises(error), staged(tmp_path / 'd') as t:
        t.mkdir()
        (t / 'x').touch()
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ['f']
    assert (tmp_path / 'f').read_text() == 'old'


def test_staged_that_created_nothing_fails(tmp_path):
    with pytest.raises(FileNotFoundError), staged(tmp_path / 'f'):
        pass
    assert not list(tmp_path.iterdir())


# Every system call of a save, in order; the writer dies at call n, before or after it, for n = 0,
# 1, ... until one run gets through.
CRASH = """
    import os, shutil, signal, sys
    from pathlib import Path
    from balanceddpo.core import files as store
    from balanceddpo.core.stages import write_manifest
    target, n, how, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    calls = 0
    def die(): os.kill(os.getpid(), signal.SIGKILL)
    def wrap(f):
        def g(*a, **k):
            global calls
            mine, calls = calls, calls + 1
            if mine == n and how == 'before': die()
            try: return f(*a, **k)
            finally:
                if mine == n and how == 'after': die()
        return g
    for name in ('replace', 'fsync', 'unlink', 'rmdir', 'mkdir'):
        setattr(os, name, wrap(getattr(os, name)))
    shutil.rmtree = wrap(shutil.rmtree)
    write = wrap(lambda p, text: p.write_text(text))
    with store.staged(target) as t:
        if kind == 'file': write(t, 'new' * 100)
        else: t.mkdir(); write(t/'a', 'new'); write(t/'b', 'new'); write_manifest(t)
    print('through')
"""


def crash_everywhere(tmp_path, kind, how, check):
    for n in range(60):
        target = tmp_path / f'{kind}-{how}-{n}/target'
        target.parent.mkdir()
        if kind == 'file':
            target.write_text('old' * 100)
        else:
            target.mkdir()
            (target / 'a').write_text('old')
            (target / 'b').write_text('old')
            write_manifest(target)
        done = python(CRASH, target, n, how, kind)
        if done.returncode:
            assert done.returncode == -signal.SIGKILL, done.stderr
        check(target)
        store.tidy(target)
        check(target)
        assert not strays(target.parent)
        if 'through' in done.stdout:
            return n + 1
    raise AssertionError('never got through')


@pytest.mark.parametrize('how', ['before', 'after'])
def test_killed_at_every_call_a_file_is_old_or_new(tmp_path, how):
    def check(target):
        assert target.read_text() in ('old' * 100, 'new' * 100)

    assert crash_everywhere(tmp_path, 'file', how, check) >= 4  # write, two fsyncs, one rename


@pytest.mark.parametrize('how', ['before', 'after'])
def test_killed_at_every_call_a_folder_is_old_or_new(tmp_path, how):
    def check(target):
        verify_manifest(target)
        assert {(target / n).read_text() for n in 'ab'} in ({'old'}, {'new'})

    assert crash_everywhere(tmp_path, 'folder', how, check) >= 10


def test_a_failing_rename_keeps_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / 'd'
    target.mkdir()
    (target / 'x').write_text('old')
    real, calls = os.replace, []

    def second_fails(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise OSError(errno.EIO, 'input/output error')
        return real(a, b)

    monkeypatch.setattr(os, 'replace', second_fails)
    with pytest.raises(OSError, match='input/output'), staged(target) as t:
        t.mkdir()
        (t / 'x').write_text('new')
    assert (target / 'x').read_text() == 'old'
    assert not strays(tmp_path)


def test_everything_is_flushed_before_the_rename(tmp_path, monkeypatch):
    log, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, 'fsync', lambda fd: (log.append(os.readlink(f'/proc/self/fd/{fd}')), fsync(fd))
    )
    monkeypatch.setattr(os, 'replace', lambda a, b: (log.append('rename'), replace(a, b)))
    with staged(tmp_path / 'd') as t:
        (t / 'sub').mkdir(parents=True)
        (t / 'sub/f').write_text('x')
        (t / 'g').write_text('y')
    before, after = log[: log.index('rename')], log[log.index('rename') + 1 :]
    assert {Path(p).name for p in before} == {'f', 'sub', 'g', t.name}
    assert after == [str(tmp_path)]


def test_a_living_writer_is_left_alone(tmp_path):
    with staged(tmp_path / 'f') as outer:
        outer.write_text('outer')
        # same process: a thread, or a careless caller
        with staged(tmp_path / 'f') as inner:
            inner.write_text('inner')
        child = python(
            'import sys; from balanceddpo.core.files import staged\nwith staged(sys.argv[1]) as t:'
            ' t.write_text("child")',
            tmp_path / 'f',
        )
        assert child.returncode == 0, child.stderr
        assert outer.exists()
        assert (tmp_path / 'f').read_text() == 'child'
    assert (tmp_path / 'f').read_text() == 'outer'
    assert not strays(tmp_path)


def test_a_users_file_with_a_similar_name_is_left_alone(tmp_path):
    names = [
        'f.tmp-mine',
        'f.old-2024',
        'f.tmp-' + 'a' * 32,
        'f.txt',
        'fx.tmp-' + 'a' * 32 + '-1-' + 'b' * 8,
    ]
    for n in names:
        (tmp_path / n).touch()
    with staged(tmp_path / 'f') as t:
        t.touch()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(['f', *names])


def test_a_full_disk_is_told_with_path_and_bytes(tmp_path):
    (tmp_path / 'f').write_text('old')
    done = python(
        """
        import resource, signal, sys
        from balanceddpo.core.files import staged
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with staged(sys.argv[1]) as t: t.write_bytes(b'x' * 10000)
    """,
        tmp_path / 'f',
    )
    assert done.returncode == 1
    assert (tmp_path / 'f').read_text() == 'old'
    assert not strays(tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert str(tmp_path / 'f') in last
    assert '4096 bytes' in last
    assert 'bytes are free' in last


@pytest.mark.parametrize(
    'error, number',
    [
        (SafetensorError('I/O error: No space left on device (os error 28)'), errno.ENOSPC),
        (RuntimeError('PytorchStreamWriter failed: file write failed'), errno.ENOSPC),
        (SafetensorError('Error while deserializing header'), None),
        (SafetensorError('I/O error: No such file (os error 2)'), None),
    ],
)
def test_a_full_disk_that_a_library_tells_is_told_with_its_place(tmp_path, error, number):
    with pytest.raises(OSError if number else type(error)) as found, staged(tmp_path / 'f') as t:
        t.write_text('part')
        raise error
    if number:
        assert found.value.errno == number
        assert f'4 bytes of {tmp_path}/f were written' in found.value.strerror
    assert not strays(tmp_path)


def test_write_json_is_whole_or_old(tmp_path):
    write_json(tmp_path / 'a.json', {'x': (1, 2)})
    with pytest.raises(TypeError):
        write_json(tmp_path / 'a.json', {'x': object()})
    assert read_json(tmp_path / 'a.json') == {'x': [1, 2]}
    assert not strays(tmp_path)
    for bad in (b'', b'{"x": ', b'\xff\xfe'):
        (tmp_path / 'a.json').write_bytes(bad)
        with pytest.raises(InputError, match='a.json'):
            read_json(tmp_path / 'a.json')
    with pytest.raises(InputError, match='gone.json'):
        read_json(tmp_path / 'gone.json')


@pytest.mark.parametrize(
    'parts', [('..', 'store.py'), ('/etc/passwd',), ('a', '..', '..', '__init__.py')]
)
def test_asset_stays_inside_the_package(parts):
    with pytest.raises(InputError, match='outside'):
        asset(*parts)


def test_asset_that_is_missing():
    with pytest.raises(InputError, match='no asset'):
        asset('nothing-of-this-name')
