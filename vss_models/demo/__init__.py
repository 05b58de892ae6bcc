"""`vss demo`: the whole system on made-up videos, from data to masks, on a plain CPU."""

from vss_models.demo.run import DemoSettings, run_demo

__all__ = ["DemoSettings", "run_demo"]
