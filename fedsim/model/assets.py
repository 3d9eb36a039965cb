"""Where the base models lie that come with the package."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
