"""Run ./inv as users do: a real process, with its own store and state."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polydev.processes import Completed, run
from polydev.settings import Settings
from verbs.json_answers import check_answer

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Inv:
    """./inv with its folders; only the cache is the machine's, unless told otherwise."""

    settings: Settings
    lab: str = field(default_factory=lambda: f"t-{secrets.token_hex(3)}")

    def __call__(self, *words: str | Path, wrapper: Sequence[str | Path] = ()) -> Completed:
        """Run a verb to its end, below `wrapper`: a command that takes another one.

        Fails where its JSON is not what docs/verbs.md says.
        """
        done = run([*wrapper, ROOT / "inv", *words], env=self.folders, check=False)
        if "--json" in words and done.status == 0:
            check_answer(str(words[0]), json.loads(done.stdout))
        return done

    @property
    def folders(self) -> dict[str, str]:
        """The environment variables that make ./inv use its own folders."""
        return {
            "POLYDEV_STORE": str(self.settings.store),
            "POLYDEV_CACHE": str(self.settings.cache),
            "POLYDEV_STATE": str(self.settings.state),
            "POLYDEV_LAB": self.lab,
        }

    def answer(self, *words: str | Path) -> dict[str, Any]:
        """Return the JSON of a verb that must succeed."""
        done = self(*words, "--json")
        assert done.status == 0, done.stderr
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer


def own_inv(folder: Path) -> Inv:
    """./inv with everything but the cache in `folder`."""
    cache = Settings.from_environment().cache
    made = Inv(Settings(store=folder / "store", cache=cache, state=folder / "state"))
    # ./inv sets itself up before the tests begin.
    assert made("--list").status == 0
    return made
