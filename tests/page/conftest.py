"""A real browser for the tests of the report page, where one is installed."""

import pytest

from made_pages import find_chromium


@pytest.fixture(scope='session')
def chromium():
    "Headless Chromium; the tests that need it are skipped where there is none."
    playwright = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
    path = find_chromium()
    if path is None:
        pytest.skip('no Chromium: install it, or name it in the variable CHROMIUM')
    with playwright.sync_playwright() as started:
        options = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage']
        browser = started.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Open a file: `open_page(path, **context)`. In the end nothing may have gone wrong in any of
    the pages, and nothing may have been asked of a network."""
    contexts, errors, asked = [], [], []

    def open_page(path, fragment='', **context):
        settings = {'viewport': {'width': 1300, 'height': 900}} | context
        contexts.append(chromium.new_context(accept_downloads=True, **settings))
        page = contexts[-1].new_page()
        page.set_default_timeout(20_000)
        page.on('pageerror', lambda error: errors.append(str(error)))
        page.on('console', lambda told: told.type == 'error' and errors.append(told.text))
        page.on('request', lambda request: asked.append(request.url))
        page.goto(f'file://{path}{fragment}')
        page.wait_for_selector('.row, #nothing:not([hidden])')
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert [url[:60] for url in asked if not url.startswith(('file:', 'data:', 'blob:'))] == []
