"""The order of samples, whoever reads it: how many ranks, workers and groups, and where it was broken off."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vpt_vision.data.loader import Loader
from vpt_vision.data.order import Groups, Order
from vpt_vision.data.source import Sample
from vpt_vision.errors import UserError


class Numbers:
    """Samples known by their number, in groups where sizes of groups are given."""

    classes = None

    def __init__(self, count, groups=None):
        self.count = count
        self.groups = groups

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Sample(torch.full((1, 1, 3), index % 256, dtype=torch.uint8), index)

    def name(self, index):
        return str(index)

    def prefetch(self, group):
        pass


def grouped(sizes, window):
    return Groups(np.concatenate([[0], np.cumsum(sizes)]), window)


sizes = st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any)
seeds = st.integers(0, 2**31 - 1)


class TestGroups:
    @given(sizes, st.integers(1, 14), seeds)
    def test_every_epoch_is_the_data_set(self, sizes, window, seed):
        count = sum(sizes)
        row = Order(seed, count, grouped(sizes, window)).samples(0, 3 * count).reshape(3, count)
        assert (np.sort(row) == np.arange(count)).all()

    @given(sizes, st.integers(1, 14), seeds)
    def test_a_window_is_read_out_before_the_next(self, sizes, window, seed):
        count = sum(sizes)
        order = Order(seed, count, grouped(sizes, window))
        group_of = np.repeat(np.arange(len(sizes)), sizes)
        stretches = list(islice(order.windows(0), 2 * -(-np.count_nonzero(sizes) // window) + 1))
        for (begin, groups), (end, _) in pairwise(stretches):
            seen = order.samples(begin, end - begin)
            assert set(group_of[seen]) == set(groups) and len(groups) <= window
            assert len(seen) == sum(sizes[group] for group in groups)
        assert stretches[-1][0] == 2 * count

    @given(sizes, st.integers(1, 14), seeds, st.integers(0, 100), st.integers(1, 100))
    def test_the_row_is_the_same_from_anywhere(self, sizes, window, seed, place, length):
        order, another = (Order(seed, sum(sizes), grouped(sizes, window)) for _ in range(2))
        assert (order.samples(0, place + length)[place:] == another.samples(place, length)).all()
        begin, groups = next(another.windows(place))
        assert begin <= place
        assert int(np.repeat(np.arange(len(sizes)), sizes)[another.samples(place, 1)[0]]) in groups

    @given(sizes, st.integers(1, 14), seeds, st.integers(0, 100))
    def test_substitutes_come_from_the_window(self, sizes, window, seed, place):
        order = Order(seed, sum(sizes), grouped(sizes, window))
        group_of = np.repeat(np.arange(len(sizes)), sizes)
        _, groups = next(order.windows(place))
        assert set(group_of[list(islice(order.substitutes(place), 20))]) <= set(groups)

    def test_groups_and_samples_are_mixed(self):
        order = Order(0, 120, grouped([10] * 12, 4))
        first, second = order.samples(0, 120), order.samples(120, 120)
        assert sorted(first[:40] // 10) != sorted(second[:40] // 10)
        assert (np.diff(first[:40] // 10) != 0).sum() > 15  # samples of 4 groups, mixed

    def test_the_order_is_the_same_on_every_machine(self):
        assert Order(5, 9, grouped([3, 2, 4], 2)).samples(0, 18).tolist() == [
            *[2, 1, 5, 0, 6, 7, 8, 4, 3],
            *[7, 5, 1, 6, 8, 0, 2, 4, 3],
        ]


class Run:
    """All ranks of a run in step with one another, and what they have seen."""

    def __init__(self, source, batch_size, ranks, workers=0, state=None):
        self.loaders = [
            Loader(
                source,
                batch_size=batch_size,
                seed=7,
                workers=workers,
                rank=rank,
                world_size=ranks,
            )
            for rank in range(ranks)
        ]
        if state is not None:
            for loader in self.loaders:
                loader.load_state_dict(state)

    def take(self, steps):
        """Sample numbers that all ranks see, rank by rank, step by step."""
        iterators = [iter(loader) for loader in self.loaders]
        seen = [int(i) for _ in range(steps) for batches in iterators for i in next(batches).index]
        for batches in iterators:
            batches.close()
        return seen

    def state(self):
        states = [loader.state_dict() for loader in self.loaders]
        places = {(state["epoch"], state["position"]) for state in states}
        assert len(places) == 1  # any rank's state will do
        return states[-1]


class TestRanks:
    @given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5), st.booleans())
    def test_together_they_see_the_row_of_one(self, count, batch_size, ranks, in_groups):
        groups = grouped([count - count // 2, count // 2], 1) if in_groups else None
        source = Numbers(count, groups)
        seen = Run(source, batch_size, ranks).take(4)
        assert seen == Order(7, count, groups).samples(0, 4 * batch_size * ranks).tolist()

    @given(
        count=st.integers(1, 60),
        legs=st.lists(
            st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 5)), min_size=2, max_size=5
        ),
    )
    def test_killed_and_resumed_with_other_ranks_every_epoch_is_the_data_set(self, count, legs):
        """Each leg is a run that is killed after some steps and goes on with other ranks and batches."""
        seen, state = [], None
        for steps, ranks, batch_size in legs:
            run = Run(Numbers(count), batch_size, ranks, state=state)
            seen += run.take(steps)
            state = run.state()
            assert (state["epoch"], state["position"]) == divmod(len(seen), count)
        seen += Run(Numbers(count), 1, 1, state=state).take(-len(seen) % count)
        epochs = np.array(seen, dtype=int).reshape(-1, count)
        assert (np.sort(epochs) == np.arange(count)).all()

    @pytest.mark.parametrize(
        "legs",
        [[(2, 2, 0), (1, 1, 2), (2, 3, 1)], [(3, 1, 2), (1, 4, 0)]],
        ids=["2 ranks, then 1, then 3", "1 rank, then 4"],
    )
    def test_the_same_with_worker_processes_that_read_ahead(self, legs):
        seen, state = [], None
        for steps, ranks, workers in legs:
            run = Run(Numbers(31, grouped([7, 9, 15], 2)), 3, ranks, workers, state)
            seen += run.take(steps)
            state = run.state()
        seen += Run(Numbers(31, grouped([7, 9, 15], 2)), 1, 1, state=state).take(-len(seen) % 31)
        assert sorted(seen[:31]) == list(range(31))

    @pytest.mark.parametrize(("rank", "ranks"), [(2, 2), (-1, 1), (0, 0)])
    def test_a_rank_that_does_not_exist(self, rank, ranks):
        with pytest.raises(UserError, match=f"rank {rank} of {ranks} does not exist"):
            Loader(Numbers(3), batch_size=1, seed=0, rank=rank, world_size=ranks)
