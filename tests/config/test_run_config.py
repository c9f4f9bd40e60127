"""The layers of a configuration, their order, and errors instead of silence."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from recbole.utils.argument_list import dataset_arguments

from recbole_llara.config.keys import RECBOLE_PROPERTIES, known_keys
from recbole_llara.config.models import MODELS, resolve_model, stock_models
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.yaml_files import PROPERTIES, read_yaml
from recbole_llara.utils.errors import UserError


def config(*argv: str, model: str = "SASRec", **arguments: object) -> RunConfig:
    return RunConfig(model, "ml-100k", argv=argv, **arguments)  # type: ignore[arg-type]


def test_precedence(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("epochs: 1\nlearning_rate: 1e-1\nweight_decay: 1e-1\nstopping_step: 1\n")
    second.write_text("learning_rate: 1e-2\nweight_decay: 1e-2\nstopping_step: 2\n")
    made = config(
        "--stopping_step=4", config_file_list=[first, second], config_dict={"weight_decay": "1e-3", "stopping_step": 3}
    )
    assert (made["epochs"], made["learning_rate"], made["weight_decay"], made["stopping_step"]) == (1, 1e-2, 1e-3, 4)
    assert made["train_batch_size"] == 256  # recommender.yaml over RecBole's 2048
    assert made["hidden_dropout_prob"] == 0.5  # RecBole's SASRec.yaml


def test_protocol_stands_over_dataset_and_overall() -> None:
    assert config()["min_train_history"] == 3
    assert config("--protocol=leave_one_out")["min_train_history"] == 1
    assert config("--min_train_history=2")["min_train_history"] == 2


def test_stock_models_do_not_train_like_an_llm() -> None:
    stock, ours = config(), config("--llm_path=/models/llama", model="LLaRA")
    assert (stock["epochs"], stock["learning_rate"], stock["eval_batch_size"]) == (200, 1e-3, 1024)
    assert (ours["epochs"], ours["learning_rate"], ours["train_batch_size"]) == (5, 8e-4, 128)
    assert "lora_r" not in stock


def test_the_embedded_llm_brings_its_own_tuning_and_strategy() -> None:
    llama, tiny = config("--llm_path=/models/llama", model="LLaRA"), config(model="LLaRA")
    assert (llama["llm_tuning"], llama["strategy"]) == ("lora", "curriculum")
    assert (tiny["llm_tuning"], tiny["strategy"]) == ("full", "direct")
    assert config("--strategy=curriculum", model="LLaRA")["strategy"] == "curriculum"


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "Caser"])
def test_the_papers_recommenders(name: str) -> None:
    made = config(model=name)
    width = made["hidden_size"] if name == "SASRec" else made["embedding_size"]
    assert (made["learner"], made["learning_rate"], width, made["train_batch_size"]) == ("adam", 1e-3, 64, 256)  # sec. 5.1.2
    assert made["train_neg_sample_args"]["distribution"] == "none"


@pytest.mark.parametrize("name", sorted(stock_models()))
def test_every_stock_model_has_a_configuration(name: str) -> None:
    made = config(model=name)
    pairwise = made["loss_type"] == "BPR" or name == "TransRec"
    assert (made["train_neg_sample_args"]["distribution"] == "uniform") == (pairwise or name == "DIN")


def test_the_embedded_llm_has_a_layer_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("llm_path: elsewhere\n")
    tiny = read_yaml(PROPERTIES / "llm" / "tiny.yaml")
    assert {key: config(model="LLaRA")[key] for key in tiny} == tiny
    other = read_yaml(PROPERTIES / "llm_recommender.yaml")
    made = config(model="LLaRA", config_file_list=[path])
    assert {key: made[key] for key in tiny} == {key: other[key] for key in tiny}
    assert config("--llm_tuning=frozen", model="LLaRA")["llm_tuning"] == "frozen"


def test_negatives_for_a_pairwise_loss() -> None:
    assert config("--loss_type=BPR")["train_neg_sample_args"]["distribution"] == "uniform"


def test_columns_of_feature_models_survive_the_dataset_layer() -> None:
    assert "class" in config(model="SASRecF")["load_col"]["item"]
    assert set(config()["load_col"]) == {"inter"}


def test_sys_argv_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--epochs=7", "nonsense"])
    assert config()["epochs"] == 200


def test_no_state_is_left_in_recbole() -> None:
    before, resolvers = list(dataset_arguments), dict(yaml.FullLoader.yaml_implicit_resolvers)
    config("--protocol=leave_one_out")
    assert dataset_arguments == before
    assert dict(yaml.FullLoader.yaml_implicit_resolvers) == resolvers


def test_texts_are_not_run() -> None:
    assert config("--wandb_project=__import__('os').getcwd()")["wandb_project"] == "__import__('os').getcwd()"
    assert config(config_dict={"wandb_project": "1+1"})["wandb_project"] == "1+1"


def test_use_gpu_false_means_the_cpu() -> None:
    assert config("--use_gpu=False")["device"] == torch.device("cpu")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--learnign_rate=1", r"'learnign_rate' \(command line\): did you mean 'learning_rate'"),
        ("--zzzzzz=1", "no known key is near"),
        ("--rec_epoch=1", "did you mean 'rec_epochs'"),
        ("--rec_protocol=llara", "unknown key 'rec_protocol'"),
        ("--protocol=lara", "did you mean 'llara'"),
        ("--protocol=../overall", "protocol: found"),
        ("--rec_model=SASRek", "did you mean 'SASRec'"),
        ("--rec_model=LLaRA", "rec_model: found 'LLaRA'"),
        ("--curriculum=linaer", "did you mean 'linear'"),
        ("--strategy=two-stage", "did you mean 'two_stage'"),
        ("--representation=hybrit", "did you mean 'hybrid'"),
        ("--decoding=greedy", "decoding: found 'greedy'"),
        ("--candidate_num=1", "candidate_num"),
        ("--metrics=Hits", "did you mean 'hit'"),
        ("--metrics=[]", "at least one"),
        ("--topk=[1,5", "topk"),
        ("--topk=0", "topk"),
        ("--valid_metric=Hit@3", "valid_metric: found 'Hit@3', expected one of Hit@1"),
        ("--valid_metric=Hit", "valid_metric"),
        ("--valid_metric=ValidRatio@1", "valid_metric"),
        ("--data_path=~", "data_path"),
        ("--epochs=1=2", "epochs: found '1=2'"),
        ("--eval_args=3", "eval_args"),
        ("--train_neg_sample_args=3", "train_neg_sample_args"),
        ("--test_prompt=all", "'test_prompt': it is called eval_template now"),
        ("--split_protocol=user_time", "'split_protocol': protocol decides the split now"),
        ("--protocol=full_rank", "--protocol=leave_one_out --full_rank=True"),
        ("--representation=described_hybrid", "representation: found 'described_hybrid', which is called hybrid_with_dsr now"),
        ("--stage_1_representation=described", "which is called textual_with_dsr now"),
    ],
)
def test_mistakes_are_named(argument: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        config(argument, model="LLaRA")


def test_the_source_of_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("epohcs: 1\n")
    with pytest.raises(UserError, match=r"'epohcs' \(.*mine.yaml\).*'leraning_rate' \(config_dict\)"):
        config(config_file_list=[path], config_dict={"leraning_rate": 1})


def test_config_file_list_is_a_list() -> None:
    with pytest.raises(UserError, match="expected a list of paths"):
        config(config_file_list="a.yaml")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("SASRek", "did you mean 'SASRec'"),
        ("llara", "did you mean 'LLaRA'"),
        (None, "--model=NAME"),
        ("BPR", "model"),
        ("S3Rec", "not supported: its two stages"),
    ],
)
def test_unknown_models(model: str | None, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        RunConfig(model, "ml-100k")


@pytest.mark.parametrize("name", ["../secret", "a/b", "..", ".", "/etc", "a\\b", "ml-100k\n"])
def test_a_dataset_is_one_folder(name: str) -> None:
    with pytest.raises(UserError, match="letters, digits"):
        RunConfig("SASRec", name)


def test_unknown_datasets_list_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "games").mkdir()
    (tmp_path / "games" / "games.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n")
    arguments = {"config_dict": {"data_path": str(tmp_path)}}
    assert RunConfig("SASRec", "games", **arguments)["data_path"] == str(tmp_path / "games")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="did you mean 'games'"):
        RunConfig("SASRec", "gamse", **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="known: games, ml-100k"):
        RunConfig("SASRec", "zzz", **arguments)  # type: ignore[arg-type]


def test_model_and_dataset_may_stand_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: GRU4Rec\ndataset: ml-100k\n")
    made = RunConfig(config_file_list=[path])
    assert (made["model"], made["dataset"]) == ("GRU4Rec", "ml-100k")


def test_a_named_item_has_no_rank() -> None:
    made = config("--decoding=generate", model="LLaRA")
    assert made["topk"] == [1]
    assert "topk [1, 5, 10] becomes [1]" in made.notes[0]
    with pytest.raises(UserError, match="decoding: generate"):
        config("--decoding=generate", "--valid_metric=NDCG@5", model="LLaRA")
    stock = config("--decoding=generate")
    assert stock["topk"] == [1, 5, 10] and stock.notes == ()  # a stock model ranks whatever an LLM does


def test_the_recommender_shares_data_and_not_training() -> None:
    run = config(
        "--protocol=leave_one_out", "--seed=7", "--candidate_num=5", "--epochs=1", "--max_train_rows=10", "--learning_rate=1",
        "--rec_epochs=3", "--rec_hidden_size=32", "--decoding=generate", "--result_file=out.json", "--checkpoint_dir=there",
        model="LLaRA",
    )  # fmt: skip
    made = run.for_recommender()
    assert made["model"] == "SASRec"
    assert (made["protocol"], made["seed"], made["candidate_num"], made["checkpoint_dir"]) == (
        "leave_one_out",
        7,
        5,
        "there",
    )
    assert (made["epochs"], made["hidden_size"], made["learning_rate"]) == (3, 32, 1e-3)
    assert (made["max_train_rows"], made["result_file"], made["topk"]) == (0, None, [1, 5, 10])


def test_quoted_numbers_of_a_file_stay_text_for_the_recommender(tmp_path: Path) -> None:
    path = tmp_path / "quoted.yaml"
    path.write_text("data_path: '1'\n")
    assert config(model="LLaRA", config_file_list=[path]).for_recommender().external_config_dict["data_path"] == "1"


def test_known_keys_hold_every_property() -> None:
    known = known_keys("LLaRA", "SASRec")
    for path in [*PROPERTIES.glob("*.yaml"), *PROPERTIES.glob("protocol/*.yaml"), RECBOLE_PROPERTIES / "overall.yaml"]:
        assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) <= known
    assert "hidden_size" not in known and "rec_hidden_size" in known


def test_the_table_of_models() -> None:
    assert "LLaRA" in MODELS and not set(MODELS) & set(stock_models())
    assert {"SASRec", "GRU4Rec", "Caser"} <= set(stock_models())
    assert resolve_model("Caser").__name__ == "Caser"


@pytest.mark.parametrize("name", ["SASRec", "LLaRA", "MoRec"])
def test_a_model_may_be_given_as_a_class(name: str) -> None:
    made = RunConfig(resolve_model(name), "ml-100k")
    assert made["model"] == name and made.model_class is resolve_model(name)
    assert made.final_config_dict == RunConfig(name, "ml-100k").final_config_dict
    given = RunConfig(config_dict={"model": resolve_model(name), "dataset": "ml-100k"})
    assert given["model"] == name


def test_a_recommender_may_be_a_class_of_one_s_own() -> None:
    own = type("OwnSASRec", (resolve_model("SASRec"),), {"__module__": __name__})
    run = RunConfig("LLaRA", "ml-100k", config_dict={"rec_model": own, "rec_hidden_size": 32})
    assert run["rec_model"] == "OwnSASRec" and run.external_config_dict["rec_model"] == "OwnSASRec"
    assert run.for_recommender().model_class is own and run.for_recommender()["hidden_size"] == 32
    again = type("OwnSASRec", (resolve_model("SASRec"),), {"__module__": __name__})  # a cell of a notebook, run again
    assert RunConfig(again, "ml-100k").model_class is again
    MODELS.pop("OwnSASRec")


def test_a_class_with_the_name_of_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="whose name is taken by another model"):
        RunConfig(type("SASRec", (resolve_model("GRU4Rec"),), {}), "ml-100k")
    with pytest.raises(UserError, match="expected a subclass of RecBole's SequentialRecommender"):
        RunConfig(type("NoModel", (), {}), "ml-100k")
    MODELS.pop("NoModel")
