"""What RecBole needs from us, on whatever numpy, pandas and torch are installed."""

import warnings
from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from recbole.utils import FeatureType

from recbole_llara.utils.compat import Table, fill_holes, name_numpy_types, sequential_recommenders


def test_numpy_has_the_names_that_recbole_reads():
    name_numpy_types()
    for name in ("bool", "int", "float", "complex", "object", "str", "long", "unicode", "float_", "complex_", "unicode_"):
        np.zeros(1, dtype=getattr(np, name))


def test_columns_of_sequences_aggregate_as_recbole_asks():
    column = Table({"list": [np.array([1, 2]), np.array([3]), np.array([], dtype=int)]})["list"]
    assert column.agg(len).tolist() == [2, 1, 0]
    assert column.agg(np.concatenate).tolist() == [1, 2, 3]
    assert Table({"number": [1.0, 3.0]})["number"].agg("mean") == 2.0


def test_columns_become_tensors_without_a_warning():
    column = Table({"n": [1, 2]})["n"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.LongTensor(column.values).tolist() == [1, 2]
    assert column.values.flags.writeable


def test_holes_are_filled_in_the_table_itself():
    kinds = {
        "token": FeatureType.TOKEN,
        "float": FeatureType.FLOAT,
        "tokens": FeatureType.TOKEN_SEQ,
        "floats": FeatureType.FLOAT_SEQ,
    }
    table = Table(
        {
            "token": pd.Series([4.0, np.nan]),
            "float": [1.0, np.nan],
            "tokens": [np.array([7]), np.nan],
            "floats": [np.nan, np.array([0.5])],
        }
    )
    dataset = SimpleNamespace(feat_name_list=["inter_feat"], inter_feat=table, field2type=kinds)
    fill_holes(dataset)
    assert dataset.inter_feat["token"].tolist() == [4.0, 0.0] and dataset.inter_feat["float"].tolist() == [1.0, 1.0]
    assert [value.tolist() for value in dataset.inter_feat["tokens"]] == [[7], []]
    assert [value.tolist() for value in dataset.inter_feat["floats"]] == [[], [0.5]]
    assert dataset.inter_feat["tokens"][1].dtype == np.int64


def test_importing_recbole_s_models_switches_no_anomaly_detection_on():
    assert hasattr(sequential_recommenders(), "SASRec")
    assert not torch.is_anomaly_enabled()
