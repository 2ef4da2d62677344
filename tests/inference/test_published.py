import pytest

from iaunet.inference.published import PAPER_METRICS, PUBLISHED, TITLES, find_published
from iaunet.metrics import METRICS
from iaunet.networks import NETWORKS


def test_each_network_of_the_paper_can_be_trained_here_and_has_figures_on_both_data_sets():
    assert {*TITLES} == {*NETWORKS}
    assert [*PUBLISHED] == ["ISIC2018", "CVC-ClinicDB"]
    for figures in PUBLISHED.values():
        assert [*figures] == [*TITLES]
        assert all(len(row) == len(PAPER_METRICS) and all(70 < value < 95 for value in row) for row in figures.values())
    assert {*PAPER_METRICS} <= {*METRICS}


@pytest.mark.parametrize("figures", PUBLISHED.values(), ids=[*PUBLISHED])
def test_the_papers_network_is_best_in_every_column_as_it_claims(figures):
    for i in range(len(PAPER_METRICS)):
        assert max(figures, key=lambda network: figures[network][i]) == "iaunet"


@pytest.mark.parametrize("figures", PUBLISHED.values(), ids=[*PUBLISHED])
def test_the_papers_figures_are_means_over_images(figures):
    for dice, iou, _, _ in figures.values():
        assert abs(iou - 100 * dice / (200 - dice)) > 0.4  # pooled counts would make them equal


@pytest.mark.parametrize(
    ("dataset", "published"),
    [
        ("CVC-ClinicDB", "CVC-ClinicDB"),
        ("cvc_clinicdb_small", "CVC-ClinicDB"),
        ("ClinicDB", "CVC-ClinicDB"),
        ("ISIC2018", "ISIC2018"),
        ("isic_2018_task1", "ISIC2018"),
        ("ISIC-2018 Task 1", "ISIC2018"),
        ("ISIC2017", None),
        ("CVC-ColonDB", None),
        ("toy", None),
        ("", None),
    ],
)
def test_a_data_set_is_known_by_its_name(dataset, published):
    assert find_published(dataset) == published
