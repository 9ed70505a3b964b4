"""The layouts in which preference sets are published, each written for three pairs: a folder of
`tmp_path` -> the source, and what has to be said of it."""

import csv
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq

from balanceddpo.data.pairs import write_pairs
from made_pairs import make_pair, some_pairs

LABELS = [1.0, 0.0, 0.5]
PAIRS = list(some_pairs(3, label=lambda i: LABELS[i]))
WON = [p for p in PAIRS if p.label_0 != 0.5]  # a pair whose winner comes first has no ties


def winner_first(pairs=WON):
    "The pictures of each pair, the better one first."
    return [p.images if p.label_0 else p.images[::-1] for p in pairs]


def files(folder, pairs=PAIRS):
    "Writes the pictures; the names of each pair's."
    (folder / 'images').mkdir(parents=True, exist_ok=True)
    names = []
    for n, pair in enumerate(pairs):
        names.append([f'images/{n}{side}.png' for side in 'ab'])
        for name, data in zip(names[-1], pair.images, strict=True):
            (folder / name).write_bytes(data)
    return names


def parquet(folder, name='train-00000-of-00001.parquet', **columns):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return str(folder)


def sides(pairs=PAIRS):
    "Captions, first and second pictures."
    return [p.caption for p in pairs], [p.images[0] for p in pairs], [p.images[1] for p in pairs]


def pick_a_pic(folder):
    folder.mkdir()
    return str(write_pairs(PAIRS, folder / 'train.parquet')), {}


def datasets_to_parquet(folder):
    captions, first, second = sides()

    def struct(images):
        return pa.array([{'bytes': data, 'path': 'x.png'} for data in images])

    cells = dict(image_0=struct(first), image_1=struct(second), preference=['left', 'right', 'tie'])
    return parquet(folder, prompt=captions, **cells), {}


def paths_in_parquet(folder):
    names = files(folder)
    cells = [pa.array([{'bytes': None, 'path': n[i]} for n in names]) for i in (0, 1)]
    captions = sides()[0]
    return parquet(folder, caption=captions, jpg_0=cells[0], jpg_1=cells[1], label_0=LABELS), {}


def rapidata(folder):
    captions, first, second = sides()
    votes = dict(votes_image1=[9, 0, 5], votes_image2=[0, 8, 5])
    return parquet(folder, prompt=captions, image1=first, image2=second, **votes), {}


def open_image_preferences(folder):
    better, worse = zip(*winner_first(), strict=True)
    return parquet(folder, prompt=sides(WON)[0], chosen=list(better), rejected=list(worse)), {}


def hpd_v2(folder):
    "A list of files and of choices; the files lie in a folder called after the split."
    names = files(folder / 'train')
    rows = [
        dict(prompt=p.caption, file_path=n, human_preference=[p.label_0, 1 - p.label_0])
        for p, n in zip(PAIRS, names, strict=True)
    ]
    (folder / 'train.json').write_text(json.dumps(rows))
    (folder / 'test.json').write_text('[]')
    return str(folder), {}


def hpd_v3(folder):
    names = files(folder, WON)
    ordered = [n if p.label_0 else n[::-1] for p, n in zip(WON, names, strict=True)]
    rows = [
        dict(prompt=p.caption, path1=a, path2=b, confidence=0.9, choice_dist=[9, 1], model1='x')
        for p, (a, b) in zip(WON, ordered, strict=True)
    ]
    (folder / 'hpdv3.json').write_text(json.dumps(rows))
    return str(folder / 'hpdv3.json'), {}


def image_reward(folder):
    "A picture a row, with its rank among those of its prompt; 1 is the best."
    rows = [
        dict(image=image, prompt=p.caption, prompt_id=f'00{n}', rank=rank)
        for n, p in enumerate(PAIRS)
        for image, rank in zip(p.images, {1.0: (1, 2), 0.0: (2, 1), 0.5: (1, 1)}[p.label_0])
    ]
    rows = rows[::2] + rows[1::2]  # those of a prompt do not lie together
    return parquet(folder, **{c: [row[c] for row in rows] for c in rows[0]}), {}


def delimited(folder, ending='.csv', **form):
    names = files(folder)
    with open(folder / f'pairs{ending}', 'w', newline='', encoding='utf-8-sig') as f:
        writer = csv.writer(f, **form)
        writer.writerow(['prompt', 'image_a', 'image_b', 'preferred'])
        for p, n, word in zip(PAIRS, names, ('image_a', 'image_b', 'tie'), strict=True):
            writer.writerow([p.caption, *n, word])
    return str(folder / f'pairs{ending}'), {}


def tab_separated(folder):
    return delimited(folder, '.tsv', delimiter='\t', quoting=csv.QUOTE_NONE, quotechar=None)


def json_lines(folder):
    rows = [
        dict(words=p.caption, one=n[0], other=n[1], liked=p.label_0)
        for p, n in zip(PAIRS, files(folder), strict=True)
    ]
    (folder / 'mine.jsonl').write_text('\n\n'.join(json.dumps(row) for row in rows))
    said = ('caption=words', 'jpg_0=one', 'jpg_1=other', 'label_0=liked')
    return str(folder / 'mine.jsonl'), dict(columns=said)


def metadata_file(folder):
    rows = [
        dict(caption=p.caption, jpg_0_file_name=n[0], jpg_1_file_name=n[1], label_0=p.label_0)
        for p, n in zip(PAIRS, files(folder), strict=True)
    ]
    (folder / 'metadata.jsonl').write_text('\n'.join(json.dumps(row) for row in rows))
    return str(folder), {}


def win_and_lose(folder):
    for n, (pair, pictures) in enumerate(zip(WON, winner_first(), strict=True)):
        for side, data in zip(('win', 'lose'), pictures, strict=True):
            (folder / side).mkdir(parents=True, exist_ok=True)
            (folder / side / f'{n}.png').write_bytes(data)
        (folder / 'win' / f'{n}.txt').write_text(f'{pair.caption}\n')
    return str(folder), {}


def webdataset(folder):
    folder.mkdir()
    with tarfile.open(folder / '00000.tar', 'w') as tar:
        for n, p in enumerate(PAIRS):
            parts = {'jpg_0.png': p.images[0], 'jpg_1.png': p.images[1]}
            parts['txt'] = p.caption.encode()
            parts['json'] = json.dumps({'label_0': p.label_0}).encode()
            for ending, data in parts.items():
                info = tarfile.TarInfo(f'{n:05d}.{ending}')
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(folder), {}


def saved_by_datasets(folder):
    import datasets

    captions, first, second = sides()
    columns = dict(caption=captions, jpg_0=first, jpg_1=second, label_0=LABELS)
    made = datasets.Dataset.from_dict(columns)
    made = made.cast_column('jpg_0', datasets.Image()).cast_column('jpg_1', datasets.Image())
    datasets.DatasetDict(train=made).save_to_disk(str(folder))
    return str(folder), {}


def hub_cache(folder):
    "A snapshot in the Hub's cache, where each file is a link to a blob."
    snapshot, blobs = folder / 'snapshots' / '0f1e', folder / 'blobs'
    source, said = json_lines(snapshot)
    blobs.mkdir()
    for n, file in enumerate(sorted(f for f in snapshot.rglob('*') if f.is_file())):
        file.rename(blobs / f'{n:x}')
        up = '/'.join(['..'] * (len(file.relative_to(folder).parts) - 1))
        file.symlink_to(f'{up}/blobs/{n:x}')
    return source, said


LAYOUTS = dict(
    pick_a_pic=(pick_a_pic, PAIRS),
    datasets_to_parquet=(datasets_to_parquet, PAIRS),
    paths_in_parquet=(paths_in_parquet, PAIRS),
    rapidata=(rapidata, PAIRS),
    open_image_preferences=(open_image_preferences, None),
    hpd_v2=(hpd_v2, PAIRS),
    hpd_v3=(hpd_v3, None),
    image_reward=(image_reward, PAIRS),
    csv=(delimited, PAIRS),
    tsv=(tab_separated, PAIRS),
    json_lines=(json_lines, PAIRS),
    metadata=(metadata_file, PAIRS),
    win_and_lose=(win_and_lose, None),
    webdataset=(webdataset, PAIRS),
    saved_by_datasets=(saved_by_datasets, PAIRS),
    hub_cache=(hub_cache, PAIRS),
)


def pairs_of(name):
    "The pairs that a layout holds; where the better picture comes first, that is image 0."
    _, pairs = LAYOUTS[name]
    if pairs is not None:
        return pairs
    return [
        make_pair(p.caption, images, 1.0) for p, images in zip(WON, winner_first(), strict=True)
    ]
