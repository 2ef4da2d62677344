import torch

from iaunet.trainers.epoch_validation import dice_per_image


def test_dice_per_image_is_equation_12_and_1_where_both_are_empty():
    predicted = torch.tensor([[[[1, 1, 0, 0]]], [[[0, 0, 0, 0]]], [[[0, 0, 0, 0]]]], dtype=torch.bool)
    truth = torch.tensor([[[[1, 0, 1, 1]]], [[[0, 0, 0, 0]]], [[[1, 0, 0, 0]]]], dtype=torch.bool)

    torch.testing.assert_close(dice_per_image(predicted, truth), torch.tensor([[0.4], [1.0], [0.0]]))
