import pickle

from iaunet import errors
from iaunet.errors import LONGEST, FileError, PlanError


def below(kind):
    return [kind, *(leaf for child in kind.__subclasses__() for leaf in below(child))]


OURS = [kind for kind in below(errors.IaunetError) if kind.__module__ == "iaunet.errors"]


def test_every_error_is_drawn_in_the_tree():
    assert all(kind.__name__ in errors.__doc__ for kind in OURS)


def test_every_error_comes_back_whole_from_a_worker():
    for kind in OURS:
        fault = kind("is torn", "mend it") if issubclass(kind, FileError) else kind("is torn: mend it")
        restored = pickle.loads(pickle.dumps(fault))

        assert (type(restored), str(restored)) == (kind, "is torn: mend it")


def test_what_a_terminal_would_obey_is_written_out():
    name = "a\nb\r\x1b[31m\u2028\u202e\udcff ü\u202f\xa0漢"
    shown = "a\\nb\\r\\x1b[31m\\u2028\\u202e\\udcff ü\u202f\xa0漢"
    fault = FileError(f"{name} is torn", "mend it")

    assert str(PlanError(f"{name}: mend it")) == f"{shown}: mend it"
    assert (fault.what, str(fault)) == (f"{shown} is torn", f"{shown} is torn: mend it")


def test_a_long_message_keeps_its_beginning_and_its_mend():
    message = str(PlanError(f"plan.json is {'x' * 100_000}: mend it"))

    assert len(message) <= LONGEST
    assert message.startswith("plan.json is xxx")
    assert message.endswith("xxx: mend it")
