"""A study on one's own model, pairs and scorers: counted, rehearsed, refused before it begins."""

import shutil

import pytest

from balanceddpo.core.errors import InputError
from balanceddpo.core.files import asset
from balanceddpo.core.stages import runs_root
from balanceddpo.paper.repro_notebooks import notebooks
from balanceddpo.paper.scales import scale_of
from balanceddpo.paper.study_jobs import Request, plan_jobs
from balanceddpo.paper.study_trials import Rates, Work, rehearse_study, tell_rates, work_of
from tiny_models import tiny_folder

KINDS = ('hps', 'clip', 'pickscore', 'aesthetic')


@pytest.fixture(scope='module')
def job(tmp_path_factory):
    "The settings of a study of a tiny model in SDXL's shape, with weights and data by their paths."
    place = tmp_path_factory.mktemp('own')
    prompts = place / 'mine.txt'
    prompts.write_text('a red cat\na dog\ntwo dogs\n')
    shutil.copytree(asset('scorers'), place / 'scorers')
    return dict(
        model=str(tiny_folder(place / 'model', 'sdxl')),
        pairs='icons',
        prompts=[f'pickapic={prompts}'],
        scorers=[f'{kind}={place / "scorers" / kind}' for kind in KINDS],
        resolution=32,
        device='cpu',
        dtype='fp32',
        mode='lora',
        train=['max_steps=20', 'batch_size=16', 'precision=fp32'],
        images_per_prompt=2,
        steps=5,
    )


def test_a_study_on_own_weights_is_counted_before_it_begins(job):
    "Table I: two LoRAs, and the images of three models for three prompts."
    work = work_of(plan_jobs(Request('table1', 'sdxl', changes=job)))
    # forward, backward as two, and the reference; two images a pair
    assert (work.models, work.training) == (2, 2 * 20 * 16 * 2 * 4)
    # guidance doubles the passes
    assert (work.sets, work.drawing) == (3, 3 * 3 * 2 * 5 * 2)


def test_a_rehearsed_study_runs_to_its_end_and_keeps_nothing(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {*runs_root().glob('*')} if runs_root().exists() else set()
    said = []
    rehearse_study(Request('table1', 'sdxl', changes=job), said.append)
    assert said[0].startswith('table1: runs to the end at its shortest')
    assert '2 models (5.12e+03 passes' in said[1]
    assert [line.split()[0] for line in said[2:]] == [
        'labelling',
        'encoding',
        'training',
        'drawing',
        'scoring',
        'together',
    ]
    assert 'drawing 18 images' in said[5]
    assert {*runs_root().glob('*')} == before
    assert [p.name for p in tmp_path.rglob('*') if p.is_file()] == []


def test_the_hours_of_a_study_are_its_work_times_the_rates():
    rates = Rates(labelling=1, encoding=2, training=3, drawing=4, memory=5_000_000_000)
    scale = scale_of('icons', steps=10, images_per_prompt=5)
    # a hundred images of 10 steps, twice for guidance
    said = tell_rates(Work(2, 1000, 1, 2000), rates, scale, 60)
    assert said == [
        'labelling 60 pairs: 60 seconds',
        'encoding 60 pairs: 2.0 minutes',
        'training 2 models: 50.0 minutes',
        'drawing 100 images: 2.2 hours',
        'scoring 100 images: 50 seconds',
        'together about 3.1 hours on one device, and at most 5 GB of memory',
    ]


@pytest.mark.parametrize(
    'wrong, says',
    [
        ({'model': 'no/such/folder'}, 'there is no folder no/such/folder'),
        ({'pairs': 'no.parquet'}, 'no.parquet'),
        ({'prompts': ['hpd=no.txt']}, 'no.txt'),
        ({'scorers': ['hsp=weights.pt']}, 'did you mean hps'),
        ({'scorers': ['hps=./no/weights.pt']}, 'hps: ./no/weights.pt: no such file or folder'),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_computed(job, wrong, says):
    with pytest.raises(InputError, match=says):
        rehearse_study(Request('table1', 'sdxl', changes=job | wrong), print)


def test_what_has_no_scale_of_its_own_cannot_be_rehearsed():
    with pytest.raises(InputError, match='tuning: it has no settings of a scale'):
        plan_jobs(Request('tuning', 'icons', changes={'steps': 3}))
    with pytest.raises(InputError, match='rehearse it by --scale smoke'):
        rehearse_study(Request('tuning', 'icons'), print)
    assert 'tuning' in notebooks()
