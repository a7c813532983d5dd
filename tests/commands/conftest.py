"""The command line in this process, and a run to use it on, whose answers depend on what is asked."""

import pytest
from tests.test_cli import call

__all__ = ["call"]


@pytest.fixture
def run(finished_run, loud_base):
    return finished_run(model={"base": str(loud_base)}, training={"learning_rate": 0.3}).path
