"""Eight pairs of the icon world, one step of training, and what the stages have made of them."""

from balanceddpo.core.stages import runs_root
from balanceddpo.data.sources import PairSource

KINDS = ('hps', 'clip', 'pickscore', 'aesthetic')
PAIRS = PairSource('icons', limit=8)
TRAINING = dict(max_steps=1, batch_size=4, micro_batch_size=4)
SHORT = dict(device='cpu', **TRAINING)


def made():
    "Everything under the folder of results, by its name and the time it was written."
    files = [p for p in runs_root().rglob('*') if p.is_file() and '.making' not in p.parts]
    kept = [p for p in files if p.name not in ('.lock', 'provenance.json')]
    return {p.relative_to(runs_root()).as_posix(): p.stat().st_mtime_ns for p in kept}
