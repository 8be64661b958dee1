"""Who gets how many actors: the laws hold for any stages on any machines."""

from hypothesis import given
from hypothesis import strategies as st

from infra.allot import Demand, Size, allot

SIZES = st.builds(
    Size,
    cpus=st.sampled_from([0.5, 1.0, 2.0]),
    gpus=st.sampled_from([0.0, 0.0, 1.0]),
    resources=st.sampled_from([(), (), (("decoder", 1.0),)]),
)
DEMANDS = st.lists(
    st.builds(
        lambda size, least, more, backlog, rank: Demand(size, least, least + more, backlog, rank),
        SIZES,
        st.integers(1, 3),
        st.integers(0, 20),
        st.integers(0, 50),
        st.integers(0, 9),
    ),
    max_size=6,
)
CAPACITY = st.fixed_dictionaries({"CPU": st.integers(0, 32), "GPU": st.integers(0, 8), "decoder": st.integers(0, 4)})


def used(demands, given_):
    """Resources that an allotment takes."""
    total = {"CPU": 0.0, "GPU": 0.0, "decoder": 0.0}
    for demand, count in zip(demands, given_, strict=True):
        for name, need in demand.size.needs().items():
            total[name] += need * count
    return total


@given(DEMANDS, CAPACITY)
def test_nobody_gets_more_than_wanted_and_all_together_no_more_than_there_is(demands, capacity):
    given_ = allot(demands, capacity)
    assert all(0 <= n <= d.wanted for n, d in zip(given_, demands, strict=True))
    assert all(total <= capacity[name] + 1e-6 for name, total in used(demands, given_).items())


@given(DEMANDS, CAPACITY)
def test_nothing_lies_idle_that_a_stage_with_work_could_use(demands, capacity):
    given_ = allot(demands, capacity)
    left = {name: capacity[name] - total for name, total in used(demands, given_).items()}
    for demand, count in zip(demands, given_, strict=True):
        fits = all(left[name] >= need for name, need in demand.size.needs().items())
        assert count == demand.wanted or not fits


@given(st.integers(1, 10_000), st.integers(1, 64), st.integers(2, 64), st.integers(1, 8))
def test_a_gpu_stage_is_never_starved_by_a_cpu_stage_with_more_work(cpu_backlog, cpu_most, num_cpus, num_gpus):
    cpu = Demand(Size(), 1, cpu_most, cpu_backlog, rank=9)
    gpu = Demand(Size(1.0, 1.0), 1, num_gpus, num_gpus, rank=0)
    given_cpu, given_gpu = allot([cpu, gpu], {"CPU": num_cpus, "GPU": num_gpus})
    assert given_gpu == min(num_gpus, num_cpus - 1)  # one CPU is left, so that the stage that feeds it goes on
    assert given_cpu >= 1


def test_stages_of_one_kind_share_alike_and_grow_when_another_has_nothing_left():
    many, few, none = (Demand(Size(), 1, 8, backlog) for backlog in (100, 2, 0))
    assert allot([many, many], {"CPU": 8}) == [4, 4]
    assert allot([many, few], {"CPU": 8}) == [6, 2]
    assert allot([many, none], {"CPU": 8}) == [8, 0]


def test_with_too_few_machines_the_later_stage_goes_first():
    first, last = Demand(Size(), 1, 4, 9, rank=1), Demand(Size(), 1, 4, 9, rank=2)
    assert allot([first, last], {"CPU": 1}) == [0, 1]
