"""All that pyproject.toml cannot say: the notebooks of the wheel have no outputs.

They are run by `balanceddpo reproduce`, which makes the outputs anew; with them they are 12 MB."""

import json
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def without_outputs(text: str) -> str:
    "The JSON of a notebook whose code cells have not been run."
    notebook = json.loads(text)
    for cell in notebook['cells']:
        if cell['cell_type'] == 'code':
            cell.update(outputs=[], execution_count=None)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + '\n'


class BuildWithoutOutputs(build_py):
    "Copies the package, and strips the copies of the notebooks."

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # nothing was copied: the notebooks are those of the repository
            return
        for path in Path(self.build_lib).rglob('*.ipynb'):
            path.write_text(without_outputs(path.read_text(encoding='utf-8')), encoding='utf-8')


setup(cmdclass={'build_py': BuildWithoutOutputs})
