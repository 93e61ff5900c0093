"""Names: what Google's rules let through, and refusals that name the part and the rule."""

from __future__ import annotations

import argparse
import os
import re
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import names
from common.names import Name, Rule
from common.options import OptionError

PREFIX = names.prefix("anomaly-worker", "anomaly-build")
NAMES = {name: value for name, value in vars(names).items() if isinstance(value, Name)} | {"PREFIX": PREFIX}
ACCEPTED = [
    (names.PROJECT, ["local-project", "my-project", "abcdef", "a" * 30, "example.com:my-project"]),
    (names.REGION, ["us-central1", "europe-west12", "northamerica-northeast1"]),
    (
        names.BUCKET,
        ["abc", "0-b_c.d", "a" * 63, "a.b" * 50, "1.2.3.4.5", "1.2.3.a", "goo", "ago.og"],
    ),
    (
        names.DATASET,
        ["my-project.anomaly", "my-project._Ab0", "example.com:my-project.d", f"abcdef.{'x' * 1024}"],
    ),
    (
        names.TABLE,
        ["my-project.d.t", "my-project.d.table 01-a", "my-project.d.étudiant", "my-project.d.ग्राहक"],
    ),
    (names.TOPIC, ["projects/my-project/topics/abc", "projects/local-project/topics/Go.o~g+_%-9"]),
    (names.TOPIC, [f"projects/my-project/topics/{'t' * 255}", "projects/my-project/topics/goo"]),
    (names.KMS_KEY, ["projects/my-keys/locations/us-central1/keyRings/data_1/cryptoKeys/Anomaly-1"]),
    (names.SUBSCRIPTION, ["projects/example.com:my-project/subscriptions/alerts-review"]),
    (names.ENDPOINT, ["projects/my-project/locations/us-central1/endpoints/1234567890123456789"]),
    (names.ENDPOINT, ["projects/123456789012/locations/us-central1/endpoints/anomaly"]),
    (names.GCS, ["gs://my-bucket", "gs://my-bucket/", "gs://my-bucket/a b/c*.json"]),
    (names.JOB, ["a", "transaction-anomaly-batch-20260101-000000", "j" * 1024]),
    (names.GPU, ["nvidia-l4", "nvidia-l4:1", "nvidia-h100-mega-80gb:16"]),
    (names.IMAGE, ["us-central1-docker.pkg.dev/my-project/anomaly/pipelines:1", "localhost:5000/a/b:v1.0_x"]),
    (names.IMAGE, [f"h/p/r/i@sha256:{'0f' * 32}", "gcr.io/example.com/my-project/i:latest"]),
    (names.LABEL, ["team=fraud", "a_b-1=", "k=0"]),
    (names.STACK, ["default", "test-1.a_b"]),
    (PREFIX, ["a-", "staging-", f"{'a' * 15}-"]),
]
REFUSED = [
    # The one of the issue: it has the form, and neither id has the length.
    (
        names.SUBSCRIPTION,
        "projects/p/subscriptions/x",
        "expected projects/PROJECT/subscriptions/SUBSCRIPTION, got 'projects/p/subscriptions/x': PROJECT 'p' "
        "has 1 character, expected 6 to 30; SUBSCRIPTION 'x' has 1 character, expected 3 to 255",
    ),
    (names.SUBSCRIPTION, "transactions", "expected projects/PROJECT/subscriptions/SUBSCRIPTION, got 't"),
    (names.SUBSCRIPTION, "projects/my-project/topics/t", "expected projects/PROJECT/subscriptions/SUBSCR"),
    (names.TOPIC, "projects/my-project/topics/a/b", "TOPIC 'a/b' has '/', expected letters, digits, -"),
    (names.TOPIC, "projects/my-project/topics/1ab", "TOPIC '1ab' begins with '1', expected a letter"),
    (names.TOPIC, f"projects/my-project/topics/{'t' * 256}", "has 256 characters, expected 3 to 255"),
    (names.TOPIC, "projects/my-project/topics/google", "TOPIC 'google' begins with 'goog', which"),
    (names.TOPIC, "projects/my-project/topics/tä", "TOPIC 'tä' has 'ä', expected letters, digits, -, _"),
    (names.TOPIC, "projects/my-project/topics/abc\n", "TOPIC 'abc\\n' has '\\n', expected letters"),
    (names.PROJECT, "p", "expected PROJECT such as my-project, got 'p': it has 1 character, exp"),
    (names.PROJECT, "", "it has 0 characters, expected 6 to 30"),
    (names.PROJECT, "My_Project", "it has 'M', '_' and 'P', expected lower-case letters, digits and -"),
    (names.PROJECT, "1project", "it begins with '1', expected a lower-case letter"),
    (names.PROJECT, "my-project-", "it ends with '-', expected a lower-case letter or digit"),
    (names.PROJECT, "example.com:p", "it has 1 character, expected 6 to 30"),
    (names.PROJECT, "123456789012", "it begins with '1', expected a lower-case letter"),
    (names.REGION, "us-central", "got 'us-central': it ends with 'l', expected a digit"),
    (names.REGION, "uscentral1", "it is not words joined by - and a number"),
    (names.BUCKET, "ab", "it has 2 characters, expected 3 to 222"),
    (names.BUCKET, "my-bucket/path", "it has '/', expected lower-case letters, digits, -, _ and ."),
    (names.BUCKET, "-bucket", "it begins with '-', expected a lower-case letter or digit"),
    (names.BUCKET, "a" * 64, "it has none or more than 63 characters before, between or after dots"),
    (names.BUCKET, "a..b", "it has none or more than 63 characters before, between or after dots"),
    (names.BUCKET, "192.168.5.4", "it is an IP address"),
    (names.BUCKET, "goog-bucket", "it begins with 'goog', which Google keeps for itself"),
    (names.DATASET, "anomaly", "expected PROJECT.DATASET, got 'anomaly'"),
    (names.DATASET, "my-project.my-dataset", "DATASET 'my-dataset' has '-', expected letters, digits and _"),
    (names.DATASET, "my-project.anomaly.scores", "DATASET 'anomaly.scores' has '.', expected letters"),
    (names.DATASET, f"my-project.{'d' * 1025}", "has 1025 characters, expected 1 to 1024"),
    (names.TABLE, "d.t", "expected PROJECT.DATASET.TABLE, got 'd.t'"),
    (names.TABLE, "my-project.d.t`;", "TABLE 't`;' has '`' and ';', expected letters, digits, _, - and s"),
    (names.TABLE, "my-project.d.t$20260101", "TABLE 't$20260101' has '$', expected letters"),
    (names.ENDPOINT, "anomaly", "expected projects/PROJECT/locations/REGION/endpoints/ENDPOINT, got"),
    (
        names.ENDPOINT,
        "projects/my-project/locations/mars/endpoints/x-",
        "REGION 'mars' ends with 's', expected a digit; ENDPOINT 'x-' ends with '-', expected a lower-case",
    ),
    (names.GCS, "my-bucket/x", "expected gs://BUCKET or gs://BUCKET/PATH, got 'my-bucket/x'"),
    (names.GCS, "gs://B/x", "expected gs://BUCKET/PATH, got 'gs://B/x': BUCKET 'B' has 'B', expected"),
    (names.JOB, "Job", "expected NAME such as transactions-daily, got 'Job': it has 'J', expected"),
    (names.JOB, "j" * 1025, "it has 1025 characters, expected 1 to 1024"),
    (names.GPU, "nvidia-l4:0", "COUNT '0' begins with '0', expected a digit from 1 to 9"),
    (names.GPU, "nvidia-l4:100", "COUNT '100' has 3 characters, expected 1 to 2"),
    (names.IMAGE, "pipelines:1", "expected HOST/PATH:TAG or HOST/PATH@sha256:DIGEST, got 'pipelines:1'"),
    (names.IMAGE, "h/p/r/i", "expected HOST/PATH:TAG or HOST/PATH@sha256:DIGEST, got 'h/p/r/i'"),
    (names.IMAGE, "h/Image:1", "PATH 'Image' has 'I', expected lower-case letters, digits, ., _, / and -"),
    (names.IMAGE, "h/i@sha256:0f", "DIGEST '0f' has 2 characters, expected 64"),
    (names.LABEL, "team", "expected KEY=VALUE, got 'team'"),
    (names.LABEL, "=x", "KEY '' has 0 characters, expected 1 to 63"),
    (names.LABEL, "Team=My Team", "KEY 'Team' has 'T', expected lower-case letters, digits, - and _; VALUE"),
    (names.STACK, "../x", "it has '/', expected letters, digits, _, . and -"),
    (names.STACK, "..", "it begins with '.', expected a letter or digit"),
    (PREFIX, "staging", "expected PREFIX such as staging-, got 'staging': it ends with 'g', expected -"),
    (PREFIX, f"{'a' * 16}-", "it has 17 characters, expected 2 to 16"),
]


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in ACCEPTED for text in texts])
def test_what_google_takes_is_taken(name, text):
    assert name.problem(text) == ""
    assert name(text) == text


@pytest.mark.parametrize(("name", "text", "reason"), REFUSED)
def test_a_refusal_names_the_part_and_the_rule(name, text, reason):
    assert reason in name.problem(text)
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(reason)):
        name(text)
    with pytest.raises(OptionError, match=re.escape("--flag: expected ")):
        name.check(text, "--flag")


def test_a_name_comes_apart():
    assert names.TABLE.split("example.com:my-project.d.t") == {
        "PROJECT": "example.com:my-project",
        "DATASET": "d",
        "TABLE": "t",
    }
    assert names.GCS.split("gs://my-bucket") == {"BUCKET": "my-bucket"}
    assert names.GCS.split("gs://my-bucket/a/b") == {"BUCKET": "my-bucket", "PATH": "a/b"}


def test_a_prefix_leaves_service_accounts_their_length():
    longest = f"{'a' * 15}-anomaly-worker"
    assert names.ACCOUNT.problem(longest) == ""
    assert names.ACCOUNT.problem(f"a{longest}") == "has 31 characters, expected 6 to 30"


# The rule and its regular expressions --------------------------------------------------------------------

NEAR = st.text(st.sampled_from("agoz09AZ-_.:/@=~+% äʼ\n1"), max_size=40)
"""Texts of characters on both sides of the rules' borders."""


def split(form: str) -> list[str]:
    """The texts between the parts of a form, and every second time the word of a part."""
    return re.split("([A-Z]{2,})", form)


def sound(rule: Rule):
    """A part that keeps to a rule."""
    if rule is names.REGION.parts["REGION"]:  # of what its characters allow, next to nothing is a region
        return st.sampled_from(["us-central1", "europe-west12"])
    return st.from_regex(rule.regex, fullmatch=True).filter(lambda value: not rule.problem(value))


def near(rule: Rule):
    """A part that keeps to a rule, or nearly."""
    odd = st.sampled_from(["goog", "1.2.3.4", "x" * 1025])
    return st.one_of(st.from_regex(rule.regex, fullmatch=True), NEAR, odd)


def made(data, name: Name, part=near) -> str:
    """A text with one of the forms of a name, and such parts."""
    form = data.draw(st.sampled_from(list(name.forms)))
    return "".join(data.draw(part(name.parts[word])) if i % 2 else word for i, word in enumerate(split(form)))


some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
EACH = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
SIMPLE = {word: name for word, name in NAMES.items() if len(name.forms) == 1}
ONE_FORM = pytest.mark.parametrize("name", SIMPLE.values(), ids=SIMPLE)


@ONE_FORM
@some
@given(st.data())
def test_a_name_is_taken_as_its_regular_expressions_take_it(name, data):
    text = data.draw(NEAR) if data.draw(st.booleans()) else made(data, name)
    taken = all(re.fullmatch(regex, text, re.DOTALL) for regex in name.regexes)
    assert (name.problem(text) == "") is taken


@EACH
@some
@given(st.data())
def test_a_part_is_taken_as_its_regular_expressions_take_it(name, data):
    for rule in name.parts.values():
        text = data.draw(near(rule))
        taken = all(re.fullmatch(regex, text, re.DOTALL) for regex in (rule.regex, *dict(rule.also)))
        assert (rule.problem(text) == "") is taken


@EACH
@some
@given(st.data())
def test_a_refusal_is_about_the_parts_that_break_a_rule(name, data):
    text = made(data, name)
    problem, parts = name.problem(text), name.split(text)
    wrong = [word for word, value in parts.items() if name.parts[word].problem(value)]
    assert bool(problem) is (not parts or bool(wrong))
    if problem and len(parts) > 1:
        assert [word for word in parts if f"{word} {parts[word]!r} " in problem] == wrong


@EACH
@some
@given(st.data())
def test_parts_that_keep_to_their_rules_make_a_name(name, data):
    text = made(data, name, sound)
    assert name.problem(text) == ""
    assert all(not name.parts[word].problem(value) for word, value in name.split(text).items())


@ONE_FORM
def test_regular_expressions_are_those_of_re2_in_posix_mode(name):
    for regex in name.regexes:
        assert not re.search(r"\(\?|\\[a-zA-Z0-9]", regex), regex
        assert all(int(most) <= 1000 for most in re.findall(r"(\d+)\}", regex)), regex


@ONE_FORM
def test_egrep_reads_them_as_python_does(name):
    lines = {text for _, texts in ACCEPTED for text in texts} | {text for _, text, _ in REFUSED}
    lines = {line for line in lines if line and "\n" not in line}
    taken = lines
    for regex in name.regexes:
        done = subprocess.run(
            ["grep", "-xE", regex],
            input="\n".join(sorted(taken)),
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            check=False,
        )
        assert done.returncode < 2, done.stderr
        taken = set(done.stdout.splitlines())
    assert taken == {line for line in lines if name.problem(line) == ""}
