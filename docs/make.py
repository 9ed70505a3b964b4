"""Writes the files that only repeat what stands elsewhere: settings.ini, from pyproject.toml;
docs/methods.md, from the table of methods; and the tables of the other pages, from paper_figures.

python docs/make.py            write them
python docs/make.py --check    say which differ, and exit with 1
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LICENSES = {'Apache-2.0': 'apache2'}  # nbdev's names
STATUSES = {'Development Status :: 4 - Beta': 4}


def version() -> str:
    "The package's version, read without importing it."
    text = (ROOT / 'balanceddpo/__init__.py').read_text(encoding='utf-8')
    return re.search(r'^__version__ = ["\']([^"\']+)["\']$', text, re.M)[1]


def settings(project: dict) -> str:
    "settings.ini, which nbdev 2 and other tools read, of the contents of pyproject.toml."
    p, nbdev = project['project'], project['tool']['nbdev']
    author = p['authors'][0]['name']
    name = p['name']
    (command, entry) = next(iter(p['scripts'].items()))
    fields = {
        'repo': name,
        'lib_name': name,
        'version': version(),
        'min_python': p['requires-python'].removeprefix('>='),
        'license': LICENSES[p['license']],
        'lib_path': nbdev['lib_path'],
        'nbs_path': nbdev['nbs_path'],
        'doc_path': '_docs',
        'git_url': '',
        'doc_host': '',
        'doc_baseurl': '/',
        'user': name,
        'branch': 'main',
        'author': author,
        'author_email': 'noreply@example.org',
        'copyright': f'2026 onwards, {author}',
        'description': p['description'],
        'keywords': ' '.join(k.replace(' ', '-') for k in p['keywords']),
        'requirements': ' '.join(p['dependencies']),
        'console_scripts': f'{command}={entry}',
        'status': next(STATUSES[c] for c in p['classifiers'] if c in STATUSES),
        'audience': 'Developers',
        'language': 'English',
        'update_pyproject': nbdev['update_pyproject'],
        'allowed_cell_metadata_keys': ' '.join(nbdev['allowed_cell_metadata_keys']),
    }
    lines = [f'{key} = {value}'.rstrip() for key, value in fields.items()]
    head = (
        '# Made by docs/make.py from pyproject.toml, for nbdev 2; nbdev 3 reads that file itself.'
    )
    return '\n'.join([head, '[DEFAULT]', *lines]) + '\n'


METHODS_HEAD = """<!-- Made by docs/make.py from balanceddpo/recipes/table.py. -->
# Methods

A method is a row of one table: who labels the pairs, which loss, which noise, which reference, and
for each kind of base model its values, each with the place that it comes from. `balanceddpo
methods` prints the table, `balanceddpo align NAME` runs a row, and any value can be changed by its
option. A change that makes it another method, such as BalancedDPO without a refresh, is refused
with the reason.

Each loss is tested against numbers worked by hand and its own identities. **No row has been run by
us on published weights. All of them have been run in the icon world**, whose values are ours, and
[results.md](results.md) says how they compare there.

The base model may be a folder or Hub id of Stable Diffusion 1.5, 2.1 (v-prediction) or XL; its kind
is read from it. For SD 3, 3.5 and FLUX nobody has published values: `--values sdxl` says whose are
to be used, and noise by inversion is not for them.
"""
KIND_NAMES = {
    'sd15': 'SD1.5',
    'sd15_lora': 'SD1.5, LoRA',
    'sdxl': 'SDXL',
    'sdxl_lora': 'SDXL, LoRA',
    'sdxl_turbo': 'SDXL-Turbo',
    'sdxl_turbo_lora': 'SDXL-Turbo, LoRA',
    'icons': 'icon world',
}


def words_of_labels(recipe) -> str:
    "Who labels the pairs of a row."
    if recipe.groups:
        return f'groups of images of a prompt, rule `{recipe.groups}`'
    return ' of '.join(f'`{w}`' for w in (recipe.labels.method, recipe.labels.scorer) if w)


def own_values(recipe) -> list[str]:
    "The rows of a Markdown table: what the recipe itself says, and for which base models."
    rows = []
    for kind in ('any', *KIND_NAMES):
        for name, value in recipe.values.get(kind, {}).items():
            told = (
                value.value
                if not isinstance(value.value, tuple)
                else ' '.join(map(str, value.value))
            )
            model = KIND_NAMES.get(kind, 'all')
            rows.append(f'| {model} | `{name}` | {told} | {value.source} |')
    if rows:
        rows = ['| base model | setting | value | from |', '| --- | --- | --- | --- |', *rows]
    return rows


def loss_values(recipe) -> str:
    "The parameters of a row's loss, with their defaults and sources, in a sentence."
    from balanceddpo.losses.methods import LOSSES

    told = [f'`{n}` {p.default} ({p.source})' for n, p in LOSSES[recipe.loss].parameters.items()]
    return f'Where nothing is said, the loss has {"; ".join(told)}.'


def own_differences(recipe) -> list[str]:
    "What a run of the recipe still does otherwise than its public code, a line a base model."
    lines = [f'- {KIND_NAMES[kind]}: {text}' for kind, text in recipe.differs.items()]
    return ['', 'What still differs from the public code:', '', *lines] if lines else []


def section(recipe) -> str:
    "The section of one method."
    needs = '--prompts prompts.txt' if recipe.groups else '--pairs pairs.parquet'
    named = f'"{recipe.name}"' if ' ' in recipe.name else recipe.name
    parts = ', '.join(
        [
            f'Labels {words_of_labels(recipe)}',
            f'loss `{recipe.loss}`',
            f'noise {recipe.noise}',
            f'reference {recipe.reference}',
        ]
    )
    like = f' Everything else as {recipe.like}.' if recipe.like else ''
    source = '. '.join(filter(None, (recipe.paper, recipe.code and f'Code: {recipe.code}')))
    lines = [
        f'## {recipe.name}',
        f'{recipe.does[0].upper()}{recipe.does[1:]}. {source}.',
        '',
        f'{parts}.{like} {loss_values(recipe)}',
        '',
        f'    balanceddpo align {named} --model MODEL {needs} --out work/run',
        '',
        *own_values(recipe),
        *own_differences(recipe),
    ]
    return '\n'.join(lines).rstrip() + '\n'


def variants(recipes) -> str:
    "The table of the variants of BalancedDPO."
    rows = [f'| {r.name} | {words_of_labels(r)} | {r.reference} | {r.does} |' for r in recipes]
    head = ['| | labels | reference | |', '| --- | --- | --- | --- |']
    return '\n'.join(['## Variants of BalancedDPO', '', *head, *rows]) + '\n'


def methods() -> str:
    "docs/methods.md."
    from balanceddpo.recipes.table import RECIPES

    of_ours = [r for r in RECIPES.values() if r.like == 'BalancedDPO']
    others = [r for r in RECIPES.values() if r.like != 'BalancedDPO']
    return '\n'.join([METHODS_HEAD, *map(section, others), variants(of_ours)])


def with_tables(page: Path) -> str:
    "The text of a page, with the table of a study between each `<!-- STUDY/TABLE -->` and its end."

    def table(found: re.Match) -> str:
        path = ROOT / f'paper_figures/icons/{found[1]}.md'
        text = path.read_text(encoding='utf-8').strip()
        return f'<!-- {found[1]} -->\n{text}\n<!-- /{found[1]} -->'

    pattern = r'<!-- (\w+/\w+) -->.*?<!-- /\1 -->'
    return re.sub(pattern, table, page.read_text(encoding='utf-8'), flags=re.DOTALL)


def pages() -> dict[Path, str]:
    "Path -> text of everything that is written here."
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    made = {ROOT / 'settings.ini': settings(project), ROOT / 'docs/methods.md': methods()}
    shown = (ROOT / f'docs/{name}.md' for name in ('icon_world', 'results'))
    return made | {page: with_tables(page) for page in shown}


def main() -> int:
    "Write the pages, or compare them; the exit code."
    if '--check' not in sys.argv[1:]:
        for path, text in pages().items():
            path.write_text(text, encoding='utf-8')
        return 0
    stale = [p for p, text in pages().items() if not p.exists() or p.read_text('utf-8') != text]
    for path in stale:
        print(f'{path.relative_to(ROOT)} is not what docs/make.py writes: run it')
    return int(bool(stale))


if __name__ == '__main__':
    sys.exit(main())
