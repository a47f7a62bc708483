import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from t5jax.planning.hlo import Program, parse_hlo


@pytest.fixture(autouse=True)
def optimised():
    """Only optimised programs annotate the trip counts of their loops."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def shape(*dims, where=None):
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=where)


def program(function, *args) -> Program:
    return parse_hlo(jax.jit(function).lower(*args).compile().as_text())


def test_flops_of_a_product_are_two_a_multiplication():
    compiled = program(jnp.matmul, shape(200, 300), shape(300, 500))
    assert compiled.flops() == 2 * 200 * 300 * 500


def test_flops_count_every_trip_of_a_loop():
    def step(x, kernel):
        return jnp.tanh(x @ kernel), None

    def twice(x, kernels):
        def outer(x, _):
            return jax.lax.scan(step, x, kernels)[0], None

        return jax.lax.scan(outer, x, length=3)[0]

    compiled = program(twice, shape(64, 128), shape(7, 128, 128))
    assert compiled.flops() == 3 * 7 * 2 * 64 * 128 * 128
    assert compiled.unknown_loops == []


def test_loop_of_unknown_trip_count_counts_once_and_is_named():
    def halve(x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 1, lambda x: x @ x, x)

    compiled = program(halve, shape(256, 256))
    assert compiled.flops() == 2 * 256**3
    assert len(compiled.unknown_loops) == 1


@pytest.fixture
def mesh():
    return jax.make_mesh((8,), ("data",), (AxisType.Auto,))


def test_collectives_in_a_loop_are_multiplied(mesh):
    """All-reduce of n bytes over k devices in a ring: each sends 2 n (k - 1) / k."""

    def inner(x):
        def step(x, _):
            return jax.lax.psum(x, "data") * 0.1, None

        return jax.lax.scan(step, x, length=5)[0]

    mapped = jax.shard_map(
        inner, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False
    )
    compiled = program(mapped, shape(8, 1024, where=NamedSharding(mesh, P("data"))))
    (one,) = compiled.collectives()
    assert one.kind == "all-reduce"
    assert one.count == 5
    assert one.num_bytes == 5 * 2 * 4 * 1024 * 7 / 8


def test_gathering_sends_a_part_to_all_others(mesh):
    def gather(x):
        return jax.lax.all_gather(x, "data", tiled=True)

    mapped = jax.shard_map(gather, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)
    compiled = program(mapped, shape(8, 1024, where=NamedSharding(mesh, P("data"))))
    (one,) = compiled.collectives()
    assert (one.kind, one.count, one.num_bytes) == ("all-gather", 1, 7 * 4 * 1024)


def test_bytes_of_an_addition_are_two_reads_and_a_write():
    compiled = program(lambda x, y: x + y, shape(512, 512), shape(512, 512))
    assert compiled.bytes_accessed() == 3 * 4 * 512 * 512


def test_largest_names_what_is_made():
    compiled = program(lambda x: jnp.outer(x, x), shape(300))
    array, _ = compiled.largest(1)[0]
    assert (array.dtype, array.dims) == ("f32", (300, 300))


def test_read_of_another_text_is_an_error():
    with pytest.raises(ValueError, match="must have an ENTRY"):
        parse_hlo("hello")


@pytest.mark.parametrize(("stride", "trips"), [(1, 4), (2, 2), (3, 2)])
def test_trip_count_without_annotation_is_that_of_the_counter(stride, trips):
    """As a TPU's compiler writes loops that it unrolls; a CPU's does not, hence the pinned text."""
    text = f"""HloModule written, is_scheduled=true

%body (state: (u32[], f32[8,8])) -> (u32[], f32[8,8]) {{
  %state = (u32[], f32[8,8]) parameter(0)
  %count = u32[] get-tuple-element(%state), index=0
  %x = f32[8,8] get-tuple-element(%state), index=1
  %stride = u32[] constant({stride})
  %next = u32[] add(%count, %stride)
  %y = f32[8,8] dot(%x, %x), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  ROOT %out = (u32[], f32[8,8]) tuple(%next, %y)
}}

%condition (state.1: (u32[], f32[8,8])) -> pred[] {{
  %limit = u32[] constant(4)
  %state.1 = (u32[], f32[8,8]) parameter(0)
  %count.1 = u32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%count.1, %limit), direction=LT
}}

ENTRY %main (x.1: f32[8,8]) -> (u32[], f32[8,8]) {{
  %x.1 = f32[8,8] parameter(0)
  %zero = u32[] constant(0)
  %start = (u32[], f32[8,8]) tuple(%zero, %x.1)
  ROOT %loop = (u32[], f32[8,8]) while(%start), condition=%condition, body=%body
}}
"""
    compiled = parse_hlo(text)
    assert compiled.flops() == trips * 2 * 8**3
    assert compiled.unknown_loops == []
