import re

import pytest

from echox.assets import CATALOGUE, Member
from echox.core.errors import AssetError


@pytest.mark.parametrize("asset", CATALOGUE.values(), ids=list(CATALOGUE))
def test_every_entry_is_pinned_and_named_once(asset):
    assert CATALOGUE[asset.name] is asset
    members = [member for wheel in asset.wheels for member in wheel.members]
    assert members and asset.contents and asset.licence and asset.doc
    assert all(re.fullmatch("[0-9a-f]{64}", member.sha256) for member in members)
    assert asset.hub_revision is None or re.fullmatch("[0-9a-f]{40}", asset.hub_revision)
    assert asset.hub_id is not None or asset.hub_revision is None
    names = [member.name for member in members]
    assert len(set(names)) == len(names), "two members would be extracted under one name"


def test_the_catalogue_is_read_only():
    with pytest.raises(TypeError):
        CATALOGUE["mine"] = None


def test_fingerprints_differ():
    assert len({asset.fingerprint for asset in CATALOGUE.values()}) == len(CATALOGUE)


@pytest.mark.parametrize("path", ["pkg/..", "pkg/", "..", "pkg/a\\..\\b", "c:evil"])
def test_a_member_must_end_in_a_plain_file_name(path):
    with pytest.raises(AssetError, match="plain file name"):
        Member(path, "0" * 64)
