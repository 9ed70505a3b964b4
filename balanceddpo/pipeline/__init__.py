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
    own_prompts,
    pair_scores,
    run_folder_of,
    sample,
    score,
    train,
)

# what a user of the package calls; the rest serves the command line and the studies
__all__ = [
    'Evaluation',
    'Model',
    'align',
    'encode',
    'evaluate',
    'evaluate_images',
    'label',
    'run_folder_of',
    'run_recipe',
    'sample',
    'score',
    'train',
]
