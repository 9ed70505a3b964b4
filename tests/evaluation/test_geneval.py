"GenEval's rules worked by hand on made-up detections, and the results of its evaluator."

import hashlib
import itertools
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from balanceddpo.core.errors import InputError
from balanceddpo.evaluation.geneval import (
    GENEVAL_PUBLISHED,
    Detection,
    check_detections,
    check_images,
    export_geneval,
    geneval_inputs,
    kept_detections,
    load_detector,
    published_geneval,
    read_results,
    relations,
)
from balanceddpo.evaluation.geneval_prompts import (
    COLORS,
    MAX_OBJECTS,
    RELATIONS,
    TAGS,
    Clause,
    TaskPrompt,
)
from balanceddpo.evaluation.tasks import task_scores
from balanceddpo.models.image_store import ImageStore, image_file
from balanceddpo.models.sampling import image_seed

# --- GenEval's rules


def at(x, y, w=10, h=10):
    return (x, y, x + w, y + h)


def thing(name, x=0, y=0, score=0.95):
    return Detection(name, score, at(x, y))


def prompt(task, *include, exclude=()):
    return TaskPrompt(task, 'a photo', tuple(include), tuple(exclude))


def verdict(p, *found, colors=None):
    return check_detections(
        p, kept_detections(found, p.task), (lambda d: colors[d.box[0]]) if colors else None
    )


def test_a_direction_by_its_definition():
    """The distance of the centres, shortened on each axis by a tenth of both sizes, over the
    distance: in complex numbers, on random boxes."""
    rng = np.random.default_rng(0)
    names = {1: 'right of', -1: 'left of'}, {1: 'below', -1: 'above'}
    for _ in range(2000):
        a, b = (
            np.concatenate([c := rng.integers(0, 40, 2), c + rng.integers(1, 30, 2)])
            for _ in range(2)
        )
        d = complex(*(a[:2] + a[2:] - b[:2] - b[2:]) / 2)
        shrink = (a[2:] - a[:2] + b[2:] - b[:2]) / 10
        parts = [
            (np.sign(v) * max(abs(v) - s, 0), n) for v, s, n in zip((d.real, d.imag), shrink, names)
        ]
        expected = {n[int(np.sign(v))] for v, n in parts if abs(d) and abs(v) / abs(d) > 0.5}
        assert relations(a.tolist(), b.tolist()) == expected


def test_a_direction_turns_round_with_the_objects():
    opposite = dict(zip(RELATIONS, ('right of', 'left of', 'below', 'above')))
    rng = np.random.default_rng(1)
    for a, b in (
        ((*x, *(x + s)), (*y, *(y + t))) for x, y, s, t in rng.integers(1, 60, (300, 4, 2))
    ):
        assert (
            relations(a, b)
            == {opposite[r] for r in relations(b, a)}
            == relations([2 * v for v in a], [2 * v for v in b])
        )


@pytest.mark.parametrize(
    'x, y, expected',
    [
        (30, 0, {'right of'}),
        (0, 30, {'below'}),
        (-30, 0, {'left of'}),
        (0, -30, {'above'}),
        (0, 0, set()),
        (2, 2, set()),
        (4, 0, set()),
        (4.01, 0, {'right of'}),
        (20, 20, {'right of', 'below'}),
        (30, 12, {'right of'}),
        (2.0005, 0, set()),
    ],
)
def test_directions_by_hand(x, y, expected):
    """Boxes of 10 x 10: 2 of each distance goes, more than half of the whole must be left; (30,
    12): 10/32.3 = .31; under a thousandth of a pixel is nothing."""
    assert relations(at(x, y), at(0, 0)) == expected


def test_confidence_counts_above_the_threshold_and_not_at_it():
    found = [thing('cup', score=s) for s in (0.3, 0.300001, 0.9, 0.900001)]
    assert [d.score for d in kept_detections(found)['cup']] == [0.900001, 0.9, 0.300001]
    assert [d.score for d in kept_detections(found, 'counting')['cup']] == [0.900001]
    assert kept_detections([thing('cup', score=0.3)]) == {} == kept_detections([])
    assert len(kept_detections([thing('cup')] * 20 + [thing('dog')])['cup']) == MAX_OBJECTS == 16
    best = kept_detections([thing('cup', x=k, score=0.5 + k / 100) for k in range(20)])['cup']
    assert [d.box[0] for d in best] == list(range(19, 3, -1))
    # plain tuples are enough
    assert kept_detections([('cup', 0.5, [0, 0, 1, 1])])['cup'][0].name == 'cup'
    for bad in (
        ('cup', float('nan'), (0, 0, 1, 1)),
        ('cup', 0.5, (0, 0, 1)),
        ('cup', 0.5, (0, 0, 1, float('inf'))),
    ):
        with pytest.raises(InputError, match='the detector found'):
            kept_detections([bad])


def test_single_and_two_objects():
    single, two = (
        prompt('single_object', Clause('cup', 1)),
        prompt('two_object', Clause('cup', 1), Clause('dog', 1)),
    )
    # more than asked for is no fault
    assert verdict(single, thing('cup'), thing('cup'), thing('dog')) == ''
    assert verdict(single, thing('dog')) == '0 cup of 1'
    assert verdict(two, thing('cup'), thing('dog')) == ''
    assert verdict(two, thing('cup'), thing('cup')) == '0 dog of 1'


def test_counting_is_exact_and_strict():
    p = prompt('counting', Clause('cup', 3), exclude=[Clause('cup', 4)])
    assert [verdict(p, *[thing('cup')] * n) == '' for n in (2, 3, 4, 5)] == [
        False,
        True,
        False,
        False,
    ]
    assert verdict(p, *[thing('cup')] * 3, thing('cup', score=0.9)) == ''
    assert verdict(p, *[thing('cup')] * 2, thing('cup', score=0.9)) == '2 cup of 3'
    # at most 16 are looked at
    assert (
        verdict(
            prompt('counting', Clause('cup', 16), exclude=[Clause('cup', 17)]), *[thing('cup')] * 40
        )
        == ''
    )


def test_colors_are_those_of_the_most_confident():
    one, two = prompt('colors', Clause('cup', 1, 'red')), prompt('colors', Clause('cup', 2, 'red'))
    sure, less = thing('cup', 0, score=0.9), thing('cup', 20, score=0.8)
    assert verdict(one, less, sure, colors={0: 'red', 20: 'blue'}) == ''
    assert verdict(one, less, sure, colors={0: 'blue', 20: 'red'}) == 'cup is blue, not red'
    assert verdict(two, less, sure, colors={0: 'red', 20: 'blue'}) == 'cup is red and blue, not red'
    assert verdict(two, sure, less, colors={0: 'red', 20: 'red'}) == ''
    attr = prompt('color_attr', Clause('cup', 1, 'red'), Clause('dog', 1, 'blue'))
    assert verdict(attr, thing('cup', 0), thing('dog', 20), colors={0: 'red', 20: 'blue'}) == ''
    assert (
        verdict(attr, thing('cup', 0), thing('dog', 20), colors={0: 'blue', 20: 'red'})
        == 'cup is blue, not red; dog is red, not blue'
    )


def test_places():
    p = prompt('position', Clause('cup', 1), Clause('dog', 1, None, ('left of', 0)))
    assert verdict(p, thing('cup', 50), thing('dog', 0)) == ''
    assert verdict(p, thing('cup', 0), thing('dog', 50)) == 'dog is right of, not left of'
    assert verdict(p, thing('cup', 0), thing('dog', 0)) == 'dog is in no direction, not left of'
    # the most confident cup alone
    assert (
        verdict(p, thing('cup', 50, score=0.9), thing('dog', 0), thing('cup', -50, score=0.8)) == ''
    )
    assert verdict(p, thing('dog', 0)) == '0 cup of 1; nothing for dog to be left of'
    several = prompt('position', Clause('cup', 2), Clause('dog', 2, None, ('above', 0)))
    cups = thing('cup', 0, 50), thing('cup', 5, 60)
    assert verdict(several, *cups, thing('dog', 0, 0), thing('dog', 3, 5)) == ''
    assert 'not above' in verdict(several, *cups, thing('dog', 0, 0), thing('dog', 90, 60))
    colored = prompt('position', Clause('cup', 1, 'red'), Clause('dog', 1, None, ('left of', 0)))
    assert (
        verdict(colored, thing('cup', 50), thing('dog', 0), colors={50: 'blue'})
        == 'cup is blue, not red; nothing for dog to be left of'
    )


PROMPTS = [
    TaskPrompt('single_object', 'a photo of a cup', (Clause('cup', 1),)),
    TaskPrompt('counting', 'a photo of two cups', (Clause('cup', 2),), (Clause('cup', 3),)),
    TaskPrompt(
        'position',
        'a photo of a dog above a cup',
        (Clause('cup', 1), Clause('dog', 1, None, ('above', 0))),
    ),
    TaskPrompt(
        'color_attr',
        'a photo of a red cup and a blue dog',
        (Clause('cup', 1, 'red'), Clause('dog', 1, 'blue')),
    ),
]
METADATA = [p.metadata for p in PROMPTS]


def jsonl(path, *lines):
    path.write_text(
        ''.join((line if isinstance(line, str) else json.dumps(line)) + '\n' for line in lines)
    )
    return path


# --- images


def store_of(folder, prompts, images=2, model='m'):
    "An image store whose every image is another colour."
    rows = []
    for n, p in enumerate(prompts):
        for i in range(images):
            path = folder / image_file(p.id, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 8), (40 * n, 90 * i, 0)).save(path)
            rows.append(
                (
                    model,
                    p.id,
                    p.prompt,
                    i,
                    image_seed(p.id, i),
                    image_file(p.id, i),
                    hashlib.sha256(path.read_bytes()).hexdigest(),
                )
            )
    index = pd.DataFrame(
        rows, columns=['model', 'prompt_id', 'prompt', 'image_index', 'seed', 'file', 'sha256']
    )
    return ImageStore(folder, {'model': {}, 'prompts': 'k', 'steps': 9}, index)


def detect(image):
    "Image 0 of each prompt has one cup under a dog, image 1 two cups."
    return (
        [('cup', 0.95, at(0, 40)), ('dog', 0.95, at(0, 0))]
        if image.getpixel((0, 0))[1] == 0
        else [('cup', 0.95, at(0, 0)), ('cup', 0.92, at(9, 9))]
    )


def test_images_are_checked_one_by_one(tmp_path):
    seen = []

    def classify(image, box, name):
        seen.append((name, box))
        return {'cup': 'red', 'dog': 'blue'}[name]

    table = check_images(store_of(tmp_path, PROMPTS), PROMPTS, 'ours', detect, classify)
    assert table.correct.tolist() == [True, True, False, True, True, False, True, False]
    assert table.reason[2] == '1 cup of 2'
    # only where a color is asked for, the most confident only
    assert seen == [('cup', at(0, 40)), ('dog', at(0, 0)), ('cup', at(0, 0))]
    assert table.model.unique() == ['ours']
    assert json.loads(table['sampler'][0]) == {'steps': 9}
    assert table.seed[1] == image_seed(PROMPTS[0].id, 1)


def test_what_is_missing_is_said_before_anything_is_detected(tmp_path):
    store = store_of(tmp_path, PROMPTS)

    def never(image):
        raise AssertionError('detected')

    with pytest.raises(InputError, match='give detect'):
        check_images(store, PROMPTS)
    with pytest.raises(InputError, match='asks for a color'):
        check_images(store, PROMPTS, detect=never)
    with pytest.raises(InputError, match='not among these'):
        check_images(store, PROMPTS[:-1], detect=never)
    with pytest.raises(InputError, match="classify_color said 'Red'"):
        check_images(store, PROMPTS, detect=detect, classify_color=lambda *_: 'Red')


def test_a_detector_of_the_users_own(tmp_path):
    file = tmp_path / 'mine.py'
    file.write_text('def detect(image): return []\nclassify_color = None')
    assert list(load_detector(file)) == ['detect']
    file.write_text(
        'def detect(image): return []\ndef classify_color(image, box, name): return "red"'
    )
    assert set(load_detector(file)) == {'detect', 'classify_color'}
    file.write_text('x = 1')
    pytest.raises(InputError, load_detector, file).match('defines no function detect')
    pytest.raises(InputError, load_detector, tmp_path / 'absent.py').match('no such file')


# --- there and back


def evaluated(folder, said):
    """What GenEval's evaluator writes for a folder, as it is documented: one line for each image,
    in no order; `said`: (prompt, image number) -> correct."""
    lines = []
    for here in sorted((p for p in folder.iterdir() if p.name.isdigit()), reverse=True):
        told = json.loads((here / 'metadata.jsonl').read_text())
        for image in (here / 'samples').glob('*.png'):
            ok = said(told['prompt'], int(image.stem))
            more = {
                'correct': ok,
                'reason': '' if ok else 'no',
                'metadata': json.dumps(told),
                'details': '{}',
            }
            lines.append(
                {'filename': str(image), 'tag': told['tag'], 'prompt': told['prompt'], **more}
            )
    return lines


@pytest.fixture
def exported(tmp_path):
    folder = export_geneval(store_of(tmp_path / 'store', PROMPTS), PROMPTS, tmp_path / 'images')
    return evaluated(folder, lambda text, i: (len(text) + i) % 2 == 0), tmp_path


def test_images_lie_as_the_evaluator_reads_them(tmp_path):
    store = store_of(tmp_path / 'store', PROMPTS)
    (tmp_path / 'out').mkdir()
    folder = export_geneval(store, PROMPTS, tmp_path / 'out')
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file())
    assert files == sorted(
        f'{n:05}/{rest}'
        for n in range(4)
        for rest in ('metadata.jsonl', 'samples/00000.png', 'samples/00001.png')
    )
    for n, p in enumerate(PROMPTS):
        assert json.loads((folder / f'{n:05}/metadata.jsonl').read_text()) == METADATA[n]
        assert all(
            (folder / f'{n:05}/samples/{i:05}.png').read_bytes()
            == (store.folder / image_file(p.id, i)).read_bytes()
            for i in (0, 1)
        )
    with pytest.raises(InputError, match='is there already'):
        export_geneval(store, PROMPTS, folder)
    with pytest.raises(InputError, match='no images of'):
        export_geneval(store, [*PROMPTS, TaskPrompt('colors', 'another', ())], tmp_path / 'more')
    assert not (tmp_path / 'more').exists()


@pytest.mark.parametrize(
    'write',
    [
        lambda lines, path: pd.DataFrame(lines).to_json(path, orient='records', lines=True),
        lambda lines, path: jsonl(path, *lines),
    ],
)
def test_the_evaluators_results_come_back(exported, write):
    lines, tmp_path = exported
    write(lines, tmp_path / 'r.jsonl')
    table = read_results(tmp_path / 'r.jsonl', PROMPTS, 'ours').set_index(
        ['prompt_id', 'image_index']
    )
    for p, i in itertools.product(PROMPTS, (0, 1)):
        assert table.loc[(p.id, i), ['correct', 'task']].tolist() == [
            (len(p.prompt) + i) % 2 == 0,
            p.task,
        ]
    scores = task_scores(table.reset_index())
    # as its summary
    assert len(table) == 8
    assert scores.score.iloc[-1] == pytest.approx(
        pd.DataFrame(lines).groupby('tag').correct.mean().mean()
    )


@pytest.mark.parametrize(
    'change, said',
    [
        ({'correct': 1}, 'correct must be true or false, found 1'),
        ({'correct': 'true'}, 'correct must'),
        ({'correct': None}, 'correct must'),
        ({'prompt': 'a photo of a tree'}, 'is not among the metadata'),
        ({'tag': 'colors'}, "the tag is 'colors', and"),
        ({'filename': 3}, 'filename must be text'),
        *(
            ({'filename': name}, 'does not end as in')
            for name in (
                '/etc/passwd',
                'x/00000/samples/../../1.png',
                '0/samples/1.png\n',
                'a/samples/1.png',
                '0/samples/\u0661.png',
            )
        ),
        ({'metadata': '{'}, 'metadata is not JSON'),
        ({'metadata': '[]'}, 'other metadata'),
        ({'metadata': json.dumps(METADATA[1])}, 'other metadata'),
        ({'metadata': json.dumps({**METADATA[0], 'tag': 'x'})}, 'metadata: tag must be'),
    ],
)
def test_results_that_do_not_fit_are_refused_by_their_line(exported, change, said):
    lines, tmp_path = exported
    lines = sorted(lines, key=lambda line: line['filename'])
    with pytest.raises(InputError, match=said) as caught:
        read_results(jsonl(tmp_path / 'r.jsonl', {**lines[0], **change}, *lines[1:]), PROMPTS, 'm')
    assert str(caught.value).startswith(f'{tmp_path}/r.jsonl: line 1')
    assert len(str(caught.value).splitlines()) == 1


def test_results_are_whole_or_refused(exported):
    lines, tmp_path = exported
    file = tmp_path / 'r.jsonl'
    with pytest.raises(InputError, match=r'line 9: this image was there already \(line 1\)'):
        read_results(jsonl(file, *lines, lines[0]), PROMPTS, 'm')
    with pytest.raises(InputError, match='has no result for image'):
        read_results(jsonl(file, *lines[1:]), PROMPTS, 'm')
    with pytest.raises(InputError, match='has no result for image 0'):
        read_results(jsonl(file), PROMPTS, 'm')
    windows = [
        {**line, 'filename': 'C:\\images\\' + '\\'.join(line['filename'].split('/')[-3:])}
        for line in lines
    ]
    assert read_results(jsonl(file, *windows), PROMPTS, 'm').equals(
        read_results(jsonl(tmp_path / 's.jsonl', *lines), PROMPTS, 'm')
    )


# --- what an experiment asks for


def test_an_experiment_says_what_it_lacks(exported):
    lines, tmp_path = exported
    metadata, file = (
        str(jsonl(tmp_path / 'm.jsonl', *METADATA)),
        str(jsonl(tmp_path / 'r.jsonl', *lines)),
    )
    with pytest.raises(InputError, match='prompts are needed'):
        geneval_inputs('', file, '', ['a'])
    with pytest.raises(InputError, match='give either'):
        geneval_inputs(metadata, '', '', ['a'])
    with pytest.raises(InputError, match='give either'):
        geneval_inputs(metadata, f'a={file}', 'mine.py', ['a'])
    with pytest.raises(InputError, match="no results of 'b'"):
        geneval_inputs(metadata, f'a={file}', '', ['a', 'b'])
    prompts, table, functions = geneval_inputs(metadata, f'a={file}, b={file}', '', ['a', 'b'])
    assert prompts == PROMPTS
    assert functions == {}
    assert table.groupby('model').size().to_dict() == {'a': 8, 'b': 8}
    (tmp_path / 'mine.py').write_text('def detect(image): return []')
    assert geneval_inputs(metadata, '', str(tmp_path / 'mine.py'), ['a'])[1] is None


def test_published_numbers_have_their_source_and_agree():
    table = published_geneval()
    assert (
        table.loc[('GenEval', 'SDXL'), 'overall']
        == table.loc[('CaPO, from a note', 'SDXL'), 'overall']
        == 55
    )
    assert list(table.columns) == [*TAGS, 'overall']
    assert len(set(COLORS)) == 10
    assert GENEVAL_PUBLISHED['SD1.5'][-1] == 43
