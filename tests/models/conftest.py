"""Tiny pipelines of every family, made once for all tests of the models."""

import pytest

from tiny_models import FLOW_KINDS, KINDS, tiny_folder


@pytest.fixture(scope='session')
def folders(tmp_path_factory):
    "kind -> the folder of a tiny pipeline; a test that changes one makes a copy."
    root = tmp_path_factory.mktemp('pipelines')
    return {kind: tiny_folder(root / kind, kind) for kind in (*KINDS, *FLOW_KINDS)}
