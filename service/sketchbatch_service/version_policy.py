"""Parse the version policy of the settings: which versions of each model in a repository are loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_LATEST = re.compile(r"latest:([1-9][0-9]{0,8})")
_NAMED = re.compile(r"[0-9]{1,255}( *, *[0-9]{1,255})*")
_FORMS = "must be latest:N, all or numbers such as 3,5, and NAME=... for a single model, separated by ';'"


@dataclass(frozen=True, slots=True)
class VersionRule:
    """The part of a policy that applies to one model: the latest versions, named versions, or all versions."""

    text: str  # as in the setting
    latest: int | None = None  # number of versions, at least 1
    named: frozenset[int] | None = None

    def includes(self, version: int, *, newer: int) -> bool:
        """Return whether `version` is loaded if `newer` versions with higher numbers are served."""
        if self.named is not None:
            return version in self.named
        return self.latest is None or newer < self.latest


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """The rule of each model: its own rule, or the rule of all models that have none."""

    default: VersionRule = VersionRule("latest:2", latest=2)
    by_model: Mapping[str, VersionRule] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "VersionPolicy":
        """Return the policy of a text such as `latest:2;bear=3,5`; raise ValueError if it is invalid."""
        rules: dict[str, VersionRule] = {}
        for part in text.split(";"):
            model, equals, rule = (word.strip() for word in part.rpartition("="))
            if (equals and not model) or model in rules:
                raise ValueError(f"{_FORMS}, got {text!r}")
            rules[model] = _rule(part.strip(), rule, text)
        return cls(rules.pop("", cls().default), rules)

    def rule(self, model: str) -> VersionRule:
        """Return the rule that applies to a model."""
        return self.by_model.get(model, self.default)


def _rule(part: str, rule: str, text: str) -> VersionRule:
    if rule == "all":
        return VersionRule(part)
    if match := _LATEST.fullmatch(rule):
        return VersionRule(part, latest=int(match[1]))
    if _NAMED.fullmatch(rule):
        return VersionRule(part, named=frozenset(map(int, rule.split(","))))
    raise ValueError(f"{_FORMS}, got {text!r}")
