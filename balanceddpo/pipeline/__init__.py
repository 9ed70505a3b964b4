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
from .trials import Trial, tell_trial, try_recipe

# what a user of the package calls; the rest serves the command line and the studies
__all__ = [
    'Evaluation',
    'Model',
    'Trial',
    'align',
    'encode',
    'evaluate',
    'evaluate_images',
    'label',
    'run_folder_of',
    'run_recipe',
    'sample',
    'score',
    'tell_trial',
    'train',
    'try_recipe',
]
