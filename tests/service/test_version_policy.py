"""Test that the text of `--versions` is parsed, and which versions of a model it includes."""

import pytest
from sketchbatch_service.version_policy import VersionPolicy


def included(text: str, model: str = "farm", versions: tuple[int, ...] = (9, 5, 4, 3)) -> list[int]:
    """Return the versions of `model` that the policy includes, if every included version is served."""
    rule, found = VersionPolicy.parse(text).rule(model), []
    for version in versions:
        if rule.includes(version, newer=len(found)):
            found.append(version)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest:1", [9]),
        ("latest:2", [9, 5]),
        ("latest:100", [9, 5, 4, 3]),
        ("all", [9, 5, 4, 3]),
        ("3", [3]),
        (" 3 , 5 ", [5, 3]),
        ("03,7", [3]),
        ("zoo=all", [9, 5]),  # the rule of a model without an own rule is latest:2
        ("farm=4", [4]),
        ("latest:1;farm=4,9", [9, 4]),
        (" farm = all ; latest:1 ", [9, 5, 4, 3]),
    ],
)
def test_a_policy_includes_the_latest_all_or_named_versions(text, expected):
    """A policy includes the N newest versions, all versions or named versions; a model may have its own rule."""
    assert included(text) == expected


def test_a_rule_has_the_text_that_the_operator_wrote():
    """A rule keeps its part of the setting, which messages quote."""
    policy = VersionPolicy.parse("latest:3; farm=4,9")
    assert (policy.rule("farm").text, policy.rule("zoo").text) == ("farm=4,9", "latest:3")
    assert VersionPolicy.parse("farm=4").rule("zoo").text == "latest:2"


def test_a_refused_version_does_not_count():
    """`latest` counts the newer versions that are served, so a refused version takes no place."""
    rule = VersionPolicy.parse("latest:2").rule("farm")
    assert [rule.includes(version, newer=newer) for version, newer in ((9, 0), (5, 0), (4, 1), (3, 2))] == [
        True,
        True,
        True,
        False,
    ]


INVALID = [
    *("", " ", "latest", "latest:", "latest:0", "latest:-1", "latest:x", "latest:99999999999", "newest:2"),
    *("3,", "3,,5", "-3", "1.5", "3 5", "\N{ARABIC-INDIC DIGIT THREE}"),
    *("farm=", "=3", "all;", "all;latest:1", "farm=3;farm=5"),
]


@pytest.mark.parametrize("text", INVALID)
def test_an_invalid_policy_is_rejected_with_the_valid_forms(text):
    """An invalid policy raises an error that names the valid forms and the text."""
    with pytest.raises(ValueError, match=r"must be latest:N, all or numbers such as 3,5") as caught:
        VersionPolicy.parse(text)
    assert str(caught.value).endswith(f", got {text!r}")
    assert "\n" not in str(caught.value)
