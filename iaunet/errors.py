"""What can go wrong that the user can mend.

IaunetError
├── WorkspaceError   a dataset or folder the workspace does not know, cannot write or that is in use
├── DatasetError     the raw images, masks or groups
│   └── FileError    one file that cannot be read as what it should be
├── PlanError        a plan or a split
├── PreprocessingError  the preprocessed arrays
├── TrainingError    a run
├── PredictionError  predicting or evaluating
└── NetworkError     a network that cannot be built as asked
"""

from unicodedata import category

LONGEST = 2000
"""Characters of a message: what a file holds may be quoted in it."""


class IaunetError(Exception):
    """The user can mend this. The message says what is wrong, where, and what to do, in one line, see `in_one_line`."""

    def __init__(self, message: str) -> None:
        super().__init__(_cut(in_one_line(message)))


def in_one_line(text: str) -> str:
    """A text as it can be shown: line ends and what else a terminal might obey written out, as ``\\n`` or ``\\x1b``.

    Names and values that files hold are part of what is told.
    """
    if text.isprintable():
        return text
    return "".join(each if _is_shown(each) else each.encode("unicode_escape").decode() for each in text)


def _cut(text: str) -> str:
    """A text without its middle where it is long: the end of a message is its mend."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"


def _is_shown(character: str) -> bool:
    return character.isprintable() or category(character) == "Zs"  # spaces of every width


class WorkspaceError(IaunetError):
    """A dataset or folder that the workspace does not know, cannot write or that is in use."""


class DatasetError(IaunetError):
    """The raw images, masks or groups are not what they should be."""


class FileError(DatasetError):
    """One file cannot be read as what it should be.

    Args:
        what: What is wrong with the file.
        mend: What to do about it.
    """

    def __init__(self, what: str, mend: str) -> None:
        self.what = _cut(in_one_line(what))
        self.mend = _cut(in_one_line(mend))
        super().__init__(f"{self.what}: {self.mend}")

    def __reduce__(self) -> tuple[type["FileError"], tuple[str, str]]:
        return type(self), (self.what, self.mend)


class PlanError(IaunetError):
    """A plan or a split cannot be made, read or used."""


class PreprocessingError(IaunetError):
    """The preprocessed arrays cannot be written or read."""


class TrainingError(IaunetError):
    """A run cannot be started, continued or used."""


class PredictionError(IaunetError):
    """Images cannot be predicted, or masks not evaluated."""


class NetworkError(IaunetError):
    """A network cannot be built as asked."""
