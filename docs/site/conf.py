"""How Sphinx builds the site from what docs/gather.py lays out: `make docs`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from gather import repository  # noqa: E402

import balanceddpo  # noqa: E402

project = 'balanceddpo'
author = 'The balanceddpo authors'
project_copyright = f'2026 onwards, {author}'
version = release = balanceddpo.__version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.autosummary',
    'sphinx_design',
    'sphinx_copybutton',
    'docstrings',
    'mathml',
]
smartquotes = False
exclude_patterns = ['paper_figures', '_cite.md']

# notebooks are shown with the outputs that they were kept with; tests run them
nb_execution_mode = 'off'
nb_merge_streams = True
suppress_warnings = ['misc.highlighting_failure']  # a `!command` that has a second line
nb_code_prompt_show = nb_code_prompt_hide = 'Imports'
myst_enable_extensions = ['colon_fence', 'dollarmath']
myst_heading_anchors = 3
copybutton_exclude = '.linenos, .gp, .go'

autosummary_generate = False
autodoc_default_options = {'members': True, 'undoc-members': True, 'no-value': True}
autodoc_member_order = 'bysource'
autodoc_typehints_format = 'short'
autodoc_type_aliases = {'ArrayLike': 'ArrayLike'}  # else all that may become an array
autodoc_class_signature = 'mixed'
python_maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = 'hide'

html_theme = 'sphinx_book_theme'
html_title = 'balanceddpo'
html_static_path = ['_static']
html_css_files = ['site.css']
html_math_renderer = 'mathml'
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    'use_download_button': False,
    'use_fullscreen_button': False,
    'home_page_in_toc': False,
    'collapse_navbar': True,
    'show_navbar_depth': 1,
    'navigation_with_keys': False,
    'navbar_persistent': [],  # the search field is in the list of pages
}
if repository():
    html_theme_options |= {
        'repository_url': f'https://github.com/{repository()}',
        'use_repository_button': True,
    }
