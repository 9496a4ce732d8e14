"""Errors that say in one line what is wrong."""

from contextlib import contextmanager

import pytest

from pathex.errors import InvalidInput


@contextmanager
def refused(message, error=InvalidInput):
    """What is inside fails with a line in which the message is found; gives what was caught."""
    with pytest.raises(error, match=message) as caught:
        yield caught
    assert "\n" not in str(caught.value)
