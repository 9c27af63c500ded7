import torch
from hypothesis import given
from hypothesis import strategies as st

from vpt_vision.evaluation.windows import Frame, boxes_in_source, merge

sides = st.integers(1, 90)


@given(sides, sides, st.integers(1, 30), st.floats(0.05, 1))
def test_windows_cover_the_frame_and_stay_inside(height, width, size, share):
    frame = Frame.of(height, width, size)
    assert min(frame) == size
    places = frame.places(size, max(1, round(share * size)))
    covered = torch.zeros(frame)
    for top, left in places:
        assert 0 <= top <= frame.height - size and 0 <= left <= frame.width - size
        covered[top : top + size, left : left + size] += 1
    assert covered.min() >= 1
    assert len(set(places)) == len(places)


def test_a_square_has_one_window_and_a_long_image_the_last_one_at_its_end():
    assert Frame.of(30, 30, 12).places(12, 8) == [(0, 0)]
    frame = Frame.of(20, 52, 10)
    assert frame == Frame(10, 26)
    assert frame.places(10, 6) == [(0, 0), (0, 6), (0, 12), (0, 16)]
    assert Frame.of(52, 20, 10).places(10, 6) == [(0, 0), (6, 0), (12, 0), (16, 0)]


@given(sides, sides, st.integers(1, 30))
def test_boxes_lie_in_the_source_and_meet_its_borders(height, width, size):
    frame = Frame.of(height, width, size)
    places = torch.tensor(frame.places(size, max(1, size // 2)))
    boxes = boxes_in_source(places, size, frame, height, width).double()
    ends = boxes[:, :2] + boxes[:, 2:]
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (ends <= torch.tensor([height, width]) + 1e-4).all()
    torch.testing.assert_close(ends.amax(0), torch.tensor([height, width]).double(), atol=1e-4, rtol=1e-5)
    expected = places.double() * torch.tensor([height / frame.height, width / frame.width])
    torch.testing.assert_close(boxes[:, :2], expected, atol=1e-4, rtol=1e-5)


def test_merged_windows_are_means_of_what_covers_a_pixel():
    frame = Frame(4, 9)
    places = torch.tensor(frame.places(4, 3))
    windows = torch.randn(len(places), 2, 4, 4)
    merged = merge(windows, places, frame)
    for row in range(4):
        for column in range(9):
            over = [
                windows[number, :, row - top, column - left]
                for number, (top, left) in enumerate(places.tolist())
                if top <= row < top + 4 and left <= column < left + 4
            ]
            torch.testing.assert_close(merged[:, row, column], torch.stack(over).mean(0))
