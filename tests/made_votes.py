"Files of votes as the page writes them, for two models or for pairs."

import json

SHA = 'ab' * 32


def side(model, index=0, sha256=SHA):
    "A side of a vote on models, or on a pair if `model` is 0 or 1."
    if isinstance(model, int):
        return {'image': model, 'sha256': sha256}
    return {'model': model, 'image_index': index, 'sha256': sha256}


def vote(prompt_id, left, right, choice, **changes):
    "A vote; `left` and `right` are sides, or names of models."
    found = {
        'prompt_set': 'hpd',
        'prompt_id': prompt_id,
        'prompt': f'a red {prompt_id}',
        'left': left if isinstance(left, dict) else side(left),
        'right': right if isinstance(right, dict) else side(right),
        'choice': choice,
        'seconds': 2.5,
        'at': '2026-11-28T12:00:00Z',
    }
    return found | changes


def votes_for(choices, prompts, models=('base', 'ours'), **changes):
    """Votes of one person: for each prompt 1 (the later model), -1, 0 (alike) or None (none). The
    sides are the one way round at even places and the other at odd ones."""
    found = []
    for n, (prompt, choice) in enumerate(zip(prompts, choices)):
        if choice is None:
            continue
        a, b = models[::-1]
        left, right = (a, b) if n % 2 else (b, a)
        word = 'alike' if choice == 0 else 'left' if (choice == 1) == (left == a) else 'right'
        found.append(vote(prompt, left, right, word, **changes))
    return found


def write_votes(path, votes, voter=None, models=('base', 'ours'), **changes):
    "Write a file of votes; the voter is called as the file."
    head = {
        'format': 'balanceddpo votes',
        'version': 1,
        'page': '0f3ac1d27b9e4a55',
        'voter': path.stem if voter is None else voter,
        'seed': 20261128,
        'models': list(models) if isinstance(models, tuple) else models,
        'votes': votes,
    }
    path.write_text(json.dumps(head | changes), encoding='utf-8')
    return path
