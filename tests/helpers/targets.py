"""The targets that potentials stand for."""


def probabilities(target):
    """Return q [M, K] of a `Target` with stored scores, by its definition."""
    row, column = target.potentials
    return (target.scores.rows / target.temperature + row[:, None] + column).exp()
