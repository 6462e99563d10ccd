"""The detectron2 installer, without network: tiny source distributions and a pip that is never called."""

import base64
import csv
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dynamic_sparse_rcnn.cli import main
from dynamic_sparse_rcnn.detectron2_build import install as tool
from dynamic_sparse_rcnn.detectron2_build import wheel as detectron2_wheel
from dynamic_sparse_rcnn.detectron2_build.patches import PATCHES, Patch, PatchError
from dynamic_sparse_rcnn.errors import describe

PROJECT = Path(__file__).parents[2] / "projects/DynamicSparseRCNN"


def make_sdist(folder: Path, extra: dict[str, str] | None = None) -> Path:
    """A source distribution in which every patch finds what it looks for."""
    sources = {patch.file: "" for patch in PATCHES}
    for patch in PATCHES:
        sources[patch.file] += "".join(f"'''{patch.old}'''\n" for _ in range(patch.count))
    sources = {"__init__.py": "__version__ = '0.6'\n", **sources}
    files = {f"detectron2/{name}": text for name, text in sources.items()}
    files |= {"LICENSE": "licence", "setup.py": "raise SystemExit('must not run')", **(extra or {})}
    path = folder / "pb1-detectron2-0.6.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source distribution that passes as the pinned one."""
    path = make_sdist(tmp_path, {"projects/PointRend/point_rend/__init__.py": "", "tools/train_net.py": ""})
    monkeypatch.setattr(detectron2_wheel, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def run(*arguments: str) -> int:
    """The exit status of ``dsrcnn install-detectron2``."""
    try:
        return main(["install-detectron2", *arguments])
    except SystemExit as end:
        return int(end.code or 0)


class Machine:
    """What the tool meets: the modules that cannot be imported, and what it asks of pip."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self.pip_calls: list[tuple[str, ...]] = []

    def run_pip(self, arguments: Iterable[str]) -> None:
        self.pip_calls.append(tuple(arguments))
        self.failures.clear()  # what pip installed works

    def try_import(self, *modules: str) -> subprocess.CompletedProcess[str]:
        errors = [self.failures[module] for module in modules if module in self.failures]
        if errors:
            return subprocess.CompletedProcess([], 1, "", f"Traceback ...\n{errors[0]}\n")
        return subprocess.CompletedProcess([], 0, "0.6 at somewhere\n", "")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a detectron2 that some other tool installed."""
    fake = Machine()
    monkeypatch.setattr(tool, "run_pip", fake.run_pip)
    monkeypatch.setattr(tool, "try_import", fake.try_import)
    monkeypatch.setattr(tool, "installed_version", lambda: "0.6+cu118")
    return fake


def test_another_hash_is_refused_and_nothing_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_sdist(tmp_path)
    code = run("--build-only", "--wheel-dir", str(tmp_path / "wheels"), "--sdist", str(path))
    message = capsys.readouterr().err
    assert code == 1
    assert hashlib.sha256(path.read_bytes()).hexdigest() in message
    assert detectron2_wheel.SHA256 in message
    assert not (tmp_path / "wheels").exists()


def test_it_needs_the_standard_library_alone(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r})\n"
        "from dynamic_sparse_rcnn.cli import main\n"
        f"main(['install-detectron2', '--build-only', '--wheel-dir', 'x', '--sdist', {str(tmp_path / 'absent')!r}])"
    )
    result = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stderr.splitlines() == [f"error: cannot read {tmp_path / 'absent'}: No such file or directory"]


def test_without_detectron2_commands_name_the_one_that_installs_it() -> None:
    missing = ModuleNotFoundError("No module named 'detectron2'", name="detectron2")
    assert describe(missing) == "detectron2 is missing: dsrcnn install-detectron2 installs it"


def test_missing_sdist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "absent.tar.gz"
    assert run("--build-only", "--wheel-dir", str(tmp_path), "--sdist", str(path)) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("source", ["", "a = np.int\n", "np.int64)"])
def test_patch_that_finds_nothing_is_an_error(source: str) -> None:
    with pytest.raises(PatchError, match=r"data/build.py \(aliases\).*expected 'np.int\)' 1 time.*found 0"):
        Patch("data/build.py", "np.int)", "int)", "aliases").apply(source)


def test_patch_that_finds_too_much_is_an_error() -> None:
    with pytest.raises(PatchError, match=r"1 time.*found 2"):
        Patch("a.py", "x", "y", "test").apply("x x")


def test_patch_of_a_file_that_is_not_there_is_an_error() -> None:
    with pytest.raises(PatchError, match=r"layers/gone.py.*no such file"):
        detectron2_wheel.apply_patches({}, [Patch("layers/gone.py", "x", "y", "test")])


def test_wheel_holds_the_packages_and_no_symlink_or_path_outside(sdist: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(detectron2_wheel.build_wheel(sdist, tmp_path)) as wheel:
        names = set(wheel.namelist())
    assert {"detectron2/_C.py", "detectron2/projects/point_rend/__init__.py"} <= names
    assert {name.split("/")[0] for name in names} == {"detectron2", detectron2_wheel.DIST_INFO.strip("/")}


def test_links_and_paths_upwards_of_an_sdist_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "evil.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("d/detectron2/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("d/detectron2/../../escape.py"), io.BytesIO())
        archive.addfile(tarfile.TarInfo("d/detectron2/good.py"), io.BytesIO())
    assert set(detectron2_wheel.read_packages(path)) == {"detectron2/good.py"}


def test_record_lists_every_file_with_its_hash_and_size(sdist: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(detectron2_wheel.build_wheel(sdist, tmp_path)) as wheel:
        record_name = detectron2_wheel.DIST_INFO + "RECORD"
        rows = list(csv.reader(io.StringIO(wheel.read(record_name).decode())))
        assert sorted(row[0] for row in rows) == sorted(wheel.namelist())
        for name, digest, size in rows:
            if name == record_name:
                assert (digest, size) == ("", "")
                continue
            content = wheel.read(name)
            encoded = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            assert (digest, int(size)) == (f"sha256={encoded}", len(content))


def test_metadata_comes_last_so_that_an_interrupted_installation_does_not_look_finished(
    sdist: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(detectron2_wheel.build_wheel(sdist, tmp_path)) as wheel:
        is_metadata = [name.startswith(detectron2_wheel.DIST_INFO) for name in wheel.namelist()]
    assert is_metadata == sorted(is_metadata)


def test_pip_installs_the_wheel_and_finds_it_consistent(sdist: Path, tmp_path: Path) -> None:
    wheel = detectron2_wheel.build_wheel(sdist, tmp_path)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    (distribution,) = importlib.metadata.distributions(name="detectron2", path=[str(target)])
    assert distribution.version == detectron2_wheel.VERSION
    code = "import detectron2, detectron2._C as c; print(detectron2.__version__, hasattr(c, 'nms_rotated'))"
    result = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True)
    assert result.stdout.split() == ["0.6", "False"]


def test_stated_dependencies_are_valid_and_satisfied_here() -> None:
    for line in detectron2_wheel.DEPENDENCIES:
        requirement = Requirement(line)
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), line


def test_version_changes_with_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    before = detectron2_wheel.build_digest()
    monkeypatch.setattr(detectron2_wheel, "PATCHES", PATCHES[:-1])
    assert detectron2_wheel.build_digest() != before
    assert before in detectron2_wheel.VERSION


def test_detectron2_that_is_there_is_kept(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    assert "detectron2 0.6 at somewhere is there already: kept" in capsys.readouterr().out
    assert not machine.pip_calls


def test_detectron2_that_works_in_part_is_kept_with_a_warning(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.failures["detectron2.engine"] = "ModuleNotFoundError: No module named 'pkg_resources'"
    assert run() == 0
    assert "pkg_resources" in capsys.readouterr().err
    assert not machine.pip_calls


def test_detectron2_that_cannot_be_imported_is_an_error_that_names_the_cause(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.failures["detectron2"] = "ImportError: libcudart.so.11.0: cannot open shared object file"
    assert run() == 1
    assert "libcudart.so.11.0" in capsys.readouterr().err
    assert not machine.pip_calls


def check_installs_the_wheel(machine: Machine, sdist: Path) -> None:
    assert run("--sdist", str(sdist), "--constraint", "constraints.txt") == 0
    ((command, *options, wheel),) = machine.pip_calls
    assert command == "install"
    assert options[-2:] == ["--constraint", "constraints.txt"]
    assert Path(wheel).name == f"detectron2-{detectron2_wheel.VERSION}-py3-none-any.whl"


def test_absent_detectron2_is_installed(machine: Machine, sdist: Path) -> None:
    machine.failures["detectron2"] = "ModuleNotFoundError: No module named 'detectron2'"
    check_installs_the_wheel(machine, sdist)


def test_older_build_of_this_tool_is_replaced(machine: Machine, sdist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "installed_version", lambda: "0.6+pure00000000")
    check_installs_the_wheel(machine, sdist)


def test_detectron2_that_pip_never_finished_installing_is_replaced(
    machine: Machine, sdist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.failures["detectron2.engine"] = "ModuleNotFoundError: No module named 'detectron2.engine'"
    monkeypatch.setattr(tool, "installed_version", lambda: None)
    monkeypatch.setattr(tool, "is_in_site_packages", lambda: True)
    check_installs_the_wheel(machine, sdist)


def test_missing_torch_is_an_error_that_says_what_to_install(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.failures["torchvision"] = "RuntimeError: operator torchvision::nms does not exist"
    assert run() == 1
    message = capsys.readouterr().err
    assert "operator torchvision::nms does not exist" in message
    assert "pip install torch torchvision" in message
    assert not machine.pip_calls


def test_python_that_is_too_old_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tool, "OLDEST_PYTHON", (99, 0))
    assert run() == 1
    assert sys.version.split()[0] in capsys.readouterr().err


def use_only_local_files(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_download_runs_no_code_of_the_sdist(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_only_local_files(monkeypatch, sdist.parent)  # its setup.py exits with an error
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert tool.download(scratch).read_bytes() == sdist.read_bytes()


def test_failed_download_shows_what_pip_says_and_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_only_local_files(monkeypatch, tmp_path)
    assert run("--build-only", "--wheel-dir", str(tmp_path / "wheels")) == 1
    message = capsys.readouterr().err
    assert "No matching distribution found for pb1-detectron2==0.6" in message
    assert "--sdist FILE" in message
