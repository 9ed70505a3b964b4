"""Align text-to-image diffusion models with several, conflicting measures of quality at once."""

from importlib import import_module as _import_module

__version__ = "0.2.0"

# What most users need, by the module that has it. A module is imported when one of its names is
# asked for: torch and the model libraries take seconds.
_HOMES = {
    'core.errors': ('InputError',),
    'data.pairs': ('write_pairs',),
    'data.sources': ('PairSource', 'read_pairs'),
    'data.prompts': ('PromptSet', 'read_prompts'),
    'scoring.registry': ('load_scorers', 'register_scorer'),
    'voting.config': ('LabelConfig',),
    'voting.labels': ('labeller', 'read_labels'),
    'models.config': ('EncodeConfig', 'SampleConfig'),
    'models.encoding': ('EncodedPairs',),
    'training.config': ('TrainConfig',),
    'training.run': ('LabelledPairs',),
    'recipes.config': ('AlignConfig',),
    'recipes.settings': ('settings_of', 'variant'),
    'recipes.table': ('recipe_named',),
    'pipeline': ('Model', 'align', 'label', 'encode', 'train', 'sample', 'evaluate'),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name):
    "A name of the table, from its module; then it is here for good."
    if name not in _HOME:
        raise AttributeError(f'balanceddpo has no {name}: it has {", ".join(__all__)}')
    found = getattr(_import_module(f'balanceddpo.{_HOME[name]}'), name)
    globals()[name] = found
    return found


def __dir__():
    return sorted({*globals(), *__all__})
