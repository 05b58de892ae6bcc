"""`vss demo`: the whole system on made-up videos, from data to masks, on a plain CPU."""

from vss_models.demo.run import run_demo
from vss_models.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]
