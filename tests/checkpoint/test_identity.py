"""Every digest that a file stores stands in the table ``STORED``, and what it is a digest of cannot change unnoticed."""

import json
import logging
import re
import shutil
import signal
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from stored_digests import STORED
from toy_run import toy_keys

from recbole_llara.checkpoint.training_state import TrainingStates
from recbole_llara.config.run_config import RunConfig
from recbole_llara.data.dataset import prepare_data
from recbole_llara.evaluator.report import refuse_unlike
from recbole_llara.model.build import build_model
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.frozen import prepare_recommender
from recbole_llara.recommender.proposals import with_proposals
from recbole_llara.serving.loaded import load
from recbole_llara.utils.errors import Stopped, UserError

DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{16,64}(?![0-9a-f])")
SHARED = (
    "data_path", "checkpoint_dir", "protocol", "load_col", "title_field", "candidate_num", "use_gpu", "show_progress",
)  # fmt: skip

DRAWN = {"candidate_draw": "mixed", "candidate_draw_top": 9, "recommender_rows": "earlier"}


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_llm, make_tokenizer):
    """The folder of a finished LLaRA, a SASRec, a MoRec and a TALLRec that was stopped, and the keys."""
    from recbole_llara.trainer.trainer import LLMTrainer

    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        keys = {**toy_keys(folder, make_llm, make_tokenizer), "checkpoint_dir": "saved", "data_path": "."}
        run_recbole_llara("LLaRA", "toy", config_dict={**keys, **DRAWN})
        for model, own in (("SASRec", {}), ("MoRec", {"text_encoder_path": "tiny"})):
            values = {**{key: keys[key] for key in SHARED}, **own, "epochs": 1, "max_eval_rows": keys["max_eval_rows"]}
            run_recbole_llara(model, "toy", config_dict=values)
        step = LLMTrainer._train_step

        def pressed(self, rows):
            if self.progress.all_steps == 2:
                signal.raise_signal(signal.SIGINT)
            return step(self, rows)

        patch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
        patch.setattr(LLMTrainer, "_train_step", pressed)
        with pytest.raises(Stopped):
            run_recbole_llara("TALLRec", "toy", config_dict={**keys, "save_steps": 1})
    return folder, keys


@pytest.fixture
def saved(made, tmp_path, monkeypatch):
    """A copy of it all, which is the working directory."""
    shutil.copytree(made[0], tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return Path("saved")


def facts_of(path):
    """What a file tells, as (place, text) pairs."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        told = {}
        for name, text in header.items():
            told |= json.loads(text) if text.startswith("{") else {name: text}
    else:
        told = json.loads(path.read_text(encoding="utf-8"))
    return list(_flat(told, ""))


def _flat(value, place):
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _flat(entry, f"{place}.{name}" if place else name)
    elif isinstance(value, str):
        yield place, value


def digests(saved):
    """Every digest below a folder, as (file, fact)."""
    for path in sorted(saved.rglob("*")):
        name = path.relative_to(saved).as_posix()
        if DIGEST.search(path.name):
            yield name, "name"
        if path.is_file() and path.suffix in (".json", ".safetensors"):
            yield from ((name, place) for place, text in facts_of(path) if DIGEST.search(text))


def rows_of(file, fact):
    return [row for row in STORED if fnmatch(file, row.files) and fnmatch(fact, row.fact)]


def test_every_digest_stands_in_the_table(saved):
    found = list(digests(saved))
    assert [place for place in found if not rows_of(*place)] == []
    # All kinds were made here but those of searches, studies and chat models, of which their own tests tell.
    unseen = [row for row in STORED if not any(row in rows_of(*place) for place in found)]
    assert {row.files.partition("/")[0] for row in unseen} == {"search", "studies", "chat"}


def test_what_is_compared_is_compared_somewhere(saved):
    """The table names functions that there are."""
    import importlib

    for row in STORED:
        if not row.compared:
            assert row.otherwise == "told"
            continue
        module, name = row.compared.rsplit(".", 1)
        found = importlib.import_module(f"recbole_llara.{module}")
        assert name in vars(found) or any(name in vars(value) for value in vars(found).values() if isinstance(value, type))


def alter(path, fact):
    """Give another digest in place of one that is stored."""

    def other(text):
        return DIGEST.sub(lambda match: match[0][:-1] + ("0" if match[0][-1] != "0" else "1"), text)

    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
        (name,) = header
        text = header[name]
        if text.startswith("{"):
            told = json.loads(text)
            *outer, last = _places(told, fact)
            inner = told
            for name_of in outer:
                inner = inner[name_of]
            inner[last] = other(inner[last])
            text = json.dumps(told)
        else:
            text = other(text)
        save_file(load_file(path), path, metadata={name: text})
        return
    told = json.loads(path.read_text(encoding="utf-8"))
    *outer, last = _places(told, fact)
    inner = told
    for name in outer:
        inner = inner[name]
    inner[last] = other(inner[last])
    path.write_text(json.dumps(told), encoding="utf-8")


def _places(told, fact):
    """The names that lead to a fact; file names hold dots."""
    for name, entry in told.items():
        if name == fact:
            return [name]
        if fact.startswith(f"{name}.") and isinstance(entry, dict):
            return [name, *_places(entry, fact.removeprefix(f"{name}."))]
    raise KeyError(fact)


def seal_again(state):
    """Make the checksums of a state's files right, as one who alters it on purpose would."""
    meta = json.loads((state / "meta.json").read_text(encoding="utf-8"))
    meta["sha256"] = {name: sha256((state / name).read_bytes()).hexdigest() for name in meta["sha256"]}
    (state / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def run_of(saved, model):
    (run,) = saved.glob(f"{model}-toy-*")
    return run


def resume(saved, keys, file=None):
    run_recbole_llara(argv=[f"--resume={run_of(saved, 'TALLRec')}"])


def take_recommender(saved, keys, file=None):
    own = {} if "rec_checkpoint" in keys else DRAWN
    config = RunConfig("LLaRA", "toy", config_dict={**keys, **own})
    return prepare_recommender(config, prepare_data(config))


def take_proposals(saved, keys, file=None):
    config = RunConfig("LLaRA", "toy", config_dict={**keys, **DRAWN})
    with_proposals(config, prepare_data(config))


def compare_results(saved, keys, file=None):
    refuse_unlike([json.loads(path.read_text(encoding="utf-8")) for path in sorted(saved.glob("*/result.json"))])


def build_morec(saved, keys, file=None):
    values = {**{key: keys[key] for key in SHARED}, "text_encoder_path": "tiny"}
    config = RunConfig("MoRec", "toy", config_dict=values)
    build_model(config, prepare_data(config))


def load_run(saved, keys, file):
    load(saved / Path(file).parts[0])


def measure_run(saved, keys, file):
    """With the text encoder that is there; answers do without it."""
    own = {**{key: keys[key] for key in SHARED}, "text_encoder_path": "tiny", "checkpoint": str(saved / file)}
    run_recbole_llara("MoRec", "toy", config_dict=own)


# Which reading shows a difference, by what the table names.
READ = {
    "checkpoint.weights.read_checkpoint": {"recommenders": take_recommender, "": load_run},
    "recommender.stock.load_recommender": {"": measure_run},
    "model.weights.load_llm_recommender": {"": load_run},
    "serving.loaded.load": {"": load_run},
    "checkpoint.training_state.load_newest": {"": resume},
    "trainer.trainer.resume_checkpoint": {"": resume},
    "evaluator.report.refuse_unlike": {"": compare_results},
    "recommender.frozen.unseal": {"recommenders": take_recommender, "": load_run},
    "recommender.proposals.with_proposals": {"": take_proposals},
    "recommender.morec.cached_features": {"": build_morec},
}
assert {row.compared for row in STORED} >= READ.keys()
STORED_INSIDE = [row for row in STORED if row.compared in READ and row.fact != "name"]


@pytest.mark.parametrize("row", STORED_INSIDE, ids=lambda row: f"{row.files}:{row.fact}")
def test_a_digest_that_was_altered_is_noticed(row, saved, made, caplog):
    found = [place for place in digests(saved) if row in rows_of(*place)]
    if row.files.startswith("*/training_state"):
        newest = TrainingStates(run_of(saved, "TALLRec")).paths()[-1].name
        found = [place for place in found if newest in place[0]]
    if row.otherwise == "made again":  # what is made again is whole for the next one
        found = found[:1]
    assert found
    for file, fact in found:
        path = saved / file
        kept, action = path.read_bytes(), next(read for begin, read in READ[row.compared].items() if file.startswith(begin))
        if action is not resume:  # which leaves nothing to be resumed
            action(saved, made[1], file)
        alter(path, fact)
        if path.name == "training.json":
            seal_again(path.parent)
        # The cache's own digest of the file that is altered comes first: the recommender is trained again.
        if row.otherwise == "refused" and row.files != "recommenders/*/model.safetensors":
            with pytest.raises(UserError):
                action(saved, made[1], file)
        else:
            with caplog.at_level(logging.WARNING):
                action(saved, made[1], file)
            assert "damaged" in caplog.text or "altered" in caplog.text
        if path.exists():
            path.write_bytes(kept)


def test_the_file_of_candidates_that_was_altered_is_refused(saved, made):
    for path in saved.glob("candidates/*-test-*.tsv"):
        path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="was changed since it was written"):
        take_recommender(saved, made[1])


def test_a_recommender_given_by_its_folder_is_whole(saved, made):
    """By ``rec_checkpoint``, which names an entry of the cache and asks for no digest of what it depends on."""
    entry, _ = saved.glob("recommenders/SASRec-*")
    tensors = load_file(entry / "model.safetensors")
    with safe_open(entry / "model.safetensors", framework="pt") as file:
        header = file.metadata()
    tensors["item_embedding.weight"][5] += 1
    save_file(tensors, entry / "model.safetensors", metadata=header)
    for path in (entry, entry / "model.safetensors"):
        with pytest.raises(UserError, match="rec_checkpoint: .* is damaged"):
            take_recommender(saved, {**made[1], "rec_checkpoint": str(path)})


def test_a_run_takes_no_other_recommender_than_its_own(saved):
    """The one in its place is whole, but was trained otherwise."""
    run = run_of(saved, "LLaRA")
    shutil.copyfile(run_of(saved, "SASRec") / "checkpoint.safetensors", run / "recommender" / "model.safetensors")
    with pytest.raises(UserError, match="is not the recommender that"):
        load(run)
