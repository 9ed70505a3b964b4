"Small images and pairs, and what a call is refused with."

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from balanceddpo.core.errors import refusal
from balanceddpo.data.pairs import make_pair


def encoded(image, format='PNG', **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def plain(n, size=(2, 2)):
    "A small image of its own for every n."
    return encoded(Image.new('RGB', size, (n % 256, n // 256 % 256, n // 65536)))


def some_pairs(n, label=lambda i: [1.0, 0.0, 0.5, None][i % 4]):
    for i in range(n):
        yield make_pair(
            f'caption {i}', (plain(2 * i), plain(2 * i + 1)), label(i), ('sd15', f'model {i % 3}')
        )


def table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def refused(f, *args, **kwargs):
    "What a call is refused with: one line, and not a long one."
    message = refusal(f, *args, **kwargs)
    assert '\n' not in message
    assert len(message) < 600
    return message


def noise(seed, size=96):
    return encoded(
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), 'uint8')),
        'BMP',
    )
