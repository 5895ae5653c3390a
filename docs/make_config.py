"""Write docs/config.md from the table in the code: ``python docs/make_config.py``."""

from __future__ import annotations

from pathlib import Path

from logbroker_storage.log_config import config_markdown

TEXT = f"""# Topic configuration

Made by `python docs/make_config.py` from `logbroker_storage/log_config.py`; a test holds it to that.

{config_markdown()}"""

if __name__ == "__main__":
    Path(__file__).with_name("config.md").write_text(TEXT, encoding="utf-8")
