"""A run's folder on another machine: read-only, without the data, and telling nobody's id or history."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import recbole_llara
from recbole_llara.serving.export import export
from recbole_llara.utils.errors import UserError

# Tells what a process opens, makes and locks below a folder, and what it opens for writing anywhere.
WATCHED = """
import json, os, sys
root, run, llm, seen = os.path.realpath(sys.argv[1]), sys.argv[2], sys.argv[3], []
WRITES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "fcntl.flock", "fcntl.lockf")

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, flags = os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not path.startswith(("/dev/", "/proc/")):
            seen.append(["writes", path])
        elif path.startswith(root):
            seen.append(["reads", path])
    elif event in WRITES:
        seen.append([event, str(arguments[0])])

import recbole_llara
from recbole_llara.serving.loaded import load
sys.dont_write_bytecode = True
os.chdir(root)
sys.addaudithook(hook)
found = load(run, **({"llm_path": llm} if llm else {})).recommend(["i1", "i2"], k=10)
print(json.dumps([[[item.item_id, item.score, item.recommender_rank] for item in found], seen]))
"""


@pytest.mark.parametrize("model", ["LLaRA", "TALLRec", "MoRec", "SASRec"])
def test_loading_reads_the_run_alone_and_writes_nothing(model, make_run, tmp_path):
    own = {"text_encoder_path": "tiny"} if model == "MoRec" else {}
    run = Path(make_run(model, **own))
    before = [
        [item.item_id, item.score, item.recommender_rank] for item in recbole_llara.load(run).recommend(["i1", "i2"], k=10)
    ]
    llm = str(tmp_path / "llm") if model in ("LLaRA", "TALLRec") else ""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path), str(run), llm], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found, seen = json.loads(done.stdout)
    assert [item[::2] for item in found] == [item[::2] for item in before]
    assert [item[1] for item in found] == pytest.approx([item[1] for item in before], abs=1e-5)
    assert {path for kind, path in seen if kind == "reads"}
    for kind, path in seen:
        assert kind == "reads" and path.startswith((str(run), llm or str(run))), (kind, path)


def texts_of(folder):
    """The bytes of all files of a folder."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def hashes(run):
    """The hashes by which the data's users are known, as a file would hold them."""
    from recbole_llara.data.numbering import user_hashes

    users = sorted({line.split("\t")[0] for line in (run / "toy.inter").read_text(encoding="utf-8").splitlines()[1:]})
    return [value.tobytes() for value in user_hashes(users)], [f'"{user}"'.encode() for user in users]


@pytest.mark.parametrize("model", ["LLaRA", "TALLRec", "SASRec", "MoRec"])
def test_a_run_that_keeps_no_cases_tells_no_user(model, make_run, tmp_path):
    own = {"text_encoder_path": "tiny"} if model == "MoRec" else {}
    run = Path(make_run(model, **own, keep_cases=False))
    secret = [text for texts in hashes(tmp_path / "toy") for text in texts]
    for path, content in texts_of(run).items():
        assert not any(text in content for text in secret), path
    assert not (run / "cases.jsonl").exists() and len(recbole_llara.load(run).recommend(["i1"])) == 5
    # It can be seen: a run that keeps its cases has both.
    other = texts_of(make_run(model, **own))
    assert any(text in content for content in other.values() for text in secret)


def test_a_recommender_with_a_table_of_users_has_to_know_them(make_run, tmp_path):
    run = Path(make_run("Caser", keep_cases=False))
    of_users, _ = hashes(tmp_path / "toy")
    assert any(text in (run / "checkpoint.safetensors").read_bytes() for text in of_users)


@pytest.mark.parametrize("merge", [False, True])
def test_an_exported_run_tells_no_user_and_not_where_its_recommender_lay(merge, make_run, tmp_path):
    run = Path(make_run())
    before = recbole_llara.load(run).recommend(["i1", "i2"], k=10)
    out = export(run, tmp_path / "out", merge=merge)
    secret = [text for texts in hashes(tmp_path / "toy") for text in texts]
    for path, content in texts_of(out).items():
        assert not any(text in content for text in secret), path
    assert str(tmp_path) not in json.dumps(json.loads((out / "result.json").read_text(encoding="utf-8"))["recommender"])
    after = recbole_llara.load(out).recommend(["i1", "i2"], k=10)
    assert [item.item_id for item in after] == [item.item_id for item in before]
    assert [item.score for item in after] == pytest.approx([item.score for item in before], abs=1e-4)


def test_an_export_takes_no_other_recommender(make_run, tmp_path):
    run, other = make_run(), make_run(rec_epochs=2)
    with pytest.raises(UserError, match="rec_checkpoint: the recommender kept with the run is exported"):
        export(run, tmp_path / "out", rec_checkpoint=f"{other}/recommender/model.safetensors")


def test_prompts_of_ones_own_lie_in_the_folder(make_run, tmp_path):
    from recbole_llara.config.yaml_files import PROPERTIES

    own = tmp_path / "own.yaml"
    shutil.copyfile(PROPERTIES / "prompt" / "movie.yaml", own)
    own.write_text(own.read_text(encoding="utf-8").replace("This user", "That user"), encoding="utf-8")
    run = Path(make_run("TALLRec", prompt_file=str(own)))
    before = recbole_llara.load(run).recommend(["i1", "i2"], k=5)
    own.unlink()
    loaded = recbole_llara.load(run)
    assert loaded.recommend(["i1", "i2"], k=5) == before
    assert loaded.model.trained_prompts == loaded.model.prompts_digest


def test_a_file_of_candidates_may_be_gone(make_run, tmp_path):
    first = Path(make_run("SASRec"))
    lines = []
    for path in sorted((first.parent / "candidates").glob("toy-*.tsv")):
        lines.append(path.read_text(encoding="utf-8"))
    given = tmp_path / "own.tsv"
    given.write_text("".join(lines), encoding="utf-8")
    run = Path(make_run(candidate_file=str(given)))
    os.remove(given)
    assert len(recbole_llara.load(run).recommend(["i1"])) == 5


@pytest.mark.parametrize("tuning", ["lora", "merged", "full"])
@pytest.mark.parametrize("token", ["placeholder", "neighbours", "text"])
def test_items_that_nobody_has_seen_have_the_same_tokens_wherever_the_run_is(token, tuning, make_run, tmp_path):
    cold = {"protocol": "cold_items", "cold_item_share": 0.3, "candidate_num": 4, "topk": [1], "rec_eval_step": 0}
    run = Path(make_run(**cold, new_item_token=token, llm_tuning="full" if tuning == "full" else "lora", rec_max_train_rows=2))
    cases = [json.loads(line) for line in (run / "cases.jsonl").read_text(encoding="utf-8").splitlines()]
    for folder in ("toy", "saved/recommenders", "saved/candidates"):
        shutil.rmtree(tmp_path / folder)
    out = export(run, tmp_path / "out", merge=tuning == "merged")
    for place in (run, out):
        loaded = recbole_llara.load(place)
        for case in cases:
            asked = [[f"id:{item}" for item in case[name]] for name in ("history", "candidates")]
            found = {item.item_id: item.score for item in loaded.recommend(asked[0], k=4, candidates=asked[1])}
            assert found == pytest.approx(dict(zip(case["candidates"], case["scores"], strict=True)), abs=1e-4)
        # What is held out is never proposed.
        assert not {item.item_id for item in loaded.recommend(["i1"], k=20, retrieve_k=20)} & set(cases[0]["candidates"])
