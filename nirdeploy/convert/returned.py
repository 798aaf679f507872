"""What forward returns: which values are outputs, and whether every state comes back where it is read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import fx

from nirdeploy.convert.draft import Key, Signal, StateOf, Value
from nirdeploy.convert.walk import PREVIOUS, Walk
from nirdeploy.errors import ConversionError

__all__ = ["at", "check_states", "leaves_of", "shown", "split_output"]


def split_output(walk: Walk, value: Any) -> tuple[list[tuple[str, Any]], Any]:
    """Named outputs, and the returned state."""
    if isinstance(value, Mapping):
        return [(str(key), leaf) for key, leaf in value.items()], None
    if not isinstance(value, list | tuple):
        # a stateful module's (output, state) handed on as it is
        return [("output", value)], value if isinstance(_state_of(walk, value), StateOf) else None
    # (output, state): the last element is the state where it holds states only, or where a state came in
    last = value[-1]
    only = [item for item in value if _is_state(walk, item, whole=item is last)]
    state: Any = None
    leaves: Any = value
    empty = len(value) > 1 and not leaves_of(last)
    keyed = len(value) > 1 and not isinstance(last, fx.Node) and _reads_state(walk)
    if 0 < len(only) < len(value) and only != [last]:
        # (output, state, state, ...) in any order
        state, leaves = only[0] if len(only) == 1 else only, [item for item in value if item not in only]
    elif len(value) > 1 and (only or empty or keyed or _reads_whole(walk, last)):
        state, leaves = last, value[:-1]
    if len(leaves) == 1:
        return split_output(walk, leaves[0])[0], state
    return [(f"output_{index}", leaf) for index, leaf in enumerate(leaves)], state


def _is_state(walk: Walk, item: Any, *, whole: bool) -> bool:
    """Whether a returned value holds states only; with `whole`, what a module returns counts as its state, too."""
    kinds = [_state_of(walk, leaf) if whole else walk.env.get(leaf) for leaf in leaves_of(item)]
    return bool(kinds) and all(isinstance(kind, StateOf | Key) for kind in kinds)


def _state_of(walk: Walk, leaf: Any) -> Value:
    """What a returned value is as state: a stateful module's whole result stands for its state, too."""
    found = walk.env.get(leaf) if isinstance(leaf, fx.Node) else None
    if isinstance(found, Signal) and isinstance(leaf, fx.Node) and leaf.op == "call_module":
        module = walk.root.get_submodule(str(leaf.target))
        if walk.maps.returns_state(module) and leaf.args[1:] + tuple(leaf.kwargs.values()):
            return StateOf(found.sources[0])
    return found


def _reads_state(walk: Walk) -> bool:
    return any(isinstance(value, Key) and value.keys for value in walk.env.values()) or any(
        isinstance(value, StateOf) for value in walk.env.values()
    )


def _reads_whole(walk: Walk, last: Any) -> bool:
    """Whether the last value returned is the next value of a state argument that is one signal."""
    return isinstance(last, fx.Node) and any(n.startswith(PREVIOUS + "()") for n in walk.draft.sources())


def check_states(walk: Walk) -> None:
    """Each module's state is returned where it is read; no recurrence is lost."""
    for keys, wanted in walk.uses.items():
        if not _comes_back(walk, at(walk.returned, keys), wanted) and not _is_among_outputs(walk, keys, wanted):
            raise ConversionError(
                f"the state of {wanted.owner!r} is read from {shown(keys)}, but forward returns something else there",
                remedy="Return each module's new state under the key it is read from.",
            )
    _check_order(walk)
    own = {wanted.owner for wanted in walk.uses.values() if wanted.place == 0}
    signals = [_state_of(walk, leaf) for leaf in leaves_of(walk.returned)]
    lost = [found for found in signals if isinstance(found, Signal) and not own.issuperset(found.sources)]
    if lost and not any(name.startswith(PREVIOUS) for name in walk.draft.sources()):
        raise ConversionError(
            "the returned state holds an output, and forward hides how it is used (it asks if there is a state)",
            remedy="Read it as state['key'] under `if state is not None`, or do not return it as state.",
        )


def _is_among_outputs(walk: Walk, keys: tuple[Any, ...], wanted: StateOf) -> bool:
    """Whether a state with an argument of its own is one of several values that are returned."""
    own = keys == () or (len(keys) == 1 and keys[0] in _arguments_of_forward(walk))
    flat = at(walk.returned, keys) if keys else None
    return own and flat is None and any(_comes_back(walk, leaf, wanted) for leaf in leaves_of(walk.output))


def _check_order(walk: Walk) -> None:
    """States with arguments of their own are returned in the order of the arguments, as callers pass them on."""
    arguments, leaves, last = _arguments_of_forward(walk), leaves_of(walk.output), -1
    named = {keys[0]: wanted for keys, wanted in walk.uses.items() if len(keys) == 1 and keys[0] in arguments}
    if len(named) < len(walk.uses) or any(at(walk.returned, (name,)) is not None for name in named):
        return
    for name in sorted(named, key=arguments.index):
        if named[name].place == 0:
            continue  # an output, which may stand in front of all states
        found = [n for n, leaf in enumerate(leaves) if n > last and _comes_back(walk, leaf, named[name])]
        if last >= 0 and _comes_back(walk, leaves[last], named[name]):
            found.append(last)  # one module's whole result holds several states
        if not found:
            raise ConversionError(
                f"{name}, the state of {named[name].owner!r}, comes back in another order than it came in",
                remedy="Return the states in the order of forward's arguments.",
            )
        last = found[0]


def _arguments_of_forward(walk: Walk) -> list[str]:
    return list(inspect.signature(walk.root.forward).parameters)


def _comes_back(walk: Walk, leaf: Any, wanted: StateOf) -> bool:
    found = _state_of(walk, leaf)
    if isinstance(found, Signal):
        return wanted.place == 0 and found.sources == (wanted.owner,)
    if not isinstance(found, StateOf) or found.owner != wanted.owner:
        return False
    return wanted.place is None or found.place in (None, wanted.place)


def leaves_of(value: Any) -> list[fx.Node]:
    """The traced values in a returned structure, in order."""
    if isinstance(value, fx.Node):
        return [value]
    if isinstance(value, Mapping):
        return [leaf for inner in value.values() for leaf in leaves_of(inner)]
    if isinstance(value, list | tuple):
        return [leaf for inner in value for leaf in leaves_of(inner)]
    return []


def at(value: Any, keys: tuple[Any, ...]) -> Any:
    """The part of a returned structure under these keys; None where it has none."""
    for key in keys:
        if (isinstance(value, Mapping) and key in value) or (
            isinstance(value, list | tuple) and isinstance(key, int) and -len(value) <= key < len(value)
        ):
            value = value[key]
        else:
            return None
    return value


def shown(keys: tuple[Any, ...]) -> str:
    """Part of the state argument for people: state['lif1'][0]."""
    return "state" + "".join(f"[{key!r}]" for key in keys)
