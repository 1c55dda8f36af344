"""What a step costs on many devices: the reading of HLO, byte and FLOP counts."""

import json
from functools import partial

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks import scaling
from benchmarks.collectives import (
    Collective,
    array_bytes,
    collectives,
    group_size,
    wire_bytes,
)
from vicreg_jax import config as configs
from vicreg_jax.devices import sharding


@pytest.mark.parametrize(
    "kind, want",
    [
        ("all-reduce", 2 * 7 / 8 * 800),
        ("all-gather", 7 / 8 * 800),
        ("reduce-scatter", 7 / 8 * 800),
        ("all-to-all", 7 / 8 * 800),
        ("collective-permute", 800),
    ],
)
def test_bytes_sent_in_a_ring(kind, want):
    assert wire_bytes(kind, 800, 8) == want
    assert wire_bytes(kind, 800, 1) == 0


def test_a_kind_of_collective_without_a_formula_is_refused():
    with pytest.raises(ValueError, match="no formula for the bytes of collective-bro"):
        wire_bytes("collective-broadcast", 800, 8)


@pytest.mark.parametrize(
    "text, want",
    [
        ("f32[4,2]{1,0}", 32),
        ("bf16[8,128]{1,0:T(8,128)(2,1)S(1)}", 2048),
        ("(f32[2]{0}, s32[], /*index=2*/pred[3]{0}, u64[1])", 8 + 4 + 3 + 8),
        ("f32[0,5]", 0),
    ],
)
def test_bytes_of_arrays(text, want):
    assert array_bytes(text) == want


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="no size known for f8e4m3fn"):
        array_bytes("f8e4m3fn[8]")


@pytest.mark.parametrize(
    "groups, want",
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", 4),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", 8),
        ("replica_groups={}", 8),
        ("source_target_pairs={{0,1},{1,0}}", 8),
        ("source_target_pairs={{0,0},{1,1}}", 1),
    ],
)
def test_groups_in_every_notation(groups, want):
    line = f"  %x = f32[2]{{0}} all-reduce(%y), {groups}, to_apply=%add"
    assert group_size(line, 8) == want


def test_an_unknown_notation_of_groups_is_refused():
    with pytest.raises(ValueError, match="unknown notation"):
        group_size("replica_groups=mesh['a'=8] {'a':(2)4}", 8)


PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%add.clone_promoted (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%q), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %r)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = f32[64]{0} all-gather(%q), replica_groups=[1,8]<=[8], dimensions={0}
  %w = (s32[], f32[8]{0}) while(%p), condition=%less, body=%inner, %KNOWN%
}

%less (p: (s32[], f32[8])) -> pred[] {
  ROOT %c = pred[] compare(%a, %b), direction=LT
}

%scattered (p: f32[32]) -> f32[8] {
  ROOT %s = f32[8]{0} reduce-scatter(%p), replica_groups=[2,4]<=[8], to_apply=%add
}

%left (p: f32[4]) -> f32[4] {
  ROOT %r = f32[4]{0} all-to-all(%p), replica_groups=[1,8]<=[8]
}

%begin (p: f32[2]) -> f32[16] {
  ROOT %g = f32[16]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8]
}

%finish (p: f32[2]) -> f32[16] {
  ROOT %g.1 = f32[16]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8]
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %while = (s32[], f32[8]{0}) while(%t), condition=%less, body=%body, \
backend_config={"known_trip_count":{"n":"5"},"init":"0"}
  %a = (bf16[16]{0}, bf16[128]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8]
  %b = bf16[128]{0} all-gather-done(%a)
  %c = (f32[6]{0}, f32[6]{0}) collective-permute-start(%p), source_target_pairs={{0,1}}
  %d = ((f32[32]{0}), f32[8]{0}) async-start(%p), calls=%scattered
  %e = f32[4]{0} conditional(%p), branch_computations={%left, %less}
  %h = f32[16]{0} fusion(%p), kind=kCustom, calls=%begin
  %i = f32[16]{0} fusion(%h), kind=kCustom, calls=%finish
  ROOT %f = (f32[10]{0}, f32[2]{0}) all-reduce(%p, %q), replica_groups=[1,8]<=[8], \
to_apply=%add.clone_promoted
}
"""


def test_hand_written_program_with_loops_and_asynchronous_collectives():
    program = PROGRAM.replace("%KNOWN%", 'backend_config={"known_trip_count":{"n":"3"}')
    assert sorted(collectives(program, 8)) == sorted(
        [
            Collective("all-reduce", 32, 8, times=15),
            Collective("all-gather", 256, 8, times=5),
            Collective("all-gather", 256, 8, times=1),
            Collective("all-gather", 64, 8, times=1),  # in two parts, one channel
            Collective("collective-permute", 24, 8, times=1),
            Collective("reduce-scatter", 128, 4, times=1),
            Collective("all-to-all", 16, 8, times=1),
            Collective("all-reduce", 24, 8, times=1),  # 16 bits that a CPU widened
        ]
    )


def test_a_collective_in_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="loop of unknown length: %w ="):
        collectives(PROGRAM, 8)


def per_device(mesh, function, out):
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=P("data"), out_specs=out, check_vma=False
    )
    x = jax.ShapeDtypeStruct((64, 24), jnp.float32, sharding=sharding.split(mesh))
    return jax.jit(mapped).lower(x).compile().as_text()


RING = [(i, (i + 1) % 8) for i in range(8)]
BLOCK, ALL = 8 * 24 * 4, 64 * 24 * 4  # bytes of a device's rows, and of all rows


@pytest.mark.parametrize(
    "function, out, want",
    [
        (partial(jax.lax.psum, axis_name="data"), P(), ("all-reduce", BLOCK)),
        (
            partial(jax.lax.all_gather, axis_name="data", tiled=True),
            P(),
            ("all-gather", ALL),
        ),
        (
            partial(jax.lax.psum_scatter, axis_name="data", tiled=True),
            P("data"),
            ("reduce-scatter", BLOCK),
        ),
        (
            partial(jax.lax.ppermute, axis_name="data", perm=RING),
            P("data"),
            ("collective-permute", BLOCK),
        ),
    ],
)
def test_collectives_of_known_size_are_found_in_a_compiled_program(
    mesh, function, out, want
):
    assert collectives(per_device(mesh, function, out), 8) == [(*want, 8, 1)]


def test_a_collective_in_a_compiled_loop_counts_once_a_turn(mesh):
    def three_times(x):
        def turn(_, x):
            return jnp.tanh(jax.lax.psum(x, "data"))

        return jax.lax.fori_loop(0, 3, turn, x)

    program = per_device(mesh, three_times, P())
    assert " while(" in program
    assert collectives(program, 8) == [("all-reduce", BLOCK, 8, 3)]


N, D = 256, 1024


@pytest.fixture(scope="module")
def loss_costs():
    mesh = sharding.data_mesh()
    programs = scaling.loss_programs(N, D, mesh)
    return {name: scaling.cost(program, 8) for name, program in programs.items()}


@pytest.mark.parametrize(
    "formula, flop",
    [
        # Both views: two products of 2 n n d each, of a device's own rows.
        ("ours", 2 * 2 * 2 * N**2 * D / 8),
        # Three of 2 n d d, as autodiff takes the matrix for unsymmetric.
        ("direct", 2 * 3 * 2 * N * D**2 / 8),
        ("published", 2 * 3 * 2 * N * D**2),
    ],
)
def test_flops_of_the_loss_are_those_of_its_products(loss_costs, formula, flop):
    # What is not a product takes tens of operations a number, of n d or d d of them.
    assert flop <= 1e9 * loss_costs[formula]["GFLOP"] <= 1.1 * flop


def test_bytes_of_the_loss_are_those_of_its_arrays(loss_costs):
    batch, matrix = 2 * 4e-6 * N * D, 2 * 4e-6 * D**2  # of both views, in MB
    payload = {name: row["payload_MB"] for name, row in loss_costs.items()}
    assert payload["ours"]["all-gather"] == pytest.approx(batch)
    assert payload["ours"]["all-reduce"] < 12 * 4e-6 * D
    assert "all-gather" not in payload["direct"]
    assert matrix <= payload["direct"]["all-reduce"] < matrix + 12 * 4e-6 * D
    assert payload["published"]["all-gather"] == pytest.approx(batch)
    gradients = batch + 4e-6  # of all rows; and the loss itself, one number
    assert payload["published"]["all-reduce"] == pytest.approx(gradients)
    sent = loss_costs["published"]["sent_MB"]
    assert sent == pytest.approx(7 / 8 * (batch + 2 * gradients))


def test_the_three_formulas_are_one_loss(mesh):
    views = tuple(jax.random.normal(jax.random.key(0), (2, 16, 24)))
    want = jax.value_and_grad(scaling.ours, (0, 1))(*views)
    placed = jax.device_put(views, sharding.split(mesh))
    for program in scaling.loss_programs(16, 24, mesh).values():
        # float32 sums in another order; entries near zero need the absolute part.
        chex.assert_trees_all_close(program(*placed), want, rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_a_step_is_counted_for_one_device_of_all(mesh):
    config = configs.parse(
        {
            "data": {"name": "digits", "batch_size": 64, "image_size": 8}
            | {"mean": (0.5,), "std": (0.5,)},
            "model": {"encoder": "digits", "expander": (128, 128)},
        }
    )
    alone = sharding.data_mesh(jax.devices()[:1])
    one, eight = (
        scaling.cost(scaling.step_program(config, m), m.size) for m in (alone, mesh)
    )
    assert one["sent_MB"] == 0 and one["collectives"] == 0
    # The optimizer alone, some operations a parameter, is not divided.
    assert 1 <= 8 * eight["GFLOP"] / one["GFLOP"] < 1.5
    # Both views' embeddings, float32, and the parameters' gradients at least once.
    assert eight["payload_MB"]["all-gather"] == pytest.approx(2 * 64 * 128 * 4e-6)
    parameters = 9 * (32 + 2 * 32 * 32 + 32 * 64 + 64 * 64) + 64 * 128 + 128 * 128
    assert eight["payload_MB"]["all-reduce"] > 2e-6 * parameters
    assert eight["memory_GB"] < one["memory_GB"]


def test_least_time_to_send_by_hand():
    chip = scaling.Chip(1e12, 1e12, link=400e9, near=8, network=50e9)
    payloads = {"all-reduce": 1000, "all-gather": 100}  # MB
    near = scaling.sending_ms(chip, payloads, 4)
    assert near == pytest.approx(1e3 * 3 / 4 * 2.1e9 / 400e9)
    # Two nodes send half of everything, once and twice, through eight ports each;
    # within a node each device sends seven eighths, which takes longer.
    far = scaling.sending_ms(chip, payloads, 16)
    assert far == pytest.approx(1e3 * 7 / 8 * 2.1e9 / 400e9)
    slow = scaling.sending_ms(chip._replace(network=10e9), payloads, 16)
    assert slow == pytest.approx(1e3 * 1 / 2 * 2.1e9 / 80e9)


def test_published_results_agree_with_closed_forms_and_with_themselves():
    results = json.loads(scaling.RESULTS.read_text())
    rows = results["virtual_devices"]
    assert {row["devices"] for row in rows} == set(scaling.DEVICES)
    d = 8192
    for row in rows:
        n, devices = row["batch"], row["devices"]
        batch, matrix = 2 * n * d, 2 * d**2  # numbers, of both views
        # Products; then rows of its own, and whole matrices, that a device has.
        want = {
            "ours": (4 * min(n, d) * batch / devices, batch / devices, batch),
            "direct": (6 * d * batch / devices, batch / devices, matrix),
            "published": (6 * d * batch, batch, matrix),
        }
        for name, (products, rows_of_own, whole) in want.items():
            # What is not a product takes so many operations a number.
            most = products + 80 * rows_of_own + 10 * (whole + matrix * (n > d))
            assert products <= 1e9 * row[name]["GFLOP"] <= most
        gathered = row["ours"]["payload_MB"].get("all-gather", 0)
        if 1 < devices and n <= d:
            assert gathered == pytest.approx(4e-6 * batch)
    for got, want in zip(scaling.bounds(rows), results["bounds"], strict=True):
        assert got == pytest.approx(want)
