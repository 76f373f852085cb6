"""HLO texts read by hand: operands, what calls what, and how often a loop goes round."""

import jax
import jax.numpy as jnp
import pytest

from realm_jax.plan.hlo_text import Instruction, read_module

LOOP = """HloModule jit_f

%body (carry: (f32[], s32[])) -> (f32[], s32[]) {
  %carry = (f32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %number = s32[]{:T(128)} get-tuple-element(%carry), index=1
  %copied = s32[]{:T(128)} copy(%number)
  %one = s32[]{:T(128)} constant(1)
  %added = s32[]{:T(128)} add(%copied, %one), metadata={op_name="while/body/add"}
  %value = f32[]{:T(128)} get-tuple-element(%carry), index=0
  ROOT %next = (f32[]{:T(128)}, /*index=1*/s32[]{:T(128)}) tuple(%value, /*index=1*/%added)
}

%cond (carry.1: (f32[], s32[])) -> pred[] {
  %end = s32[]{:T(128)} constant(12)
  %carry.1 = (f32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%carry.1), index=1
  ROOT %less = pred[]{:T(512)} compare(%counter, %end), direction=LT, backend_config={"flag_configs":[]}
}

ENTRY %main (x: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %begin = s32[]{:T(128)} copy(%zero)
  %start = (f32[]{:T(128)}, s32[]{:T(128)}) tuple(%x, %begin)
  %loop = (f32[]{:T(128)}, s32[]{:T(128)}) while(%start), condition=%cond, body=%body, metadata={op_name="jit(f)/while"}
  ROOT %out = f32[]{:T(128)} get-tuple-element(%loop), index=0
}
"""


def trips(text):
    module = read_module(text)
    entry = module.computations[module.entry]
    return module.trip_count(entry.instructions["loop"], entry)


def test_instructions_by_hand():
    module = read_module(LOOP)
    assert module.entry == "main" and list(module.computations) == ["body", "cond", "main"]
    body = module.computations["body"]
    assert body.root.name == "next" and body.root.operands == ["value", "added"]
    assert body.instructions["added"].operands == ["copied", "one"]
    loop = module.computations["main"].instructions["loop"]
    assert loop.operation == "while" and loop.operands == ["start"]
    assert list(loop.called) == ["cond", "body"]
    assert loop.shape == "(f32[]{:T(128)}, s32[]{:T(128)})"


def test_operands_of_older_texts_carry_shapes():
    one = Instruction(
        "d", "f32[2,2]", "dot", "f32[2,3]{1,0} %a, (f32[3]{0}, s32[]) %b), lhs_contracting_dims={1}, calls=c"
    )
    assert one.operands == ["a", "b"] and list(one.called) == ["c"]
    branches = Instruction("c", "f32[]", "conditional", "%p, %q, %r), branch_computations={%one, %two.3}")
    assert list(branches.called) == ["one", "two.3"]
    assert Instruction("p", "f32[]", "parameter", "0)").operands == ["0"]
    assert Instruction("p", "f32[]", "partition-id", ")").operands == []


def test_a_counter_says_how_often_a_loop_goes_round():
    assert trips(LOOP) == 12
    assert trips(LOOP.replace("constant(0)", "constant(2)")) == 10
    assert trips(LOOP.replace("constant(1)", "constant(5)")) == 3  # 0, 5, 10
    assert trips(LOOP.replace("constant(0)", "constant(20)")) == 0
    known = LOOP.replace("body=%body,", 'body=%body, backend_config={"known_trip_count":{"n":"7"}},')
    assert trips(known) == 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=NE"),
        ("%end = s32[]{:T(128)} constant(12)", "%end = s32[]{:T(128)} parameter(1)"),
        ("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} parameter(1)"),
        ("add(%copied, %one)", "multiply(%copied, %one)"),
        ("add(%copied, %one)", "add(%copied, %copied)"),
        ("constant(1)", "constant(-1)"),
        ("constant(1)", "constant(1.5)"),
        ("%counter = s32[]{:T(128)} get-tuple-element(%carry.1), index=1", "%counter = s32[]{:T(128)} constant(3)"),
        ("tuple(%x, %begin)", "call(%x, %begin), to_apply=%nothing"),
        ("condition=%cond,", "condition=%elsewhere,"),
    ],
)
def test_what_is_not_a_counter_is_not_taken_for_one(old, new):
    assert old in LOOP
    assert trips(LOOP.replace(old, new)) is None


@pytest.mark.parametrize("length", [1, 5])
def test_scans_of_a_really_compiled_program(length):
    def f(x):
        return jax.lax.scan(lambda carry, _: (jnp.sin(carry), carry.sum()), x, None, length=length)

    module = read_module(jax.jit(f).lower(jnp.zeros(8)).compile().as_text())
    loops = [
        module.trip_count(instruction, computation)
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.operation == "while"
    ]
    assert loops in ([length], [])  # of one turn the compiler may leave no loop
    assert loops or length == 1
