"""Runs the tutorials, each in an empty folder, and keeps their outputs.

python docs/run_tutorials.py               all of docs/tutorials
python docs/run_tutorials.py scorer ...    these
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = ROOT / 'docs/tutorials'
# what tqdm writes after a bar: [00:01<00:03, 1.30s/step] or [00:01, 5.2 pairs/s]
PASSING = re.compile(r'\[\d+:\d\d(?::\d\d)?(?:<[\d:?]+)?, ')
SECONDS = 300  # that a cell may take


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path`, run in an empty folder. Raises CellExecutionError if a cell or a
    command fails."""
    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        where = {'metadata': {'path': folder}}
        strict = ['--InteractiveShell.system_raise_on_error=True']
        nbclient.NotebookClient(
            book, timeout=SECONDS, resources=where, extra_arguments=strict
        ).execute()
    return book


def last_words(text: str) -> str:
    "The lines of a stream as a terminal shows them in the end, without bars of progress."
    lines = [line.rpartition('\r')[2] for line in text.replace('\r\n', '\n').split('\n')]
    kept = [line.rstrip() for line in lines if not PASSING.search(line)]
    return re.sub(r'\n{2,}', '\n', '\n'.join(kept)).lstrip('\n')


def is_widget(output: nbformat.NotebookNode) -> bool:
    "Whether an output is a bar of progress that nothing is left of once its kernel is gone."
    return 'application/vnd.jupyter.widget-view+json' in output.data


def tidied(book: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "A notebook without what differs from run to run, and with the outputs as they end."
    for cell in book.cells:
        cell.metadata = {'tags': cell.metadata.tags} if 'tags' in cell.metadata else {}
        if cell.cell_type != 'code':
            continue
        cell.execution_count = None
        # what a library warns of in passing goes to stderr, with places on this machine
        streams = [o.text for o in cell.outputs if o.get('name') == 'stdout']
        others = [o for o in cell.outputs if o.output_type != 'stream' and not is_widget(o)]
        text = last_words(''.join(streams))
        said = [nbformat.v4.new_output('stream', name='stdout', text=text)] if text else []
        cell.outputs = said + others
        for output in others:
            if 'execution_count' in output:
                output.execution_count = None
            if 'image/png' in output.data:
                output.data['text/plain'] = 'a picture'
    return book


def write(book: nbformat.NotebookNode, path: Path) -> None:
    "Write a notebook in nbdev's form."
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    plain = json.loads(nbformat.writes(book)) | {'metadata': {'kernelspec': kernel}}
    text = json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
    for name in sys.argv[1:] or sorted(p.stem for p in TUTORIALS.glob('*.ipynb')):
        place = TUTORIALS / f'{name}.ipynb'
        write(tidied(executed(place)), place)
