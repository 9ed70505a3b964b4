"""The documentation site: it is built without a warning, and what it promises is there."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import yaml
from sphinx.util.inventory import InventoryFile

pytestmark = pytest.mark.xdist_group('site')  # so that it is built once
ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ('nbs', 'docs/tutorials')
    for path in (ROOT / folder).rglob('*.ipynb')
    if not {'.ipynb_checkpoints', 'runs'} & {*path.parts}
)


def load(path):
    "A module of docs, which is no package."
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def gather():
    return load('docs/gather.py')


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of the built site. A warning of Sphinx is an error."
    folder = tmp_path_factory.mktemp('site')
    env = {k: v for k, v in os.environ.items() if k != 'REPOSITORY'}
    gathering = [sys.executable, 'docs/gather.py', folder / 'source']
    building = [sys.executable, '-m', 'sphinx', '-c', 'docs/site', '-d', folder / 'doctrees']
    building += ['-q', '-j', '2', '-W', '--keep-going', folder / 'source', folder / 'html']
    for command in (gathering, building):
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / 'html'


class Page(HTMLParser):
    "The links, the ids and the code cells of a page."

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.ids, self.cells = [], [], set(), []
        self.depth_of_cell = self.depth = 0
        self.in_code = False
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[k] for k in ('id', 'name') if attrs.get(k)}
        if tag == 'a' and 'href' in attrs:
            self.links.append(attrs['href'])
        elif tag in ('img', 'script', 'link', 'iframe') and (attrs.get('src') or attrs.get('href')):
            self.loaded.append(attrs.get('src') or attrs.get('href'))
        if tag == 'div':
            self.depth += 1
            if 'cell_input' in attrs.get('class', '').split():
                self.depth_of_cell = self.depth
                self.cells.append('')
        self.in_code = self.in_code or (tag == 'pre' and bool(self.depth_of_cell))

    def handle_endtag(self, tag):
        if tag == 'div':
            self.depth -= 1
            if self.depth < self.depth_of_cell:
                self.depth_of_cell = 0
        if tag == 'pre':
            self.in_code = False

    def handle_data(self, data):
        if self.in_code:
            self.cells[-1] += data


@cache
def page(path):
    "The page at `path`, read once."
    return Page(path)


def page_of(site, notebook):
    return site / Path(notebook).with_suffix('.html')


def test_every_public_name_of_every_room_is_in_the_reference(site):
    inventory = InventoryFile.loads((site / 'objects.inv').read_bytes(), uri='').data
    listed = {name for kind, names in inventory.items() if kind[:3] == 'py:' for name in names}
    files = (ROOT / 'balanceddpo').rglob('*.py')
    modules = ['.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in files]
    rooms = {m.removesuffix('.__init__') for m in modules} - {'balanceddpo', 'balanceddpo._modidx'}
    public = {f'{m}.{n}' for m in rooms for n in getattr(importlib.import_module(m), '__all__', [])}
    assert len(public) > 300
    assert public - listed == set()


@pytest.mark.parametrize('notebook', NOTEBOOKS)
def test_a_notebook_has_a_page_with_the_cells_that_are_for_readers(site, notebook):
    book = json.loads((ROOT / notebook).read_text(encoding='utf-8'))
    expected = []
    for cell in book['cells']:
        lines = ''.join(cell['source']).splitlines()
        code = [line for line in lines if not line.startswith('#|')]
        hidden = any(re.match(r'#\|\s*hide\b', line) for line in lines)
        if cell['cell_type'] == 'code' and not hidden and any(code):
            expected.append('\n'.join(code).strip())
    assert [cell.strip() for cell in page(page_of(site, notebook)).cells] == expected


def pages_of(site):
    "The pages, without the theme's templates."
    return [p for p in site.rglob('*.html') if '_static' not in p.parts]


def leads_somewhere(link, path):
    "Whether a link on the page at `path` has a file, and its anchor a place there."
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not parts.fragment or target.suffix != '.html':
        return target.is_file()
    return target.is_file() and unquote(parts.fragment) in page(target).ids


def test_every_link_leads_somewhere(site):
    lost = [
        f'{path.relative_to(site)}: {link}'
        for path in pages_of(site)
        for link in page(path).links + page(path).loaded
        if not leads_somewhere(link, path)
    ]
    assert lost == []


def test_nothing_is_loaded_from_another_machine(site):
    far = [link for p in pages_of(site) for link in page(p).loaded if '//' in link]
    assert far == []
    assert not re.search(r'@import|url\(.?(https?:)?//', (site / '_static/site.css').read_text())


def test_the_search_finds_pages_and_names(site):
    text = (site / 'searchindex.js').read_text(encoding='utf-8')
    index = json.loads(re.fullmatch(r'Search\.setIndex\((.*)\)', text, re.S)[1])
    names = {Path(name).with_suffix('').as_posix() for name in index['docnames']}
    assert {Path(n).with_suffix('').as_posix() for n in NOTEBOOKS} <= names
    places = [index[kind].get('borda', []) for kind in ('terms', 'titleterms')]
    numbers = [n for p in places for n in ([p] if isinstance(p, int) else p)]
    assert 'nbs/voting/06_elections' in {index['docnames'][n] for n in numbers}


def test_the_formulas_are_mathml(site):
    html = page_of(site, 'nbs/voting/02_votes.ipynb').read_text(encoding='utf-8')
    assert '<mo>&#x02211;</mo>' in html  # the sum of Eq. 7
    assert '$$' not in html


def test_the_gallery_has_every_finding(site):
    html = (site / 'gallery.html').read_text(encoding='utf-8')
    shown = re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', '', html))
    kept = sorted((ROOT / 'paper_figures/icons').glob('*/finding.txt'))
    assert len(kept) > 20
    for finding in kept:
        first = finding.read_text(encoding='utf-8').split()[:8]
        assert ' '.join(first).replace('&', '&amp;') in shown, finding.parent.name


def test_the_first_page_says_what_was_measured():
    text = ' '.join((ROOT / 'docs/site/index.md').read_text(encoding='utf-8').split())
    folder = ROOT / 'paper_figures/icons/figure07'
    counts = pd.read_csv(folder / 'figure07.csv', index_col=0).loc['BalancedDPO vs base']
    ours, theirs, both, neither = counts
    assert f'in {ours} of {ours + theirs + both + neither} images' in text
    assert f'the other way round in {theirs}' in text
    told = json.loads((folder / 'kept/samples.json').read_text(encoding='utf-8'))['values']['texts']
    assert told['columns'] == ['base', 'DiffusionDPO', 'BalancedDPO']
    assert f'"{told["rows"][0]}"' in text


# the parts


def test_a_docstring_is_shown_as_it_is_written():
    docstrings = load('docs/site/docstrings.py')
    assert docstrings.as_rst('n_ of *two* `[n, K]`s') == r'n\_ of \*two\* \ ``[n, K]``\ s'
    assert docstrings.as_rst('`votes` here') == r'\ :py:obj:`votes`\  here'


def test_the_fields_of_a_class_have_their_comments():
    from balanceddpo.recipes.config import AlignConfig
    from balanceddpo.voting.config import LabelConfig

    def lines_of(cls):
        lines = ['What it is for.']
        load('docs/site/docstrings.py').read_docstring(None, 'class', '', cls, None, lines)
        return '\n'.join(lines)

    told = lines_of(LabelConfig)
    assert '``scorer``\n   the scorer of methods single and smoothed\n' in told  # beside it
    assert '``ties``\n   what a tied vote, or a human tie, becomes\n' in told  # above it
    assert '``validation_limit``\n   only the first prompts\n' in lines_of(AlignConfig)  # inherited


def test_a_link_to_what_is_not_there_is_refused(gather):
    links = gather.Links({'docs/results.md', 'nbs/core/index.md'})
    assert links.rewritten('[a](../results.md#x)', 'docs/more/page.md') == '[a](../results.md#x)'
    assert links.rewritten('[a](../nbs/core)', 'docs/page.md') == '[a](../nbs/core/index.md)'
    assert links.rewritten('[a](../README.md)', 'docs/page.md') == '[a](../index.md)'
    assert links.rewritten('[a](https://example.org)', 'docs/page.md') == '[a](https://example.org)'
    assert links.rewritten('[a](../LICENSE)', 'docs/page.md') == '[a](../LICENSE)'
    assert links.files == {'LICENSE': 'LICENSE'}
    with pytest.raises(ValueError, match='docs/page.md has a link to docs/gone.md'):
        links.rewritten('[a](gone.md)', 'docs/page.md')


def test_badges_and_installation_know_the_repository(gather, monkeypatch, tmp_path):
    path = 'nbs/voting/02_votes.ipynb'
    monkeypatch.delenv('REPOSITORY', raising=False)
    monkeypatch.setattr(gather.tomllib, 'loads', lambda text: {'project': {}})
    assert gather.badge(path) == ''
    monkeypatch.setenv('REPOSITORY', 'anna/votes')
    assert f'/github/anna/votes/blob/notebooks/{path})' in gather.badge(path)
    book = json.loads(gather.for_colab(path))
    installed, *rest = book['cells']
    assert installed['source'].startswith('%pip install ')
    assert 'github.com/anna/votes' in installed['source']
    assert rest == json.loads((ROOT / path).read_text(encoding='utf-8'))['cells']


def test_the_links_of_a_notebook_stand_below_its_title(gather):
    assert gather.below_title('# A\n> b\n> c\n\nd', ['x', 'y']) == '# A\n> b\n> c\n\nx | y\n\n\nd'
    assert gather.below_title('# A\n\n> b\n\n## C', ['x']) == '# A\n\n> b\n\nx\n\n\n## C'
    assert gather.below_title('# A', ['x']) == '# A\n\nx\n'


def test_what_is_unchanged_is_not_written_again(gather, tmp_path):
    gather.write({'a.md': 'one', 'b/c.md': 'two'}, tmp_path)
    before = (tmp_path / 'a.md').stat().st_mtime_ns
    gather.write({'a.md': 'one', 'd.md': b'three'}, tmp_path)
    assert (tmp_path / 'a.md').stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.rglob('*') if p.is_file()) == ['a.md', 'd.md']


def test_the_workflows_need_no_secret_and_call_what_is_there():
    targets = set(re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.M))
    for path in sorted((ROOT / '.github/workflows').iterdir()):
        text = path.read_text(encoding='utf-8')
        assert 'secrets' not in text
        assert yaml.safe_load(text)['jobs']
        assert set(re.findall(r'run: make (\w+)', text)) <= targets
        for script in re.findall(r'python (\S+\.py)', text):
            assert (ROOT / script).is_file()
