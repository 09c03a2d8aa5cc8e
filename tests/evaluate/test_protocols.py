import dataclasses
import json

import numpy as np
import pytest

from offshelf.errors import UsageError
from offshelf.evaluate.protocols import FINETUNE_V1, HEADS_V1, PROTOCOLS, RETRIEVAL_V1, get_protocol
from offshelf.evaluate.scores import OVERALL
from offshelf.evaluate.splits import Fold, outer_folds

# A protocol is part of every number measured under it. If this test fails, do not change the line below: give the
# changed protocol the next version and a line of its own.
FROZEN = {
    "heads/v1": "2b6b95613fac13b263f107b8a1bcc98663867dfdae96ec488b6bcef3f3d3b7b3",
    "retrieval/v1": "d1ffb4b662cafd48cf03da4db5e4be0706ea8d06cf1a6d847da40fedc558731d",
    "finetune/v1": "379a5cc53bcf9ce95828396f0adffaf46885a4275f1d5f21bc5d5270f64b84db",
    "finetune-folds/v1": "f093c6e15899b8017c1bae95e3f2d1fd47334b037b4749018b10ebc0f788208d",
    "finetune-multi-label/v1": "63e2dcfdb0bc403876e8446e653389f8af99103916b21c738a15da2dcb49ad61",
    "finetune-multi-label-folds/v1": "eb668d073420c1fcd83f1406682d8634adb3428d597d5fd8ba8090a6b851fab7",
    "label-efficiency/v1": "5b58861d5f224e1b6fb8e3e5b43dc99106d59d17398be076b7fc9d0d8489fefe",
    "evaluation/v1": "a7a477ad180e685273526237a9cb73e07109b080e4515db4c252c05303a9b110",
    "label-sets/v1": "8efcb2890f6cfa3c90a690e7867fc8a66ab54d57767538eac5e28e12bcbcd79f",
}


def test_no_protocol_changed_under_its_version():
    assert {label: protocol.fingerprint for label, protocol in PROTOCOLS.items()} == FROZEN


def test_contents_of_heads_v1():
    contents = HEADS_V1.to_dict()
    assert (contents["label"], contents["name"], contents["version"]) == ("heads/v1", "heads", 1)
    assert (contents["n_folds"], contents["n_inner_folds"], contents["n_boot"], contents["seed"]) == (5, 3, 2000, 0)
    assert tuple(contents["metrics"]) == OVERALL
    assert contents["primary_metric"] in OVERALL
    assert json.loads(json.dumps(contents)) == contents


def test_equal_by_content():
    copy = dataclasses.replace(HEADS_V1)
    assert copy == HEADS_V1
    assert hash(copy) == hash(HEADS_V1)
    other = dataclasses.replace(HEADS_V1, seed=1)
    assert other != HEADS_V1
    assert other.fingerprint != HEADS_V1.fingerprint
    assert len({HEADS_V1, copy, other, FINETUNE_V1, RETRIEVAL_V1}) == 4


def test_folds_are_part_of_the_contents():
    folds = outer_folds(np.arange(40) % 2)
    with_folds = HEADS_V1.with_folds(folds)
    assert HEADS_V1.folds == ()
    assert with_folds == HEADS_V1.with_folds(outer_folds(np.arange(40) % 2))
    assert with_folds != HEADS_V1.with_folds(outer_folds(np.arange(40) % 2, seed=1))
    record = with_folds.to_dict()["folds"][0]
    assert (record["name"], record["n_train"], record["n_test"], len(record["rows"])) == ("fold 1 of 5", 32, 8, 64)
    moved = [Fold(np.array([0, 1]), np.array([2]), "x")], [Fold(np.array([0]), np.array([1, 2]), "x")]
    assert HEADS_V1.with_folds(moved[0]).folds[0].rows != HEADS_V1.with_folds(moved[1]).folds[0].rows


def test_unknown_label():
    assert get_protocol("finetune/v1") is FINETUNE_V1
    with pytest.raises(UsageError, match="did you mean 'heads/v1'"):
        get_protocol("head/v1")
