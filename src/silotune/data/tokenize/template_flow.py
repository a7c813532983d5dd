"""Whether a chat template does nothing with what is said but write it out.

Most do: they look at the roles, and put each content, trimmed perhaps, between their marks. Then conversations of the
same roles differ in the contents alone, and the template need be filled in once for all of them. Found by following
the contents through the template's syntax tree, whatever it is given: what cannot be followed counts as a use.
"""

import functools
from collections.abc import Iterable
from enum import IntEnum

from jinja2 import Environment, TemplateSyntaxError, nodes


class Kind(IntEnum):
    """What an expression may hold. Of two, the greater is what either may be."""

    CLEAN = 0
    """Nothing of what is said."""
    TEXT = 1
    """A content, trimmed perhaps."""
    WRITTEN = 2
    """Text with contents in it."""
    MESSAGE = 3
    LIST = 4
    """Messages."""


class _Used(Exception):
    """A content may decide something, or become something else."""


SAFE_TESTS = {"defined", "undefined", "none", "string"}
"""These come out the same for every content: it is always there, and a string."""
OTHER_MESSAGES = {"previtem", "nextitem", "changed", "cycle"}
"""What a loop knows of other rounds of itself."""


@functools.lru_cache(maxsize=64)
def only_writes(template: str) -> bool:
    """Whether contents only ever stand in the output of a chat template, as they are or without outer white space."""
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
        flow = _Flow()
        before = None
        while before != flow.names:  # a name may be used above the place where it is set
            before = dict(flow.names)
            flow.statements(tree.body)
    except (TemplateSyntaxError, RecursionError, _Used):  # a tag of transformers' own, or a use
        return False
    return True


class _Flow:
    """Follows the contents. Of a name only the worst is known that it may hold anywhere."""

    def __init__(self) -> None:
        self.names = {"messages": Kind.LIST}

    # ------------------------------------------------------------------------------------- statements

    def statements(self, body: Iterable[nodes.Node]) -> None:
        for node in body:
            self.statement(node)

    def statement(self, node: nodes.Node) -> None:
        match node:
            case nodes.Output():
                for part in node.nodes:
                    if not isinstance(part, nodes.TemplateData) and self.kind(part) > Kind.WRITTEN:
                        raise _Used
            case nodes.If():
                self.clean(node.test)
                self.statements([*node.body, *node.elif_, *node.else_])
            case nodes.For():
                self.loop(node)
            case nodes.Assign(target=nodes.Name(name=name)):
                self.hold(name, self.kind(node.node))
            case nodes.Assign():
                self.clean(node.node)
            case nodes.Macro():  # what it gives back counts as clean
                for used in node.find_all(nodes.Name):
                    if self.names.get(used.name, Kind.CLEAN):
                        raise _Used
                self.statements(node.body)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise _Used

    def loop(self, node: nodes.For) -> None:
        over = self.kind(node.iter)
        if over not in (Kind.CLEAN, Kind.LIST) or node.recursive:
            raise _Used
        if isinstance(node.target, nodes.Name):
            self.hold(node.target.name, Kind.MESSAGE if over is Kind.LIST else Kind.CLEAN)
        elif over is Kind.LIST:
            raise _Used
        if node.test:
            self.clean(node.test)
        self.statements([*node.body, *node.else_])

    def hold(self, name: str, kind: Kind) -> None:
        known = self.names.get(name, Kind.CLEAN)
        if known != kind and Kind.CLEAN not in (known, kind) and max(known, kind) > Kind.WRITTEN:
            raise _Used
        self.names[name] = max(known, kind)

    # ------------------------------------------------------------------------------------ expressions

    def clean(self, node: nodes.Node) -> None:
        if self.kind(node) is not Kind.CLEAN:
            raise _Used

    def kind(self, node: nodes.Node) -> Kind:
        match node:
            case nodes.Name():
                return self.names.get(node.name, Kind.CLEAN)
            case nodes.Getattr():
                return self.part(self.kind(node.node), node.attr)
            case nodes.Getitem(arg=nodes.Slice()):
                over = self.kind(node.node)
                for child in node.arg.iter_child_nodes():
                    self.clean(child)
                return over if over in (Kind.CLEAN, Kind.LIST) else self.use()
            case nodes.Getitem():
                self.clean(node.arg)
                over = self.kind(node.node)
                if over is Kind.LIST:
                    return Kind.MESSAGE
                return self.part(over, node.arg.value if isinstance(node.arg, nodes.Const) else None)
            case nodes.Add() | nodes.Concat():
                kinds = [self.kind(child) for child in node.iter_child_nodes()]
                return self.use() if max(kinds) > Kind.WRITTEN else Kind.WRITTEN if any(kinds) else Kind.CLEAN
            case nodes.CondExpr():
                self.clean(node.test)
                kinds = [self.kind(part) for part in (node.expr1, node.expr2) if part is not None]
                return self.use() if max(kinds) > Kind.WRITTEN else max(kinds)
            case nodes.Filter() if node.node is not None:
                return self.filtered(self.kind(node.node), node)
            case nodes.Test() if node.name in SAFE_TESTS:
                self.kind(node.node)
                return Kind.CLEAN
            case nodes.Call(node=nodes.Getattr(node=said, attr="strip"), args=[], dyn_args=None) if (
                self.kind(said) is Kind.TEXT
            ):
                return Kind.TEXT
            case _:
                for child in node.iter_child_nodes():
                    self.clean(child)
                return Kind.CLEAN

    def part(self, over: Kind, key: object) -> Kind:
        """What a key or an attribute of something is."""
        if over is Kind.CLEAN and key not in OTHER_MESSAGES:
            return Kind.CLEAN
        if over is Kind.MESSAGE and isinstance(key, str) and key not in dir(dict):
            return Kind.TEXT if key == "content" else Kind.CLEAN
        return self.use()

    def filtered(self, over: Kind, node: nodes.Filter) -> Kind:
        for child in (*node.args, *node.kwargs, node.dyn_args, node.dyn_kwargs):
            if child is not None:
                self.clean(child)
        if over is Kind.LIST and node.name in ("length", "count"):
            return Kind.CLEAN
        plain_trim = node.name == "trim" and not (node.args or node.kwargs or node.dyn_args or node.dyn_kwargs)
        return over if over is Kind.CLEAN or (over is Kind.TEXT and plain_trim) else self.use()

    def use(self) -> Kind:
        raise _Used
