"""RecBole's Config of SASRec over ml-100k with our data keys, and what comes of it."""

import sys

import pytest
import yaml

from recbole_llara.config.yaml_files import PROPERTIES

# What properties/overall.yaml says of the data; the other keys of that file belong to models and metrics.
DATA_KEYS = {
    "MAX_ITEM_LIST_LENGTH": 10,
    "max_train_rows": 0,
    "max_eval_rows": 0,
    "candidate_num": 20,
    "candidate_exclude": "user",
    "repeated_targets": "keep",
    "candidate_seed": None,
    "candidate_file": None,
    "cold_item_share": 0.1,
    "train_neg_sample_args": None,
    "seed": 2020,
    "use_gpu": False,
    "show_progress": False,
    "train_batch_size": 128,
    "eval_batch_size": 64,
}


@pytest.fixture(scope="session")
def make_config():
    """A function of a protocol's name and further keys that gives RecBole's Config."""
    from recbole.config import Config

    from recbole_llara.utils.compat import name_numpy_types

    name_numpy_types()

    def make(protocol, dataset="ml-100k", model="SASRec", **keys):
        config_dict = dict(DATA_KEYS)
        for file in (PROPERTIES / "dataset" / f"{dataset}.yaml", PROPERTIES / "protocol" / f"{protocol}.yaml"):
            if file.exists():
                config_dict |= yaml.safe_load(file.read_text())
        arguments, sys.argv = sys.argv, sys.argv[:1]  # Config reads the command line
        try:
            return Config(model=model, dataset=dataset, config_dict=config_dict | {"protocol": protocol} | keys)
        finally:
            sys.argv = arguments

    return make


@pytest.fixture(scope="session")
def prepared(make_config, tmp_path_factory):
    """ml-100k under the protocols that split it here, by name."""
    from recbole_llara.data.dataset import prepare_data

    folder = str(tmp_path_factory.mktemp("saved"))
    return {name: prepare_data(make_config(name, checkpoint_dir=folder)) for name in ("llara", "leave_one_out", "cold_items")}
