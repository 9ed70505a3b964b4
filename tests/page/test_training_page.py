"""The page of a run: what its files hold, seen by a browser as a person would; and nothing that a
prompt holds is more than text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from watchers import watching

from balanceddpo.page.training_page import (
    About,
    TrainingPage,
    charts_of,
    columns_of,
    drawn,
    render,
    write_training_page,
)
from short_runs import go

HOSTILE = '<img src=x onerror=alert(1)> "fox" </title><script>alert(2)</script> {{ 7 * 7 }} &amp;'
ABOUT = About('Diffusion-DPO on tiny', steps=40, step=20, state='running', is_running=True)


def validation_row(step, gains, best=False):
    near = {name: [gain - 0.1, gain + 0.1] for name, gain in gains.items()}
    mean = sum(gains.values()) / len(gains)
    row = dict(step=step, gain=gains, gain_interval=near, mean=mean, worst=min(gains.values()))
    distances = dict(distance_to_base=0.01 * step, distance=0.01)
    return row | distances | dict(mean_interval=[mean - 0.1, mean + 0.1], best=best, seconds=1.5)


def metrics_row(step, **more):
    loss = None if step == 7 else 0.7 - 0.01 * step  # a step that was skipped
    row = dict(step=step, loss=loss, implicit_accuracy=0.5 + 0.01 * step, distance=0.001 * step)
    return row | dict(refreshed=step % 10 == 0) | more


def lines_of(rows):
    return ''.join(json.dumps(row) + '\n' for row in rows)


VALIDATIONS = [
    validation_row(10, {'hps': 0.25, 'clip': -0.5}),
    validation_row(20, {'hps': 0.75, 'clip': 0.125}, best=True),
]


@pytest.fixture
def folder(tmp_path):
    "A run's folder by hand: twenty steps, two refreshes, two validations of two prompts."
    (tmp_path / 'metrics.jsonl').write_text(
        lines_of(metrics_row(step) for step in range(1, 21)) + '{"step": 21, "lo'
    )
    (tmp_path / 'validation.jsonl').write_text(lines_of(VALIDATIONS))
    inputs = dict(prompts=['a red fox', HOSTILE], name='mine', images_per_prompt=1)
    drawing = dict(steps=15, scheduler='ddim', guidance=3.0, seed=0)
    (tmp_path / 'validation').mkdir()
    (tmp_path / 'validation' / 'inputs.json').write_text(json.dumps(inputs | drawing))
    for k, name in enumerate(('base', 'step_000010', 'step_000020')):
        (tmp_path / 'validation' / name).mkdir()
        for n in range(2):
            size = (32, 32) if n == 0 else (300, 200)
            place = tmp_path / 'validation' / name / f'{n:03d}-0.png'
            Image.new('RGB', size, (80 * k, 40, 90 * n)).save(place)
    return tmp_path


class Elements(HTMLParser):
    "The elements of a page, each (tag, attributes, its text)."

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ''])
        self.open.append(self.found[-1])

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def all(self, tag):
        return [(attrs, ' '.join(text.split())) for name, attrs, text in self.found if name == tag]


def test_what_the_files_hold_is_on_the_page(folder):
    page = Elements(render(folder, ABOUT))
    curves = [attrs['data-name'] for attrs, _ in page.all('g') if 'data-name' in attrs]
    gains, distances = ['hps', 'clip', 'mean'], ['base', 'reference']
    assert curves == [*gains, *distances, 'loss', 'accuracy']
    # two refreshes, marked in each of four charts
    marks = [attrs for attrs, _ in page.all('g') if attrs.get('class') == 'mark']
    assert len(marks) == 8
    table = [text for _, text in page.all('tr')][-2:]
    assert table[0].startswith('20 best +0.44 [+0.34, +0.54] +0.12 +0.75 [+0.65, +0.85]')
    assert table[1].startswith('10 -0.12 [-0.23, -0.02] -0.50')
    places = [attrs['href'] for attrs, _ in page.all('a')]
    steps = ('base', 'step_000010', 'step_000020')
    assert places == [f'validation/{s}/{n:03d}-0.png' for n in range(2) for s in steps]
    assert all((folder / place).is_file() for place in places)
    images = [attrs['src'] for attrs, _ in page.all('img')]
    # a small picture as it is, a large one as a thumbnail
    assert [src.split(';')[0] for src in images] == ['data:image/png'] * 3 + ['data:image/webp'] * 3


def test_what_a_prompt_holds_is_text(folder):
    text = render(folder, ABOUT)
    page = Elements(text)
    assert not page.all('script')
    assert {attrs['src'][:11] for attrs, _ in page.all('img')} == {'data:image/'}
    assert not [name for _, attrs, _ in page.found for name in attrs if name.startswith('on')]
    (told,) = [t for attrs, t in page.all('th') if 'fox"' in t]
    assert told == HOSTILE
    (policy,) = [a['content'] for a, _ in page.all('meta') if 'Policy' in a.get('http-equiv', '')]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert 'unsafe' not in policy
    assert not re.findall(r'https?://', text)


def test_it_loads_itself_again_while_the_run_goes_on(folder):
    def reloads(what):
        metas = Elements(render(folder, what)).all('meta')
        return [attrs for attrs, _ in metas if attrs.get('http-equiv') == 'refresh']

    assert [attrs['content'] for attrs in reloads(ABOUT)] == ['20']
    assert reloads(replace(ABOUT, is_running=False, state='finished')) == []


def test_a_curve_goes_through_its_values():
    metrics = [metrics_row(step) for step in range(1, 21)]
    gain, *_ = (drawn(chart, 40, []) for chart in charts_of(metrics, VALIDATIONS))
    (left, top, right, bottom), clip = gain['frame'], gain['curves'][1]
    ends = [tuple(map(float, point.split(','))) for point in clip['line'].split()]
    assert [x for x, _ in ends] == [round(left + (right - left) * s / 40, 1) for s in (10, 20)]
    # a straight axis: the zero line lies where 0 is between -0.5 and 0.125
    (_, low), (_, high) = ends
    zero = low + (high - low) * 0.5 / 0.625
    assert gain['level'] == pytest.approx(zero, abs=0.2)
    assert top < high < zero < low < bottom
    # told apart by more than colour
    dashes = [curve['dash'] for curve in gain['curves']]
    shapes = [re.sub(r'[\d. -]+', ' ', curve['points'][0]) for curve in gain['curves']]
    assert len({*zip(dashes, shapes)}) == len(dashes)


def test_many_validations_keep_the_best_and_the_last():
    rows = [{'step': k, 'best': k in (1, 8)} for k in range(1, 101)]
    steps = [row['step'] for row in columns_of(rows)]
    assert len(steps) == 10
    assert {1, 8, 100} < {*steps}
    assert steps == sorted(steps)


def test_a_page_is_there_from_the_first_step_and_ends_with_the_run(made, tmp_path):
    seen = []

    class Watched(TrainingPage):
        def _write(self, run, *state, **more):
            super()._write(run, *state, **more)
            seen.append((run.step, (run.out / 'index.html').read_text()))

    callbacks = [watching(validate_every=2), Watched()]
    go(made(), tmp_path, max_steps=4, callbacks=callbacks, refresh_every=2)
    first, last = Elements(seen[0][1]), Elements(seen[-1][1])
    assert seen[0][0] == 0
    assert len(first.all('img')) == 3
    assert len(last.all('img')) == 9
    assert 'finished' in [text for _, text in last.all('strong')]
    assert [a['max'] for a, _ in last.all('progress')] == ['4']
    # weights that fail: the page says that nobody is at it
    with pytest.raises(Exception, match='mine'):
        go(made(), tmp_path, max_steps=6, callbacks=[*callbacks, FailsAtOnce()], refresh_every=2)
    assert 'interrupted' in (tmp_path / 'index.html').read_text()


class FailsAtOnce(TrainingPage):
    def on_step(self, run, row):
        raise ValueError('mine')


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_a_browser_shows_it_without_a_fault_or_a_request(folder, chromium, scheme):
    path = write_training_page(folder, replace(ABOUT, is_running=False))
    page = chromium.new_page(color_scheme=scheme, viewport={'width': 1000, 'height': 800})
    faults, asked = [], []
    page.on('console', lambda message: faults.append(message.text))
    page.on('dialog', lambda dialog: faults.append(dialog.message))
    page.on('request', lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_function('[...document.images].every(image => image.complete)')
    assert faults == []
    assert [url for url in asked if not url.startswith('data:')] == [path.as_uri()]
    assert page.evaluate('[...document.images].every(image => image.naturalWidth > 0)')
    # nothing is wider than the window, and the pictures stand side by side
    assert page.evaluate('document.documentElement.scrollWidth') <= 1000
    boxes = [image.bounding_box() for image in page.locator('tbody tr').first.locator('img').all()]
    assert len({box['y'] for box in boxes}) == 1
    assert [box['x'] for box in boxes] == sorted(box['x'] for box in boxes)
    back, ink = page.evaluate(
        '[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]'
    )
    light = [np.mean([int(n) for n in re.findall(r'\d+', colour)[:3]]) for colour in (back, ink)]
    assert (light[0] > light[1]) == (scheme == 'light')
    assert abs(light[0] - light[1]) > 150
    # names of curves do not lie on each other
    names = [name.bounding_box() for name in page.locator('figure').first.locator('.name').all()]
    places = sorted(name['y'] for name in names)
    assert all(b - a >= 8 for a, b in zip(places, places[1:]))
    page.locator('a').first.click()
    page.wait_for_load_state()
    assert page.url.endswith('validation/base/000-0.png')
    page.close()
