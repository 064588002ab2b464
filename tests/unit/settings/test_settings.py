# SPDX-License-Identifier: Apache-2.0
"""Settings: the source of a value, and the refusal of a wrong one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevsnp.errors import UserError
from sevsnp.settings.reference import render_reference
from sevsnp.settings.resolved import command_line_words, read_config, resolve
from sevsnp.settings.table import GROUPS, SETTINGS, Setting, render_config
from sevsnp.settings.values import parse_size
from tests.support.setting_texts import BAD, OTHERS
from tests.support.texts import UNICODE

PROJECT = Path(__file__).parents[3]

every_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@every_setting
def test_the_stronger_source_wins(setting: Setting, tmp_path: Path) -> None:
    word, variable, configured = OTHERS[setting.name]
    file = write(tmp_path, f"{setting.key}: {configured}\n")
    command_line, environment = {setting.name: word}, {setting.name: variable}
    for words, variables, config, text, source in (
        (command_line, environment, file, word, "the command line"),
        ({}, environment, file, variable, "the environment"),
        ({}, {}, file, configured, str(file)),
        (command_line, {}, file, word, "the command line"),
        ({}, {}, tmp_path / "none.yaml", setting.default, "the default"),
    ):
        settings = resolve(words, variables, config)
        assert settings[setting.name] == setting.parse(text)
        assert settings.sources[setting.name] == source


@every_setting
def test_a_value_for_one_setting_does_not_change_the_others(setting: Setting, tmp_path: Path) -> None:
    settings = resolve({setting.name: OTHERS[setting.name][0]}, {}, tmp_path / "none.yaml")
    others = {other.name: other.parse(other.default) for other in SETTINGS if other is not setting}
    assert {name: value for name, value in settings.values.items() if name != setting.name} == others


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_is_refused_by_name(name: str, text: str, tmp_path: Path) -> None:
    setting = next(setting for setting in SETTINGS if setting.name == name)
    for words, variables, source in (
        ({name: text}, {}, "the command line"),
        ({}, {name: text}, "the environment"),
    ):
        with pytest.raises(UserError) as refused:
            resolve(words, variables, tmp_path / "none.yaml")
        assert name in refused.value.message
        assert source in refused.value.message
        assert setting.expected in refused.value.message


def test_a_bad_value_in_the_file_names_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "cpus: many\n")
    with pytest.raises(UserError, match=r"CPUS=many \(from .*config\.yaml\): expected a number of vCPUs"):
        resolve({}, {}, file)


def test_a_bad_value_is_ignored_if_a_source_with_higher_priority_has_one(tmp_path: Path) -> None:
    assert resolve({"CPUS": "2"}, {"CPUS": "many"}, write(tmp_path, "cpus: none\n"))["CPUS"] == 2


def test_a_disk_key_on_the_command_line_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LUKS_KEY=… on the command line") as refused:
        resolve({"LUKS_KEY": "canary"}, {}, tmp_path / "none.yaml")
    assert "canary" not in str(refused.value)
    # In the environment it is no setting, and taken by another way.
    assert "LUKS_KEY" not in resolve({}, {"LUKS_KEY": "canary"}, tmp_path / "none.yaml").values


def test_an_unknown_word_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown setting CPU=2") as refused:
        resolve({"CPU": "2"}, {}, tmp_path / "none.yaml")
    assert "CPUS=" in refused.value.hint


@pytest.mark.parametrize("word", ["A=1 env", "for x in a b; do echo $x; done; A=1"])
def test_a_command_for_the_guest_in_a_word_of_its_own_has_a_hint(word: str, tmp_path: Path) -> None:
    """doit takes it for a setting before any task is known."""
    with pytest.raises(UserError, match="unknown setting") as refused:
        resolve(command_line_words(["ssh", "-c", word]), {}, tmp_path / "none.yaml")
    assert "--command='A=1 env'" in refused.value.hint
    assert command_line_words(["ssh", f"--command={word}"]) == {}
    # A misspelt setting with a blank in its value is another matter.
    with pytest.raises(UserError) as refused:
        resolve({"CPU": "1 2"}, {}, tmp_path / "none.yaml")
    assert "CPUS=" in refused.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cpu: 2\n", "unknown setting 'cpu'"),
        ("CPUS: 2\n", "unknown setting 'CPUS'"),
        ("? [a]\n: 2\n", "unknown setting"),
        ("cpus: 2\ncpus: 3\n", "cpus is set twice"),
        ("cpus: [2]\n", "cpus: found a sequence, expected a number of vCPUs"),
        ("memory:\n  guest: 2G\n", "memory: found a mapping, expected guest memory"),
        ("- cpus\n", "found a sequence, expected `name: value` lines"),
        ("cpus\n", "found a scalar"),
        ("cpus: 2\nmemory: [\n", "line 3: not YAML"),
        ("cpus: 2\n---\ncpus: 3\n", "not YAML"),
        ("cpus: \x01\n", "not YAML"),
    ],
)
def test_a_bad_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UserError) as refused:
        read_config(file)
    assert words in refused.value.message
    assert str(file) in refused.value.message


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"host: \xff\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path / "config.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_config(tmp_path)


def test_values_are_read_as_the_text_in_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'acpi: on\npolicy: 0x30000\ncpu_model: "010"\nimage:\nhost: 1:30\nmirror: ~\n')
    assert read_config(file) == {
        "ACPI": "on",
        "POLICY": "0x30000",
        "CPU_MODEL": "010",
        "IMAGE": "",
        "HOST": "1:30",
        "MIRROR": "",
    }


def test_an_empty_or_absent_file_sets_nothing(tmp_path: Path) -> None:
    assert read_config(tmp_path / "none.yaml") == {}
    assert read_config(write(tmp_path, "# nothing\n")) == {}


def test_the_project_s_config_yaml_lists_every_setting_with_its_default() -> None:
    # A clone whose owner has edited it differs in values, so the committed text counts where there is one.
    assert read_config(PROJECT / "config.yaml") == {setting.name: setting.default for setting in SETTINGS}


def test_the_project_s_config_yaml_equals_the_table() -> None:
    assert (PROJECT / "config.yaml").read_text() == render_config(), (
        "run: .venv/bin/python -m sevsnp.settings.table >config.yaml"
    )
    assert [setting.name for setting in SETTINGS if len(setting.help) < 20 or setting.help.endswith(".")] == []
    assert all(title.endswith(".") for title, _ in GROUPS)


def test_the_reference_page_equals_the_table() -> None:
    page = (PROJECT / "docs" / "settings.md").read_text()
    assert page == render_reference(), "run: .venv/bin/python -m sevsnp.settings.reference >docs/settings.md"
    assert [setting.name for setting in SETTINGS if f"| `{setting.name}` |" not in page] == []


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("platform", "snp", "did you mean PLATFORM=? "),
        ("CPU", "2", "did you mean CPUS=? "),
        ("PLATFROM", "snp", "did you mean PLATFORM=? "),
        ("ZZZ", "1", ""),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name: str, text: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        resolve({name: text}, {}, tmp_path / "none.yaml")
    assert refused.value.message == f"unknown setting {name}={text}"
    assert refused.value.hint == f"{meant}all settings: ./doitw settings"


@pytest.mark.parametrize(
    ("name", "text", "meant"),
    [
        ("PLATFORM", "SNP", "did you mean PLATFORM=snp?"),
        ("PLATFORM", "emulate", "did you mean PLATFORM=emulated?"),
        ("PRODUCT", "genoa", "did you mean PRODUCT=Genoa?"),
        ("PLATFORM", "zzz", ""),
        ("CPUS", "many", ""),
    ],
)
def test_a_misspelt_value_is_answered_with_the_nearest(name: str, text: str, meant: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected") as refused:
        resolve({name: text}, {}, tmp_path / "none.yaml")
    assert refused.value.hint == meant


def test_a_task_that_reads_an_unknown_setting_names_it(tmp_path: Path) -> None:
    settings = resolve({}, {}, tmp_path / "none.yaml")
    for read in (settings.text, settings.number, settings.__getitem__, lambda name: settings.path(name, Path())):
        with pytest.raises(UserError, match="there is no setting CPU") as refused:
            read("CPU")
        assert "CPUS" in refused.value.hint


def test_the_tables_here_cover_every_setting() -> None:
    names = {setting.name for setting in SETTINGS}
    assert set(OTHERS) == names
    free = {setting.name for setting in SETTINGS if getattr(setting.parse, "__name__", "") == "text"}
    assert set(BAD) | free == names


@given(st.integers(0, 1 << 50), st.sampled_from(["", "K", "M", "G"]), st.sampled_from(["", "B", "iB"]), st.booleans())
def test_sizes_are_binary(number: int, unit: str, suffix: str, lower: bool) -> None:
    if not unit and suffix == "iB":
        return
    text = f"{number}{unit}{suffix}"
    factor = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit]
    assert parse_size(text.lower() if lower else text) == number * factor


@given(st.text(UNICODE))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError:
        return
    assert size >= 0
    assert text.isascii()
    assert text[0].isdigit()


@every_setting
@given(text=st.text(UNICODE))
def test_any_text_is_parsed_or_a_value_error(setting: Setting, text: str) -> None:
    try:
        setting.parse(text)
    except ValueError:
        return


def test_words_of_the_command_line_are_read_as_by_doit() -> None:
    from doit.doit_cmd import DoitMain, get_var

    argv = ["run", "-n2", "--opt=x", "test", "CPUS=2", "IMAGE=a=b", "CPUS=3", "-k", "x=y", "MIRROR=", "=z"]
    words = command_line_words(argv)
    rest = DoitMain().process_args(argv)
    assert rest == ["run", "-n2", "--opt=x", "test", "-k"]
    assert words == {"CPUS": "3", "IMAGE": "a=b", "x": "y", "MIRROR": "", "": "z"}
    assert {name: get_var(name) for name in words} == words


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/someone")
    settings = resolve({"IMAGE": "~/root.tar"}, {}, tmp_path / "none.yaml")
    assert settings.path("IMAGE", Path("x")) == Path("/home/someone/root.tar")
    assert settings.path("VM_CONFIG", Path("x")) == Path("x")
    assert settings.config_dir() == Path("/home/someone/.config/openend2e-sevsnp")
    assert settings.cache_dir() == Path("/var/cache/someone/openend2e-sevsnp")
    assert settings.number("CPUS") == 1
    assert settings.text("CPUS") == "1"
