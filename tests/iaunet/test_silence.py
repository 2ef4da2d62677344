import warnings
from contextlib import ExitStack

import pytest

from iaunet.silence import ignoring_warnings


def test_warnings_are_ignored_until_the_last_of_several_readers_has_left():
    with pytest.warns(UserWarning, match="after"):
        first, second = ExitStack(), ExitStack()
        first.enter_context(ignoring_warnings())
        second.enter_context(ignoring_warnings())
        first.close()
        warnings.warn("while the second reads", UserWarning, stacklevel=1)
        second.close()
        before = [*warnings.filters]
        warnings.warn("after both", UserWarning, stacklevel=1)
    assert ("ignore", None, Warning, None, 0) not in before


def test_a_function_may_ignore_warnings_and_raise():
    @ignoring_warnings()
    def read():
        warnings.warn("of the library", UserWarning, stacklevel=1)
        raise OSError("damaged")

    for _ in range(2):
        with pytest.raises(OSError, match="damaged"):
            read()
    with pytest.raises(UserWarning, match="mine"):
        warnings.warn("mine", UserWarning, stacklevel=1)
