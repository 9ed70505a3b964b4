"""All rows for the CPU, in at most 15 minutes, then the table. `python -m benchmarks [NAME ...]`; at full size the table also goes into README.md."""
from __future__ import annotations
import os, signal, subprocess, sys, time
from benchmarks.timing import HERE, SIZE

LIMIT = 15 * 60 - 20                                                                        # seconds for all of them; the rest is for the table
BUDGETS = {'step': 385, 'labelling': 170, 'evaluation': 175, 'memory': 90, 'scale': 70}    # seconds


def run(name, seconds) -> None:
    "One benchmark in a process of its own, stopped a little after its time."
    env = {**os.environ, 'BENCH_SECONDS': str(seconds), 'PYTHONUNBUFFERED': '1'}
    print(f'--- {name}, {seconds:.0f} seconds', flush=True)
    child = subprocess.Popen([sys.executable, '-m', f'benchmarks.{name}'], cwd=HERE.parent, env=env, start_new_session=True)
    try: code = child.wait(1.3 * seconds + 30)
    except BaseException as e:                                                              # with it, the processes that it has started
        os.killpg(child.pid, signal.SIGKILL); child.wait()
        if not isinstance(e, subprocess.TimeoutExpired): raise
        print(f'{name} was stopped: its rows so far are kept'); return
    if code: print(f'{name} ended with {code}: see above')


def main() -> None:
    began, names = time.perf_counter(), sys.argv[1:] or list(BUDGETS)
    for name in names:
        left = LIMIT - (time.perf_counter() - began)
        if left < 20: print(f'{name}: no time is left'); continue
        run(name, min(BUDGETS[name], left / 1.3 - 25 if left < 1.3 * BUDGETS[name] + 30 else BUDGETS[name]))
    from benchmarks.report import report, write
    print(text := report())
    if SIZE == 'cpu' and not os.environ.get('BENCH_OUT'): write(text)
    print(f'{time.perf_counter() - began:.0f} seconds in all')


if __name__ == '__main__': main()
