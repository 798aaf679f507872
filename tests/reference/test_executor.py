"""Every method of a run against the loop through the module: any graph, any convention, any cut of time."""

import copy
import gc
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import nir
import numpy as np
import pytest
import torch
from graphs import cases, feed_forward, recurrent_stacks
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from nets import chain, conv_node, flatten_node, if_node, input_node, linear_node, output_node, raster
from torch import nn

import nirdeploy as nd
from nirdeploy.errors import ConventionError, GraphError, RasterError
from nirdeploy.graph import make_graph, make_node, output_shape
from nirdeploy.reference import cycle, driven, engine, executor, program, scanned, threads
from nirdeploy.reference.neurons import IF

EVERYTHING = ("spikes", "v_mem", "i_syn", "output")
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@contextmanager
def tuned(most_steps=4096, absorbed=1 << 16, matrices=1 << 22, crossover=2.0, threaded=False):
    """The executor with other limits: short chunks, no native cycles, events whatever the density, two threads."""

    def split(work, count, least):
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            return threads.split(work, count, 1)
        finally:
            torch.set_num_threads(before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "_MOST_STEPS", most_steps)
        patch.setattr(program, "_ABSORBED", absorbed)
        patch.setattr(cycle, "_MOST_WEIGHTS", matrices)
        patch.setattr(driven, "_CROSSOVER", {nn.Linear: crossover, nn.Conv2d: crossover})
        if threaded:
            for room in (engine, scanned, driven, cycle):
                patch.setattr(room, "split", split)
        yield


def leaves(state, at=()):
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*at, key))
        else:
            yield (*at, key), value


def assert_close(found, wanted, close, what):
    assert found.shape == wanted.shape, what
    assert found.dtype == wanted.dtype, what
    if close:
        scale = max(1.0, np.abs(wanted).max(initial=0)) if np.isfinite(wanted).all() else 1.0
        np.testing.assert_allclose(found, wanted, rtol=0, atol=close * scale, err_msg=str(what))
    else:
        np.testing.assert_array_equal(found, wanted, err_msg=str(what))


def assert_same_run(found, wanted, close=0.0):
    """Spikes are equal; v, i and outputs to within `close` of the largest of them."""
    assert list(found) == list(wanted)
    for key in wanted:
        one, other = found[key], wanted[key]
        assert (one.units, one.lag, one.steps, one.batched) == (other.units, other.lag, other.steps, other.batched)
        assert np.array_equal(one.threshold, other.threshold) if one.threshold is not None else other.threshold is None
        assert_close(one.data, other.data, 0.0 if key[1] == "spikes" else close, key)
    assert_same_state(found.state, wanted.state, close)


def assert_same_state(found, wanted, close=0.0):
    one, other = dict(leaves(found)), dict(leaves(wanted))
    assert set(one) == set(other)
    for key, value in other.items():
        assert_close(one[key].numpy(), value.numpy(), close, key)


LIMITS = st.fixed_dictionaries(
    {
        "most_steps": st.sampled_from((1, 2, 3, 4096)),
        "absorbed": st.sampled_from((-1, 1 << 16)),
        "matrices": st.sampled_from((-1, 1 << 22)),
        "crossover": st.sampled_from((2.0, 0.25)),
        "threaded": st.booleans(),
    }
)
RECORDS = st.sampled_from((EVERYTHING, ("spikes", "v_mem", "i_syn"), ("spikes",)))


def cut(rasters, *bounds):
    return {name: raster[slice(*bounds)] for name, raster in rasters.items()}


def in_the_loop(case, limits, **options):
    """The loop's trajectory; None where it counts too many spikes, as the other methods must, too."""
    try:
        return nd.run(case.module, case.rasters, method="loop", **options)
    except (ConventionError, RasterError) as error:
        event("too many spikes")
        for method in ("dense", "event"):
            with tuned(**limits), pytest.raises(type(error), match="spikes in a step"):
                nd.run(case.module, case.rasters, method=method, **options)
        return None


def check(case, limits, record, at, close):
    module, rasters = case.module, case.rasters
    wanted = in_the_loop(case, limits, record=record)
    if wanted is None:
        return
    first_wanted = nd.run(module, cut(rasters, at), record=record, method="loop")
    event(f"feedback: {bool(module.plan.feedback)}")
    for method in ("dense", "event", "loop"):
        with tuned(**limits):
            if method != "loop":
                found = nd.run(case.module, rasters, record=record, method=method)
                assert_same_run(found, wanted, close)
            first = nd.run(module, cut(rasters, at), record=record, method=method)
            assert_same_state(first.state, first_wanted.state, close)
            before = copy.deepcopy(first.state)
            second = nd.run(module, cut(rasters, at, None), record=record, method=method, state=first.state)
        assert_same_state(first.state, before)
        for key in wanted:
            joined = np.concatenate([first[key].data, second[key].data])
            assert_close(joined, wanted[key].data, 0.0 if key[1] == "spikes" else close, key)
        assert_same_state(second.state, wanted.state, close)


@settings(max_examples=50, deadline=None, suppress_health_check=CHECKS)
@given(cases(False, torch.float64), LIMITS, RECORDS, st.integers(1, 5))
def test_every_method_gives_what_the_loop_gives(case, limits, record, at):
    """Real numbers in float64, where no v comes near enough to its threshold for rounding to matter."""
    check(case, limits, record, at, 1e-9)


@settings(max_examples=50, deadline=None, suppress_health_check=CHECKS)
@given(cases(True, torch.float32), LIMITS, RECORDS, st.integers(1, 5))
def test_every_method_is_equal_bit_for_bit_where_sums_are_exact(case, limits, record, at):
    wide = nd.nir_to_torch(case.graph, convention=case.convention, dtype=torch.float64)
    one = nd.run(case.module, case.rasters, record=EVERYTHING, method="loop")
    other = nd.run(wide, case.rasters, record=EVERYTHING, method="loop")
    exact = all(np.array_equal(one[key].data, other[key].data) for key in one)
    event(f"exact: {exact}")
    if exact:
        check(case, limits, record, at, 0.0)


@settings(max_examples=50, deadline=None, suppress_health_check=CHECKS)
@given(cases(False, torch.float64, graphs=feed_forward), LIMITS, RECORDS, st.integers(1, 5))
def test_layers_driven_by_events_give_what_the_loop_gives(case, limits, record, at):
    check(case, limits, record, at, 1e-9)


@settings(max_examples=50, deadline=None, suppress_health_check=CHECKS)
@given(cases(False, torch.float64, graphs=recurrent_stacks), LIMITS, RECORDS, st.integers(1, 5))
def test_recurrent_layers_in_a_row_give_what_the_loop_gives(case, limits, record, at):
    check(case, limits, record, at, 1e-9)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_chunks_are_as_long_as_their_bounds_say(length, monkeypatch):
    module, data = small_net(), raster((2, 5, 5), steps=7, batch=2)
    wanted = nd.run(module, data, method="loop")
    size = executor.program_of(module).step_size * 2 * 4
    lengths = []
    plain = engine.Engine.chunk
    monkeypatch.setattr(engine.Engine, "chunk", lambda *a: lengths.append(next(iter(a[1].values())).steps) or plain(*a))
    for method, bounds in {
        "dense": ({"_FOLD_BYTES": size * length, "_FOLD_IMAGES": 1}, {"_FOLD_BYTES": 1, "_FOLD_IMAGES": 2 * length}),
        "event": ({"_EVENT_BYTES": size * length},),
    }.items():
        for bound in (*bounds, {"_MOST_STEPS": length}):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in bound.items():
                    patch.setattr(executor, name, value)
                assert_same_run(nd.run(module, data, method=method), wanted, 1e-6)
            assert lengths == [length] * (7 // length) + [7 % length] * (7 % length > 0)
            lengths.clear()


# ---------------------------------------------------------------- where a run starts


@settings(max_examples=50, deadline=None, suppress_health_check=CHECKS)
@given(cases(False, torch.float64), LIMITS, st.randoms(use_true_random=False))
def test_entries_missing_from_a_state_mean_rest(case, limits, random):
    """Also where two edges from one node carry different values, since one of them was left out."""
    wanted = in_the_loop(case, limits)

    def some(state):
        found = {}
        for key, value in state.items():
            if isinstance(value, Mapping) and "v_mem" not in value:
                found[key] = some(value)
            elif random.random() < 0.6:
                found[key] = value
        return found

    state = some(wanted.state) if wanted else {}
    wanted = in_the_loop(case, limits, state=state)
    if wanted is None:
        return
    for method in ("dense", "event"):
        with tuned(**limits):
            assert_same_run(nd.run(case.module, case.rasters, method=method, state=state), wanted, 1e-9)


# ---------------------------------------------------------------- parameters that change between two runs

IF_R = nd.Convention(if_gain="r")


def small_net(dtype=torch.float32, convention=IF_R):
    rng = np.random.default_rng(0)
    return nd.nir_to_torch(
        chain(
            (2, 5, 5),
            conv=conv_node(rng.normal(0.2, 0.4, (3, 2, 3, 3)), (5, 5), padding=1),
            a=if_node((3, 5, 5)),
            flat=flatten_node((3, 5, 5)),
            fc=linear_node(rng.normal(0.1, 0.3, (4, 75))),
            b=if_node((4,)),
        ),
        convention=convention,
        dtype=dtype,
    )


def small_loop(dtype=torch.float32):
    rng = np.random.default_rng(1)
    nodes = {"in": input_node(3), "n": if_node((3,)), "out": output_node(3)}
    nodes["w"] = linear_node(rng.normal(0, 0.5, (3, 3)))
    edges = [("in", "n"), ("n", "w"), ("w", "n"), ("n", "out")]
    return nd.nir_to_torch(make_graph(nodes, edges), convention=IF_R, dtype=dtype)


def optimiser_step(module):
    optimiser = torch.optim.SGD(module.parameters(), 0.3)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    optimiser.step()


def data_in_place(module):
    for parameter in module.parameters():
        parameter.data.mul_(0.75)


def data_assigned(module):
    for parameter in module.parameters():
        parameter.data = parameter.data * 0.75


def through_numpy(module):
    for parameter in module.parameters():
        parameter.detach().numpy()[...] *= 0.75


def loaded(module):
    module.load_state_dict({key: value * 0.75 for key, value in module.state_dict().items()})


def replaced(module):
    for owner in list(module.modules()):
        for name, value in list(owner._parameters.items()):
            if value is not None:
                setattr(owner, name, nn.Parameter(value.detach() * 0.75))


def made_double(module):
    module.double()


def swapped_submodule(module):
    name = ("b",) if module.get(("b",)) is not None else ("n",)
    module.put(name[0], IF(v_threshold=0.5, v_reset=0.25, convention=IF_R))


def hooked(module):
    name = ("fc",) if module.get(("fc",)) is not None else ("w",)
    module.get(name).register_forward_hook(lambda _, __, out: out * 0.5)


@pytest.mark.parametrize("build", [small_net, small_loop])
@pytest.mark.parametrize(
    "change",
    [
        optimiser_step,
        data_in_place,
        data_assigned,
        through_numpy,
        loaded,
        replaced,
        made_double,
        swapped_submodule,
        hooked,
    ],
)
def test_a_run_sees_what_became_of_the_module_since_the_last(build, change):
    module = build()
    data = raster(module.shapes[module.plan.inputs[0]].input, rate=0.5)
    before = {}
    for method in ("dense", "event"):
        with tuned():
            before[method] = nd.run(module, data, method=method)
    change(module)
    wanted = nd.run(module, data, method="loop")
    for method in ("dense", "event"):
        with tuned():
            found = nd.run(module, data, method=method)
        assert_same_run(found, wanted, 1e-5)
        assert change is made_double or any(
            not np.array_equal(found[key].data, before[method][key].data) for key in found
        )
        assert found.graph_sha256 != before[method].graph_sha256 or change in (made_double, hooked)


def test_nan_that_a_parameter_got_through_data_is_found():
    module = small_net()
    data = raster((2, 5, 5))
    nd.run(module, data)
    module.get(("fc",)).weight.data[0, 0] = float("nan")
    with pytest.raises(GraphError, match=r"'fc': weight holds NaN or infinity"):
        nd.run(module, data)


def test_runs_keep_no_module_alive():
    module = small_net()
    nd.run(module, raster((2, 5, 5)))
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("method", ["dense", "event"])
def test_two_threads_may_run_one_module_at_once(method):
    for build in (small_net, small_loop):
        module = build()
        shape = module.shapes[module.plan.inputs[0]].input
        rasters = [raster(shape, steps=40, batch=6, seed=n, rate=0.5) for n in range(8)]
        wanted = [nd.run(module, data, method="loop") for data in rasters]
        for _ in range(3):
            module = build()  # so that both threads come to a fresh program
            with ThreadPoolExecutor(2) as pool, tuned(most_steps=7):
                found = list(pool.map(lambda data, m=module: nd.run(m, data, method=method), rasters))
            for one, other in zip(found, wanted, strict=True):
                assert_same_run(one, other, 1e-5)


def test_large_records_of_threads_share_no_memory():
    """Memory of records that are gone is lent to the next; two threads must not get the same."""
    graph = chain((1000,), n=if_node((1000,)))
    data = [np.full((300, 1000), n % 3, np.uint8) for n in range(6)]

    def work(n):
        for _ in range(4):
            found = nd.run(graph, data[n], convention=nd.Convention(if_gain="r", reset="subtract"))
            assert found["n", "v_mem"].data.max() == found["n", "v_mem"].data.min() or n % 3 == 2
            assert (found["n", "spikes"].data == found["n", "spikes"].data[:, :1]).all()
            assert found.outputs.sum() == found["n", "spikes"].data.sum()
        return True

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(work, range(6)))


# ---------------------------------------------------------------- modules of the user's own


class Trace(nn.Module):
    """Keeps a running sum under a name of its own."""

    def forward(self, x, mem=None):
        mem = x if mem is None else 0.5 * mem["sum"] + x
        return torch.tanh(mem), {"sum": mem}


class NeedsBatch(nn.Module):
    """Does not compute without a batch axis."""

    stateful = False

    def forward(self, x):
        return x.flatten(1).flip(1).reshape(x.shape) + 0.125


class Adaptive(IF):
    """A neuron whose forward is another's, with the state of an IF."""

    def forward(self, x, state=None):
        spikes, v = super().forward(x, state)
        return 2.0 * spikes, v - 0.125 * spikes


def custom(body, cyclic, population_delay=0):
    convention = nd.Convention(if_gain="r", population_delay=population_delay)
    nodes = {
        "in": input_node(3),
        "fc": linear_node(np.eye(3) + 0.25),
        "n": if_node((3,)),
        "t": nir.Threshold(np.full(3, 0.5)),
        "m": if_node((3,)),
        "out": output_node(3),
    }
    edges = [("in", "fc"), ("fc", "n"), ("n", "t"), ("t", "m"), ("m", "out")]
    edges += [("t", "fc"), ("t", "n")] if cyclic else []
    return nd.nir_to_torch(make_graph(nodes, edges), body, convention=convention)


def hook(module):
    module.register_forward_pre_hook(lambda _, args: (2 * args[0], *args[1:]))
    return module


def patched(module):
    plain = module.forward
    module.forward = lambda x, *rest: plain(0.5 * x, *rest)
    return module


BODIES = {
    "stateful": {nir.Threshold: lambda _: Trace()},
    "stateless": {nir.Threshold: lambda _: nn.ReLU()},
    "needs a batch": {nir.Threshold: lambda _: NeedsBatch()},
    "nothing": {nir.Threshold: lambda _: None},
    "subclass": {nir.IF: lambda _: Adaptive(convention=IF_R)},
    "hook on a neuron": {nir.IF: lambda _: hook(IF(convention=IF_R))},
    "hook on a weight": {nir.Linear: lambda n: hook(nn.Linear(3, 3))},
    "forward of an instance": {nir.IF: lambda _: patched(IF(convention=IF_R))},
    "scalar parameters": {nir.IF: lambda _: IF(1.0, 0.75, convention=IF_R)},
    "weight normed": {nir.Linear: lambda n: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))},
}


@pytest.mark.parametrize("population_delay", [0, 1])
@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("name", BODIES)
def test_modules_of_the_user_run_as_in_the_loop(name, cyclic, population_delay):
    torch.manual_seed(0)
    module = custom(BODIES[name], cyclic, population_delay)
    for batch in (None, 1, 4):
        data = raster((3,), batch=batch or 1, rate=0.7, binary=False)
        data = data[:, 0] if batch is None else data
        wanted = nd.run(module, data, record=EVERYTHING, method="loop")
        for method in ("dense", "event"):
            for most_steps in (1, 5, 4096):
                with tuned(most_steps=most_steps):
                    assert_same_run(nd.run(module, data, record=EVERYTHING, method=method), wanted, 1e-6)
        with tuned(most_steps=2):
            first = nd.run(module, data[:5])
            second = nd.run(module, data[5:], state=first.state)
        joined = np.concatenate([first["m", "v_mem"].data, second["m", "v_mem"].data])
        assert_close(joined, wanted["m", "v_mem"].data, 1e-6, name)


class Fractional(IF):
    """A neuron whose spikes are no counts."""

    def forward(self, x, state=None):
        spikes, v = super().forward(x, state)
        return 0.5 * spikes, v


def test_fractions_are_not_recorded_as_counts():
    maps = {nir.IF: lambda _: Fractional(convention=IF_R)}
    module = nd.nir_to_torch(chain((3,), n=if_node((3,))), maps, convention=IF_R)
    data = np.full((3, 1, 3), 2)
    with pytest.raises(RasterError, match="node 'n': it emits fractions, which are no counts of spikes"):
        nd.run(module, data)
    found = nd.run(module, data, record="v_mem")
    assert found.outputs[:, 0, 0].tolist() == [0.5, 0.5, 0.5]


def avg_pool(window, stride, padding):
    values = {"kernel_size": window, "stride": stride, "padding": padding}
    return make_node(nir.AvgPool2d, **{k: np.array(v) for k, v in values.items()})


CONV = conv_node(np.zeros((2, 2, 3, 3)), (5, 5), padding=1)
OPTIONS = {
    "circular": (lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), CONV),
    "same": (lambda: nn.Conv2d(2, 2, 3, padding="same"), CONV),
    "groups": (lambda: nn.Conv2d(2, 2, 3, padding=1, groups=2), CONV),
    "dilated": (lambda: nn.Conv2d(2, 2, 3, padding=2, dilation=2), CONV),
    "ceil": (lambda: nn.AvgPool2d(2, ceil_mode=True), avg_pool((2, 2), (2, 2), (1, 1))),
    "divisor": (lambda: nn.AvgPool2d(2, divisor_override=3), avg_pool((2, 2), (2, 2), (0, 0))),
    "without padding": (
        lambda: nn.AvgPool2d(2, 1, padding=1, count_include_pad=False),
        avg_pool((2, 2), (1, 1), (1, 1)),
    ),
    "oblong": (lambda: nn.AvgPool2d((2, 1)), avg_pool((2, 1), (2, 1), (0, 0))),
}


@pytest.mark.parametrize("cyclic", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_nir_lacks_are_computed_as_torch_does(name, cyclic):
    torch.manual_seed(0)
    make, node = OPTIONS[name]
    shape = output_shape("l", node, (2, 5, 5))
    nodes = {"in": input_node(2, 5, 5), "n": if_node((2, 5, 5)), "l": node, "f": flatten_node(shape)}
    nodes |= {"w": linear_node(np.full((3, int(np.prod(shape))), 0.37)), "m": if_node((3,)), "out": output_node(3)}
    edges = [("in", "n"), ("n", "l"), ("l", "f"), ("f", "w"), ("w", "m"), ("m", "out")]
    if cyclic:
        nodes |= {"back": linear_node(np.eye(3) * 0.7)}
        edges += [("m", "back"), ("back", "m")]
        edges += [("l", "n")] if tuple(shape) == (2, 5, 5) else []
    module = nd.nir_to_torch(make_graph(nodes, edges), {type(node): lambda _: make()}, convention=IF_R)
    data = raster((2, 5, 5), rate=0.5)
    wanted = nd.run(module, data, method="loop")
    for method in ("dense", "event"):
        with tuned():
            assert_same_run(nd.run(module, data, method=method), wanted, 1e-5)
