"""Tables from the raw rows and from nothing else. `python -m benchmarks.report` prints all of it;
`--write` puts the rows that have a goal into README.md between its two marks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median

from benchmarks.timing import ENOUGH, HERE, asked

BEGIN, END = '<!-- results -->', '<!-- end of results -->'
# where the median of the A/A control must lie, or the ratios beside it are noise
QUIET = {'cpu': (0.9, 1.1), 'gpu': (0.97, 1.03)}
# beyond `make bench`
FURTHER = {
    'labelling 500 pairs': 'labelling of 500 pairs (--full)',
    'reproduce table1': '`reproduce table1`',
    'reproduce all': '`reproduce all`',
    'labelling 100,000 pairs': 'memory of labelling 100,000 pairs (--full)',
    'first step, compiled': 'options tried on the CPU (tried)',
    'by pairs of 100000': 'time of labelling 100,000 pairs (--full)',
}
TITLES = {
    1: 'training step',
    2: 'labelling',
    3: 'evaluation',
    4: 'wall clock',
    5: 'memory and start-up',
    6: 'scale',
    7: 'the CPU at full speed',
    'race': "the race with the peers' scripts",
    'GPU': 'GPU',
}


def read(folder=None) -> list:
    "(header, rows) of every file of raw rows; a file's name tells a long run from a short one."
    folder = Path(folder or os.environ.get('BENCH_OUT') or HERE / 'rows')
    files = {
        p.stem: [json.loads(l) for l in p.read_text(encoding='utf-8').splitlines()]
        for p in sorted(folder.glob('*.jsonl'))
    }
    return [(lines[0] | {'bench': name}, lines[1:]) for name, lines in files.items() if lines]


def meets(goal: str, value: float) -> bool:
    "Whether a value meets a goal like '>= 1.5' or '<= 0.5'."
    sign, number = goal.split()
    return value >= float(number) if sign == '>=' else value <= float(number)


def summaries(files) -> list:
    "One dict a line of the table: the rounds of one measurement together."
    groups = {}
    for head, rows in files:
        for r in rows:
            if 'what' in r:
                groups.setdefault((str(r['row']), r['what']), (head, []))[1].append(r)
    return [
        summary(head, rows) for _, (head, rows) in sorted(groups.items(), key=lambda g: g[0][0])
    ]


def summary(head, rows) -> dict:
    values, control = [r['value'] for r in rows], [r['control'] for r in rows if 'control' in r]
    low, high = QUIET['gpu' if head['machine']['gpu'] else 'cpu']
    noisy = bool(control) and not low <= median(control) <= high
    goal = rows[0]['goal']
    verdict = '' if not goal else 'met' if meets(goal, median(values)) else 'short'
    if control and len(values) < ENOUGH:
        verdict = f'{verdict} ({len(values)} rounds only)'.strip()
    return dict(
        row=rows[0]['row'],
        what=rows[0]['what'],
        goal=goal,
        median=median(values),
        low=min(values),
        high=max(values),
        control=control,
        rounds=len(values),
        verdict=(
            'a gate failed'
            if any(r.get('same_work') is False for r in rows)
            else 'A/A off: run again'
            if noisy
            else verdict
        ),
    )


def number(v) -> str:
    return f'{v:,.0f}' if abs(v) >= 100 else f'{v:.3g}'


def table(lines) -> str:
    "A Markdown table of summaries."
    head = (
        '| row | measurement | goal | median | min | max | A/A median (min to max) | rounds | |\n|'
        ' --- | --- | --- | --- | --- | --- | --- | --- | --- |\n'
    )

    def control(c):
        return f'{number(median(c))} ({number(min(c))} to {number(max(c))})' if c else ''

    return head + ''.join(
        f'| {s["row"]} | {s["what"]} | {s["goal"]} | {number(s["median"])} | {number(s["low"])} |'
        f' {number(s["high"])} | {control(s["control"])} | {s["rounds"]} | {s["verdict"]} |\n'
        for s in lines
    )


def gates(files) -> str:
    found = [r for _, rows in files for r in rows if 'gate' in r]
    return ''.join(
        f'- row {r["row"]}, {r["gate"]}: {r["value"]:.3g} (limit {r["limit"]:g}),'
        f' {"passed" if r["passed"] else "FAILED"}\n'
        for r in found
    )


def machines(files) -> str:
    "A line a file: when, where and with what it was measured."
    tiny = ' **size tiny: the numbers mean nothing**'

    def line(h):
        m, v = h['machine'], h['versions']
        return (
            f'- {h["bench"]}: {h["date"]}, commit {h["commit"]}, {m["gpu"] or m["cpu"]},'
            f' {m["cores"]} cores, {m["threads"]} threads, load {m["load"]} at the start, torch'
            f' {v["torch"]}, diffusers {v["diffusers"]}, transformers {v["transformers"]}'
            + tiny * (h['size'] == 'tiny')
            + '\n'
        )

    return ''.join(line(h) for h, _ in files)


def stages(files) -> str:
    "Where the minutes of row 4 go."

    def told(s):
        return ', '.join(f'{k} {v:.1f}' for k, v in sorted(s.items(), key=lambda item: -item[1]))

    return ''.join(
        f'- {r["what"]}: {told(r["stages"])} minutes\n'
        for _, rows in files
        for r in rows
        if r.get('stages')
    )


def counted(files) -> str:
    rows = [r for _, rows in files for r in rows if 'counted' in r]
    if not rows:
        return ''
    goal = lambda r: f'{r["goal"]} ({r["share"]:.0%} of the peak)' if r['goal'] else ''
    return (
        '| counted, for one H200 | TFLOP | limit/s | goal/s |\n| --- | --- | --- | --- |\n'
        + ''.join(
            f'| {r["counted"]} | {r["tflop"]:.2f} | {r["limit"]:.1f} | {goal(r)} |\n' for r in rows
        )
    )


def notes(files) -> str:
    "What did not fit into memory, what bounds a rate, and the parts that were stopped or failed."
    told = (
        (h['bench'], r.get('note') or r.get('outcome'))
        for h, rows in files
        for r in rows
        if 'note' in r or r.get('done') is False
    )
    return ''.join(f'- {bench}: {what}\n' for bench, what in told)


def report(folder=None) -> str:
    "All of it, in Markdown."
    files = read(folder)
    lines = summaries(files)
    cpu = [s for s in lines if s['row'] != 'GPU']
    gpu = [s for s in lines if s['row'] == 'GPU']
    done = [
        str(r.get('what') or f'{r.get("point", "")} of {r.get("size", "")}')
        for _, rows in files
        for r in rows
    ]
    missing = [
        f'{n} ({t})' for n, t in TITLES.items() if n != 'GPU' and n not in {s['row'] for s in cpu}
    ] + [told for words, told in FURTHER.items() if not any(words in d for d in done)]
    parts = [
        table(cpu) if cpu else '',
        f'Not yet run: {", ".join(missing)}.\n' if missing else '',
        table(gpu) if gpu else 'On a GPU: not yet run.\n',
        counted(files),
        notes(files) and 'Beside the numbers:\n\n' + notes(files),
        gates(files) and 'Numeric gates, before the clock:\n\n' + gates(files),
        stages(files) and 'Where the minutes go:\n\n' + stages(files),
        machines(files),
    ]
    return '\n'.join(p for p in parts if p)


def brief(folder=None) -> str:
    "The rows that have a goal, in Markdown, and where they were measured: what README.md shows."
    files = read(folder)
    head = '| measured | median | goal |\n| --- | --- | --- |\n'
    return head + ''.join(map(brief_row, summaries(files))) + '\n' + places(files)


def brief_row(s) -> str:
    "A line of the short table for one summary; nothing for a measurement without a goal."
    if not s['goal']:
        return ''
    return f'| {s["what"]} | {number(s["median"])} | {s["goal"]} {s["verdict"]} |\n'


def places(files) -> str:
    "A line a machine and commit: which benchmarks were measured there, and on which day."
    found = {}
    for h, _ in files:
        m = h['machine']
        place = (
            f'{m["gpu"] or m["cpu"]}, {m["cores"]} cores, commit {h["commit"]}, torch'
            f' {h["versions"]["torch"]}'
        )
        found.setdefault((h['date'][:10], place), []).append(h['bench'])
    return ''.join(
        f'- {", ".join(names)}: {day}, {place}\n' for (day, place), names in sorted(found.items())
    )


def published(folder, rows=HERE / 'rows') -> str:
    """What is in `rows` of the benchmarks that have no rows in `folder`: the long ones, beside
    those just run."""
    here = {head['bench'] for head, _ in read(folder)}
    others = [f for f in read(rows) if f[0]['bench'] not in here]
    return (
        f'Published, not measured now:\n\n{table(summaries(others))}\n{machines(others)}'
        if others
        else ''
    )


def write(text, path=HERE / 'README.md') -> None:
    "Put `text` between the marks of a Markdown file."
    from balanceddpo.core.files import staged

    old = Path(path).read_text(encoding='utf-8')
    before, rest = old.split(BEGIN)
    _, after = rest.split(END)
    with staged(path) as t:
        t.write_text(f'{before}{BEGIN}\n{text}\n{END}{after}', encoding='utf-8')


def main() -> None:
    found = asked(__doc__, write='put the short table into README.md')
    print(report())
    if found.write:
        write(brief())


if __name__ == '__main__':
    main()
