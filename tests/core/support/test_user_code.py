"""Names of functions, and where their modules come from. What the verbs do with them: tests/cli/test_consent.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pocketfit.core.errors import UserError
from pocketfit.core.support import user_code
from pocketfit.core.support.user_code import NAME, consent, function


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, "_found", {})
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.startswith("code_of_")]:
        monkeypatch.delitem(sys.modules, name)


def write(path: Path, value: int = 1, more: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{more}\ndef f():\n    return {value}\nclass Box:\n    f = staticmethod(f)\nnumber = 3\n")


def test_names() -> None:
    for name in ("a:f", "a.b_c:f", "größe.b:C.f"):
        assert NAME.fullmatch(name)
    for name in ("a", ":f", "a:", "a b:f", ".a:f", "a.:f", "a:f()", "a/b:f", "1a:f", "a:f\n", "a\0:f", "a:b:c"):
        assert not NAME.fullmatch(name)


def test_a_name_that_the_user_gave_is_looked_for_in_the_current_directory_first(tmp_path: Path) -> None:
    write(tmp_path / "code_of_mine.py", 2)
    write(tmp_path / "else" / "code_of_mine.py", 3)
    sys.path.append(str(tmp_path / "else"))
    assert function("code_of_mine:f", "factory")() == 2
    assert function("code_of_mine:Box.f", "factory")() == 2
    assert str(tmp_path) not in sys.path and user_code.closed_to("code_of_mine:f") is None
    for name, sentence in (
        ("code_of_mine:number", "has no function number, as the metric code_of_mine:number needs"),
        ("code_of_mine:g", "has no function g"),
        ("code_of_nobody:f", "There is no module code_of_nobody in the current directory or among the packages"),
        ("os:system", '"os:system" names no metric: write package.module:function'),
        ("__main__:f", "names no metric"),
        ("a b:f", "names no metric"),
    ):
        with pytest.raises(UserError, match=sentence):
            function(name, "metric")


def test_a_name_out_of_a_file_is_never_taken_from_the_files_folder(tmp_path: Path) -> None:
    closed = tmp_path / "theirs"
    for name in ("code_of_theirs", "code_of_both"):
        write(closed / f"{name}.py", 3)
    write(tmp_path / "code_of_both.py", 2)
    write(closed / "code_of_package" / "__init__.py")
    (tmp_path / "link").symlink_to(closed)
    sys.path[:0] = [str(closed), str(tmp_path / "link")]
    for name in ("code_of_theirs:f", "code_of_both:f", "code_of_package:f", "theirs.code_of_theirs:f"):
        with pytest.raises(UserError, match=r"lies in .*theirs, beside the file that names it"):
            function(name, "factory", closed)
    del sys.path[:2]
    assert function("code_of_both:f", "factory", closed)() == 2, "the current directory, which is not that folder"
    assert user_code.closed_to("code_of_both:f") == closed


def test_what_an_allowed_module_imports_is_not_taken_from_there_either(tmp_path: Path) -> None:
    closed = tmp_path / "theirs"
    write(closed / "code_of_theirs.py", more="open('sign', 'w')")
    write(tmp_path / "code_of_mine.py", more="import code_of_theirs")
    sys.path.append(str(closed))
    with pytest.raises(UserError, match="The module code_of_theirs lies in"):
        function("code_of_mine:f", "factory", closed)
    assert not (tmp_path / "sign").exists()


def test_the_current_directory_is_not_used_where_it_is_the_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "code_of_mine.py")
    (tmp_path / "below").mkdir()
    for here in (tmp_path, tmp_path / "below"):
        monkeypatch.chdir(here)
        with pytest.raises(UserError, match="There is no module code_of_mine that may be taken"):
            function("code_of_mine:f", "factory", tmp_path)


def test_an_environment_below_the_closed_folder_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / ".venv" / "lib" / "code_of_package.py", 5)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    sys.path.append(str(tmp_path / ".venv" / "lib"))
    assert function("code_of_package:f", "factory", tmp_path)() == 5


def test_consent(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    assert consent(False, "a.b:f").check("a.b:f", path, "factory") is None
    assert consent(["a.b:f"]).check("a.b:f", path, "factory") is None
    assert consent(True).check("c:f", path, "factory") == tmp_path.resolve()
    for agreed in (consent(False), consent(False, "a.b:f"), consent(["a.b:f"]), consent(())):
        with pytest.raises(UserError, match=r'model\.json names the factory "\\u0441:f", code of .*: add --allow-code'):
            agreed.check("\u0441:f", path, "factory")


def test_whatever_a_module_raises_is_a_sentence(tmp_path: Path) -> None:
    for number, raised in enumerate(("raise SystemExit(3)", "1 / 0", "import nowhere_at_all", "def")):
        (tmp_path / f"code_of_{number}.py").write_text(raised + "\n")
        with pytest.raises(UserError, match=f"The module code_of_{number} can't be imported: [A-Z]"):
            function(f"code_of_{number}:f", "metric")
