"""The packed form of masks, written out token by token."""

import torch


def assert_packed(masks, counts):
    """Check hidden, index, inverse and weights of `masks` against each other and against `counts` [N]."""
    hidden, counts = masks.hidden.cpu(), counts.cpu()
    assert hidden.dtype == torch.bool and torch.equal(hidden.sum(1), counts)
    index, inverse, weights = [], torch.full(hidden.shape, -1, dtype=torch.int64), []
    for row, tokens in enumerate(hidden.tolist()):
        for token, is_hidden in enumerate(tokens):
            if is_hidden:
                inverse[row, token] = len(index)
                index.append(row * hidden.shape[1] + token)
                weights.append(1 / int(counts[row]))
    assert torch.equal(masks.indices.cpu(), torch.tensor(index, dtype=torch.int64))
    assert torch.equal(masks.inverse.cpu(), inverse)
    assert masks.weights.dtype == torch.float32
    torch.testing.assert_close(masks.weights.cpu(), torch.tensor(weights), rtol=3e-7, atol=0)
