"""Linux has calls that macOS and Windows have not: without them a command does its work all the
same."""

import errno
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from balanceddpo.core import files, parallel, processes
from balanceddpo.data.pairs import make_pair, write_pairs
from short_runs import picture
from tiny_scorers import write_tiny_scorers

# What Windows lacks, for every module of ours that imports it (the libraries have code of their own
# for each system): functions, signals, modules, folders that can be opened, and a flush of what is
# open to read.
WITHOUT = """
    import builtins, errno, os, signal, sys, types

    def lacking(module, names):
        made = types.ModuleType(module.__name__)
        made.__dict__.update({k: v for k, v in vars(module).items() if k not in names.split()})
        return made

    def open_no_folder(path, flags, *args, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, 'Permission denied', path)
        fd = os.open(path, flags, *args, **options)
        modes[fd] = flags & (os.O_WRONLY | os.O_RDWR)
        return fd

    def fsync_what_is_written(fd):
        if modes[fd] == os.O_RDONLY:
            raise OSError(errno.EBADF, 'Bad file descriptor')
        flushed.append(fd)
        os.fsync(fd)

    def import_what_is_there(name, globals=None, *rest, **more):
        if str((globals or {}).get('__name__', '')).startswith('balanceddpo'):
            if name in 'fcntl resource pwd grp termios pty posix'.split():
                raise ModuleNotFoundError(f'No module named {name!r}', name=name)
            if name in there:
                asked.add(name)
                return there[name]
        return real_import(name, globals, *rest, **more)

    there = {
        'os': lacking(os, 'fork forkpty kill killpg getpgid setsid getuid geteuid getgid nice'
                          ' mkfifo sched_getaffinity posix_fadvise pread statvfs uname'),
        'signal': lacking(signal, 'SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGCHLD SIGALRM SIGPIPE SIGQUIT'),
    }
    there['os'].open, there['os'].fsync = open_no_folder, fsync_what_is_written
    modes, flushed, asked = {}, [], set()
    real_import, builtins.__import__ = builtins.__import__, import_what_is_there
"""
LABEL = """
    from balanceddpo.cli import main

    code = main(sys.argv[1:])
    assert flushed and asked == set(there)
    sys.exit(code)
"""


def test_a_command_needs_nothing_that_only_linux_has(tmp_path):
    write_tiny_scorers(tmp_path)
    pairs = [make_pair('a red cat', (picture(2 * i), picture(2 * i + 1)), 1.0) for i in range(3)]
    write_pairs(pairs, tmp_path / 'pairs.parquet')
    # what a killed process has left, and what one that lives is writing
    with subprocess.Popen([sys.executable, '-c', '']) as ended:
        pass
    dead = leave(tmp_path / 'labels.parquet', ended.pid)
    alive = leave(tmp_path / 'labels.parquet', os.getppid())
    words = ['label', '--pairs', tmp_path / 'pairs.parquet', '--out', tmp_path / 'labels.parquet']
    words += ['--scorers', f'clip={tmp_path}/clip', '--device', 'cpu']
    code = textwrap.dedent(WITHOUT) + textwrap.dedent(LABEL)
    done = subprocess.run(
        [sys.executable, '-c', code, *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '3 rows, 3 pairs kept' in done.stdout
    assert not dead.exists()
    assert alive.exists()


def leave(path, process):
    "A temporary file beside `path`, of a process with this number."
    host = files._host()
    place = path.with_name(f'{path.name}.tmp-{"0" * 31}{process % 10}-{process}-{host}')
    place.write_text('half')
    return place


def test_a_file_that_only_a_writer_can_flush_is_flushed_by_one(tmp_path, monkeypatch):
    file, modes = tmp_path / 'x', {}
    file.write_text('x')
    real_open, real_fsync, flushed = os.open, os.fsync, []

    def opened(path, flags):
        fd = real_open(path, flags)
        modes[fd] = flags
        return fd

    def fsync(fd):
        if modes[fd] == os.O_RDONLY:
            raise OSError(errno.EBADF, 'Bad file descriptor')
        flushed.append(modes[fd])
        real_fsync(fd)

    monkeypatch.setattr(os, 'open', opened)
    monkeypatch.setattr(os, 'fsync', fsync)
    files.flush(file)
    assert flushed == [os.O_RDWR]


def test_an_error_of_the_disk_is_no_question_of_the_system(tmp_path, monkeypatch):
    (tmp_path / 'x').write_text('x')

    def fsync(fd):
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr(os, 'fsync', fsync)
    with pytest.raises(OSError, match='Input/output'):
        files.flush(tmp_path / 'x')


def test_cores_are_those_of_the_process_or_else_of_the_machine(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 6)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 1, 2, 3}, raising=False)
    assert parallel.thread_settings(2) == {'OMP_NUM_THREADS': '2'}
    monkeypatch.delattr(os, 'sched_getaffinity')
    assert parallel.thread_settings(2) == {'OMP_NUM_THREADS': '3'}


def test_only_linux_is_asked_to_end_a_process_with_its_parent(monkeypatch):
    monkeypatch.setattr(sys, 'platform', 'win32')
    monkeypatch.delattr(signal, 'SIGKILL')
    assert processes._ends_with_its_parent() is None
    told = str(processes.failure(1, 2, processes.Ended(processes.KILLED)))
    assert told.startswith('process 1 of 2 was killed')
