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


class IaunetError(Exception):
    """The user can mend this. The message says what is wrong, where, and what to do, in one line."""


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
        super().__init__(f"{what}: {mend}")
        self.what = what
        self.mend = mend

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
