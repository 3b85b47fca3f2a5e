from __future__ import annotations
import os
import pytest
from polydev.lab import find
from polydev.settings import Settings
from polydev.release.applying import Project
from tests.hosts import DeployedHost, ROOT


@pytest.fixture(scope="session")
def settings():
    return Settings.from_environment()


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> DeployedHost:
    os.environ["POLYDEV_LAB"] = "hspec"
    lab = find("hspec", Settings.from_environment())
    assert lab
    h = DeployedHost(lab, Project(ROOT, ROOT / "inventory" / "lab.py"), tmp_path_factory.mktemp("logs"))
    h.deploy()
    return h
