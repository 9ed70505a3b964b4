"""The five stages, each one function with one key, and `align`, three of them for a method."""

from .alignment import align, draw_groups, group_pairs, labelled_groups, run_recipe
from .stages import (
    Evaluation,
    Model,
    draw,
    encode,
    evaluate,
    evaluate_images,
    image_scores,
    label,
    made_once,
    pair_scores,
    run_folder_of,
    sample,
    train,
)

__all__ = [
    'Evaluation',
    'Model',
    'align',
    'draw',
    'draw_groups',
    'encode',
    'evaluate',
    'evaluate_images',
    'group_pairs',
    'image_scores',
    'label',
    'labelled_groups',
    'made_once',
    'pair_scores',
    'run_folder_of',
    'run_recipe',
    'sample',
    'train',
]
