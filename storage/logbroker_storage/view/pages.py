"""Whether the pages of an LMDB file hold together, found out before LMDB is let near them.

LMDB takes its pages at their word: a flipped bit in a page's header makes it read, or write, outside of
the page, and the process dies of it. So the first process to open a view walks its trees here, by the
layout of data format 1 (LMDB 0.9, in the machine's byte order; ``mdb.c`` and ``lmdb.h`` are the source):

    page header, 16 bytes        page number u64 · pad u16 · flags u16 · lower u16 · upper u16
                                   (an overflow page: number of pages u32 in place of the last two)
    then                         u16 positions of the nodes, up to *lower*; the nodes lie from *upper* on
    meta page, behind a header   magic u32 · version u32 · address u64 · map size u64 · two trees (free
                                   pages, main) · last page u64 · transaction u64
    tree, 48 bytes               pad u32 (of the first: the page size) · flags u16 · depth u16 ·
                                   branch, leaf and overflow pages u64 · entries u64 · root u64
    node, 8 bytes, then the key  low u16 · high u16 · flags u16 · key size u16; in a leaf low and high are
                                   the value's size; in a branch low, high and flags the child's page

Found are pages that are not what they must be, page numbers out of range or used twice, keys out of order
and wrong counts. What a value says is covered by its checksum.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Collection
from typing import NamedTuple

PAGE = struct.Struct("=QHHHH")
OVERFLOW = struct.Struct("=QHHI")
META = struct.Struct("=IIQQ48s48sQQ")
TREE = struct.Struct("=IHHQQQQQ")
NODE = struct.Struct("=HHHH")

MAGIC, VERSION = 0xBEEFC0DE, 1
BRANCH, LEAF, OVERFLOW_PAGE, META_PAGE = 0x01, 0x02, 0x04, 0x08
KIND = BRANCH | LEAF | OVERFLOW_PAGE | META_PAGE
BIG_VALUE, SUBTREE = 0x01, 0x02
INTEGER_KEYS = 0x08
NO_PAGE = (1 << 64) - 1
MAX_DEPTH = 32
PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)


class _DamageError(Exception):
    """What is wrong."""


class _Tree(NamedTuple):
    pad: int
    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int


class _Node(NamedTuple):
    key: bytes
    flags: int
    child: int  # of a branch's node
    value: bytes  # of a leaf's node; the page number when it lies in overflow pages
    value_bytes: int
    stored_bytes: int  # in the page, header and padding included


def find_damage(data: bytes | memoryview, tables: Collection[str] | None = None) -> str | None:
    """What is wrong with the content of a ``data.mdb``; None when LMDB can be trusted with it.

    *tables* are those that it must have, and no others: LMDB would make anew, empty, whose name was changed.
    """
    try:
        _Walk(data).run(tables)
    except _DamageError as damage:
        return str(damage)
    except struct.error:
        return "the file ends too early"
    return None


class _Walk:
    """One walk over everything that the newest meta page leads to."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self._seen: set[int] = {0, 1}
        self._page_bytes = _Tree(*TREE.unpack(META.unpack_from(self._data, PAGE.size)[4])).pad
        if self._page_bytes not in PAGE_SIZES:
            raise _DamageError(f"a page of {self._page_bytes} bytes")
        metas = [self._meta(number) for number in (0, 1)]
        # A transaction's number says by its last bit which meta page it writes: they are always one apart.
        even, odd = (meta[-1] for meta in metas)
        if (even, odd) != (0, 0) and (abs(even - odd) != 1 or even % 2):
            raise _DamageError(f"the meta pages are of transactions {even} and {odd}")
        *_, free, main, self._last_page, _ = max(metas, key=lambda meta: meta[-1])
        self._free, self._main = _Tree(*TREE.unpack(free)), _Tree(*TREE.unpack(main))
        # Pages that are only reserved need not be in the file; those that are read must be.
        self._last_readable = min(self._last_page, len(self._data) // self._page_bytes - 1)

    def run(self, tables: Collection[str] | None) -> None:
        names = self._walk_tables()
        if tables is not None and names != {table.encode() for table in tables}:
            raise _DamageError(f"the tables are {sorted(names)}")
        for node in self._walk_nodes(self._free, is_free_list=True):
            self._check_free_pages(self._value(node))

    def _meta(self, number: int) -> tuple[int, int, int, int, bytes, bytes, int, int]:
        at = number * self._page_bytes
        _, _, flags, _, _ = PAGE.unpack_from(self._data, at)
        meta: tuple[int, int, int, int, bytes, bytes, int, int] = META.unpack_from(self._data, at + PAGE.size)
        if flags & ~0x10 != META_PAGE or meta[0] != MAGIC or meta[1] != VERSION:
            raise _DamageError(f"meta page {number}")
        return meta

    def _walk_tables(self) -> set[bytes]:
        """Check the main tree, whose values are all trees, and these; their names."""
        nodes = self._walk_nodes(self._main)
        for node in nodes:
            if node.flags != SUBTREE or len(node.value) != TREE.size:
                raise _DamageError(f"{node.key!r} is no table")
            if any(inner.flags & SUBTREE for inner in self._walk_nodes(_Tree(*TREE.unpack(node.value)))):
                raise _DamageError(f"a tree in the table {node.key!r}")
        return {node.key for node in nodes}

    def _walk_nodes(self, tree: _Tree, *, is_free_list: bool = False) -> list[_Node]:
        """Check one tree; its leaves' nodes, in order."""
        if tree.flags != (INTEGER_KEYS if is_free_list else 0):
            raise _DamageError("a tree with unknown flags")
        if tree.root == NO_PAGE:
            if tree.entries:
                raise _DamageError("a tree without a root counts entries")
            return []
        if tree.depth > MAX_DEPTH:
            raise _DamageError(f"a tree of {tree.depth} levels")
        nodes = self._walk_page(tree.root, tree.depth, ordered=not is_free_list)
        if len(nodes) != tree.entries:
            raise _DamageError(f"{len(nodes)} entries where {tree.entries} are counted")
        if not is_free_list and any(before >= behind for before, behind in itertools.pairwise(nodes)):
            raise _DamageError("keys out of order")
        return nodes

    def _walk_page(self, number: int, depth: int, *, ordered: bool) -> list[_Node]:
        """The leaf nodes below a page."""
        is_leaf = depth == 1
        nodes = self._nodes(number, is_leaf=is_leaf)
        if is_leaf:
            for node in nodes:
                if node.flags & BIG_VALUE:
                    self._take_overflow(node)
            return nodes
        found: list[_Node] = []
        for index, node in enumerate(nodes):
            below = self._walk_page(node.child, depth - 1, ordered=ordered)
            # A branch's key parts what lies before it from what lies behind; the first has none.
            if ordered and index and not found[-1].key < node.key <= below[0].key:
                raise _DamageError(f"page {number} leads to the wrong keys")
            found += below
        return found

    def _take(self, number: int, count: int = 1) -> int:
        """Note pages as used; the position of the first."""
        for page in range(number, number + count):
            if not 2 <= page <= self._last_readable or page in self._seen:
                raise _DamageError(f"page {page} is out of range or used twice")
            self._seen.add(page)
        return number * self._page_bytes

    def _nodes(self, number: int, *, is_leaf: bool) -> list[_Node]:
        at = self._take(number)
        own, _, flags, lower, upper = PAGE.unpack_from(self._data, at)
        kind = LEAF if is_leaf else BRANCH
        if own != number or flags != kind:
            raise _DamageError(f"page {number} is not the page it should be")
        if not PAGE.size <= lower <= upper <= self._page_bytes or lower % 2:
            raise _DamageError(f"page {number} has impossible bounds")
        positions = struct.unpack_from(f"={(lower - PAGE.size) // 2}H", self._data, at + PAGE.size)
        if not positions or (not is_leaf and len(positions) < 2):
            raise _DamageError(f"page {number} holds too few nodes")
        page = bytes(self._data[at : at + self._page_bytes])
        nodes = [self._node(page, position, upper, is_leaf=is_leaf) for position in positions]
        if sum(node.stored_bytes for node in nodes) != self._page_bytes - upper:
            raise _DamageError(f"the nodes of page {number} do not fill it")
        return nodes

    def _node(self, page: bytes, position: int, upper: int, *, is_leaf: bool) -> _Node:
        if not upper <= position <= len(page) - NODE.size or position % 2:
            raise _DamageError("a node lies outside of its page")
        low, high, flags, key_bytes = NODE.unpack_from(page, position)
        key_at = position + NODE.size
        value_at = key_at + key_bytes
        if is_leaf:
            if flags & ~(BIG_VALUE | SUBTREE):
                raise _DamageError("a node with unknown flags")
            value_bytes = low | high << 16
            stored = 8 if flags & BIG_VALUE else value_bytes
            child = 0
        else:
            value_bytes = stored = 0
            child = low | high << 16 | flags << 32
            flags = 0
        if value_at + stored > len(page):
            raise _DamageError("a node reaches out of its page")
        value = page[value_at : value_at + stored]
        stored_bytes = value_at + stored - position
        return _Node(page[key_at:value_at], flags, child, value, value_bytes, stored_bytes + stored_bytes % 2)

    def _take_overflow(self, node: _Node) -> None:
        (number,) = struct.unpack("=Q", node.value)
        if not 2 <= number <= self._last_readable:
            raise _DamageError(f"page {number} is out of range")
        own, _, flags, count = OVERFLOW.unpack_from(self._data, number * self._page_bytes)
        needed = -(-(PAGE.size + node.value_bytes) // self._page_bytes)
        # A smaller value may have taken a larger one's place.
        if own != number or flags & KIND != OVERFLOW_PAGE or count < needed:
            raise _DamageError(f"page {number} is not the overflow page it should be")
        self._take(number, count)

    def _value(self, node: _Node) -> bytes:
        if not node.flags & BIG_VALUE:
            return node.value
        at = struct.unpack("=Q", node.value)[0] * self._page_bytes + PAGE.size
        return bytes(self._data[at : at + node.value_bytes])

    def _check_free_pages(self, value: bytes) -> None:
        """A free page that is in use would be written over: a list is its length, then page numbers, falling."""
        count = struct.unpack_from("=Q", value)[0]
        if len(value) != 8 * (count + 1):
            raise _DamageError("a list of free pages of the wrong length")
        pages = struct.unpack_from(f"={count}Q", value, 8)
        if any(before <= behind for before, behind in itertools.pairwise(pages)):
            raise _DamageError("a list of free pages out of order")
        if any(not 2 <= page <= self._last_page or page in self._seen for page in pages):
            raise _DamageError("a page in use is listed as free")
