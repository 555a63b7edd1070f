"""What griffe does not see in a source: fields of Equinox modules as arguments, docstrings that are composed."""

import inspect
import pkgutil
import re
from typing import Any

import equinox as eqx
import griffe

#: Between two sources of a `!!! cite`: a line that ends a sentence, and one that begins with an initial.
BETWEEN = re.compile(r"\.\n(?=[ \t]+[A-Z][a-z]?\. )")


class Signatures(griffe.Extension):
    """Completes classes with what they are when they are imported, and names of types with what they stand for."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        try:
            imported = pkgutil.resolve_name(cls.path)
        except AttributeError:
            return
        if "__doc__" in cls.members:
            cls.docstring = griffe.Docstring(inspect.getdoc(imported) or "", parent=cls)
        is_tuple = issubclass(imported, tuple) and hasattr(imported, "_fields")
        if "__init__" not in cls.members and not inspect.isabstract(imported):
            if is_tuple or issubclass(imported, eqx.Module):
                cls.set_member("__init__", _init(cls, imported))
        if "__init__" in cls.members:
            # Shown as the source of the class, so it should be all of it.
            init = cls.members["__init__"]
            init.lineno, init.endlineno = cls.lineno, cls.endlineno

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        for parameter in func.parameters:
            parameter.annotation = _meant(parameter.annotation, func.module)
        func.returns = _meant(func.returns, func.module)

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = BETWEEN.sub(".  \n", obj.docstring.value)


def _meant(annotation: Any, module: griffe.Module) -> Any:
    """The shape for which a name such as `Codes` stands in its module."""
    meaning = module.members.get(annotation.name) if isinstance(annotation, griffe.ExprName) else None
    is_type = isinstance(meaning, griffe.Attribute) and not isinstance(meaning.value, griffe.ExprCall | None)
    return meaning.value if is_type else annotation


def _init(cls: griffe.Class, imported: type) -> griffe.Function:
    kind = griffe.ParameterKind.positional_or_keyword
    parameters = [griffe.Parameter("self", kind=kind)]
    for name in inspect.signature(imported).parameters:
        field = cls.members.get(name)
        annotation, value = (
            getattr(field, "annotation", None),
            getattr(field, "value", None),
        )
        parameters.append(griffe.Parameter(name, annotation=annotation, kind=kind, default=_default(value)))
    return griffe.Function(
        "__init__",
        parameters=griffe.Parameters(*parameters),
        parent=cls,
        lineno=0,
        endlineno=0,
    )


def _default(value: Any) -> Any:
    """The default of a field that is written as a value, or as `eqx.field(default=value)`."""
    if not (isinstance(value, griffe.ExprCall) and value.canonical_path.endswith(".field")):
        return value
    options = {argument.name: argument.value for argument in value.arguments if hasattr(argument, "name")}
    return options.get("default", options.get("default_factory"))
