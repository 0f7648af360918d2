"""What a user says about modules and functions of their own: where quantizers go around them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from torch.fx import GraphModule, Node

from fxquant.errors import SettingError
from fxquant.graph.ops import KIND, module_of

# What can be said about an op, and the kind that it then is.
WORDS = {
    "move": "move",
    "average": "average",
    "activation": "activation",
    "add": "add",
    "mul": "mul",
    "concat": "concat",
    "matmul": "matmul",
    "float": "other",
}
FLOAT_REASON = "a rule keeps it float"

Rules = Mapping[object, str]


def check_rules(rules: Rules) -> None:
    """Raise SettingError for a rule that says nothing known or is about no class or function."""
    for about, word in rules.items():
        name = getattr(about, "__qualname__", repr(about))
        if word not in WORDS:
            raise SettingError(
                f"the rule for {name} is {word!r}", f"one of {', '.join(map(repr, WORDS))}"
            )
        if not callable(about) or (isinstance(about, type) and not issubclass(about, nn.Module)):
            raise SettingError(
                f"a rule is about {name}, which is no module class and no function",
                "rules={MyModule: 'average', my_function: 'move'}",
            )


def rule_leaves(rules: Rules) -> tuple[type[nn.Module], ...]:
    """Module classes that a rule is about: tracing must not look into them."""
    return tuple(about for about in rules if isinstance(about, type))


def give_kinds(gm: GraphModule, rules: Rules) -> int:
    """Note on each node that a rule is about what kind it is; the number of nodes."""
    noted = 0
    for node in gm.graph.nodes:
        word = _rule_for(node, rules)
        if word is not None and node.meta.get(KIND) != WORDS[word]:
            node.meta[KIND] = WORDS[word]
            if word == "float":
                node.meta["float_reason"] = FLOAT_REASON
            noted += 1
    return noted


def _rule_for(node: Node, rules: Rules) -> str | None:
    """The rule for the function, or for the nearest class that the module derives from."""
    if node.op == "call_function":
        return rules.get(node.target)
    if node.op == "call_module":
        classes = type(module_of(node)).__mro__
        return next((rules[base] for base in classes if base in rules), None)
    return None
