"""Tiny pipelines of every family, made once for all tests of the models."""

import pytest

from balanceddpo.models.saving import save_pipeline
from tiny_models import FLOW_KINDS, KINDS, tiny_folder, with_adapters


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    "kind -> the folder of a tiny pipeline; a test that changes one makes a copy."
    root = tmp_path_factory.mktemp('pipelines')
    return {kind: tiny_folder(root / kind, kind) for kind in (*KINDS, *FLOW_KINDS)}


@pytest.fixture(scope='session')
def loras(folders, tmp_path_factory):
    "kind -> the folder of a LoRA (rank 4, alpha 16) for the tiny pipeline of that kind."
    root = tmp_path_factory.mktemp('loras')
    return {
        kind: save_pipeline(folder, with_adapters(folder), root / kind, 'default')
        for kind, folder in folders.items()
    }
