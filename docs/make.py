"""Writes the files that only repeat what stands elsewhere: settings.ini, from pyproject.toml.

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


def pages() -> dict[Path, str]:
    "Path -> text of everything that is written here."
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))
    return {ROOT / 'settings.ini': settings(project)}


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
