import pickle

from iaunet import errors
from iaunet.errors import FileError


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
