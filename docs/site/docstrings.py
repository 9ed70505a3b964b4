"""A Sphinx extension for this package's docstrings, which are plain text with words in backticks.

Autodoc takes a docstring for reStructuredText, where `x` is no code, `*args` begins an emphasis
and name_ is a link. Here everything but the backticks is taken as it stands, and a word in
backticks that is a name is a link if the reference knows it. The comments beside the fields of a
dataclass, which the command line shows as help, become their descriptions.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import TYPE_CHECKING

from balanceddpo.command.options import option_comments

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PARTS = (property, classmethod, staticmethod, functools.cached_property)
NAME = re.compile(r'[A-Za-z_][\w.]*')


def as_rst(text: str) -> str:
    "Plain text with words in backticks, as reStructuredText that shows the same."
    parts = re.split(r'`([^`]*)`', text)
    parts[::2] = [re.sub(r'([\\*_|`<>])', r'\\\1', plain) for plain in parts[::2]]
    parts[1::2] = [code(words) for words in parts[1::2]]
    return ''.join(parts)


def code(words: str) -> str:
    "Words as code; a name also as a link."
    words = words.replace('\n', ' ')
    if NAME.fullmatch(words):
        return rf'\ :py:obj:`{words}`\ '
    return rf'\ ``{words}``\ ' if words.strip() == words and words else words


def read_docstring(app: Sphinx, what: str, name: str, obj, options, lines: list[str]) -> None:
    "Turn a docstring, and of a class the comments of its fields, into reStructuredText."
    lines[:] = as_rst('\n'.join(lines)).splitlines()
    if inspect.isclass(obj):
        for field, told in option_comments(obj).items():
            lines += ['', f'``{field}``', f'   {as_rst(told)}']
        lines.append('')


def without_fields(app: Sphinx, what: str, name: str, obj, skip: bool, options) -> bool | None:
    "Leave out the fields of a class: its signature and its docstring have them."
    is_field = what == 'class' and not (callable(obj) or isinstance(obj, PARTS))
    return True if is_field else None


def short_types(app: Sphinx, what: str, name: str, obj, options, arguments: str, returns: str):
    "A signature in which a type that has a name here is called by it."
    alias = r"TypeAliasForwardRef\('(\w+)'\)"
    return tuple(text and re.sub(alias, r'\1', text) for text in (arguments, returns))


def setup(app: Sphinx) -> dict:
    "Called by Sphinx."
    app.connect('autodoc-process-docstring', read_docstring)
    app.connect('autodoc-process-signature', short_types)
    app.connect('autodoc-skip-member', without_fields)
    return {'parallel_read_safe': True}
