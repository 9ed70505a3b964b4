"""A Sphinx extension that writes formulas as MathML, which browsers draw themselves: no script, and
nothing fetched from another machine."""

from __future__ import annotations

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def mathml(node: nodes.Element, as_block: bool) -> str:
    "The formula of a node. A command of LaTeX that is not known is a warning."
    text = node.astext()
    if as_block and '\\\\' in text and '\\begin' not in text:
        text = rf'\begin{{aligned}}{text}\end{{aligned}}'
    made = convert(text, display='block' if as_block else 'inline')
    if '\\' in made:
        logger.warning('a command of LaTeX is not known: %s', text, location=node)
    return made


def visit_math(self, node: nodes.math) -> None:
    "A formula in a line."
    self.body.append(mathml(node, as_block=False))
    raise nodes.SkipNode


def visit_math_block(self, node: nodes.math_block) -> None:
    "A formula of its own."
    self.body.append(f'<div class="formula">{mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    "Called by Sphinx."
    app.add_html_math_renderer('mathml', (visit_math, None), (visit_math_block, None))
    return {'parallel_read_safe': True}
