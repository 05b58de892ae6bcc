"""Commands in processes of their own: their exit status and what they print."""

from __future__ import annotations

from pathlib import Path

from vss_models.command_processes import begin_import, run_command


def test_a_command_prints_into_its_log_and_ends_with_its_status(tmp_path: Path) -> None:
    begin_import("vss_models.cli")
    good, bad, stopped = (tmp_path / name for name in ("good.log", "bad.log", "stopped.log"))
    assert run_command(["--version"], good, 1) == 0
    assert good.read_text().startswith("vss ")
    assert run_command(["fly"], bad, 1) == 2
    assert "unknown command 'fly'" in bad.read_text()
    missing = ["synthesize", str(tmp_path / "data"), "--size", "8", "8"]
    assert run_command(missing, stopped, 1) == 1
    assert stopped.read_text().startswith("vss synthesize: size must be")
