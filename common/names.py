"""The rules for names, as data: projects, topics, datasets, tables, buckets and others. One home for all.

    TOPIC.check("projects/my-project/topics/transactions", "--topic")
    parser.add_argument("--topic", type=TOPIC)

A refusal names the part of the name and the rule that it breaks. `Name.regexes` says the same to those who
take nothing but regular expressions, such as the form of a Dataflow template.

The rules are Google's, with the page behind each. Rules that hold only when a name is given away are left out
("google" within a project id): Google's own projects and buckets break them, and one may read from these.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from common.options import OptionError

_MOST_REPEATS: Final = 1000
"""The most repeats of one expression in RE2. Dataflow takes the expressions of a template as POSIX-egrep,
which is what RE2 calls its strict mode: no classes such as \\w, no look-ahead. See
docs.cloud.google.com/dataflow/docs/guides/templates/configuring-flex-templates"""


class Characters(NamedTuple):
    """A set of characters.

    Attributes:
      inside: the set as it stands in the brackets of a regular expression.
      nouns: the same for people, each in the singular.
    """

    inside: str
    nouns: tuple[str, ...]

    @property
    def one(self) -> str:
        """Describes one of them: "a letter or digit"."""
        return f"a {_listed(self.nouns, 'or')}" if len(self.nouns[0]) > 1 else _listed(self.nouns, "or")

    @property
    def many(self) -> str:
        """Describes several of them: "letters, digits and -"."""
        return _listed([noun + "s" if len(noun) > 1 else noun for noun in self.nouns], "and")


_LOWER: Final = Characters("a-z", ("lower-case letter",))
_LOWER_DIGIT: Final = Characters("a-z0-9", ("lower-case letter", "digit"))
_LOWER_DASH: Final = Characters("a-z0-9-", ("lower-case letter", "digit", "-"))
_LETTER: Final = Characters("A-Za-z", ("letter",))
_LETTER_DIGIT: Final = Characters("A-Za-z0-9", ("letter", "digit"))
_DIGIT: Final = Characters("0-9", ("digit",))


@dataclass(frozen=True)
class Rule:
    """The rule for one part of a name.

    Attributes:
      shortest: in characters.
      longest: in characters.
      characters: that it may have.
      first: that it may begin with; by default any of `characters`.
      last: that it may end with; by default any of `characters`.
      also: regular expressions that it matches, each with the words for one that does not.
      prefix: regular expression of what may stand before it, and is not looked at.
    """

    shortest: int
    longest: int
    characters: Characters
    first: Characters | None = None
    last: Characters | None = None
    also: Sequence[tuple[str, str]] = ()
    prefix: str = ""

    def problem(self, text: str) -> str:
        """The first rule that a text breaks, in words that follow the text; "" where it breaks none."""
        text = re.sub(f"^{self.prefix}", "", text) if self.prefix else text
        strange = dict.fromkeys(re.sub(f"[{self.characters.inside}]", "", text))
        if strange:
            return f"has {_listed([repr(c) for c in strange], 'and')}, expected {self.characters.many}"
        if text and self.first and not re.match(f"[{self.first.inside}]", text):
            return f"begins with {text[0]!r}, expected {self.first.one}"
        if text and self.last and not re.match(f"[{self.last.inside}]", text[-1]):
            return f"ends with {text[-1]!r}, expected {self.last.one}"
        if not self.shortest <= len(text) <= self.longest:
            number = f"{len(text)} character{'' if len(text) == 1 else 's'}"
            span = {self.shortest, self.longest}
            return f"has {number}, expected {' to '.join(map(str, sorted(span)))}"
        return next((words for regex, words in self.also if not re.fullmatch(regex, text)), "")

    @property
    def regex(self) -> str:
        """All of the rule but `also` as a regular expression."""
        first, last = (f"[{(one or self.characters).inside}]" for one in (self.first, self.last))
        middle = f"[{self.characters.inside}]"
        if self.first is None and self.last is None:
            return _repeat(middle, self.shortest, self.longest)
        if self.last is None:
            whole = first + _repeat(middle, self.shortest - 1, self.longest - 1)
        elif self.shortest > 1:
            whole = first + _repeat(middle, self.shortest - 2, self.longest - 2) + last
        else:  # every first character may be the last as well
            whole = f"{first}({_repeat(middle, 0, self.longest - 2)}{last})?"
        return (f"({self.prefix})?" if self.prefix else "") + whole


@dataclass(frozen=True, eq=False)
class Name:
    """The rule for a whole name. Called with a text, as argparse does, it gives the text back.

    Attributes:
      forms: that it may have, the more special ones last. The words in capitals are the parts.
      parts: the rule of each part.
      example: for people, where the form alone does not tell.
    """

    forms: Sequence[str]
    parts: Mapping[str, Rule]
    example: str = ""

    def __call__(self, text: str) -> str:
        """The text.

        Raises:
          argparse.ArgumentTypeError: it breaks a rule.
        """
        problem = self.problem(text)
        if problem:
            raise argparse.ArgumentTypeError(problem)
        return text

    def check(self, text: str, flag: str) -> str:
        """The text.

        Args:
          text: a name.
          flag: of the command line, or another thing that the name was given for.

        Raises:
          OptionError: it breaks a rule.
        """
        problem = self.problem(text)
        if problem:
            raise OptionError(f"{flag}: {problem}")
        return text

    def problem(self, text: str) -> str:
        """Says what was expected, what came, and each part that breaks a rule; "" where none does."""
        form, parts = self._taken_apart(text)
        broken = [
            f"{'it' if part == form else f'{part} {value!r}'} {problem}"
            for part, value in parts.items()
            if (problem := self.parts[part].problem(value))
        ]
        if parts and not broken:
            return ""
        expected = f"{form} such as {self.example}" if self.example else form
        return f"expected {expected}, got {text!r}" + (f": {'; '.join(broken)}" if broken else "")

    def split(self, text: str) -> dict[str, str]:
        """The parts of a name that breaks no rule, by the words of its form."""
        return self._taken_apart(text)[1]

    def _taken_apart(self, text: str) -> tuple[str, dict[str, str]]:
        """The form of a text, and its parts. No parts where it has none of the forms."""
        for form in reversed(self.forms):
            match = re.fullmatch(self._expression(form, {}, "(?P<{}>{})"), text, re.DOTALL)
            if match:
                return form, match.groupdict()
        return _listed(self.forms, "or"), {}

    @property
    def regexes(self) -> list[str]:
        """Regular expressions for a name of one form: it is right if and only if each matches all of it."""
        (form,) = self.forms
        exact = {part: rule.regex for part, rule in self.parts.items()}
        further = [{part: f"({regex})"} for part, rule in self.parts.items() for regex, _ in rule.also]
        return [self._expression(form, regexes, "{1}") for regexes in (exact, *further)]

    def _expression(self, form: str, regexes: Mapping[str, str], group: str) -> str:
        """A form as a regular expression.

        Args:
          form: of `forms`.
          regexes: of parts; one that is not there ends before the character that follows it in the form.
          group: takes the part and its expression.
        """
        pieces = re.split("([A-Z]{2,})", form)  # keyRings has one capital, and is no part
        for i in range(1, len(pieces), 2):
            part, following = pieces[i], pieces[i + 1][:1]
            prefix = f"({self.parts[part].prefix})?" if self.parts[part].prefix else ""
            loose = prefix + (f"[^{following}]*" if following else ".*")
            pieces[i] = group.format(part, regexes.get(part, loose))
        return "".join(piece if i % 2 else re.escape(piece) for i, piece in enumerate(pieces))


def _listed(words: Sequence[str], conjunction: str) -> str:
    return f" {conjunction} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _repeat(regex: str, least: int, most: int) -> str:
    if most > _MOST_REPEATS:
        return _repeat(regex, least, _MOST_REPEATS) + _repeat(regex, 0, most - _MOST_REPEATS)
    return regex + (f"{{{least}}}" if least == most else f"{{{least},{most}}}")


def _not_before(prefix: str) -> str:
    """A regular expression of every text that does not begin with a prefix."""
    rest = f"{prefix[0]}{_not_before(prefix[1:])}" if prefix[1:] else ""
    return f"([^{prefix[0]}].*{'|' if rest else ''}{rest})?"


_NO_GOOG: Final = (_not_before("goog"), "begins with 'goog', which Google keeps for itself")

# docs.cloud.google.com/resource-manager/docs/creating-managing-projects. A project of a domain has the domain
# before its id, as in example.com:my-project.
_PROJECT: Final = Rule(6, 30, _LOWER_DASH, first=_LOWER, last=_LOWER_DIGIT, prefix="[a-z0-9.-]+:")
_PROJECT_OR_NUMBER: Final = Rule(
    6, 30, _LOWER_DASH, first=_LOWER_DIGIT, last=_LOWER_DIGIT, prefix="[a-z0-9.-]+:"
)
# docs.cloud.google.com/compute/docs/regions-zones lists them: us-central1, northamerica-northeast1.
_REGION: Final = Rule(
    4,
    63,
    _LOWER_DASH,
    first=_LOWER,
    last=_DIGIT,
    also=(("[a-z]+(-[a-z]+)+[0-9]+", "is not words joined by - and a number"),),
)
# docs.cloud.google.com/pubsub/docs/pubsub-basics#resource_names
_PUBSUB: Final = Rule(
    3,
    255,
    Characters("A-Za-z0-9_.~+%-", ("letter", "digit", "-", "_", ".", "~", "+", "%")),
    first=_LETTER,
    also=(_NO_GOOG,),
)
# docs.cloud.google.com/bigquery/docs/datasets#dataset-naming
_DATASET: Final = Rule(1, 1024, Characters("A-Za-z0-9_", ("letter", "digit", "_")))
# docs.cloud.google.com/bigquery/docs/tables#table_naming allows letters, marks, digits, dashes and spaces of
# Unicode. So the set is written as what ASCII has besides, and BigQuery judges the characters beyond ASCII.
_TABLE: Final = Rule(
    1, 1024, Characters("^\x01-\x1f!-,./:-@\\[-^`{-~", ("letter", "digit", "_", "-", "space"))
)
# docs.cloud.google.com/storage/docs/buckets#naming
_BUCKET: Final = Rule(
    3,
    222,
    Characters("a-z0-9._-", ("lower-case letter", "digit", "-", "_", ".")),
    first=_LOWER_DIGIT,
    last=_LOWER_DIGIT,
    also=(
        (r"[^.]{1,63}(\.[^.]{1,63})*", "has none or more than 63 characters before, between or after dots"),
        (r".*[^0-9.].*|[0-9]*(\.[0-9]*){0,2}|[0-9]*(\.[0-9]*){4,}", "is an IP address"),
        _NO_GOOG,
    ),
)
_PATH: Final = Rule(0, 1024, Characters("^\x01-\x1f\x7f", ("printable character",)))
# docs.cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.jobs, field name
_JOB: Final = Rule(1, 1024, _LOWER_DASH, first=_LOWER, last=_LOWER_DIGIT)
# docs.cloud.google.com/iam/docs/reference/rest/v1/projects.serviceAccounts/create, field accountId
ACCOUNT: Final = Rule(6, 30, _LOWER_DASH, first=_LOWER, last=_LOWER_DIGIT)
# docs.cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.endpoints/create, endpointId
_ENDPOINT: Final = Rule(1, 63, _LOWER_DASH, first=_LOWER_DIGIT, last=_LOWER_DIGIT)
# docs.cloud.google.com/compute/docs/labeling-resources
_LABEL: Final = Characters("a-z0-9_-", ("lower-case letter", "digit", "-", "_"))
_TAG: Final = Characters("A-Za-z0-9_.-", ("letter", "digit", "_", ".", "-"))

PROJECT: Final = Name(["PROJECT"], {"PROJECT": _PROJECT}, "my-project")
REGION: Final = Name(["REGION"], {"REGION": _REGION}, "us-central1")
BUCKET: Final = Name(["BUCKET"], {"BUCKET": _BUCKET}, "my-bucket")
DATASET_ID: Final = Name(["DATASET"], {"DATASET": _DATASET}, "my_dataset")
DATASET: Final = Name(["PROJECT.DATASET"], {"PROJECT": _PROJECT, "DATASET": _DATASET})
TABLE: Final = Name(["PROJECT.DATASET.TABLE"], {"PROJECT": _PROJECT, "DATASET": _DATASET, "TABLE": _TABLE})
CONNECTION: Final = Name(
    ["PROJECT.LOCATION.CONNECTION"],
    {
        "PROJECT": _PROJECT,
        "LOCATION": Rule(2, 63, Characters("A-Za-z0-9-", ("letter", "digit", "-"))),
        "CONNECTION": Rule(1, 1024, Characters("A-Za-z0-9_-", ("letter", "digit", "_", "-"))),
    },
    "my-project.us.vertex",
)
"""A connection of BigQuery to another service of Google."""
TOPIC: Final = Name(["projects/PROJECT/topics/TOPIC"], {"PROJECT": _PROJECT, "TOPIC": _PUBSUB})
SUBSCRIPTION: Final = Name(
    ["projects/PROJECT/subscriptions/SUBSCRIPTION"], {"PROJECT": _PROJECT, "SUBSCRIPTION": _PUBSUB}
)
ENDPOINT: Final = Name(
    ["projects/PROJECT/locations/REGION/endpoints/ENDPOINT"],
    {"PROJECT": _PROJECT_OR_NUMBER, "REGION": _REGION, "ENDPOINT": _ENDPOINT},
)
# docs.cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.notificationChannels, field name
CHANNEL: Final = Name(
    ["projects/PROJECT/notificationChannels/CHANNEL"],
    {"PROJECT": _PROJECT_OR_NUMBER, "CHANNEL": Rule(1, 63, _DIGIT)},
)
GCS: Final = Name(["gs://BUCKET", "gs://BUCKET/PATH"], {"BUCKET": _BUCKET, "PATH": _PATH})
# docs.cloud.google.com/kms/docs/reference/rest/v1/projects.locations.keyRings/create, field keyRingId
_KEY: Final = Rule(1, 63, Characters("A-Za-z0-9_-", ("letter", "digit", "_", "-")))
KMS_KEY: Final = Name(
    ["projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY"],
    {
        "PROJECT": _PROJECT,
        "LOCATION": Rule(2, 63, _LOWER_DASH, first=_LOWER),
        "RING": _KEY,
        "KEY": _KEY,
    },
)
_ACCOUNTS: Final = ".iam.gserviceaccount.com"
JOB: Final = Name(["NAME"], {"NAME": _JOB}, "transactions-daily")
GPU: Final = Name(
    ["TYPE", "TYPE:COUNT"],
    {
        "TYPE": Rule(2, 63, _LOWER_DASH, first=_LOWER),
        "COUNT": Rule(1, 2, _DIGIT, first=Characters("1-9", ("digit from 1 to 9",))),
    },
)
IMAGE: Final = Name(
    ["HOST/PATH:TAG", "HOST/PATH@sha256:DIGEST"],
    {
        "HOST": Rule(1, 255, Characters("a-z0-9.:-", ("lower-case letter", "digit", ".", ":", "-"))),
        "PATH": Rule(1, 255, Characters("a-z0-9._/-", ("lower-case letter", "digit", ".", "_", "/", "-"))),
        "TAG": Rule(1, 128, _TAG, first=Characters("A-Za-z0-9_", ("letter", "digit", "_"))),
        "DIGEST": Rule(64, 64, Characters("0-9a-f", ("digit", "letter from a to f"))),
    },
)
LABEL: Final = Name(["KEY=VALUE"], {"KEY": Rule(1, 63, _LABEL, first=_LOWER), "VALUE": Rule(0, 63, _LABEL)})
MODEL: Final = Name(["NAME"], {"NAME": Rule(1, 63, _TAG, first=_LETTER_DIGIT)}, "pytorch_autoencoder")
"""The name or the version of a model, which becomes part of the names of files."""
SHA256: Final = Name(
    ["DIGEST"],
    {"DIGEST": Rule(64, 64, Characters("0-9a-f", ("digit", "letter from a to f")))},
    "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
)
"""As sha256sum prints it."""
STACK: Final = Name(["NAME"], {"NAME": Rule(1, 63, _TAG, first=_LETTER_DIGIT)}, "default")
"""The name of a local stack, which becomes the name of files."""


def account_address(account_id: str, project: str) -> str:
    """Makes the e-mail address of a service account.

    >>> account_address("worker", "my-project"), account_address("worker", "example.com:my-project")
    ('worker@my-project.iam.gserviceaccount.com', 'worker@my-project.example.com.iam.gserviceaccount.com')
    """
    domain, _, name = project.rpartition(":")
    return f"{account_id}@{'.'.join(filter(None, (name, domain)))}{_ACCOUNTS}"


def project_of_account(address: str) -> str:
    """Returns the project in the address of a service account.

    >>> project_of_account("worker@my-project.example.com.iam.gserviceaccount.com")
    'example.com:my-project'
    """
    name, _, domain = address.partition("@")[2].removesuffix(_ACCOUNTS).partition(".")
    return f"{domain}:{name}" if domain else name


def prefix(*accounts: str) -> Name:
    """The rule for what stands before the ids of service accounts, so short that these keep to their rule."""
    longest = ACCOUNT.longest - max(map(len, accounts))
    rule = Rule(2, longest, _LOWER_DASH, first=_LOWER, last=Characters("-", ("-",)))
    return Name(["PREFIX"], {"PREFIX": rule}, "staging-")
