"""placeholder until retention lands"""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .data_directory import DataDirectory
class Cleaner:
    def __init__(self, directory: DataDirectory) -> None: ...
    def run(self) -> bool:
        return True
