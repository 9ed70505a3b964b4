"""Lays out what the documentation site is built from: the pages and the notebooks of this
repository at the places that they have in it, so that their links hold, with what a reader does
not need left out; a page for each module; the gallery of results.

python docs/gather.py [FOLDER]             into build/site/source, for sphinx-build
python docs/gather.py --notebooks FOLDER   the notebooks as Colab opens them, into FOLDER

Badges for Colab and links to the source appear if the repository's address is known: OWNER/NAME in
the environment variable REPOSITORY, or the URL `Repository` in pyproject.toml.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import posixpath
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from balanceddpo.paper.repro_notebooks import notebooks as repro_notebooks
from balanceddpo.paper.repro_notebooks import title_of

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'docs/site'))

from docstrings import as_rst  # noqa: E402

PAGES = 'CONTRIBUTING.md CHANGELOG.md benchmarks/README.md docs/*.md docs/tutorials/*.md'.split()
# pages whose place another one takes
INSTEAD = {'README.md': 'index.md', 'paper_figures/icons/README.md': 'gallery.md'}
GALLERY = 'paper_figures/icons/'
LINK = re.compile(r'\]\(([^)\s]+)\)')
DIRECTIVE = re.compile(r'^#\|\s*(\S+).*\n?', re.M)
# nbdev takes it from notebooks, and without it nothing says that they are Python
KERNEL = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
METADATA = {
    'kernelspec': KERNEL,
    'language_info': {'name': 'python', 'pygments_lexer': 'ipython3'},
}
THUMBNAIL = 640  # pixels, the longer side
BRANCH = 'notebooks'  # where the workflow puts the notebooks that Colab opens


def repository() -> str:
    "OWNER/NAME of the repository, or '' if nothing says it."
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text(encoding='utf-8'))['project']
    url = project.get('urls', {}).get('Repository', '')
    return os.environ.get('REPOSITORY') or url.removeprefix('https://github.com/').rstrip('/')


# links


class Links:
    "Where the links of the pages lead, and which other files of the repository they ask for."

    def __init__(self, pages: set[str]):
        self.pages = pages
        self.files: dict[str, str] = {}  # place on the site -> place in the repository

    def rewritten(self, text: str, page: str) -> str:
        "The Markdown `text` of `page` with links that lead somewhere on the site."
        return LINK.sub(lambda found: f']({self.target(found[1], page)})', text)

    def target(self, link: str, page: str) -> str:
        "A link of `page`, as it is on the site. Raises ValueError if there is no such thing."
        place, hash_, anchor = link.partition('#')
        if not place or re.match(r'[a-z]+:', link):
            return link
        folder = posixpath.dirname(page)
        wanted = posixpath.normpath(posixpath.join(folder, place))
        return posixpath.relpath(self.on_site(wanted, page), folder or '.') + hash_ + anchor

    def on_site(self, wanted: str, page: str) -> str:
        "The page or file that stands on the site for a file or folder of the repository."
        if wanted in INSTEAD:
            return INSTEAD[wanted]
        if wanted in self.pages:
            return wanted
        if (ROOT / wanted).is_dir():
            found = [f'{wanted}/index.{end}' for end in ('ipynb', 'md')]
            return next((p for p in found if p in self.pages), 'gallery.md')
        if not (ROOT / wanted).is_file():
            raise ValueError(f'{page} has a link to {wanted}, which is not there')
        place = f'{wanted}.txt' if wanted.endswith('.md') else wanted  # a table, no page
        self.files[place] = wanted
        return place


# notebooks


def source(cell: dict) -> str:
    "The text of a cell."
    return ''.join(cell['source'])


def only_imports(code: str) -> bool:
    "Whether a cell does nothing but import."
    try:
        statements = ast.parse(code).body
    except SyntaxError:  # a cell of IPython's own words
        return False
    return all(isinstance(s, ast.Import | ast.ImportFrom) for s in statements)


def shown(cell: dict) -> dict | None:
    "A cell as a reader sees it: without directives, imports folded; None if it is not for readers."
    text = source(cell)
    if cell['cell_type'] != 'code':
        return cell
    code = DIRECTIVE.sub('', text).strip('\n')
    if 'hide' in DIRECTIVE.findall(text) or not code:
        return None
    tags = cell['metadata'].get('tags', [])
    if only_imports(code):
        tags = [*tags, 'hide-input']
    return cell | {'source': code, 'metadata': {'tags': tags}}


def module_of(path: str) -> str:
    "The module that a notebook is the source of, without the package's name; '' for none."
    found = re.search(r'#\|\s*default_exp ([\w.]+)', (ROOT / path).read_text(encoding='utf-8'))
    return found[1] if found else ''


def badge(path: str) -> str:
    "The badge that opens a notebook in Colab, if the address of the repository is known."
    if not repository():
        return ''
    url = f'https://colab.research.google.com/github/{repository()}/blob/{BRANCH}/{path}'
    return f'[Open in Colab]({url})'


def below_title(text: str, links: Iterable[str]) -> str:
    "Text that begins with a title, and perhaps a line on what it is about, with links below them."
    title = re.match(r'# .+(?:\n+(?:> .+\n?)+)?', text)[0].rstrip()
    return f'{title}\n\n{" | ".join(links)}\n{text[len(title) :]}'


def page_of_notebook(path: str, links: Links, modules: dict[str, list[str]]) -> str:
    "The notebook at `path` as a page of the site, as JSON."
    book = json.loads((ROOT / path).read_text(encoding='utf-8'))
    cells = [cell for cell in map(shown, book['cells']) if cell]
    for i, cell in enumerate(cells):
        if cell['cell_type'] == 'markdown':
            cells[i] = cell | {'source': links.rewritten(source(cell), path)}
    module = module_of(path)
    up = '../' * path.count('/')
    also = [badge(path)]
    if modules.get(module):
        also.append(f'Reference: [{module}]({up}reference/{module}.rst)')
    if any(also):
        cells[0] = cells[0] | {'source': below_title(source(cells[0]), filter(None, also))}
    return json.dumps(book | {'cells': cells, 'metadata': METADATA}, ensure_ascii=False)


def for_colab(path: str) -> str:
    "The notebook at `path` with a first cell that installs the package, as JSON."
    book = json.loads((ROOT / path).read_text(encoding='utf-8'))
    install = f'%pip install --quiet "balanceddpo[repro] @ git+https://github.com/{repository()}"'
    cell = {
        'cell_type': 'code',
        'id': 'install0',
        'metadata': {},
        'source': install,
        'outputs': [],
        'execution_count': None,
    }
    return json.dumps(book | {'cells': [cell, *book['cells']]}, ensure_ascii=False, indent=1)


# rooms and their modules


def rooms() -> dict[str, str]:
    "Room -> what is in it, in the order of the table in docs/architecture.md."
    text = (ROOT / 'docs/architecture.md').read_text(encoding='utf-8')
    return dict(re.findall(r'^\| `(\w+)` \| (.+) \|$', text, re.M))


@cache
def source_of(module: str) -> str:
    "The text of a module, named without the package."
    path = ROOT / 'balanceddpo' / module.replace('.', '/')
    path = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
    return path.read_text(encoding='utf-8')


@cache
def parsed(module: str) -> ast.Module:
    "The parsed text of a module."
    return ast.parse(source_of(module))


def public_names(module: str) -> list[str]:
    "`__all__` of a module, read without importing it."
    for node in parsed(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            return ast.literal_eval(node.value)
    return []


def public_modules() -> dict[str, list[str]]:
    "Module -> public names, of those that have any; a room that is imported as a whole is one."
    found = {}
    for room in rooms():
        folder = ROOT / 'balanceddpo' / room
        inside = [f'{room}.{p.stem}' for p in sorted(folder.glob('[!_]*.py'))]
        for module in [room, *inside]:
            if names := public_names(module):
                found[module] = names
    return found


def toctree(pages: list[str], hidden: bool = False) -> str:
    "A list of pages in MyST, each by its title; `hidden` where the page has its own list of them."
    options = [':titlesonly:', *[':hidden:'] * hidden]
    return '\n'.join(['```{toctree}', *options, '', *pages, '```', ''])


def summary(module: str) -> str:
    "The first line of what a module says of itself."
    return (ast.get_docstring(parsed(module)) or '').partition('\n\n')[0].replace('\n', ' ')


def constants(module: str) -> dict[str, str]:
    """Public constant of a module -> the comment beside or above it: autodoc shows functions and
    classes."""
    lines = source_of(module).splitlines()
    found = {}
    for node in parsed(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            for name in re.findall(r'\w+', ast.unparse(target)):
                if name in public_names(module):
                    found[name] = comment_at(lines, node.lineno - 1)
    return found


def comment_at(lines: list[str], at: int) -> str:
    "The comment at the end of a line, or in the lines above it."
    beside = re.search(r'  # (.+)$', lines[at])
    told = [beside[1]] if beside else []
    while lines[at - 1].startswith('# ') and not lines[at - 1].startswith('# %%'):
        at -= 1
        told.insert(0, lines[at].removeprefix('# '))
    return ' '.join(told)


def page_of_module(module: str, notebooks: dict[str, str]) -> str:
    "The reference page of a module, in reStructuredText."
    lines = [module, '=' * len(module), '', f'.. automodule:: balanceddpo.{module}']
    data = constants(module)
    if data:
        lines.append(f'   :exclude-members: {", ".join(data)}')
    for name, told in data.items():
        lines += ['', f'.. py:data:: {name}', f'   :module: balanceddpo.{module}', '']
        lines.append(f'   {as_rst(told)}')
    lines.append('')
    if module in notebooks:
        place = notebooks[module].removesuffix('.ipynb')
        lines += [f'How it works, with examples: :doc:`/{place}`.', '']
    return '\n'.join(lines)


def reference(modules: dict[str, list[str]], notebooks: dict[str, str]) -> dict[str, str]:
    "The pages of the reference: one a module, one a room, and the door."
    pages = {f'reference/{m}.rst': page_of_module(m, notebooks) for m in modules}
    within = {room: [m for m in modules if m.partition('.')[0] == room] for room in rooms()}
    for room, told in rooms().items():
        if [m for m in within[room] if m != room]:
            rows = '\n'.join(f'| [{m}]({m}.rst) | {summary(m)} |' for m in within[room])
            table = f'| module | |\n| --- | --- |\n{rows}\n'
            head = f'# {room}\n\n{told[0].upper()}{told[1:]}.\n\n'
            pages[f'reference/{room}_.md'] = head + table + toctree(within[room])
    listed = [f'{room}_' if f'reference/{room}_.md' in pages else room for room in within]
    listed = [page for page in listed if page.endswith('_') or page in modules]
    intro = (ROOT / 'docs/site/reference.md').read_text(encoding='utf-8')
    return pages | {'reference/index.md': intro + door() + toctree(listed)}


def door() -> str:
    "The table of the names that `import balanceddpo` offers."
    stub = ast.parse((ROOT / 'balanceddpo/__init__.pyi').read_text(encoding='utf-8'))
    names = [
        f'   ~balanceddpo.{node.module}.{alias.name}'
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return '\n'.join(
        ['```{eval-rst}', '.. autosummary::', '   :nosignatures:', '', *names, '```', '', '']
    )


def page_of_room(room: str, told: str, notebooks: list[str]) -> str:
    "The page of a room in the part about the method: its notebooks and what each is about."
    rows = []
    for path in notebooks:
        first = source(json.loads((ROOT / path).read_text(encoding='utf-8'))['cells'][0])
        title, about = re.match(r'# (.+)\n+> (.+(?:\n.+)*)', first).groups()
        rows.append(f'- [{title}]({Path(path).name}): {about}')
    pages = toctree([Path(path).stem for path in notebooks], hidden=True)
    text = '\n'.join(rows)
    return f'# {room}\n\n{told[0].upper()}{told[1:]}.\n\n{text}\n\n{pages}'


# results


def thumbnail(path: Path) -> bytes:
    "The picture at `path`, small, as PNG of few colours."
    with Image.open(path) as image:
        image = image.convert('RGB')
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        made = io.BytesIO()
        image.quantize(128).save(made, 'png', optimize=True)
    return made.getvalue()


def picture_of(name: str) -> Path | None:
    "The picture that shows a result: that of its own name, or the first."
    folder = ROOT / GALLERY / name
    return next(iter([*folder.glob(f'{name}.png'), *sorted(folder.glob('*.png'))]), None)


def card(name: str, notebook: Path) -> str:
    "The part of the gallery about one result: picture, finding, command, notebook."
    folder = ROOT / GALLERY / name
    note = json.loads((folder / 'provenance.json').read_text(encoding='utf-8'))
    finding = (folder / 'finding.txt').read_text(encoding='utf-8').strip()
    page = notebook.relative_to(ROOT).as_posix()
    lines = [f'({name})=', f'## {title_of(name, notebook)}', '']
    if picture_of(name):
        lines += [f'```{{image}} thumbnails/{name}.png', f':alt: {title_of(name, notebook)}']
        lines += [f':target: {posixpath.splitext(page)[0]}.html', ':class: result', '```', '']
    lines += [finding, '', f'`{note["command"]}` | [notebook]({page})', '']
    return '\n'.join(lines)


def gallery() -> dict[str, str | bytes]:
    "The gallery and its pictures."
    there = {
        name: path
        for name, path in repro_notebooks(ROOT / 'nbs/repro').items()
        if (ROOT / GALLERY / name / 'finding.txt').exists()
    }
    intro = (ROOT / 'docs/site/gallery.md').read_text(encoding='utf-8')
    pictures = {f'thumbnails/{n}.png': thumbnail(p) for n in there if (p := picture_of(n))}
    return pictures | {'gallery.md': intro + '\n'.join(card(*item) for item in there.items())}


def first_pictures() -> dict[str, bytes]:
    "The pictures of the first page: what three models draw for one prompt and seed, and the truth."
    kept = pq.read_table(ROOT / GALLERY / 'figure07/kept/samples.parquet')
    pictures = kept['pictures'][0].as_py()
    names = ('base', 'DiffusionDPO', 'BalancedDPO', 'true')
    return {f'first_pictures/{name}.png': data for name, data in zip(names, pictures, strict=True)}


# all of it


def notebook_paths() -> list[str]:
    "The notebooks of the repository, tutorials first."
    found = [*sorted((ROOT / 'docs/tutorials').glob('*.ipynb'))]
    found += sorted(p for p in (ROOT / 'nbs').rglob('*.ipynb') if '.ipynb_' not in p.as_posix())
    return [p.relative_to(ROOT).as_posix() for p in found if 'runs' not in p.parts]


def gathered() -> dict[str, str | bytes]:
    "Place -> content of everything that the site is built from."
    modules, paths = public_modules(), notebook_paths()
    sources = {module: p for p in paths if (module := module_of(p))}
    made: dict[str, str | bytes] = gallery() | first_pictures() | reference(modules, sources)
    for room, told in rooms().items():
        if inside := [p for p in paths if p.startswith(f'nbs/{room}/')]:
            made[f'nbs/{room}/index.md'] = page_of_room(room, told, inside)
    texts = {
        p.relative_to(ROOT).as_posix(): p.read_text(encoding='utf-8')
        for pattern in PAGES
        for p in sorted(ROOT.glob(pattern))
    }
    shown_rooms = [room for room in rooms() if f'nbs/{room}/index.md' in made]
    texts['index.md'] = first_page(shown_rooms)
    texts['docs/tutorials/index.md'] = with_tutorials(texts['docs/tutorials/index.md'])
    made['nbs/repro/index.md'] = page_of_studies(paths)
    texts['_cite.md'] = cite()
    links = Links({*made, *texts, *paths})
    made |= {page: links.rewritten(text, page) for page, text in texts.items()}
    made |= {path: page_of_notebook(path, links, modules) for path in paths}
    return made | {place: (ROOT / path).read_bytes() for place, path in links.files.items()}


def first_page(rooms_shown: list[str]) -> str:
    "docs/site/index.md with the rooms. Sphinx warns of a page of docs that it does not name."
    text = (ROOT / 'docs/site/index.md').read_text(encoding='utf-8')
    return text.replace('ROOMS', '\n'.join(f'nbs/{room}/index' for room in rooms_shown))


def with_tutorials(text: str) -> str:
    "The list of tutorials, with a list of pages in the same order."
    names = re.findall(r'\((\w+)\.ipynb\)', text)
    return text + '\n' + toctree(names, hidden=True)


def page_of_studies(paths: list[str]) -> str:
    "The list of the notebooks that reproduce the paper."
    names = [Path(path).stem for path in paths if path.startswith('nbs/repro/')]
    intro = (ROOT / 'docs/site/studies.md').read_text(encoding='utf-8')
    return intro + toctree(names)


def cite() -> str:
    "README's words on how to cite, which the first page ends with."
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    return text[text.index('## Cite') :]


def write(files: dict[str, str | bytes], folder: Path) -> None:
    "Make `folder` hold `files` and nothing else; what is unchanged keeps its time."
    for path in [p for p in folder.rglob('*') if p.is_file()]:
        if path.relative_to(folder).as_posix() not in files:
            path.unlink()
    for name, content in files.items():
        path, data = folder / name, content if isinstance(content, bytes) else content.encode()
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)


def main() -> int:
    "Lay out the site, or the notebooks for Colab; the exit code."
    parser = argparse.ArgumentParser(description='Lay out what the documentation is built from.')
    parser.add_argument('out', type=Path, nargs='?', default=ROOT / 'build/site/source')
    parser.add_argument('--notebooks', type=Path, metavar='FOLDER')
    args = parser.parse_args()
    folder = args.notebooks
    if folder is None:
        write(gathered(), args.out)
    elif not repository():
        print('the address is not known: set REPOSITORY to OWNER/NAME', file=sys.stderr)
        return 2
    else:
        shutil.rmtree(folder, ignore_errors=True)
        write({path: for_colab(path) for path in notebook_paths()}, folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
