import json

import pytest

from neurokube.doctor import advise, examine, print_findings


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return examine(str(tmp_path_factory.mktemp("doctor")))


def test_findings_are_plain_values_of_a_real_machine(findings):
    assert json.loads(json.dumps(findings)) == findings
    assert findings["cores"] >= 1
    assert 0 < findings["memory_available_bytes"] <= findings["memory_bytes"]
    assert findings["disk_free_bytes"] > 0
    assert findings["packages"]["tensorstore"] is not None


def test_examining_leaves_nothing_behind(tmp_path):
    examine(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_everything_found_is_printed(findings, capsys):
    print_findings(findings)
    printed = capsys.readouterr().out
    for text in (findings["neurokube"], findings["python"], "tensorstore", "bfloat16", "loopback port"):
        assert text in printed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loopback_port": False}, "--workers 0"),
        ({"disk_write_megabytes_per_second": None}, "This folder cannot be written"),
        ({"disk_free_bytes": 10**9}, "Less than 5 GB of disk"),
        ({"memory_available_bytes": 10**9, "cores": 8}, "fewer --workers"),
        ({"packages": {"neuroglancer": None}}, "pip install 'neurokube[view]'"),
    ],
)
def test_what_is_missing_comes_with_advice(findings, capsys, change, words):
    found = findings | change
    print_findings(found | {"advice": advise(found)})
    assert words in " ".join(capsys.readouterr().out.split())


def test_a_machine_that_has_all_is_told_so(findings, capsys):
    print_findings(findings | {"advice": []})
    assert "All that this version needs is here." in capsys.readouterr().out
