import torch

from iaunet.trainers.versions import library_versions


def test_the_versions_that_a_result_depends_on_are_known():
    versions = library_versions()

    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert versions.keys() >= {"python", "iaunet", "numpy", "batchgenerators"}
