"""Tables from the raw rows and from nothing else. `python -m benchmarks.report` prints all of it;
`--write` puts the rows that have a goal into README.md between its two marks."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from statistics import median

from benchmarks.timing import ENOUGH, HERE, read_command_line

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
    'sharing': 'labelling shared by processes',
    'GPU': 'GPU',
}


def read(folder=None) -> list:
    "(header, rows) of every file of raw rows; a file's name tells a long run from a short one."
    folder = Path(folder or os.environ.get('BENCH_OUT') or HERE / 'rows')
    files = {
        p.stem: [json.loads(line) for line in p.read_text(encoding='utf-8').splitlines()]
        for p in sorted(folder.glob('*.jsonl'))
    }
    return [(lines[0] | {'bench': name}, lines[1:]) for name, lines in files.items() if lines]


def meets_goal(goal: str, value: float) -> bool:
    "Whether a value meets a goal like '>= 1.5' or '<= 0.5'."
    sign, limit = goal.split()
    return value >= float(limit) if sign == '>=' else value <= float(limit)


def summaries(files) -> list:
    "One dict a line of the table: the rounds of one measurement together."
    groups = {}
    for head, rows in files:
        for row in rows:
            if 'what' in row:
                _, same = groups.setdefault((str(row['row']), row['what']), (head, []))
                same.append(row)
    in_order = sorted(groups, key=lambda group: group[0])  # by the number of the row
    return [summary(*groups[group]) for group in in_order]


def summary(head: dict, rows: list[dict]) -> dict:
    "A line of the table from the rounds of one measurement: median, range, control and verdict."
    values = [row['value'] for row in rows]
    control = [row['control'] for row in rows if 'control' in row]
    return dict(
        row=rows[0]['row'],
        what=rows[0]['what'],
        goal=rows[0]['goal'],
        median=median(values),
        low=min(values),
        high=max(values),
        control=control,
        rounds=len(values),
        verdict=verdict_on(head, rows, values, control),
    )


def verdict_on(head: dict, rows: list[dict], values: list, control: list) -> str:
    "Whether the goal was met, or why that cannot be said."
    if any(row.get('same_work') is False for row in rows):
        return 'a gate failed'
    low, high = QUIET['gpu' if head['machine']['gpu'] else 'cpu']
    if control and not low <= median(control) <= high:
        return 'A/A off: run again'
    verdict, goal = '', rows[0]['goal']
    if goal:
        verdict = 'met' if meets_goal(goal, median(values)) else 'short'
    if control and len(values) < ENOUGH:
        verdict = f'{verdict} ({len(values)} rounds only)'.strip()
    return verdict


def format_number(value: float) -> str:
    "Three digits, or whole numbers from 100 on."
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def table(lines) -> str:
    "A Markdown table of summaries."
    head = (
        '| row | measurement | goal | median | min | max | A/A median (min to max) | rounds | |\n|'
        ' --- | --- | --- | --- | --- | --- | --- | --- | --- |\n'
    )
    return head + ''.join(map(table_line, lines))


def table_line(line: dict) -> str:
    "A line of that table for one summary."
    middle, low, high = (format_number(line[name]) for name in ('median', 'low', 'high'))
    return (
        f'| {line["row"]} | {line["what"]} | {line["goal"]} | {middle} | {low} | {high} |'
        f' {format_range(line["control"])} | {line["rounds"]} | {line["verdict"]} |\n'
    )


def format_range(values: list[float]) -> str:
    "The median, the least and the largest of some values; empty if there are none."
    if not values:
        return ''
    middle, low, high = (format_number(pick(values)) for pick in (median, min, max))
    return f'{middle} ({low} to {high})'


def all_rows(files) -> list[dict]:
    "The rows of all files, one after the other."
    return [row for _, rows in files for row in rows]


def list_gates(files) -> str:
    "A line a numeric gate."
    lines = []
    for row in all_rows(files):
        if 'gate' in row:
            verdict = 'passed' if row['passed'] else 'FAILED'
            value = f'{row["value"]:.3g} (limit {row["limit"]:g})'
            lines.append(f'- row {row["row"]}, {row["gate"]}: {value}, {verdict}\n')
    return ''.join(lines)


def list_machines(files) -> str:
    "A line a file: when, where and with what it was measured."
    return ''.join(machine_line(head) for head, _ in files)


def machine_line(head: dict) -> str:
    "When, where and with what the rows below this head were measured."
    machine, versions = head['machine'], head['versions']
    warning = ' **size tiny: the numbers mean nothing**' if head['size'] == 'tiny' else ''
    return (
        f'- {head["bench"]}: {head["date"]}, commit {head["commit"]},'
        f' {machine["gpu"] or machine["cpu"]}, {machine["cores"]} cores,'
        f' {machine["threads"]} threads, load {machine["load"]} at the start,'
        f' torch {versions["torch"]}, diffusers {versions["diffusers"]},'
        f' transformers {versions["transformers"]}{warning}\n'
    )


def list_stages(files) -> str:
    "Where the minutes of row 4 go."
    lines = []
    for row in all_rows(files):
        if row.get('stages'):
            longest_first = sorted(row['stages'].items(), key=lambda stage: -stage[1])
            each = ', '.join(f'{kind} {minutes:.1f}' for kind, minutes in longest_first)
            lines.append(f'- {row["what"]}: {each} minutes\n')
    return ''.join(lines)


def list_counted(files) -> str:
    "A table of what was counted without a GPU; empty if nothing was."
    lines = []
    for row in all_rows(files):
        if 'counted' in row:
            goal = f'{row["goal"]} ({row["share"]:.0%} of the peak)' if row['goal'] else ''
            work = f'{row["tflop"]:.2f} | {row["limit"]:.1f}'
            lines.append(f'| {row["counted"]} | {work} | {goal} |\n')
    head = '| counted, for one H200 | TFLOP | limit/s | goal/s |\n| --- | --- | --- | --- |\n'
    return head + ''.join(lines) if lines else ''


def list_notes(files) -> str:
    "What did not fit into memory, what bounds a rate, and the parts that were stopped or failed."
    lines = []
    for head, rows in files:
        for row in rows:
            if 'note' in row or row.get('done') is False:
                lines.append(f'- {head["bench"]}: {row.get("note") or row.get("outcome")}\n')
    return ''.join(lines)


def report(folder=None) -> str:
    "All of it, in Markdown."
    files = read(folder)
    lines = summaries(files)
    cpu = [line for line in lines if line['row'] != 'GPU']
    gpu = [line for line in lines if line['row'] == 'GPU']
    missing = not_yet_run(files, {line['row'] for line in cpu})
    parts = [
        table(cpu) if cpu else '',
        f'Not yet run: {", ".join(missing)}.\n' if missing else '',
        table(gpu) if gpu else 'On a GPU: not yet run.\n',
        list_counted(files),
        list_notes(files) and 'Beside the numbers:\n\n' + list_notes(files),
        list_gates(files) and 'Numeric gates, before the clock:\n\n' + list_gates(files),
        list_stages(files) and 'Where the minutes go:\n\n' + list_stages(files),
        list_machines(files),
    ]
    return '\n'.join(part for part in parts if part)


def not_yet_run(files, measured: set) -> list[str]:
    "What the table lacks: rows for the CPU that are not `measured`, and the longer measurements."
    missing = []
    for row, title in TITLES.items():
        if row != 'GPU' and row not in measured:
            missing.append(f'{row} ({title})')
    done = []
    for row in all_rows(files):
        done.append(str(row.get('what') or f'{row.get("point", "")} of {row.get("size", "")}'))
    for words, title in FURTHER.items():
        if not any(words in what for what in done):
            missing.append(title)
    return missing


def brief(folder=None) -> str:
    "The rows that have a goal, in Markdown, and where they were measured: what README.md shows."
    files = read(folder)
    head = '| measured | median | goal |\n| --- | --- | --- |\n'
    lines = map(brief_line, longest_of_each(summaries(files)))
    return head + ''.join(lines) + '\n' + list_places(files)


def longest_of_each(found) -> list:
    "Of measurements that differ in their numbers only (150 or 500 pairs), the last, the longest."
    last = {re.sub(r'[\d,]+', '#', s['what']): s for s in found}
    return [s for s in found if s in last.values()]


def brief_line(s) -> str:
    "A line of the short table for one summary; nothing for a measurement without a goal."
    if not s['goal'] or s['what'].endswith(ARMS):
        return ''
    return (
        f'| {short_name(s["what"])} | {format_number(s["median"])} | {s["goal"]} {s["verdict"]} |\n'
    )


# What the short table leaves out, and what it says in fewer words.
ARMS = (', memory not kept', ', no holes in the heap')
FAST_AGAINST_PLAIN = re.compile(r'(.+) as this machine takes it against \1 by torch as it is')


def short_name(what: str) -> str:
    "A measurement in the words of the short table."
    what = FAST_AGAINST_PLAIN.sub(r'\1, fast path against torch', what)
    return what.replace(' as this machine takes it', '')


def list_places(files) -> str:
    "A line a machine and commit: which benchmarks were measured there, and on which day."
    found = {}
    for head, _ in files:
        machine, torch = head['machine'], head['versions']['torch']
        name = f'{machine["gpu"] or machine["cpu"]}, {machine["cores"]} cores'
        place = f'{name}, commit {head["commit"]}, torch {torch}'
        found.setdefault((head['date'][:10], place), []).append(head['bench'])
    lines = []
    for (day, place), names in sorted(found.items()):
        lines.append(f'- {", ".join(names)}: {day}, {place}\n')
    return ''.join(lines)


def published(folder, rows=HERE / 'rows') -> str:
    """What is in `rows` of the benchmarks that have no rows in `folder`: the long ones, beside
    those just run."""
    here = {head['bench'] for head, _ in read(folder)}
    others = [(head, of_it) for head, of_it in read(rows) if head['bench'] not in here]
    if not others:
        return ''
    lines = f'{table(summaries(others))}\n{list_machines(others)}'
    return f'Published, not measured now:\n\n{lines}'


def write(text, path=HERE / 'README.md') -> None:
    "Put `text` between the marks of a Markdown file."
    from balanceddpo.core.files import staged

    old = Path(path).read_text(encoding='utf-8')
    before, rest = old.split(BEGIN)
    _, after = rest.split(END)
    with staged(path) as new:
        new.write_text(f'{before}{BEGIN}\n{text}\n{END}{after}', encoding='utf-8')


def main() -> None:
    "Print all of it; with `--write`, the short table goes into README.md."
    found = read_command_line(__doc__, write='put the short table into README.md')
    print(report())
    if found.write:
        write(brief())


if __name__ == '__main__':
    main()
