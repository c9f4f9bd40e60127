"""Wrong values, names and combinations of keys: each ends with 2 and a line that says what to change."""

from pathlib import Path

import pytest
import torch
from bad_inputs import assert_refused, run
from synthetic_data import write_toy_dataset

from recbole_llara.config.run_config import RunConfig


@pytest.fixture(scope="module")
def toy_keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return write_toy_dataset(tmp_path_factory.mktemp("data"))


# (model, arguments, what the line says: key, found, expected)
CASES = [
    # --- names
    ("LLaRa", [], ["model: found 'LLaRa'", "did you mean 'LLaRA'"]),
    ("BPR", [], ["model: found 'BPR'", "expected one of ours or a RecBole sequential one"]),
    ("DIEN", [], ["model: RecBole's DIEN is not supported"]),
    ("SASRec", ["--protocol=leave-one-out"], ["protocol: found 'leave-one-out'", "did you mean 'leave_one_out'"]),
    ("SASRec", ["--protocol=[llara]"], ["protocol: found ['llara']", "expected one of"]),
    ("LLaRA", ["--rec_model=[SASRec]"], ["rec_model: found ['SASRec']", "expected a RecBole sequential model"]),
    ("LLaRA", ["--rec_model=BPR"], ["rec_model: found 'BPR'", "expected a RecBole sequential model"]),
    ("MoRec", ["--rec_model=~"], ["rec_model: found None", "expected a RecBole sequential model"]),
    ("MoRec", ["--rec_model=EASE"], ["rec_model: found 'EASE'", "expected a RecBole sequential model"]),
    ("LLaRA", ["--rec_model=EASE", "--rec_reg_weight=a"], ["rec_reg_weight: found 'a'"]),
    ("EASE", ["--reg_weight=-1"], ["reg_weight: found -1"]),
    ("LLaRA", ["--representation=tilte"], ["representation: found 'tilte'", "expected one of numerical"]),
    ("LLaRA", ["--strategy=currriculum"], ["strategy: found 'currriculum'", "did you mean 'curriculum'"]),
    ("LLaRA", ["--curriculum=exp"], ["curriculum: found 'exp'", "expected one of linear, cosine, step"]),
    ("LLaRA", ["--decoding=beam"], ["decoding: found 'beam'", "expected one of score, constrained, generate"]),
    ("LLaRA", ["--domain=book"], ["domain: found 'book'", "expected one of artist, game, item, movie"]),
    ("LLaRA", ["--title_rules=[strip_years]"], ["title_rules: found 'strip_years'", "did you mean 'strip_year'"]),
    ("LLaRA", ["--llm_tuning=qlora"], ["llm_tuning: found 'qlora'", "expected one of lora, frozen, full"]),
    ("SASRec", ["--metrics=[Hit, Ndgc]"], ["metrics: found 'Ndgc'", "did you mean 'ndcg'"]),
    ("SASRec", ["--metrics=[Hit, AUC]"], ["metrics: found 'AUC'", "expected ranking metrics"]),
    ("SASRec", ["--metrics={Hit: 1}"], ["metrics: found {'Hit': 1}", "expected a list of str"]),
    ("SASRec", ["--valid_metric=Hit@2"], ["valid_metric: found 'Hit@2'", "expected one of Hit@1"]),
    ("SASRec", ["--valid_metric=1"], ["valid_metric: found 1", "expected str"]),
    ("SASRec", ["--learner=adma"], ["learner: found 'adma'", "expected one of adam,", "did you mean 'adam'"]),
    ("LLaRA", ["--learner=sgd"], ["learner: found 'sgd'", "expected adam"]),
    ("SASRec", ["--loss_type=MSE"], ["loss_type: found 'MSE'", "expected one of CE, BPR"]),
    ("SASRec", ["--loss_type=[CE]"], ["loss_type: found ['CE']", "expected str"]),
    ("SASRec", ["--state=LOUD"], ["state: found 'LOUD'", "expected one of"]),
    ("SASRec", ["--encoding=utf-9"], ["encoding: found 'utf-9'", "expected"]),
    ("SASRec", ["--epochz=3"], ["unknown key 'epochz' (command line)", "did you mean 'epochs'"]),
    ("LLaRA", ["--rec_dropout=0.1"], ["unknown key 'rec_dropout'", "did you mean"]),
    ("SASRec", ["--device=cuda"], ["unknown key 'device' (command line)", "use_gpu and gpu_id choose the device"]),
    ("SASRec", ["--lr=0.1"], ["unknown key 'lr'", "it is called learning_rate here"]),
    ("SASRec", ["--batch_size=8"], ["unknown key 'batch_size'", "train_batch_size"]),
    # --- types and ranges
    ("SASRec", ["--epochs=-1"], ["epochs: found -1", "expected a number in [0, inf)"]),
    ("LLaRA", ["--epochs=two"], ["epochs: found 'two' (str)", "expected int"]),
    ("LLaRA", ["--rec_epochs=-1"], ["rec_epochs: found -1", "expected a number in [0, inf)"]),
    ("LLaRA", ["--rec_hidden_size=64x"], ["rec_hidden_size: found '64x'", "expected int"]),
    ("SASRec", ["--seed=-1"], ["seed", "-1", "expected a"]),
    ("SASRec", ["--seed=lucky"], ["seed", "'lucky'", "expected"]),
    ("SASRec", ["--seed=4294967296"], ["seed: found 4294967296", "expected a number in [0, 4.29497e+09"]),
    ("SASRec", ["--gpu_id=first"], ["gpu_id: found 'first'", "expected"]),
    ("SASRec", ["--gpu_id=-1"], ["gpu_id: found -1", "use_gpu=False"]),
    ("SASRec", ["--use_gpu=nope"], ["use_gpu: found 'nope'", "expected bool"]),
    ("SASRec", ["--show_progress=1"], ["show_progress: found 1", "expected bool"]),
    ("SASRec", ["--reproducibility=sure"], ["reproducibility: found 'sure'", "expected bool"]),
    ("SASRec", ["--worker=-2"], ["worker: found -2", "expected a number in [0, inf)"]),
    ("SASRec", ["--stopping_step=soon"], ["stopping_step: found 'soon'", "expected int"]),
    ("SASRec", ["--eval_batch_size=0"], ["eval_batch_size: found 0", "expected a number in [1, inf)"]),
    ("SASRec", ["--learning_rate=.nan"], ["learning_rate: found nan", "expected a number in (0, inf)"]),
    ("SASRec", ["--learning_rate=.inf"], ["learning_rate: found inf", "expected a number in (0, inf)"]),
    ("SASRec", ["--weight_decay=True"], ["weight_decay: found True (bool)", "expected float"]),
    ("SASRec", ["--MAX_ITEM_LIST_LENGTH=0"], ["MAX_ITEM_LIST_LENGTH: found 0", "expected a number in [1, inf)"]),
    ("SASRec", ["--MAX_ITEM_LIST_LENGTH=ten"], ["MAX_ITEM_LIST_LENGTH: found 'ten'", "expected int"]),
    ("SASRec", ["--topk=[1, 11]"], ["topk: found 11", "candidate_num (10)"]),
    ("SASRec", ["--topk=five"], ["topk: found 'five'", "expected a list of int"]),
    ("SASRec", ["--candidate_num=1"], ["candidate_num: found 1", "expected a number in [2, inf)"]),
    ("SASRec", ["--candidate_num=70"], ["candidate_num", "70", "expected at least 69", "items are left"]),
    ("SASRec", ["--candidate_seed=x"], ["candidate_seed: found 'x'", "expected int or None"]),
    ("SASRec", ["--split_ratio=[0.8, 0.1, 0.2]"], ["split_ratio: found [0.8, 0.1, 0.2]", "add up to 1"]),
    ("SASRec", ["--split_ratio=[True, 0.5, .nan]"], ["split_ratio: found [True, 0.5, nan]", "expected a list of float"]),
    ("SASRec", ["--max_eval_rows=1e3"], ["max_eval_rows: found 1000.0", "expected int"]),
    ("LLaRA", ["--candidate_draw=popular"], ["candidate_draw: found 'popular'", "expected one of uniform, recommender, mixed"]),
    ("LLaRA", ["--candidate_draw_top=0"], ["candidate_draw_top: found 0", "expected a number in [1, inf)"]),
    ("TALLRec", ["--candidate_draw=Mixed"], ["candidate_draw: found 'Mixed'", "did you mean 'mixed'"]),
    ("LLaRA", ["--lora_dropout=1"], ["lora_dropout: found 1,", "expected a number in [0, 1)"]),
    ("LLaRA", ["--lora_target_modules=q_proj"], ["lora_target_modules: found 'q_proj'", "expected auto or a list"]),
    ("LLaRA", ["--max_title_tokens=0"], ["max_title_tokens: found 0", "expected a number in [1, inf)"]),
    ("LLaRA", ["--max_grad_norm=0"], ["max_grad_norm: found 0", "expected a number in (0, inf)"]),
    ("LLaRA", ["--llm_path=3"], ["llm_path: found 3 (int)", "expected str"]),
    ("LLaRA", ["--shuffle_item_embeddings=yes please"], ["shuffle_item_embeddings: found 'yes please'", "expected bool"]),
    ("RSLLM", ["--contrast_temperature=0"], ["contrast_temperature: found 0", "expected a number in (0, inf)"]),
    ("ChatLLM", ["--api_base=localhost", "--epochs=0"], ["api_base: found 'localhost'", "expected http"]),
    ("ChatLLM", ["--api_timeout=0", "--epochs=0"], ["api_timeout: found 0", "expected a number in (0, inf)"]),
    ("MoRec", ["--text_pooling=max"], ["text_pooling: found 'max'", "expected one of mean, cls"]),
    ("SASRec", ["--hidden_size=wide"], ["hidden_size: found 'wide'", "expected int"]),
    ("SASRec", ["--n_layers=0"], ["n_layers: found 0", "expected a number in [1, inf)"]),
    ("SASRec", ["--hidden_dropout_prob=1.5"], ["hidden_dropout_prob: found 1.5", "expected a number in [0, 1"]),
    ("SASRec", ["--n_heads=3"], ["hidden_size", "64", "3", "n_heads"]),
    ("GRU4Rec", ["--embedding_size=-8"], ["embedding_size: found -8", "expected a number in [1, inf)"]),
    ("Caser", ["--nh=many"], ["nh: found 'many'", "expected int"]),
    ("MoRec", ["--n_heads=5"], ["hidden_size", "64", "5", "n_heads"]),
    ("LLaRA", ["--rec_n_heads=3"], ["rec_hidden_size", "64", "3", "n_heads"]),
    ("Popularity", ["--train_batch_size=0"], ["train_batch_size: found 0", "expected a number in [1, inf)"]),
    # --- RecBole's own
    ("SASRec", ["--eval_args=full"], ["eval_args: found 'full'", "expected dict"]),
    ("SASRec", ["--eval_args={order: RO, split: {LS: valid_and_test}}"], ["eval_args.order is 'RO'", "expected TO"]),
    ("SASRec", ["--eval_args={order: TO, split: {LS: last}}"], ["eval_args.split", "{'LS': 'last'}", "valid_and_test"]),
    ("SASRec", ["--eval_args={order: TO, split: half}"], ["eval_args.split", "'half'", "expected"]),
    (
        "SASRec",
        ["--eval_args={order: TO, split: {LS: valid_and_test}, mode: uni99}"],
        ["eval_args.mode is", "uni99", "expected full"],
    ),
    ("SASRec", ["--eval_args={ordre: TO}"], ["eval_args: found 'ordre'", "did you mean 'order'"]),
    ("SASRec", ["--train_neg_sample_args=uniform"], ["train_neg_sample_args: found 'uniform'", "expected dict or None"]),
    (
        "SASRec",
        ["--loss_type=BPR", "--train_neg_sample_args={distribution: even}"],
        ["train_neg_sample_args.distribution: found 'even'", "expected one of uniform, popularity"],
    ),
    (
        "SASRec",
        ["--loss_type=BPR", "--train_neg_sample_args={sample_num: 0}"],
        ["train_neg_sample_args.sample_num: found 0", "expected a number in [1, inf)"],
    ),
    (
        "SASRec",
        ["--train_neg_sample_args={distribution: uniform}"],
        ["train_neg_sample_args: found", "expected None", "loss_type CE"],
    ),
    ("SASRec", ["--user_inter_num_interval=5"], ["user_inter_num_interval: found 5", "expected an interval such as [5,inf)"]),
    ("SASRec", ["--user_inter_num_interval=[5,lots)"], ["user_inter_num_interval: found '[5,lots)'", "expected an interval"]),
    ("SASRec", ["--item_inter_num_interval=[9,2]"], ["item_inter_num_interval: found", "expected an interval"]),
    ("SASRec", ["--val_interval=[3,inf)"], ["val_interval: found '[3,inf)'", "expected dict or None"]),
    ("SASRec", ["--val_interval={timestamp: '3-5'}"], ["val_interval.timestamp: found '3-5'", "expected an interval"]),
    ("SASRec", ["--val_interval={rating: '[3,inf)'}"], ["val_interval: found 'rating'", "toy.inter", "timestamp"]),
    ("SASRec", ["--user_inter_num_interval=[99,inf)"], ["user_inter_num_interval", "leave no interaction", "toy"]),
    ("SASRec", ["--load_col=[user_id]"], ["load_col: found ['user_id']", "expected dict or None"]),
    ("SASRec", ["--load_col={inter: user_id}"], ["load_col.inter: found 'user_id'", "expected a list"]),
    (
        "SASRec",
        ["--load_col={inter: [user_id, item_id]}"],
        ["load_col", "['user_id', 'item_id']", "expected timestamp (TIME_FIELD)"],
    ),
    (
        "SASRec",
        ["--load_col={inter: [user_id, item_id, timestamp, ratnig]}"],
        ["load_col", "'ratnig'", "toy.inter", "user_id, item_id, timestamp"],
    ),
    ("SASRec", ["--TIME_FIELD=time"], ["toy.inter: found", "expected time (TIME_FIELD)", "user_id, item_id, timestamp"]),
    ("SASRec", ["--field_separator=||"], ["field_separator: found '||'", "expected one character"]),
    ("SASRec", ["--rm_dup_inter=middle"], ["rm_dup_inter: found 'middle'", "expected one of first, last"]),
    ("SASRec", ["--clip_grad_norm=5"], ["clip_grad_norm: found 5", "expected dict or None"]),
    (
        "SASRec",
        ["--benchmark_filename=[train, valid, test]"],
        ["benchmark_filename: found ['train', 'valid', 'test']", "--protocol=windows"],
    ),
    ("SASRecF", [], ["selected_features", "'class'", "load_col"]),
    # --- combinations
    ("LLaRA", ["--title_field=~"], ["title_field: found None", "expected a column of titles"]),
    ("MoRec", ["--title_field=~"], ["title_field: found None", "expected a column of titles"]),
    *(
        (
            model,
            [f"--strategy={strategy}", f"--representation={representation}"],
            [
                f"strategy: found {strategy} with representation {representation} and {key} text_only",
                "=direct",
            ],
        )
        for model, strategy, representation, key in (
            ("LLaRA", "two_stage", "textual", "stage_1_representation"),
            ("LLaRA", "curriculum", "numerical", "easy_representation"),
            ("TALLRec", "two_stage", "textual", "stage_1_representation"),
        )
    ),
    ("LLaRA", ["--strategy=two_stage", "--stage_1_epochs=1"], ["stage_1_epochs: found 1 of 1", "expected fewer"]),
    ("LLaRA", ["--decoding=generate", "--eval_template=all"], ["eval_template: found all", "expected decoding score"]),
    ("LLaRA", ["--fsdp=True", "--torch_compile=True"], ["fsdp and torch_compile", "expected one of them"]),
    (
        "LLaRA",
        ["--candidate_draw=mixed", "--item_embeddings=random"],
        ["candidate_draw: found 'mixed' with item_embeddings 'random'", "expected uniform, or item_embeddings recommender"],
    ),
    ("TALLRec", ["--representation=hybrid"], ["representation: found hybrid", "expected one of"]),
    ("ZeroShotLLM", ["--epochs=3"], ["epochs: found 3", "expected 0"]),
    # --- paths
    ("SASRec", ["--checkpoint=nowhere"], ["checkpoint: found 'nowhere'", "expected"]),
    ("LLaRA", ["--checkpoint=nowhere"], ["checkpoint: found 'nowhere'", "expected"]),
    ("LLaRA", ["--rec_checkpoint=nowhere"], ["No checkpoint at nowhere", "rec_checkpoint", "expected a .safetensors file"]),
    ("SASRec", ["--result_file=."], ["result_file: found '.'", "expected a file"]),
    ("SASRec", ["--checkpoint_dir=taken"], ["checkpoint_dir: found 'taken'", "expected a folder"]),
    ("SASRec", ["--candidate_file=none.tsv"], ["none.tsv", "candidate_file"]),
    ("LLaRA", ["--llm_path=./no-llm"], ["llm_path", "'./no-llm'", "Expected tiny, smollm2, a folder"]),
    ("MoRec", ["--text_encoder_path=./no-llm"], ["text_encoder_path", "'./no-llm'", "Expected tiny, smollm2, a folder"]),
    ("SASRec", ["--data_path=nowhere"], ["dataset: found 'toy'", "data_path 'nowhere'"]),
    ("SASRec", ["--protocol=windows"], ["toy.inter", "expected toy.train.inter", "protocol windows"]),
]


@pytest.mark.parametrize(
    ("model", "arguments", "parts"), CASES, ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_a_wrong_key_is_refused(
    model: str,
    arguments: list[str],
    parts: list[str],
    toy_keys: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("no folder")
    saved = tmp_path / "saved"
    status = run(model, {**toy_keys, "checkpoint_dir": str(saved)}, arguments)
    assert_refused(capsys, status, parts, saved)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("argument", ["--use_gpu=True", "--gpu_id=3"])
def test_a_gpu_that_is_not_there_is_refused_where_the_command_line_asks_for_it(
    argument: str,
    toy_keys: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {key: value for key, value in toy_keys.items() if key != "use_gpu"}
    arguments = [argument, *(["--use_gpu=True"] if "gpu_id" in argument else [])]
    parts = [f"{argument[2:].split('=')[0]}: found", "torch", "sees no such GPU", "--use_gpu=False"]
    assert_refused(capsys, run("SASRec", keys, arguments), parts, Path(str(toy_keys["checkpoint_dir"])))
    config = RunConfig("SASRec", "toy", config_dict={**keys, "use_gpu": True})  # a file's or a dict's may go to any machine
    assert config["device"].type == "cpu" and any("sees no such GPU: the CPU computes" in note for note in config.notes)
