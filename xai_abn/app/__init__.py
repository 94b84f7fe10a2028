"""The page in the browser: look at maps, correct them, compare models."""

from xai_abn.app.server import run

__all__ = ["run"]
