"""Callbacks and scorers for several tests of watched runs."""

import random

import numpy as np
import torch
from accelerate import PartialState

from balanceddpo.evaluation.validation import Validation
from balanceddpo.scoring.scorers import FunctionScorer
from balanceddpo.training.callbacks import Callback
from balanceddpo.training.validation_config import ValidationConfig


def grey(images):
    return np.stack([np.asarray(image.convert('L'), float) for image in images])


def brightness(images, prompts):
    return grey(images).mean((1, 2))


def contrast(images, prompts):
    return grey(images).std((1, 2))


def two_scorers():
    "Scorers that look at the grey values of a picture."
    return [FunctionScorer(f.__name__, f.__name__, f) for f in (brightness, contrast)]


class Scripted:
    """A scorer that gives the base model's two pictures 0 and 2, whose standard deviation is the
    root of 2, and those of the policy as many more as its script says, validation by validation."""

    def __init__(self, name, *ahead):
        self.name, self.key, self.ahead = name, name, list(ahead)

    def score(self, images, prompts):
        return torch.tensor([0.0, 2.0]) + (self.ahead.pop(0) if self.ahead else 9.0)


def scripted(script, **more):
    "A validation of two pictures after every step; `script`: scorer -> gains in s.d."
    scorers = [Scripted(n, 0, *np.sqrt(2) * np.array(gains)) for n, gains in script.items()]
    return watching(scorers, validate_every=1, validation_limit=2, **more)


def watching(scorers=None, **more):
    "A validation of a few prompts of the icon world, in two steps of drawing."
    drawing = dict(validation_limit=3, validation_steps=2, validation_scheduler='ddim')
    config = ValidationConfig(**dict(validation_prompts='icons:tuning') | drawing | more)
    return Validation(config, two_scorers() if scorers is None else scorers)


class Noting(Callback):
    "Notes what it is told, and after which step."

    def __init__(self):
        self.told = []

    def on_base(self, run):
        self.told.append(('base', run.step))

    def on_start(self, run):
        self.told.append(('start', run.step))

    def on_refresh(self, run):
        self.told.append(('refresh', run.step))

    def on_step(self, run, row):
        self.told.append(('step', row['step']))

    def on_validation(self, run, result):
        self.told.append(('validation', result.step))

    def on_save(self, run, folder):
        assert (folder / 'manifest.json').is_file()
        self.told.append(('save', int(folder.name.removeprefix('step-'))))

    def on_end(self, run, model):
        self.told.append(('end', model and model.name))


class Drawing(Callback):
    "Takes numbers from every global stream."

    def on_step(self, run, row):
        random.random(), np.random.rand(), torch.rand(1)


class FailsOnSecond(Callback):
    "Fails on the second process alone, after the second step."

    def on_step(self, run, row):
        if row['step'] == 2 and PartialState().process_index == 1:
            raise ZeroDivisionError('on the second')


class StopsOnSecond(Callback):
    "Stops the run on the second process alone, after the second step."

    def on_step(self, run, row):
        if row['step'] == 2 and PartialState().process_index == 1:
            run.stop('the second has seen enough')


def watching_every_second():
    "A validation after every second step."
    return watching(validate_every=2)
