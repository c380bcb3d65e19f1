"""What a run prints: answers, errors, the JSON envelope; nothing hostile, nothing secret."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path

import pytest
from helpers_cli import dvk

ZERO_ID = "00" * 32


def test_an_answer_goes_to_standard_output_and_a_note_to_standard_error() -> None:
    done = dvk("send", "a b.csv")
    assert (done.code, done.out) == (0, "sent a b.csv, 28 MB\n")
    assert done.err == "note: send: going to origin\nhint: no hurry\n"


def test_the_envelope_of_success() -> None:
    expected = {
        "dvk": 1,
        "command": "remote add",
        "ok": True,
        "result": {"path": "x", "root": ZERO_ID, "sent_bytes": 28_000_000},
        "notes": [{"message": "going to far", "subject": "send", "hint": "no hurry"}],
    }
    for words in ("--json remote add x", "remote add --json x", "remote add x --json"):
        done = dvk(*words.split(), "--remote", "far")
        assert (done.code, done.document, done.err) == (0, expected, "")
        assert done.out.count("\n") == 1


def test_an_error_says_what_happened_to_which_object_and_what_to_do() -> None:
    done = dvk("fail", "refused")
    assert (done.code, done.out) == (5, "")
    assert done.err == "error: data/x: no\nhint: move it away\n"
    error = {"kind": "refused", "message": "no", "subject": "data/x", "hint": "move it away"}
    done = dvk("fail", "refused", "--json")
    assert done.document == {
        "dvk": 1,
        "command": "fail",
        "ok": False,
        "error": {**error, "exit_code": 5, "failures": []},
        "notes": [],
    }
    assert (done.code, done.err) == (5, "")


def test_what_arrived_is_shown_beside_what_did_not() -> None:
    done = dvk("some")
    assert (done.code, done.out) == (3, "sent c.csv, 1 B\n")
    assert done.err == (
        "error: a.csv: on no remote\n"
        "error: b.csv: on no remote\n"
        "hint: ask its author for `dvk push`\n"
        "error: 2 of 3 paths failed\n"
    )
    document = dvk("some", "--json").document
    assert (document["ok"], document["result"]["path"]) == (False, "c.csv")
    assert [f["subject"] for f in document["error"]["failures"]] == ["a.csv", "b.csv"]
    assert [f["exit_code"] for f in document["error"]["failures"]] == [7, 7]
    assert document["error"]["exit_code"] == 3


def test_a_partial_that_is_raised_reads_the_same() -> None:
    assert "error: 2 of 2 paths failed" in dvk("fail", "partial").err
    document = dvk("fail", "partial", "--json").document
    assert "result" not in document and len(document["error"]["failures"]) == 2


def test_a_bug_says_so_and_keeps_the_traceback_for_those_who_ask() -> None:
    done = dvk("fail", "bug", "who")
    assert done.code == 1
    assert done.err.startswith("error: dvk ran into a bug: KeyError: 'who'\nhint: ")
    assert "DVK_DEBUG=1" in done.err and "Traceback" not in done.err
    assert "Traceback" in dvk("fail", "bug", environ={"DVK_DEBUG": "1"}).err
    for environ in ({}, {"DVK_DEBUG": "1"}):
        document = dvk("fail", "bug", "--json", environ=environ).document
        assert (document["ok"], document["error"]["kind"], document["error"]["exit_code"]) == (
            False,
            "bug",
            1,
        )


def test_a_record_without_a_json_form_is_still_one_document() -> None:
    done = dvk("fail", "record", "--json")
    assert done.code == 1 and done.document["error"]["kind"] == "bug"


def test_an_operating_system_error_that_slipped_through_keeps_its_category() -> None:
    done = dvk("fail", "disk")
    assert (done.code, done.err) == (17, "error: /data/x: No space left on device\n")


def test_a_broken_pipe_to_somebody_else_is_an_error_and_no_quiet_end() -> None:
    assert dvk("fail", "pipe").code == 16


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sent"], "there is no `dvk sent`"),
        (["remote", "ad"], "there is no `dvk remote ad`"),
        (["send", "--bogus"], "no such option: --bogus"),
        (["fail"], "missing argument 'how'"),
        (["count", "many"], "'many' is not a valid"),
        (["send", "--color", "pink"], "invalid value for '--color'"),
    ],
)
def test_a_bad_command_line_is_a_usage_error(argv: list[str], message: str) -> None:
    done = dvk(*argv)
    assert (done.code, done.out) == (2, "")
    assert message in done.err.lower() and "\nhint: " in done.err
    error = dvk(*argv, "--json").document["error"]
    assert (error["kind"], error["exit_code"]) == ("usage", 2)


def test_a_near_miss_is_suggested() -> None:
    assert "did you mean `dvk remote add`?" in dvk("remote", "ad").err


def test_help_lists_verbs_by_section_and_explains_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert dvk("--help").code == 0
    page = capsys.readouterr().out
    assert re.search(r"Samples:\n  send +Send a path\.\n", page)
    assert re.search(r"Groups:\n  remote +Manage", page)
    assert dvk("help", "send").code == 0
    page = capsys.readouterr().out
    assert all(x in page for x in ("More about it.", "--remote", "--json", "--color", "-q"))
    assert dvk("remote", "--help").code == 0
    assert re.search(r"add +Send a path", capsys.readouterr().out)
    assert dvk().code == 2


def test_quiet_keeps_answers_and_errors() -> None:
    assert dvk("send", "-q") == dvk("-q", "send")
    done = dvk("send", "-q")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert dvk("compare", "-q").out == "different\n"
    assert dvk("fail", "plain", "-q").err == "error: no\n"


def test_differences_are_told_by_the_exit_code_only_when_asked() -> None:
    assert dvk("compare").code == 0
    assert dvk("compare", "--exit-code").code == 4
    done = dvk("compare", "--exit-code", "--json")
    assert done.code == 4 and done.document["ok"]


def test_the_dashes_of_the_command_line_are_known_to_the_verb() -> None:
    """`checkout REV -- PATH` and `checkout PATH` differ by nothing else."""
    assert dvk("dashes", "v1", "--", "-x", "--json").out == "[['v1', '-x', '--json'], ['-x', '--json']]\n"
    assert dvk("dashes", "a").out == "[['a'], None]\n"
    assert dvk("dashes", "a", "--").out == "[['a'], []]\n"


def test_colour_by_flag_then_environment_then_terminal() -> None:
    def colored(*argv: str, **options: object) -> bool:
        return "\x1b[32m" in dvk("send", *argv, **options).out  # type: ignore[arg-type]

    assert not colored()
    assert colored(terminal=True)
    assert not colored(terminal=True, environ={"TERM": "dumb"})
    assert not colored(terminal=True, environ={"NO_COLOR": "1"})
    assert colored(environ={"FORCE_COLOR": "1"})
    assert not colored(environ={"FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert colored("--color", "always", environ={"NO_COLOR": "1"})
    assert not colored("--color=never", terminal=True, environ={"FORCE_COLOR": "1"})
    assert not colored("--json", "--color", "always")


HOSTILE = "a\x1b[2J\r\nhint: run rm\u202e\x9b1m\x00.csv"


def test_no_escape_sequence_reaches_a_terminal() -> None:
    """From a file name, an error text, a note; with colour and without."""
    ours = re.compile(r"\x1b\[[0-9;]+m")
    for argv in (["send"], ["send", "--remote"], ["fail", "plain"], ["fail", "bug"], ["where"], ["nothing"]):
        for options in ([], ["--color", "always"], ["--json"]):
            done = dvk(*options, *argv, HOSTILE)
            assert done.out + done.err
            for text in (done.out, done.err):
                left = ours.sub("", text).replace("\n", "")
                assert left.isprintable() and "\u202e" not in left
                assert "\nhint: run rm" not in text


def test_a_second_line_of_a_message_cannot_pass_for_ours() -> None:
    assert dvk("fail", "plain", "a\nerror: b\nhint: c").err == "error: a\n       error: b\n       hint: c\n"


def test_a_name_that_is_not_utf8_is_lossless_in_json_and_readable_in_text() -> None:
    name = os.fsdecode(b"caf\xe9\n.csv")
    assert dvk("send", name).out == "sent caf\\xe9\\n.csv, 28 MB\n"
    path = dvk("send", name, "--json").document["result"]["path"]
    assert base64.b64decode(path["bytes_b64"]) == b"caf\xe9\n.csv"


def test_a_narrow_encoding_gets_escapes_and_no_crash() -> None:
    assert dvk("send", "日本é", encoding="latin-1").out == "sent \\u65e5\\u672cé, 28 MB\n"


def test_secrets_are_taken_out_everywhere() -> None:
    environ = {"AWS_SECRET_ACCESS_KEY": "abcd/efgh+ijkl", "DVK_DEBUG": "1"}
    text = "PUT http://u:pw@h/?X-Amz-Signature=ff0 with abcd/efgh+ijkl"
    for argv in (["fail", "denied"], ["fail", "bug"], ["send", "--remote"], ["where"]):
        for options in ([], ["--json"]):
            done = dvk(*options, *argv, text, environ=environ)
            assert "***" in done.out + done.err
            for secret in ("u:pw", "ff0", "efgh"):
                assert secret not in done.out + done.err


def test_a_question_needs_a_person() -> None:
    done = dvk("ask")
    assert done.code == 5 and "--yes" in done.err
    assert dvk("ask", "--json", terminal=True).code == 5
    assert dvk("ask", terminal=True, answer="y\n").code == 0
    assert dvk("ask", terminal=True, answer="\n").code == 5
    assert dvk("ask", terminal=True, answer="").code == 5


def test_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # and back afterwards
    assert dvk("-C", str(tmp_path), "where").out == f"{tmp_path}\n"
    done = dvk("-C", str(tmp_path / "none"), "where", "--json")
    assert done.code == 6 and done.document["error"]["subject"].endswith("none")
