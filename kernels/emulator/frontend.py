"""The language check: what NKI's front end of 0.3 to 0.6 refuses in a kernel's source.

Kernels are parsed, not run, by those versions ("the functions under this decorator will be passed
to the NKI compiler and not be evaluated by the Python interpreter"), and the language is a subset
of Python. The check walks the kernel and every function and class that it reaches by name, also in
the files it imports relatively. Constructs outside of the documented subset are refused, not only
those that the documentation names; `rules.RULES` has the reasons and sources. Host code in the
same file that the kernel does not reach is left alone.
"""

import ast

from .errors import LanguageError, NotModelledError
from .rules import RULES

_STATEMENTS = (
    ast.FunctionDef,
    ast.Return,
    ast.Assign,
    ast.AugAssign,
    ast.AnnAssign,
    ast.For,
    ast.While,
    ast.If,
    ast.Expr,
    ast.Assert,
    ast.Pass,
    ast.Break,
    ast.Continue,
    ast.With,
)
_EXPRESSIONS = (
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.IfExp,
    ast.Dict,
    ast.List,
    ast.Tuple,
    ast.Compare,
    ast.Call,
    ast.JoinedStr,
    ast.FormattedValue,
    ast.Constant,
    ast.Attribute,
    ast.Subscript,
    ast.Slice,
    ast.Name,
)
_REFLECTION = frozenset(
    "eval exec compile open input getattr setattr delattr hasattr globals locals vars dir super "
    "map filter iter next type id hash memoryview object property staticmethod classmethod "
    "callable __import__ breakpoint".split()
)
# What annotations, dataclasses and enumerations need, and `math`, which AWS's own kernels of these
# versions use on compile-time numbers.
_HOST_MODULES = ("typing", "dataclasses", "enum", "__future__", "collections.abc", "math")


class _Names:
    """What the top level of one source file binds: definitions, constants and imports."""

    def __init__(self, source):
        self.source = source
        self.definitions: dict[str, ast.AST] = {}
        self.modules: dict[str, str] = {}  # alias -> module that is neither nki nor a sibling
        self.siblings: dict[str, object] = {}  # alias -> Source
        self.imported: dict[str, tuple[object, str]] = {}  # alias -> (Source, name)
        for node in _top_level(source.tree.body):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Import):
                for item in node.names:
                    self._bind_module(item.asname or item.name.split(".")[0], item.name)
            elif isinstance(node, ast.ImportFrom):
                for item in node.names:
                    self._bind_from(node, item.asname or item.name, item.name)

    def _bind_module(self, alias, module):
        if module.split(".")[0] != "nki":
            self.modules[alias] = module

    def _bind_from(self, node, alias, name):
        dots = "." * node.level
        if node.level and node.module is None:
            self.siblings[alias] = self.source.imports[dots + name]
        elif node.level:
            self.imported[alias] = (self.source.imports[dots + node.module], name)
        elif node.module.split(".")[0] != "nki":
            self.modules[alias] = f"{node.module}.{name}"


def _top_level(statements):
    """Statements of a file outside of functions and classes, also inside of if, try and with."""
    for node in statements:
        yield node
        for block in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _top_level(getattr(node, block, []))
        for handler in getattr(node, "handlers", []):
            yield from _top_level(handler.body)


def check_language(source, name: str, version: tuple[int, int]):
    """Raise LanguageError if the kernel `name` of `source` is not NKI of `version`.

    From 0.7 on kernels are specialised by running them in Python, so that nothing is refused here;
    what runs is still held to signatures and rules.
    """
    if version >= (0, 7):
        return
    _Check(version).run(source, name)


class _Check:
    def __init__(self, version):
        self.version = version
        self.names: dict[int, _Names] = {}
        self.seen: set[tuple[int, str]] = set()

    def run(self, source, name):
        """Check a definition of a source and everything that it reaches."""
        pending = [(source, name)]
        if name not in _Names(source).definitions and name not in _Names(source).imported:
            raise NotModelledError(
                f"the language check finds no 'def {name}' at the top level of {source.path.name}"
            )
        while pending:
            source, name = pending.pop()
            key = (id(source), name)
            names = self.names.setdefault(id(source), _Names(source))
            if key in self.seen:
                continue
            self.seen.add(key)
            if name in names.imported:
                pending.append(names.imported[name])
            node = names.definitions.get(name)
            if node is None:
                continue  # a constant
            if isinstance(node, ast.ClassDef):
                _Class(self, names).check(node)
            else:
                _Function(self, names).check(node)
            for reached in ast.walk(node):
                pending += self._reached(names, reached)

    def _reached(self, names, node):
        if isinstance(node, ast.Name):
            if node.id in names.definitions:
                return [(names.source, node.id)]
            if node.id in names.imported:
                return [names.imported[node.id]]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in names.siblings:
                return [(names.siblings[node.value.id], node.attr)]
        return []


def refuse(source, node, rule, what):
    """LanguageError of `rule` at a node."""
    line = getattr(node, "lineno", 0)
    text = source.text.splitlines()[line - 1].strip() if line else ""
    raise LanguageError(rule, f"{source.path.name}:{line}: {text}\n{what}. {RULES[rule].text}")


class _Class:
    def __init__(self, check, names):
        self.check_, self.names = check, names

    def check(self, node):
        bases = [base.attr if isinstance(base, ast.Attribute) else base.id for base in node.bases]
        if node.keywords or len(bases) != 1 or bases[0] not in ("NKIObject", "Enum"):
            refuse(self.names.source, node, "class-base", f"class {node.name} has bases {bases}")
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                _Function(self.check_, self.names).check(item)


class _Function:
    """The check of one function's body."""

    def __init__(self, check, names):
        self.version = check.version
        self.names = names
        self.locals: set[str] = set()

    def refuse(self, node, rule, what):
        refuse(self.names.source, node, rule, what)

    def check(self, node: ast.FunctionDef):
        self._signature(node)
        self.locals = {item.arg for item in node.args.args}
        self.locals |= {
            item.id
            for item in ast.walk(node)
            if isinstance(item, ast.Name) and isinstance(item.ctx, ast.Store)
        }
        for statement in node.body:
            self._statement(statement)

    def _signature(self, node):
        arguments = node.args
        if arguments.kwonlyargs:
            self.refuse(node, "keyword-only", f"{node.name} has keyword-only parameters")
        if arguments.vararg or arguments.kwarg or arguments.posonlyargs:
            self.refuse(node, "construct", f"{node.name} has *args, **kwargs or a '/' marker")
        for default in arguments.defaults:
            if isinstance(default, ast.List):
                self.refuse(node, "list-argument", f"{node.name} has a list as default")
        for decorator in node.decorator_list:
            # AWS's library has static methods in its NKIObject classes.
            if not ast.unparse(decorator).split("(")[0].endswith(("jit", "staticmethod")):
                self.refuse(node, "construct", f"{node.name} has @{ast.unparse(decorator)}")

    def _statement(self, node):
        if isinstance(node, ast.Import | ast.ImportFrom):
            self.refuse(node, "construct", "an import inside of a kernel")
        if isinstance(node, ast.Raise):
            self.refuse(node, "raise", "raise; use assert")
        if not isinstance(node, _STATEMENTS):
            self.refuse(node, "construct", f"the statement '{_kind(node)}'")
        if isinstance(node, ast.FunctionDef):
            if self.version < (0, 6):
                self.refuse(node, "closure", f"the nested function {node.name}")
            self._signature(node)
        if isinstance(node, ast.For | ast.While) and node.orelse:
            self.refuse(node, "construct", "else of a loop")
        if isinstance(node, ast.With):
            for item in node.items:
                if not ast.unparse(item.context_expr).endswith("no_reorder()"):
                    self.refuse(node, "construct", "a with statement other than nl.no_reorder()")
        if isinstance(node, ast.AnnAssign):
            children = [node.target, *([node.value] if node.value else [])]  # not the annotation
        elif isinstance(node, ast.FunctionDef):
            children = [*node.args.defaults, *node.body]
        else:
            children = ast.iter_child_nodes(node)
        for child in children:
            if isinstance(child, ast.stmt):
                self._statement(child)
            elif isinstance(child, ast.withitem):
                self._expression(child.context_expr)
            elif isinstance(child, ast.expr):
                self._expression(child)

    def _expression(self, node):
        if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            self.refuse(node, "comprehension", "a comprehension or generator expression")
        if isinstance(node, ast.Lambda):
            self.refuse(node, "closure", "a lambda")
        if not isinstance(node, _EXPRESSIONS):
            self.refuse(node, "construct", f"the expression '{_kind(node)}'")
        if isinstance(node, ast.Compare):
            if any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
                self.refuse(node, "identity", "'is' or 'is not'; use == or !=")
        if isinstance(node, ast.Dict):
            for key in node.keys:
                if isinstance(key, ast.Tuple) or (
                    isinstance(key, ast.Constant) and not isinstance(key.value, str)
                ):
                    self.refuse(node, "dict-key", f"the key {ast.unparse(key)}")
                if key is None:
                    self.refuse(node, "construct", "'**' in a dictionary")
        if isinstance(node, ast.Constant):
            self._constant(node)
        if isinstance(node, ast.Call) and any(k.arg is None for k in node.keywords):
            self.refuse(node, "construct", "'**' in a call")
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            self._name(node)
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.keyword):
                self._expression(child.value)
            elif isinstance(child, ast.expr):
                self._expression(child)

    def _constant(self, node):
        value = node.value
        if isinstance(value, bytes | complex):
            self.refuse(node, "value-type", f"the constant {value!r}")
        if isinstance(value, int) and not -(2**31) <= value < 2**32:
            self.refuse(node, "value-type", f"the integer {value}")

    def _name(self, node):
        if node.id in self.locals:
            return
        if node.id in _REFLECTION and node.id not in self.names.definitions:
            self.refuse(node, "host-python", f"the built-in {node.id}")
        module = self.names.modules.get(node.id)
        if module and not module.startswith(_HOST_MODULES):
            self.refuse(node, "host-python", f"{node.id} of the host module {module}")


def _kind(node):
    return type(node).__name__.lower()
