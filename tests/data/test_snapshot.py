"""What a checkpoint keeps of the data is all that a model needs to answer."""

import dataclasses

import pytest
import torch
from synthetic_data import add_item_fields, write_toy_dataset

from recbole_llara.config.models import stock_models
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import PreparedData, prepare_data
from recbole_llara.data.snapshot import Snapshot
from recbole_llara.model.build import build_model
from recbole_llara.recommender.retriever import Retriever
from recbole_llara.utils.errors import UserError

COLUMNS = {
    "inter": ["user_id", "item_id", "timestamp"],
    "item": ["item_id", "title", "release_year", "class"],
}
READS_COLUMNS = {
    "SASRecF": {"selected_features": ["class"], "load_col": COLUMNS},
    "FDSA": {"selected_features": ["class"], "load_col": COLUMNS},
    "GRU4RecF": {"selected_features": ["class"], "load_col": COLUMNS},
    "DIN": {"load_col": COLUMNS, "numerical_features": ["release_year"]},
    "MoRec": {"text_encoder_path": "tiny"},
}
# A partition of items that fits the toy catalogue.
PARTITIONS = {"SASRecCPR": {"reranker_CAN_NUM": "20"}, "GRU4RecCPR": {"reranker_CAN_NUM": "20"}}
HISTORIES = [[7, 8, 10], [1], list(range(20, 40))]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshot")
    keys = write_toy_dataset(folder)
    add_item_fields(folder)
    return keys


@pytest.mark.parametrize("model", [*sorted(stock_models()), "Popularity", "EASE", "MoRec"])
def test_every_stock_model_answers_without_the_data(model, toy, tmp_path):
    keys = {**toy, **READS_COLUMNS.get(model, {}), **PARTITIONS.get(model, {}), "checkpoint_dir": str(tmp_path)}
    config = RunConfig(model, "toy", config_dict=keys)
    trained = build_model(config, prepare_data(config))
    stored = {name: tensor.clone() for name, tensor in trained.snapshot.tensors().items()}
    gone = RunConfig(model, "toy", config_dict={**keys, "data_path": str(tmp_path / "gone")}, reads_data=False)
    data = PreparedData(Snapshot.from_tensors(stored, "here").dataset(gone))
    torch.manual_seed(1)
    alone = build_model(gone, data)
    alone.load_state_dict(trained.state_dict())
    assert alone.snapshot.numbering.items_sha256 == trained.snapshot.numbering.items_sha256
    for name, tensor in alone.snapshot.tensors().items():
        assert torch.equal(tensor, stored[name]), name
    n_known = data.dataset.n_known
    if model == "DIN":  # it scores no whole catalogue
        return
    asked = [Retriever(model.eval(), config, n_known).scores(HISTORIES) for model in (trained, alone)]
    assert torch.equal(*asked)


@pytest.fixture
def snapshot(toy, tmp_path):
    config = RunConfig("SASRec", "toy", config_dict={**toy, "load_col": COLUMNS, "checkpoint_dir": str(tmp_path)})
    return Snapshot.of(prepare_data(config).dataset)


def test_it_tells_of_items_and_of_no_user(snapshot, toy):
    assert snapshot.titles[1:] == tuple(f"Title {name[1:]} é" for name in snapshot.numbering.items)
    assert snapshot.columns.keys() == {"title", "release_year", "class"} and snapshot.n_users == 41
    assert len(snapshot.training_counts) == 61 and snapshot.training_counts[0] == 0 and snapshot.training_counts.sum() > 300
    nobody = dataclasses.replace(snapshot, numbering=snapshot.numbering.without_users())
    kept = [tensor for tensor in nobody.tensors().values() if tensor.dtype == torch.int64]
    hashes = set(snapshot.numbering.users.tolist())
    assert len(hashes) == 40 and not any(hashes & set(tensor.flatten().tolist()) for tensor in kept)


def damaged(tensors):
    """Tensors of which one thing is not as it was written, by what."""
    import json

    import numpy as np

    from recbole_llara.data.text_table import TextTable

    told = json.loads(tensors["snapshot/facts"].numpy().tobytes())
    titles = list(TextTable.from_tensors(tensors, "snapshot/titles"))

    def with_facts(**changes):
        text = json.dumps({**told, **changes}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return {**tensors, "snapshot/facts": torch.from_numpy(np.frombuffer(text, np.uint8).copy())}

    def with_titles(texts):
        return {**tensors, **TextTable.of(texts).tensors("snapshot/titles")}

    def changed(name, place, value):
        table = tensors[name].clone()
        table[place] = value
        return {**tensors, name: table}

    return {
        "a title less": with_titles(titles[:-1]),
        "titles that are numbers": {**tensors, "snapshot/titles/bytes": tensors["snapshot/titles/bytes"].long()},
        "an empty title": with_titles([*titles[:-1], " "]),
        "a title of white space of other scripts": with_titles([*titles[:-1], "\u3000\u200b"]),
        "half of a surrogate pair": with_titles([*titles[:-1], "\ud800"]),
        "titles that are no UTF-8": changed("snapshot/titles/bytes", 0, 0xFF),
        "a title that begins within a character": changed(
            "snapshot/titles/offsets", 1, tensors["snapshot/titles/offsets"][1] - 1
        ),
        "titles that go back": changed("snapshot/titles/offsets", 2, 0),
        "an index beyond the items": changed("snapshot/titles/order", 0, 1000),
        "an index of fewer items": {**tensors, "snapshot/titles/hashes": tensors["snapshot/titles/hashes"][1:]},
        "no users": with_facts(n_users=0),
        "users that are a text": with_facts(n_users="41"),
        "a column of another kind": with_facts(columns={"title": ["nothing", 3, False, None]}),
        "a column that is not there": with_facts(columns={"other": ["float", 1, False, None]}),
        "values of a column that are not there": with_facts(columns={"release_year": ["float", 1, True, None]}),
        "counts of other items": {**tensors, "snapshot/counts": tensors["snapshot/counts"][:-1]},
        "counts that are no numbers": {**tensors, "snapshot/counts": tensors["snapshot/counts"].float()},
        "no facts": {name: tensor for name, tensor in tensors.items() if name != "snapshot/facts"},
        "facts that are no JSON": {**tensors, "snapshot/facts": torch.tensor([1, 2, 3], dtype=torch.uint8)},
    }


KINDS = (
    "a title less", "titles that are numbers", "an empty title", "a title of white space of other scripts", "half of a surrogate pair",
    "titles that are no UTF-8", "a title that begins within a character", "titles that go back", "an index beyond the items",
    "an index of fewer items", "no users", "users that are a text", "a column of another kind", "a column that is not there",
    "values of a column that are not there", "counts of other items", "counts that are no numbers", "no facts",
    "facts that are no JSON",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_as_it_was_written_is_refused(kind, snapshot):
    tensors = snapshot.tensors()
    assert Snapshot.from_tensors(tensors, "here").titles == list(snapshot.titles)
    with pytest.raises(UserError, match="here tells not what it knows of its items"):
        Snapshot.from_tensors(damaged(tensors)[kind], "here")
