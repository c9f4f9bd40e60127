"""The data keys: both protocols load, and a missing or senseless value is an error that names its key."""

import pytest
import yaml

from recbole_llara.config.settings import DataProtocol
from recbole_llara.config.yaml_files import PROPERTIES
from recbole_llara.utils.errors import UserError


class Keys(dict):
    """As RecBole's Config: None for a key that is not set."""

    def __missing__(self, key):
        return None


def keys_of(of="llara", **changes):
    values = Keys(yaml.safe_load((PROPERTIES / "overall.yaml").read_text()))
    values |= yaml.safe_load((PROPERTIES / "protocol" / f"{of}.yaml").read_text())
    values = Keys({"ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list", "alias_of_item_id": None}) | values  # RecBole's
    values |= {"seed": 2020, "protocol": of} | changes
    return values


def test_protocols_name_the_same_keys():
    """What one settles, another settles too; ready-made windows need three of RecBole's keys besides."""
    files = {path.stem: set(yaml.safe_load(path.read_text())) for path in (PROPERTIES / "protocol").glob("*.yaml")}
    assert files["windows"] - files["llara"] == {"benchmark_filename", "alias_of_item_id", "load_col"}
    assert files["cold_items"] - files["llara"] == {"new_item_token"}  # of all systems that read a recommender
    assert files["llara"] == files["leave_one_out"] < files["windows"]


def test_the_papers_protocol():
    protocol = DataProtocol.from_config(keys_of())
    assert (protocol.split, protocol.split_ratio) == ("user_time", (0.8, 0.1, 0.1))
    assert (protocol.min_train_history, protocol.candidate_num, protocol.candidate_exclude) == (3, 20, "user")


def test_candidate_seed_falls_back_to_seed():
    assert DataProtocol.from_config(keys_of()).eval_seed == 2020
    assert DataProtocol.from_config(keys_of(candidate_seed=7)).eval_seed == 7
    assert DataProtocol.from_config(keys_of(candidate_seed=0)).eval_seed == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", "user_tiem"),
        ("protocol", None),
        ("split_ratio", [0.8, 0.2]),
        ("split_ratio", [1.0, 0.0, 0.0]),
        ("split_ratio", None),
        ("min_train_history", 0),
        ("max_eval_rows", -1),
        ("max_train_rows", None),
        ("max_train_rows", 0.5),
        ("candidate_num", 1),
        ("candidate_num", True),
        ("candidate_exclude", "users"),
        ("cold_item_share", 0),
        ("cold_item_share", 0.5),
        ("benchmark_filename", ["train", "valid", "test"]),
        ("eval_args", {"order": "RO", "mode": "full"}),
        ("eval_args", {"order": "TO", "mode": {"valid": "uni100", "test": "full"}}),
    ],
)
def test_a_wrong_value_names_its_key(key, value):
    with pytest.raises(UserError, match=key):
        DataProtocol.from_config(keys_of(**{key: value}))


def test_held_out_targets_are_not_matched_by_what_was_learned():
    with pytest.raises(UserError, match="repeated_targets: found 'match' with protocol 'cold_items', expected keep or drop"):
        DataProtocol.from_config(keys_of("cold_items", repeated_targets="match"))


@pytest.mark.parametrize("files", [None, ["train", "valid"], "train"])
def test_ready_made_windows_come_in_three_files(files):
    with pytest.raises(UserError, match="benchmark_filename: found .* expected three names"):
        DataProtocol.from_config(keys_of(protocol="windows", benchmark_filename=files))
