import torch

from vpt_vision.learner.gram import gram_loss


def test_equals_the_formula_over_all_pairs_of_patches() -> None:
    student = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    anchor = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    losses = gram_loss(student, anchor)
    for image in range(3):
        total = 0.0
        for i in range(5):
            for j in range(5):
                own = torch.cosine_similarity(student[image, i], student[image, j], dim=0)
                held = torch.cosine_similarity(anchor[image, i], anchor[image, j], dim=0)
                total = total + (own - held) ** 2 / 25
        torch.testing.assert_close(losses[image], total)
    assert torch.autograd.gradcheck(gram_loss, (student, anchor))


def test_is_zero_for_features_turned_together() -> None:
    features = torch.randn(2, 6, 4)
    turn, _ = torch.linalg.qr(torch.randn(4, 4))
    torch.testing.assert_close(gram_loss(features @ turn, features), torch.zeros(2), atol=1e-6, rtol=0)


def test_is_computed_in_fp32_under_autocast() -> None:
    student, anchor = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    expected = gram_loss(student.double(), anchor.double()).float()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(gram_loss(student, anchor), expected, atol=1e-6, rtol=1e-5)
