"""Which bytes are asked for next: decided by events alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from nimpull.core.limits import MIB, FetchLimits
from nimpull.core.schedule import Begin, FetchSegment, FetchSmall, LargeFile, Schedule, Segment

LIMITS = FetchLimits(connections=8, start=4)


def no_pause(_host: str) -> float:
    return 0.0


@dataclass
class Play:
    """A schedule, and what was decided so far. Time stands still unless ``now`` is moved."""

    limits: FetchLimits = LIMITS
    now: float = 1.0
    files: dict[int, LargeFile] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    small: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.schedule = Schedule(self.limits)

    def decide(self, *, accept: bool = True, host: str = "cdn") -> None:
        """All that is to be done now; each file that begins is there at once."""
        while (decision := self.schedule.next(self.now, no_pause)) is not None:
            match decision:
                case Begin(key):
                    self.begun.append(key)
                    size = SIZES[key]
                    missing = [(0, size)]
                    self.files[key] = self.schedule.begun(key, size, missing, host, ranged=True)
                case FetchSegment(segment):
                    self.segments.append(segment)
                    if accept:
                        self.schedule.accepted(segment, segment.file.size, host)
                case FetchSmall(key):
                    self.small.append(key)

    def finish(self, segment: Segment) -> None:
        assert segment.end is not None
        segment.position += segment.end - segment.position
        self.schedule.whole(segment)


SIZES = {1: 100 * MIB, 2: 300 * MIB, 3: 200 * MIB, 4: 1000 * MIB}


def played(*keys: int, limits: FetchLimits = LIMITS, accept: bool = True) -> Play:
    play = Play(limits)
    for key in keys:
        play.schedule.add_large(key, SIZES[key])
    play.decide(accept=accept)
    return play


def spans(play: Play) -> list[tuple[int, int | None]]:
    return [(each.start, each.end) for each in play.segments]


def test_the_largest_files_come_first_each_as_one_stream() -> None:
    play = played(1, 2, 3, 4, limits=FetchLimits(connections=2, start=2))
    assert play.begun == [4, 2]
    assert spans(play) == [(0, 1000 * MIB), (0, 300 * MIB)]


def test_spare_connections_share_a_file_once_its_first_response_is_good() -> None:
    play = played(2, accept=False)
    assert spans(play) == [(0, 3 * MIB)]
    play.schedule.accepted(play.segments[0], SIZES[2], "cdn")
    play.decide()
    assert len(play.segments) == 4
    starts = [start for start, _ in spans(play)]
    assert starts == sorted(starts)
    assert [start for start, _ in spans(play)][1:] == [end for _, end in spans(play)][:-1]


def test_a_stream_is_cut_where_a_connection_comes_to_help() -> None:
    limits = FetchLimits(connections=2, start=2)
    play = played(3, 2, limits=limits)
    first, second = play.segments
    second.position += 150 * MIB
    play.finish(first)
    play.schedule.hashed(second.file, 150 * MIB)
    play.schedule.dropped(play.files[2])
    play.decide()
    helping = play.segments[-1]
    assert helping.file is second.file
    assert second.end == helping.start
    assert 150 * MIB < helping.start <= 150 * MIB + second.file.window


def test_nobody_is_sent_beyond_the_window() -> None:
    play = played(4)
    while len(play.segments) < 200:
        before = len(play.segments)
        for segment in [each for each in play.segments[1:] if each in each.file.under_way]:
            play.finish(segment)
        play.decide()
        if len(play.segments) == before:
            break
    (file,) = play.files.values()
    assert max(each.start for each in play.segments) < file.window
    assert file.front == 0
    play.schedule.hashed(file, 4 * MIB)
    play.finish(play.segments[0])
    play.decide()
    assert len(play.segments) > before


def test_f17_what_broke_off_comes_after_its_pause_and_nobody_jumps_the_queue() -> None:
    play = played(2, limits=FetchLimits(connections=2, start=1))
    (segment,) = play.segments
    segment.position += 10 * MIB
    play.schedule.broke_off(segment, play.now, 5.0)
    play.decide()
    assert play.segments == [segment], "and no other connection takes a part of it meanwhile"
    assert play.schedule.wakes(play.now, no_pause) == play.now + 5.0
    play.now += 5.0
    play.decide()
    assert play.segments == [segment, segment]
    assert (segment.position, segment.end) == (10 * MIB, SIZES[2])


def test_f17_a_host_that_rests_is_left_alone() -> None:
    play = Play()
    play.schedule.add_small(1, 1000, "busy")
    play.schedule.add_small(2, 1000, "cdn")
    left = {"busy": 30.0, "cdn": 0.0}
    assert play.schedule.next(play.now, left.__getitem__) == FetchSmall(2)
    assert play.schedule.next(play.now, left.__getitem__) is None
    assert play.schedule.wakes(play.now, left.__getitem__) == play.now + 30.0
    left["busy"] = 0.0
    assert play.schedule.next(play.now + 30.0, left.__getitem__) == FetchSmall(1)


def test_f05_a_file_of_a_host_without_ranges_is_one_stream() -> None:
    schedule = Schedule(LIMITS)
    schedule.add_large(2, SIZES[2])
    assert schedule.next(1.0, no_pause) == Begin(2)
    schedule.begun(2, SIZES[2], [(0, SIZES[2])], "cdn", ranged=False)
    decision = schedule.next(1.0, no_pause)
    assert isinstance(decision, FetchSegment)
    schedule.accepted(decision.segment, SIZES[2], "cdn")
    assert (decision.segment.start, decision.segment.end) == (0, SIZES[2])
    assert schedule.next(1.0, no_pause) is None


def test_what_an_earlier_run_left_is_not_asked_for_unless_it_is_lost() -> None:
    schedule = Schedule(FetchLimits(connections=1, start=1))
    schedule.add_large(2, SIZES[2])
    assert schedule.next(1.0, no_pause) == Begin(2)
    file = schedule.begun(2, SIZES[2], [(290 * MIB, 300 * MIB)], "cdn", ranged=True)
    assert schedule.next(1.0, no_pause) is None, "the hash has a long way to go"
    schedule.hashed(file, 5 * MIB)
    schedule.lost(file, (5 * MIB, 6 * MIB))
    decision = schedule.next(1.0, no_pause)
    assert isinstance(decision, FetchSegment)
    assert (decision.segment.start, decision.segment.end) == (5 * MIB, 6 * MIB)


def test_f42_small_files_take_no_more_memory_than_there_is() -> None:
    play = Play(FetchLimits(pool=3000))
    for key in range(9):
        play.schedule.add_small(key, 1000, "cdn")
    play.decide()
    assert play.small == [0, 1, 2]
    play.schedule.small_ended(0, 0.001)
    play.decide()
    assert play.small == [0, 1, 2], "it is in memory until it is written"
    play.schedule.small_stored(1000)
    play.decide()
    assert play.small == [0, 1, 2, 3]


def test_small_files_do_not_all_come_last() -> None:
    play = Play(FetchLimits(connections=4, small_connections=4))
    play.schedule.add_large(4, SIZES[4])
    for key in range(10, 30):
        play.schedule.add_small(key, 1000, "cdn")
    play.decide()
    assert play.small
    assert not play.schedule.idle


@given(st.data())
def test_every_byte_is_asked_for_once_and_within_the_window(data: st.DataObject) -> None:
    """Whatever order things happen in."""
    play = Play(FetchLimits(connections=data.draw(st.integers(1, 8)), start=data.draw(st.integers(1, 4))))
    keys = data.draw(st.lists(st.sampled_from(sorted(SIZES)), min_size=1, unique=True))
    for key in keys:
        play.schedule.add_large(key, SIZES[key])
    play.decide()
    got: dict[int, list[tuple[int, int]]] = {key: [] for key in keys}
    for _ in range(2000):
        going = [each for file in play.files.values() for each in file.under_way]
        if not going:
            break
        segment = data.draw(st.sampled_from(going)) if len(going) > 1 else going[0]
        assert segment.end is not None
        file = segment.file
        bound = min(segment.end, file.front + file.window)
        step = min(bound - segment.position, data.draw(st.sampled_from([MIB, 7 * MIB, 64 * MIB])))
        if segment.position < bound:
            got[file.key].append((segment.position, segment.position + step))
            segment.position += step
        if segment.position == segment.end:
            play.schedule.whole(segment)
        elif data.draw(st.booleans()):
            play.schedule.broke_off(segment, play.now)
        for start, end in sorted(got[file.key]):
            if start == file.front:
                play.schedule.hashed(file, end)
        if file.front == file.size:
            play.schedule.dropped(file)
            del play.files[file.key]
        play.decide()
    assert not play.files
    assert play.schedule.idle
    for key, parts in got.items():
        position = 0
        for start, end in sorted(parts):
            assert start == position, "nothing twice, nothing left out"
            position = end
        assert position == SIZES[key]
