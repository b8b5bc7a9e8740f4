"""From a command line to a verb: versions, groups, old names and mistyped verbs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from scaling.cli.main import GROUPS, VERBS, expand_flag, load_verb, main
from scaling.store import run_dirs


def test_version_names_what_trains(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["scaling", "jax", "flax", "optax"]


def test_the_help_has_every_verb_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted([*VERBS, "reproduce"])


def test_figures_is_the_folder_to_write_figures_into() -> None:
    page = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"
    (row,) = [line for line in page.read_text().splitlines() if "`--figures" in line]
    writers = [verb for verb in ("plot", "compare", "audit") if f"`{verb}`" in row]
    for name in VERBS:
        fields = {
            field.name: field.type for field in dataclasses.fields(load_verb(name))
        }
        if name in writers:
            assert fields["figures"] in ("Path", "Path | None")
        elif name != "track":  # where it is the old name of --images
            assert "figures" not in fields


def test_an_unknown_verb_suggests_the_nearest(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["swep"])
    assert stop.value.code == 2
    assert "did you mean 'sweep'?" in capsys.readouterr().err


def test_next_is_suggest_with_a_note(tmp_path, capsys) -> None:
    assert main(["next", str(tmp_path / "none.csv")]) == 2
    error = capsys.readouterr().err
    assert "scaling suggest" in error
    assert "--target-C" in error


def test_show_and_diff_are_what_the_old_flags_were(make_run, tmp_path, capsys) -> None:
    runs = [make_run(seed=seed) for seed in (0, 1)]
    for run in runs:
        run_dirs.open_run(tmp_path, run)
    ids = [run.run_id for run in runs]
    out = str(tmp_path)
    for new, old in (
        (["show", out, ids[0]], ["runs", out, "--show", ids[0]]),
        (["diff", out, *ids], ["runs", out, "--diff", *ids]),
    ):
        assert main([*new, "--json"]) == 0
        found = capsys.readouterr()
        assert main([*old, "--json"]) == 0
        before = capsys.readouterr()
        assert json.loads(found.out) == json.loads(before.out)
        assert found.err == ""
        assert f"scaling {new[0]} {out}" in before.err


def test_a_setting_of_the_loop_that_a_message_names_is_a_flag(tmp_path, capsys) -> None:
    argv = ["sweep", "--out", str(tmp_path), "--loop.stall-seconds", "-1"]
    assert main(argv) == 2
    assert "loop.stall_seconds = -1" in capsys.readouterr().err


def test_help_gives_each_verb_a_whole_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    sentence = "experiment trackers: whatever they do not have yet."
    assert f"Sync a sweep's folder to {sentence}" in text


@pytest.mark.parametrize("word", ["--data", "--data=my_texts/", "--data.source", "x"])
def test_only_the_short_flag_is_written_out(word) -> None:
    expected = word if "." in word else word.replace("--data", "--data.source")
    assert expand_flag(word) == expected
