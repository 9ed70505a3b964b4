"""An installed package in miniature: a module, and the metadata that an installer leaves."""

import importlib
import sys


def install(root, monkeypatch, code, name='my-plugins', version='1.0', **groups):
    """Put a package on the path for the time of a test; its module is called `name` with `_`.
    `groups`: group of entry points -> {name: object in the module}."""
    module = name.replace('-', '_')
    root.mkdir(parents=True, exist_ok=True)
    (root / f'{module}.py').write_text(code)
    folder = root / f'{module}-{version}.dist-info'
    folder.mkdir()
    (folder / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
    lines = []
    for group, offered in groups.items():
        lines.append(f'[balanceddpo.{group}]')
        lines += [f'{key} = {module}:{thing}' for key, thing in offered.items()]
    (folder / 'entry_points.txt').write_text('\n'.join(lines) + '\n')
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setattr(sys, 'path', [str(root), *sys.path])
    importlib.invalidate_caches()
    return module
