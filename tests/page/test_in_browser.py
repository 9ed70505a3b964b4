"""The report page in a real browser: what it shows, its orders and filters, keys, links, blind
votes, and that nothing of a stranger runs in it."""

import base64
import json
import shlex
from collections import Counter
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from balanceddpo.cli import main
from balanceddpo.data.inspection import Inspection
from balanceddpo.data.pairs import PairReport, make_pair
from balanceddpo.data.sources import PairSource
from balanceddpo.evaluation.intervals import wilson
from balanceddpo.evaluation.result_images import image_list, write_image_list
from balanceddpo.evaluation.vote_files import read_votes
from balanceddpo.page.pairs import write_pairs_page
from balanceddpo.page.pictures import KeptPictures
from balanceddpo.page.writing import write_page
from made_pages import SCORERS, bare_page, beside, made_page, noise_png

EVIL = [
    '</script><script>window.ran = 1</script>',
    '<img src=x onerror="window.ran = 1">',
    '"><svg onload=window.ran=1>',
    "' onmouseover='window.ran=1",
    '{{ 7 * 7 }} &lt;b&gt; \u2028 \u202e backwards',
]
SETS = {
    'hpd': [f'a red kite over hill {n}' for n in range(12)],
    'mine': [f'two owls, night {n}' for n in range(8)],
}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "Two models, two sets, three images a prompt, three scorers."
    return made_page(tmp_path_factory.mktemp('made'), SETS)


def shown_prompts(page):
    "Prompts of the rows in the page, from the top."
    return page.locator('.row h3').all_text_contents()


def margins(made, scorer, prompt_set='hpd', take=np.max):
    "How far ours is ahead of base at each prompt, in s.d. of the images of base."
    base, ours = (made.grid(model, scorer, prompt_set) for model in ('base', 'ours'))
    return (take(ours, 1) - take(base, 1)) / base.std(ddof=1)


def choose(page, **choices):
    for name, value in choices.items():
        page.select_option(f'#{name}', value)


def test_the_top_says_what_was_compared_and_what_came_out(made, open_page):
    page = open_page(made.page)
    assert page.title() == 'base and ours'
    facts = page.locator('.facts').inner_text()
    assert '12 of HPD, 8 of mine' in facts
    assert '3 a prompt and model, 120 in all' in facts
    row = made.found.rates.iloc[0]
    told = page.locator('.forest tbody tr').nth(1).inner_text()
    assert told.startswith('HPS')
    rate, low, high = (f'{100 * x:.0f}' for x in (row.win_rate, row.low, row.high))
    assert f'{rate} % [{low}, {high}]' in told
    assert f'{row.gain:+.2f}'.replace('-', '\u2212') in told
    assert '360 scores, all finite' in page.locator('.checks').inner_text()


@pytest.mark.parametrize('scorer', SCORERS)
def test_the_best_image_by_the_chosen_scorer_is_marked(made, open_page, scorer):
    page = open_page(made.page)
    choose(page, scorer=scorer, set='hpd')
    for model in (0, 1):
        best = made.grid(('base', 'ours')[model], scorer, 'hpd').argmax(1)
        row = page.locator('.row').nth(1)
        marked = row.locator(f'.image.best[data-model="{model}"]')
        assert {int(m.get_attribute('data-k')) for m in marked.all()} == {best[1]}


def test_rows_are_sorted_by_margin_either_way_and_by_disagreement(made, open_page):
    page = open_page(made.page)
    choose(page, set='hpd', scorer='clip', sort='ahead')
    order = np.argsort(-margins(made, 'clip'), kind='stable')
    assert shown_prompts(page)[:3] == [SETS['hpd'][k] for k in order[:3]]
    choose(page, sort='behind')
    assert shown_prompts(page)[:3] == [SETS['hpd'][k] for k in order[::-1][:3]]
    choose(page, sort='split')
    each = np.stack([margins(made, k) for k in SCORERS])
    order = np.argsort(-np.minimum(each.max(0), -each.min(0)), kind='stable')
    assert shown_prompts(page)[:3] == [SETS['hpd'][k] for k in order[:3]]
    # the number in the row is the margin
    value = page.locator('.row').first.locator('.margins .value').nth(1).inner_text()
    expected = f'{each[1][order[0]]:+.2f}'.replace('-', '\u2212')
    assert value.split()[-1] == expected


def test_rows_are_found_by_set_and_by_words(made, open_page):
    page = open_page(made.page)
    assert page.inner_text('#count') == '20 prompts'
    choose(page, set='mine')
    assert page.inner_text('#count') == '8 of 20 prompts'
    page.fill('#find', 'NIGHT 3')
    assert shown_prompts(page) == ['two owls, night 3']
    page.fill('#find', 'kite')
    assert page.locator('#nothing').is_visible()
    assert page.locator('.row').count() == 0


def test_zoom_shows_scores_seed_and_the_command(made, open_page):
    page = open_page(made.page)
    page.keyboard.press('j')
    page.keyboard.press('ArrowRight')
    page.keyboard.press('ArrowRight')  # the second image of base
    page.keyboard.press('z')
    told = page.locator('#zoom').inner_text()
    assert 'base, image 2 of 3' in told
    score = made.grid('base', 'hps', 'hpd')[0, 1]
    assert f'{score:.3f}'.replace('-', '\u2212') in told
    store = made.drawn[0][2]
    assert str(store.index.seed[1]) in told
    words = shlex.split(page.locator('#zoom textarea').input_value())
    assert words == [
        *('balanceddpo', 'sample', '--model', 'base', '--prompt', SETS['hpd'][0]),
        *('--images-per-prompt', '2'),
    ]
    source = page.locator('#zoom figure > img').get_attribute('src')
    assert sha256(base64.b64decode(source.partition(',')[2])).hexdigest() == store.index.sha256[1]
    page.keyboard.press('ArrowDown')  # the same image of the other model
    assert 'ours, image 2 of 3' in page.locator('#zoom').inner_text()
    page.keyboard.press('Escape')
    assert not page.locator('#zoom').is_visible()
    assert page.locator('.row.here h3').inner_text() == SETS['hpd'][0]


def test_a_link_leads_to_its_row(made, open_page):
    page = open_page(made.page)
    choose(page, set='mine')
    page.fill('#find', 'night 7')
    link = page.locator('.row .link').get_attribute('href')
    again = open_page(made.page, link)
    row = again.locator('.row.here')
    assert row.locator('h3').inner_text() == 'two owls, night 7'
    box = row.bounding_box()
    assert 0 <= box['y'] < 900
    # within the page too, even if the row is filtered away
    again.fill('#find', 'kite')
    again.evaluate('location.hash = ""')
    again.evaluate('link => { location.hash = link }', link)
    again.wait_for_function('document.querySelector(".row.here h3")?.textContent.includes("owls")')


def test_keys_move_choose_and_explain(made, open_page):
    page = open_page(made.page)
    for _ in range(3):
        page.keyboard.press('j')
    page.keyboard.press('k')
    assert page.locator('.row.here h3').inner_text() == SETS['hpd'][1]
    page.keyboard.press('3')
    assert page.input_value('#scorer') == 'aesthetic'
    page.keyboard.press('s')
    assert page.input_value('#sort') == 'ahead'
    page.keyboard.press('/')
    page.keyboard.type('jkz?')  # is text there
    assert page.input_value('#find') == 'jkz?'
    page.keyboard.press('Escape')
    page.keyboard.press('?')
    assert 'vote blind' in page.locator('#keys').inner_text()


def vote(page, keys, seed='5', voter='anna'):
    "Cast blind votes by keys."
    page.click('#blind-open')
    page.fill('#voter', voter)
    page.fill('#seed', seed)
    page.click('#begin')
    for key in keys:
        page.keyboard.press(key)


def saved_file(page, folder):
    "Where the file of votes that the page saves lies."
    with page.expect_download() as download:
        page.click('#save-votes')
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def saved(page):
    "The file of votes that the page saves: its name and contents."
    with page.expect_download() as download:
        page.click('#save-votes')
    return download.value.suggested_filename, json.loads(download.value.path().read_text())


TEN = ['ArrowLeft', 'ArrowRight', 'ArrowDown', 'a', 'l', ' ', 'a', 'a', 'l', 'ArrowRight']
CHOICES = 'left right alike left right alike left left right right'.split()


def displayed(page):
    "The hashes of the two images of a ballot."
    sources = [i.get_attribute('src') for i in page.locator('.ballot .pair img').all()]
    return [sha256(base64.b64decode(s.partition(',')[2])).hexdigest() for s in sources]


def test_ten_blind_votes_are_cast_saved_and_kept(made, open_page):
    page = open_page(made.page)
    vote(page, [])
    seen, prompts = [], []
    for key in TEN:
        text = page.locator('#blind').inner_text()
        assert 'base' not in text
        assert 'ours' not in text
        seen.append(displayed(page))
        prompts.append(page.locator('.ballot .prompt').inner_text())
        page.keyboard.press(key)
    assert '10 of 20 votes' in page.locator('#blind').inner_text()
    name, file = saved(page)
    assert name == 'votes-anna.json'
    head = {k: file[k] for k in ('format', 'version', 'voter', 'seed', 'models')}
    assert head == {
        'format': 'balanceddpo votes',
        'version': 1,
        'voter': 'anna',
        'seed': 5,
        'models': ['base', 'ours'],
    }
    votes = file['votes']
    assert [v['choice'] for v in votes] == CHOICES
    assert [v['prompt'] for v in votes] == prompts
    # what was shown is what the file says, and that it is the image it names
    assert [[v[side]['sha256'] for side in ('left', 'right')] for v in votes] == seen
    index = {
        (model, prompt_set, row.prompt_id, row.image_index): row.sha256
        for model, prompt_set, store in made.drawn
        for row in store.index.itertuples()
    }
    for v in votes:
        for side in (v['left'], v['right']):
            key = side['model'], v['prompt_set'], v['prompt_id'], side['image_index']
            assert index[key] == side['sha256']
        assert v['left']['image_index'] == v['right']['image_index']
        assert {v['left']['model'], v['right']['model']} == {'base', 'ours'}
        assert v['seconds'] >= 0
    assert {v['left']['model'] for v in votes} == {'base', 'ours'}  # sides are shuffled
    assert len({v['prompt_id'] for v in votes}) == 10
    # after a reload they are there, and the next one is the eleventh
    page.reload()
    page.wait_for_selector('.row')
    assert page.inner_text('#blind-open') == 'Vote blind (10)'
    page.click('#blind-open')
    assert page.input_value('#voter') == 'anna'
    page.click('#begin')
    assert page.locator('.ballot .prompt').inner_text() not in prompts
    assert saved(page)[1]['votes'] == votes


def test_a_vote_is_taken_back_and_cast_again(made, open_page):
    page = open_page(made.page)
    vote(page, ['a', 'a'])
    second = page.evaluate('document.querySelector(".ballot").dataset.row')
    page.keyboard.press('l')
    page.keyboard.press('u')
    assert page.evaluate('document.querySelector(".ballot").dataset.row') == second
    page.keyboard.press(' ')
    page.focus('text=Undo (u)')
    page.keyboard.press(' ')  # presses the button, and is no vote
    page.click('#vote-alike')
    assert [v['choice'] for v in saved(page)[1]['votes']] == ['left', 'left', 'alike']


def test_a_seed_gives_its_order_and_sides_and_all_voters_judge_the_same_images(made, open_page):
    def votes(seed, voter):
        page = open_page(made.page)
        vote(page, ['a'] * 20, seed, voter)
        assert 'All 20 voted' in page.locator('#blind').inner_text()
        return [(v['prompt_id'], v['left']) for v in saved(page)[1]['votes']]

    def judged(found):
        return sorted((prompt, left['image_index']) for prompt, left in found)

    first = votes('5', 'anna')
    assert votes('5', 'bert') == first
    other = votes('6', 'anna')
    assert [prompt for prompt, _ in other] != [prompt for prompt, _ in first]
    sides = [dict((p, left['model']) for p, left in found) for found in (first, other)]
    assert sides[0] != sides[1]
    assert judged(other) == judged(first)
    assert len({number for _, number in judged(first)}) > 1


def test_only_the_rows_that_are_listed_are_voted_on_if_that_is_asked_for(made, open_page):
    page = open_page(made.page)
    choose(page, set='mine')
    page.click('#blind-open')
    page.fill('#voter', '../a b')
    choose(page, which='shown')
    page.click('#begin')
    assert '0 of 8 votes' in page.locator('#blind').inner_text()
    page.keyboard.press('a')
    name, file = saved(page)
    assert name == 'votes-.._a_b.json'
    assert file['voter'] == '../a b'
    assert file['votes'][0]['prompt_set'] == 'mine'


def test_nothing_of_a_stranger_runs(tmp_path, open_page):
    models = (EVIL[0], EVIL[1])
    made = made_page(tmp_path, {EVIL[2]: EVIL, 'b': EVIL[:2]}, models=models)
    page = open_page(made.page, viewport={'width': 1300, 'height': 4000})
    assert shown_prompts(page)[: len(EVIL)] == EVIL
    assert page.title() == f'{models[0]} and {models[1]}'
    page.locator('.image').first.hover()
    page.keyboard.press('j')
    page.keyboard.press('z')
    page.keyboard.press('Escape')
    vote(page, ['a', 'l'], voter=EVIL[1])
    assert saved(page)[1]['voter'] == EVIL[1][:60]
    page.wait_for_timeout(200)
    assert page.evaluate('window.ran') is None
    assert page.locator('img[src="x"], svg, body script:not([id]):not([type])').count() == 0


def test_a_command_survives_the_shell_and_hides_nothing(tmp_path, open_page):
    prompts = ['it\'s $HOME `id` "x" \\ !', 'plain', 'a\u202eb']
    made = made_page(tmp_path, {'p': prompts})
    page = open_page(made.page)
    found = []
    for row in range(3):
        page.locator('.row').nth(row).locator('.image').first.click()
        area = page.locator('#zoom textarea')
        found.append(shlex.split(area.input_value())[5] if area.count() else None)
        page.keyboard.press('Escape')
    assert found == [*prompts[:2], None]


def test_the_policy_stops_what_is_put_into_the_page(made, chromium):
    page = chromium.new_context().new_page()
    page.goto(f'file://{made.page}')
    page.evaluate(
        """() => {
            const script = document.createElement('script');
            script.textContent = 'window.ran = 1';
            document.body.append(script);
            document.body.insertAdjacentHTML('beforeend', '<b onclick="window.ran = 1">x</b>');
            document.body.lastElementChild.click();
        }"""
    )
    assert page.evaluate('window.ran') is None
    assert page.evaluate('fetch("http://127.0.0.1:9/").then(() => 1, (e) => String(e))') != 1
    blocked = page.evaluate(
        """() => new Promise((done) => {
            document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));
            new Image().src = 'http://127.0.0.1:9/x.png';
        })"""
    )
    assert blocked == 'img-src'
    page.context.close()


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_light_and_dark_follow_the_system_and_the_button(made, open_page, scheme):
    page = open_page(made.page, color_scheme=scheme)

    def brightness():
        colour = page.evaluate('getComputedStyle(document.body).backgroundColor')
        return sum(int(c) for c in colour.removeprefix('rgb(').rstrip(')').split(',')[:3]) / 3

    assert (brightness() > 128) == (scheme == 'light')
    page.click('#theme')  # light
    assert brightness() > 128
    page.keyboard.press('t')  # dark
    assert brightness() < 128
    page.reload()
    page.wait_for_selector('.row')
    assert brightness() < 128


@pytest.mark.parametrize('width', [1300, 420])
def test_nothing_is_wider_than_the_window_and_everything_has_a_name(made, open_page, width):
    page = open_page(made.page, viewport={'width': width, 'height': 900})
    assert page.evaluate('document.documentElement.scrollWidth') <= width
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('img, button, select, input')].filter((e) =>
            !(e.alt || e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length
              || e.querySelector('img')?.alt)).length"""
    )
    assert unnamed == 0
    # rows lie under each other
    boxes = [row.bounding_box() for row in page.locator('.row').all()]
    assert all(a['y'] + a['height'] <= b['y'] for a, b in zip(boxes, boxes[1:]))


def test_a_page_of_24_000_images_holds_only_what_is_near(tmp_path, open_page):
    prompts = [f'prompt {n}' for n in range(1600)]
    page, pictures = bare_page(prompts, models=3, per=5)
    path = write_page(page, beside(pictures, tmp_path / 'index_files'), tmp_path / 'index.html')
    shown = open_page(path)
    assert shown.inner_text('#count') == '1600 prompts'
    assert shown.locator('.row').count() < 12
    assert shown.locator('img').count() < 12 * 3 * 6
    shown.evaluate('window.scrollTo(0, document.body.scrollHeight)')
    shown.wait_for_function('document.body.textContent.includes("prompt 1599")')
    assert shown.locator('.row').count() < 12
    shown.wait_for_function(
        '[...document.querySelectorAll(".row img")].every((i) => i.complete && i.naturalWidth)'
    )
    shown.fill('#find', '1234')
    assert shown_prompts(shown) == ['prompt 1234']


def test_on_paper_the_first_rows_are_all_there(tmp_path, open_page):
    page, pictures = bare_page([f'prompt {n}' for n in range(40)])
    data = {sha[:16]: base64.b64encode(png).decode() for sha, png in pictures.items()}
    kept = KeptPictures(dict.fromkeys(data, 'png'), data)
    shown = open_page(write_page(page, kept, tmp_path / 'index.html'))
    assert shown.locator('.row').count() < 12
    shown.emulate_media(media='print')
    shown.evaluate('window.dispatchEvent(new Event("beforeprint"))')
    assert shown_prompts(shown) == [f'prompt {n}' for n in range(40)]
    boxes = [row.bounding_box() for row in shown.locator('.row').all()]
    assert all(a['y'] + a['height'] <= b['y'] for a, b in zip(boxes, boxes[1:]))
    assert not shown.locator('#controls').is_visible()


def test_eight_models_without_scores_have_a_column_each(tmp_path, open_page):
    page, pictures = bare_page(['a prompt'], models=8)
    kept = beside(pictures, tmp_path / 'index_files')
    shown = open_page(write_page(page, kept, tmp_path / 'index.html'))
    tops = {round(c.bounding_box()['y']) for c in shown.locator('.cell').all()}
    assert shown.locator('.cell').count() == 8
    assert len(tops) == 1


def test_images_that_are_not_true_are_marked_and_sorted_to_the_top(tmp_path, open_page):
    page, pictures = bare_page(['one', 'two', 'three'], per=2, truth='recognised')
    # of base, then of ours: one 1/2 and 2/2, two 2/2 and 0/2, three 2/2 and 1/2
    page.images['truth'] = [1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1]
    kept = beside(pictures, tmp_path / 'index_files')
    shown = open_page(write_page(page, kept, tmp_path / 'index.html'))
    false = shown.locator('.row').first.locator('.image.false')
    assert {(f.get_attribute('data-model'), f.get_attribute('data-k')) for f in false.all()} == {
        ('0', '1')
    }
    choose(shown, sort='truth')  # model 1 behind model 0
    assert shown_prompts(shown) == ['two', 'three', 'one']
    assert '0 of 2 true' in shown.locator('.row').first.inner_text()


def test_votes_that_are_saved_are_votes_that_are_read(made, tmp_path, open_page):
    page = open_page(made.page)
    vote(page, TEN)
    table = read_votes([saved_file(page, tmp_path)])
    assert len(table) == 10
    _, file = saved(page)
    choice = {'left': 1, 'right': -1, 'alike': 0}
    later = [
        choice[v['choice']] * (1 if v['left']['model'] == 'ours' else -1) for v in file['votes']
    ]
    assert table['vote'].tolist() == later


@pytest.fixture
def pairs(tmp_path):
    "A page of four pairs with the votes of three scorers, and the pairs."
    made = [
        make_pair(f'pair {n}', (noise_png(2 * n), noise_png(2 * n + 1)), label)
        for n, label in enumerate([1.0, 0.0, 0.5, None])
    ]
    source = PairSource('made up')
    found = Inspection(source, 'made up', 4, PairReport(), Counter(), Counter(), shown=made)
    ids = [pair.pair_id for pair in made]
    votes = {'hps': [1, 1, 1, -1], 'clip': [1, 1, -1, -1], 'aesthetic': [1, 1, 0, -1]}
    votes = pd.DataFrame(votes, index=ids)
    return write_pairs_page(found, tmp_path / 'pairs.html', votes), made


def test_a_pair_shows_its_label_and_the_votes_of_the_scorers(pairs, open_page):
    page = open_page(pairs[0], viewport={'width': 1300, 'height': 2500})
    titles = page.locator('.row .cell h4').all_text_contents()
    preferred = ['preferred' in title for title in titles]
    assert preferred == [True, False, False, True, False, False, False, False]
    assert ['tie' in title for title in titles][4:6] == [True, True]
    notes = page.locator('.row .note').all_text_contents()
    assert [note.split(' ')[0] for note in notes] == list('30301103')
    choose(page, sort='split')
    assert shown_prompts(page)[0] == 'pair 2'  # one for each, the others are of one mind
    choose(page, sort='label')
    assert shown_prompts(page)[0] == 'pair 1'  # all three contradict its label
    told = page.locator('.checks').inner_text()
    assert 'HPS agrees with the label on 1 of 2' in told.replace('\u00a0', ' ')


def test_votes_on_pairs_name_the_pair_and_its_images(pairs, tmp_path, open_page):
    path, made = pairs
    page = open_page(path)
    vote(page, ['a', 'l', ' '])
    _, file = saved(page)
    ids = {pair.pair_id: pair for pair in made}
    for v in file['votes']:
        pair = ids[v['pair_id']]
        assert v['prompt'] == pair.caption
        for side in ('left', 'right'):
            picture = pair.images[v[side]['image']]
            assert v[side]['sha256'] == sha256(picture).hexdigest()
        assert {v['left']['image'], v['right']['image']} == {0, 1}
    assert len(read_votes([saved_file(page, tmp_path)])) == 3


def test_ten_votes_of_the_browser_become_a_win_rate_and_preference_pairs(made, open_page, tmp_path):
    page = open_page(made.page)
    vote(page, TEN)
    _, file = saved(page)
    results, people, pairs = (tmp_path / name for name in ('results', 'people', 'pairs.parquet'))
    results.mkdir()
    (tmp_path / 'anna.json').write_text(json.dumps(file))
    made.scores.to_parquet(results / 'scores.parquet')
    write_image_list(image_list(made.drawn, results), results)
    words = ['votes', tmp_path / 'anna.json', '--results', results, '--out', people]
    assert main([*map(str, words), '--write-pairs', str(pairs)]) == 0
    won = [
        0.5 if v['choice'] == 'alike' else float(v[v['choice']]['model'] == 'ours')
        for v in file['votes']
    ]
    rates = pd.read_csv(people / 'human_win_rates.csv')
    whole = rates[rates.n == 10].iloc[0]
    assert (whole.model_a, whole.model_b) == ('ours', 'base')
    assert whole.win_rate == pytest.approx(np.mean(won))
    assert (whole.low, whole.high) == pytest.approx(wilson(sum(won), 10))
    # the pairs hold the very images that were shown, and who was preferred
    shown = {v['prompt']: v for v in file['votes']}
    found = list(PairSource(str(pairs)).read())
    assert len(found) == 10
    for pair in found:
        cast = shown[pair.caption]
        sides = [cast[side]['sha256'] for side in ('left', 'right')]
        hashes = [sha256(image).hexdigest() for image in pair.images]
        assert sorted(hashes) == sorted(sides)
        left = {'left': 1.0, 'alike': 0.5, 'right': 0.0}[cast['choice']]
        assert pair.label_0 == (left if hashes == sides else 1 - left)
