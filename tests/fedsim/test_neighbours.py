"""A user's own folder called privacy or plots is named, not imported by mistake."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["privacy", "plots"])
def test_a_folder_in_the_way_is_named(name: str, tmp_path: Path) -> None:
    own = tmp_path / name
    own.mkdir()
    (own / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fedsim"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"ImportError: {own}: is imported as {name!r} in place of fedsim's own package" in done.stderr


def test_a_folder_that_is_no_package_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fedsim"
    subprocess.run([sys.executable, "-c", code], check=True)
