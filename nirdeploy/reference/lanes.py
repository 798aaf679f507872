"""Vectors as values in numba's kernels: loads, stores and arithmetic on all lanes at once.

numba turns a plain loop over arrays into vector instructions only behind a check that they do not overlap, made anew
whenever the loop is entered. Where loops are as short as a layer of some ten neurons that check is most of the time.
Here a kernel says what it means. Every operation is IEEE's, lane by lane; nothing is contracted or reordered.

LLVM splits vectors into what the processor has: 16 floats are one register of AVX-512, two of AVX2, four of NEON.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

__all__ = [
    "WIDTH",
    "above",
    "add",
    "at_least",
    "bits_of",
    "choose",
    "count_set",
    "differs",
    "first_set",
    "get",
    "higher",
    "highest_bits",
    "keep",
    "load",
    "load_some",
    "memory",
    "multiply",
    "pointer",
    "prefetch",
    "put",
    "splat",
    "store",
    "store_past",
    "store_some",
    "subtract",
]

WIDTH = 16  # numbers in a vector, unless said otherwise


class Lanes(types.Type):
    """A vector of floats; their count is a power of 2, anything else LLVM takes apart."""

    def __init__(self, scalar: types.Float, count: int) -> None:
        self.scalar, self.count = scalar, count
        super().__init__(name=f"Lanes({scalar}, {count})")


class Mask(types.Type):
    """A truth value a lane."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Mask({count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        kind = ir.FloatType() if fe_type.scalar.bitwidth == 32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(kind, fe_type.count))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Mask) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(1), fe_type.count))


# ---------------------------------------------------------------- memory


@intrinsic
def pointer(typing: Any, array: Any) -> Any:
    """Where a contiguous array begins; of an array that the kernel itself made only as long as it will `keep` it.

    Arrays are counted when they are passed on, also to an operation in the innermost loop; pointers are not.
    """
    if array.layout != "C":
        raise TypingError(f"pointer to an array of layout {array.layout!r}, expected a contiguous one")

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), build


@intrinsic
def keep(typing: Any, array: Any) -> Any:
    """Keep an array until here: numba gives memory back after the last line that names it."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_dummy_value()

    return types.none(array), build


@intrinsic
def memory(typing: Any, address: Any, like: Any) -> Any:
    """Memory at an address as numbers of the type of `like`."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(like)))

    return types.CPointer(like)(types.int64, like), build


def _lanes_at(context: Any, builder: Any, lanes: Lanes, base: Any, at: Any) -> tuple[Any, int]:
    vector = context.get_value_type(lanes)
    # aligned as a number is, not as a vector
    return builder.bitcast(builder.gep(base, [at]), vector.as_pointer()), lanes.scalar.bitwidth // 8


@intrinsic(prefer_literal=True)
def load(typing: Any, base: Any, at: Any, count: Any) -> Any:
    """`count` (a constant) lanes from number `at` on; nothing checks that there are as many."""
    lanes = Lanes(base.dtype, count.literal_value)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, align = _lanes_at(context, builder, lanes, *arguments[:2])
        return builder.load(place, align=align)

    return lanes(base, types.intp, count), build


@intrinsic
def store(typing: Any, base: Any, at: Any, lanes: Any) -> Any:
    """Write lanes from number `at` on."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, align = _lanes_at(context, builder, lanes, *arguments[:2])
        builder.store(arguments[2], place, align=align)
        return context.get_dummy_value()

    return types.none(base, types.intp, lanes), build


def _mask(builder: Any, lanes: Lanes, left: Any) -> Any:
    """Set for the first `left` lanes."""
    index = ir.IntType(64)
    vector = ir.VectorType(index, lanes.count)
    nothing = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(nothing, left, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), None)
    limit = builder.shuffle_vector(single, nothing, zeros)
    return builder.icmp_signed("<", ir.Constant(vector, list(range(lanes.count))), limit)


def _masked(builder: Any, operation: str, lanes: Any, place: Any, result: Any, arguments: list[Any]) -> Any:
    kind = f"v{lanes.count}f{32 if isinstance(lanes.element, ir.FloatType) else 64}"
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.masked.{operation}.{kind}.p0{kind}")
    return builder.call(function, arguments)


@intrinsic(prefer_literal=True)
def load_some(typing: Any, base: Any, at: Any, left: Any, count: Any) -> Any:
    """`count` (a constant) lanes of which the first `left` are numbers from `at` on, the others 0."""
    lanes = Lanes(base.dtype, count.literal_value)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, align = _lanes_at(context, builder, lanes, *arguments[:2])
        vector = context.get_value_type(lanes)
        rest = [ir.Constant(ir.IntType(32), align), _mask(builder, lanes, arguments[2]), ir.Constant(vector, None)]
        return _masked(builder, "load", vector, place, vector, [place, *rest])

    return lanes(base, types.intp, types.intp, count), build


@intrinsic
def store_some(typing: Any, base: Any, at: Any, left: Any, lanes: Any) -> Any:
    """Write the first `left` lanes from number `at` on."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, align = _lanes_at(context, builder, lanes, *arguments[:2])
        rest = [place, ir.Constant(ir.IntType(32), align), _mask(builder, lanes, arguments[2])]
        _masked(builder, "store", context.get_value_type(lanes), place, ir.VoidType(), [arguments[3], *rest])
        return context.get_dummy_value()

    return types.none(base, types.intp, types.intp, lanes), build


@intrinsic
def store_past(typing: Any, base: Any, at: Any, lanes: Any) -> Any:
    """Write lanes past the cache, where nobody reads them soon; the place must be a multiple of 64 bytes."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, _ = _lanes_at(context, builder, lanes, *arguments[:2])
        written = builder.store(arguments[2], place, align=64)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.none(base, types.intp, lanes), build


@intrinsic(prefer_literal=True)
def prefetch(typing: Any, base: Any, at: Any, write: Any) -> Any:
    """Ask for the line of the cache that number `at` is in, to read it or to write to it (a constant 0 or 1)."""
    kinds = [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3]

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0i8"
        )
        place = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), kinds[0])
        constants = [ir.Constant(ir.IntType(32), value) for value in (write.literal_value, 3, 1)]
        builder.call(function, [place, *constants])
        return context.get_dummy_value()

    return types.none(base, types.intp, write), build


@intrinsic
def get(typing: Any, base: Any, at: Any) -> Any:
    """One number."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.gep(arguments[0], [arguments[1]]))

    return base.dtype(base, types.intp), build


@intrinsic
def put(typing: Any, base: Any, at: Any, value: Any) -> Any:
    """Write one number."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[2], builder.gep(arguments[0], [arguments[1]]))
        return context.get_dummy_value()

    return types.none(base, types.intp, base.dtype), build


@intrinsic(prefer_literal=True)
def splat(typing: Any, value: Any, count: Any) -> Any:
    """The same number in `count` (a constant) lanes."""
    lanes = Lanes(value, count.literal_value)

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        nothing = ir.Constant(context.get_value_type(lanes), ir.Undefined)
        index = ir.IntType(32)
        single = builder.insert_element(nothing, arguments[0], ir.Constant(index, 0))
        return builder.shuffle_vector(single, nothing, ir.Constant(ir.VectorType(index, lanes.count), None))

    return lanes(value, count), build


# ---------------------------------------------------------------- arithmetic


def _binary(instruction: str) -> Any:
    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return a(a, b), build

    return operation


add, subtract, multiply = _binary("fadd"), _binary("fsub"), _binary("fmul")


def _compare(sign: str) -> Any:
    @intrinsic
    def operation(typing: Any, a: Any, b: Any) -> Any:
        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.fcmp_ordered(sign, *arguments)

        return Mask(a.count)(a, b), build

    return operation


above, at_least = _compare(">"), _compare(">=")


@intrinsic
def differs(typing: Any, a: Any, b: Any) -> Any:
    """Set where two lanes are not equal; NaN differs from everything, as for `!=`."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fcmp_unordered("!=", *arguments)

    return Mask(a.count)(a, b), build


@intrinsic
def choose(typing: Any, mask: Any, a: Any, b: Any) -> Any:
    """`a` where the mask is set, else `b`."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(*arguments)

    return a(mask, a, b), build


@intrinsic
def higher(typing: Any, a: Any, b: Any) -> Any:
    """Lane by lane the one whose bits are the higher, read as an unsigned integer."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = ir.VectorType(ir.IntType(a.scalar.bitwidth), a.count)
        first, second = (builder.bitcast(lanes, bits) for lanes in arguments)
        # a choice between integers is one instruction; between floats it is two, and six cycles until the next
        more = builder.select(builder.icmp_unsigned(">", first, second), first, second)
        return builder.bitcast(more, context.get_value_type(a))

    return a(a, b), build


@intrinsic
def highest_bits(typing: Any, lanes: Any) -> Any:
    """The highest of all lanes' bits, read as an unsigned integer."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(lanes.scalar.bitwidth)
        bits = builder.bitcast(arguments[0], ir.VectorType(kind, lanes.count))
        found = ir.Constant(kind, 0)
        for n in range(lanes.count):
            lane = builder.extract_element(bits, ir.Constant(ir.IntType(32), n))
            found = builder.select(builder.icmp_unsigned(">", lane, found), lane, found)
        return builder.zext(found, ir.IntType(64)) if lanes.scalar.bitwidth < 64 else found

    return types.uint64(lanes), build


@intrinsic
def bits_of(typing: Any, mask: Any) -> Any:
    """A bit a lane, the first the lowest."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], ir.IntType(mask.count))
        return bits if mask.count == 64 else builder.zext(bits, ir.IntType(64))

    return types.uint64(mask), build


@intrinsic
def first_set(typing: Any, bits: Any, otherwise: Any) -> Any:
    """Position of the lowest set bit, or another number where none is set."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        some = builder.icmp_unsigned("!=", arguments[0], ir.Constant(ir.IntType(64), 0))
        found = builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))
        return builder.select(some, found, arguments[1])

    return types.int64(types.uint64, types.int64), build


@intrinsic
def count_set(typing: Any, bits: Any) -> Any:
    """How many bits are set."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), build
