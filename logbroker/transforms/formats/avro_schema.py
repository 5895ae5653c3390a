"""What a schema must not be, when a message may be from anybody.

An Avro array tells how many items follow, so items that take no bytes (nulls, records without fields) let ten
bytes stand for any number of them; and records of records that take none multiply with each level. A schema
that contains itself lets a message nest as deep as it is long, while the compiled reader recurses on the C
stack and checks nothing: such a schema is for the reader in Python, which raises RecursionError instead.
"""

from __future__ import annotations

from typing import Any

from logbroker_storage.errors import InvalidRequestError

from ...nesting import MAX_DEPTH, is_too_deep

Named = dict[str, Any]


def check_schema(schema: Any) -> bool:
    """Whether *schema* (parsed JSON, which is a schema that the library takes) contains itself.

    Raises:
        InvalidRequestError: it is nested too deep, or has items or fields that take no bytes (a field may be null).
    """
    if is_too_deep(schema, MAX_DEPTH):
        raise InvalidRequestError(f"the schema is nested deeper than {MAX_DEPTH} levels")
    return _Check().contains_itself(schema, "", frozenset())


def has_container_default(schema: Any) -> bool:
    """Whether a field of *schema* (as above) has a default that is a map, a record or a list."""
    if isinstance(schema, list):
        return any(map(has_container_default, schema))
    if not isinstance(schema, dict):
        return False
    fields = schema.get("fields", [])
    inner = [
        *(field["type"] for field in fields),
        *(schema.get(part) for part in ("type", "items", "values")),
    ]
    return any(isinstance(field.get("default"), (dict, list)) for field in fields) or has_container_default(
        inner
    )


class _Check:
    def __init__(self) -> None:
        self._named: Named = {}

    def contains_itself(self, schema: Any, namespace: str, inside: frozenset[str]) -> bool:
        """Walk *schema*, which stands inside the named types *inside*."""
        if isinstance(schema, list):
            return self._any(schema, namespace, inside)
        if isinstance(schema, str):
            return self._full_name(schema, namespace) in inside
        kind = schema.get("type")
        if kind in ("record", "error", "enum", "fixed"):
            namespace = _namespace(schema, namespace)
            name = self._full_name(schema["name"], namespace)
            self._named[name] = schema
            types = [field["type"] for field in schema.get("fields", [])]
            found = self._any(types, namespace, inside | {name})
            for inner in types:
                if inner != "null" and self._takes_no_bytes(inner, namespace, frozenset()):
                    raise InvalidRequestError(
                        f"the schema's {name} has a field that takes no bytes and is not null"
                    )
            return found
        if kind == "array":
            found = self.contains_itself(schema["items"], namespace, inside)
            if self._takes_no_bytes(schema["items"], namespace, frozenset()):
                raise InvalidRequestError("the schema has an array of items that take no bytes, such as null")
            return found
        if kind == "map":
            return self.contains_itself(schema["values"], namespace, inside)
        return self.contains_itself(kind, namespace, inside)  # {"type": "long"} is "long"

    def _any(self, schemas: list[Any], namespace: str, inside: frozenset[str]) -> bool:
        """Whether one of them does; all are walked, for what they name and for their arrays."""
        return True in [self.contains_itself(schema, namespace, inside) for schema in schemas]

    def _takes_no_bytes(self, schema: Any, namespace: str, inside: frozenset[str]) -> bool:
        if isinstance(schema, list):
            return False  # the number of the choice is a byte
        if isinstance(schema, str):
            if schema == "null":
                return True
            name = self._full_name(schema, namespace)
            if name not in self._named or name in inside:
                return False
            return self._takes_no_bytes(self._named[name], namespace, inside | {name})
        kind = schema.get("type")
        if kind in ("record", "error"):
            namespace = _namespace(schema, namespace)
            return all(
                self._takes_no_bytes(field["type"], namespace, inside) for field in schema.get("fields", [])
            )
        if kind == "fixed":
            return not schema.get("size")
        return kind not in ("array", "map", "enum") and self._takes_no_bytes(kind, namespace, inside)

    @staticmethod
    def _full_name(name: str, namespace: str) -> str:
        return name if "." in name or not namespace else f"{namespace}.{name}"


def _namespace(schema: Any, namespace: str) -> str:
    name: str = schema["name"]
    if "." in name:
        return name.rsplit(".", 1)[0]
    own: str | None = schema.get("namespace")
    return namespace if own is None else own
