"""What libraries say about themselves does not reach the screen; everything else does."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from vss_models.cli import main
from vss_models.training.quiet import quiet_libraries


def warn_from(module: str, category: type[Warning]) -> None:
    warnings.warn_explicit("old", category, f"{module}.py", 1, module=module)


def test_only_what_is_of_no_use_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with quiet_libraries():
            rank_zero_info("Tip: try installing [litlogger](https://pypi.org/project/litlogger/)")
            rank_zero_info("Restored all states")
            warn_from("lightning.pytorch.utilities._pytree", FutureWarning)
            warn_from("lightning.pytorch.utilities._pytree", UserWarning)
            warn_from("vss_models.training.module", FutureWarning)
        rank_zero_info("litlogger again")
    assert [record.getMessage() for record in caplog.records] == [
        "Restored all states",
        "litlogger again",
    ]
    assert [(str(entry.category.__name__), entry.filename) for entry in caught] == [
        ("UserWarning", "lightning.pytorch.utilities._pytree.py"),
        ("FutureWarning", "vss_models.training.module.py"),
    ]


def test_a_training_shows_no_advertisement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    with caplog.at_level("INFO"):
        (tmp_path / "data").mkdir()
        options = ["--data.root", str(tmp_path), "--output", str(tmp_path / "run")]
        assert main(["fit", "--config", "segformer_synthetic", *options]) == 1
    assert "GPU available" in caplog.text
    assert "Tip" not in caplog.text
    assert not [entry for entry in recwarn if "eprecat" in str(entry.message)]


def test_a_warning_to_the_user_is_one_line_without_its_origin() -> None:
    """Lightning puts the file and line before it."""
    before = warnings.formatwarning
    with quiet_libraries():
        assert warnings.formatwarning("look", UserWarning, "a.py", 7) == "Warning: look\n"
        text = warnings.formatwarning("old", FutureWarning, "a.py", 7)
        assert text == "a.py:7: FutureWarning: old\n"
    assert warnings.formatwarning is before
