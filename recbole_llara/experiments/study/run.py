"""Running a study: its arms one after another, each from an earlier call or now; a failed one is noted and the rest go on.

Several processes may run studies over one folder: each arm is run by the process that holds its lock, and the others take
its outcome. A lock ends with its process, however that ends.
"""

import hashlib
import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

from filelock import FileLock, Timeout

from recbole_llara.checkpoint.run_folder import write_atomically
from recbole_llara.config.keys import REC_PREFIX, WITHOUT_EFFECT, recommender_keys, shared_keys
from recbole_llara.config.models import is_llm_recommender, replaces_item_table, stock_models
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import vectors_file
from recbole_llara.data.dataset import prepare_data
from recbole_llara.experiments.study.arms import Arm, Entry, Failure, arms_of
from recbole_llara.experiments.study.definition import EVALUATES, Study
from recbole_llara.experiments.study.progress import Progress
from recbole_llara.llm.loading import TINY_LLAMA_DIR
from recbole_llara.prompt.template import template_texts
from recbole_llara.quick_start import run_recbole_llara
from recbole_llara.recommender.frozen import WEIGHTS, prepare_recommender
from recbole_llara.recommender.vectors import vectors_sha256
from recbole_llara.trainer.stock import train_stock
from recbole_llara.utils.digests import json_ready
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.version import __version__

PATHS = ("run_dir", "result_file", "cases_file", "checkpoint")
LOCAL = "local"  # api_base of a chat model that the study serves itself
FINISHED = "finished"
LOOK_AGAIN = 1.0  # seconds, while other processes run all arms that are left


class StudyRun:
    """A study as it is being run.

    Args:
        study: what is compared.
        fresh: whether to run arms that an earlier call finished.
    """

    def __init__(self, study: Study, fresh: bool = False) -> None:
        self.study = study
        self.fresh = fresh
        self.outcomes: dict[Arm, Entry | Failure] = {}
        self._keys: dict[Arm, dict[str, Any]] = {}

    def check(self) -> None:
        """Refuse keys that a system cannot take, before any training time is spent.

        Raises:
            UserError: the keys of some system; its name stands before the message.
        """
        for dataset in self.study.datasets:
            for system in self.study.systems:
                try:
                    self._config(
                        self.study.model_of(system), self._values(Arm(system, dataset, self.study.seeds[0], self.study.asked))
                    )
                except UserError as error:
                    raise UserError(f"{system} on {dataset}: {error}") from error

    def run(self) -> dict[Arm, Entry | Failure]:
        """Run every arm; Ctrl-C passes through, and what is finished is kept."""
        self.check()
        arms = arms_of(self.study)
        for arm in arms if self.fresh else ():
            self._place(arm).unlink(missing_ok=True)
        self.outcomes = {arm: kept for arm in arms if (kept := self._kept(arm)) is not None}
        progress = Progress(len(arms))
        progress.reused(len(self.outcomes))
        while wanted := [arm for arm in arms if arm not in self.outcomes]:
            with self._next(wanted) as arm:
                outcome: Entry | Failure | None = self._kept(arm)
                if outcome is None:
                    progress.begin(str(arm), self._seconds_left(wanted))
                    outcome = self._attempt(arm)
                self.outcomes[arm] = outcome
                progress.end(str(arm), self._verdict(outcome))
        return {arm: self.outcomes[arm] for arm in arms}

    @contextmanager
    def _next(self, wanted: Sequence[Arm]) -> Iterator[Arm]:
        """The first arm that can be run and that no other process is running, under its lock; waits for one."""
        while True:
            for arm in wanted:
                if self._source(arm) in wanted:
                    continue
                place = self._made_place(arm)
                try:
                    held = FileLock(place.with_name(f".{place.name}.lock")).acquire(timeout=0)
                except Timeout:
                    continue
                with held:
                    yield arm
                return
            sleep(LOOK_AGAIN)

    def run_arm(self, arm: Arm) -> Entry:
        """One arm, run now; what it evaluates must have been run."""
        started = perf_counter()
        model, values = self.study.model_of(arm.system), self._values(arm)
        with self._served(values):
            values |= self._checkpoint(arm)
            if is_llm_recommender(model) and "checkpoint" not in values:  # one that a killed call has begun goes on
                values["resume"] = "auto"
            written = run_recbole_llara(model=model, config_dict=values)
        paths = {key: written[key] for key in PATHS}
        result = json.loads(Path(paths["result_file"]).read_text(encoding="utf-8"))
        entry = Entry(result, paths, round(perf_counter() - started, 1))
        write_atomically(self._made_place(arm), lambda file: json.dump(vars(entry), file, indent=2))
        return entry

    def _attempt(self, arm: Arm) -> Entry | Failure:
        try:
            return self.run_arm(arm)
        except UserError as error:
            return Failure(str(error))
        except Exception as error:  # noqa: BLE001 - whatever one arm breaks by, the others are still wanted
            logging.getLogger().error(traceback.format_exc())
            return Failure(f"{type(error).__name__}: {error}")

    # --- what an arm is run with ---------------------------------------------------------------

    def _values(self, arm: Arm) -> dict[str, Any]:
        """Its keys, less those of the checkpoint that it evaluates."""
        settings = {
            **self.study.settings,
            "dataset": arm.dataset,
            "seed": arm.seed,
            "candidate_seed": arm.candidate_seed,
        }
        return {**settings_for(self.study.model_of(arm.system), settings), **self.study.keys_of(arm.system)}

    @contextmanager
    def _served(self, values: dict[str, Any]) -> Iterator[None]:
        """Where a chat model is to be served by the study, the server, and its address among the values."""
        with ExitStack() as stack:
            if values.get("api_base") == LOCAL:
                from recbole_llara.model.chat.server import served

                server = stack.enter_context(served(str(self.study.settings.get("llm_path", "tiny"))))
                values |= {"api_base": server.api_base, "api_model": server.model, "api_key_env": ""}
            yield

    def _source(self, arm: Arm) -> Arm | None:
        """The arm whose checkpoint this one evaluates; None where it trains or learns nothing."""
        keys = self.study.systems[arm.system]
        if EVALUATES not in keys and not arm.is_draw:
            return None
        return Arm(keys.get(EVALUATES, arm.system), arm.dataset, arm.seed, self.study.asked)

    def _checkpoint(self, arm: Arm) -> dict[str, str]:
        """The keys that name what an arm evaluates instead of training; none where it trains."""
        source = self._source(arm)
        if source is not None:
            return self._trained(source, arm)
        model = self.study.model_of(arm.system)
        if model not in self._recommenders():
            return {}
        settings = {**self.study.settings, "dataset": arm.dataset, "seed": arm.seed, "candidate_seed": self.study.asked}
        config = RunConfig("LLaRA", config_dict={**settings, "rec_model": model})
        return {"checkpoint": str(prepare_recommender(config, prepare_data(config), train_stock).path / WEIGHTS)}

    def _trained(self, source: Arm, arm: Arm) -> dict[str, str]:
        """The checkpoint of another arm, and of the recommender whose embeddings it reads."""
        entry = self.outcomes.get(source)
        if not isinstance(entry, Entry):
            raise UserError(f"{arm} evaluates what {source} trains, which failed")
        values: dict[str, str] = {}
        if Path(entry.paths["checkpoint"]).exists():  # a system that learns nothing has none
            values["checkpoint"] = entry.paths["checkpoint"]
        recommender = entry.result.get("recommender")
        if arm.is_draw and recommender and vectors_file(self._values(arm).get("item_embeddings")) is None:
            values["rec_checkpoint"] = str(Path(recommender["path"]) / WEIGHTS)
        return values

    def _recommenders(self) -> frozenset[str]:
        """The stock models whose item embeddings a system reads: they are run as trained for it."""
        study = self.study
        default = study.settings.get("rec_model", "SASRec")
        ours = [name for name in study.systems if is_llm_recommender(study.model_of(name))]
        return frozenset(study.keys_of(name).get("rec_model", default) for name in ours)

    # --- what is finished ----------------------------------------------------------------------

    def _place(self, arm: Arm) -> Path:
        """Where an arm's outcome is kept, by all that its result depends on but the code."""
        model = self.study.model_of(arm.system)
        facts: dict[str, Any] = {"model": model, "keys": self._resolved(arm), "version": __version__, "llm": _tiny_sha256()}
        source = self._source(arm)
        if source is not None:
            facts["evaluates"] = self._place(source).name
        folder = Path(str(self.study.settings["checkpoint_dir"])) / "studies" / FINISHED
        digest = hashlib.sha256(json.dumps(json_ready(facts), sort_keys=True).encode()).hexdigest()[:16]
        return folder / f"{model}-{digest}.json"

    def _made_place(self, arm: Arm) -> Path:
        place = self._place(arm)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _resolved(self, arm: Arm) -> dict[str, Any]:
        """Every key of an arm as its run will see it, with those of its recommender and the prompts of its domain."""
        if arm not in self._keys:
            model, values = self.study.model_of(arm.system), self._values(arm)
            config = self._config(model, values)
            keys: dict[str, Any] = {"run": config.final_config_dict}
            if is_llm_recommender(model):
                keys["recommender"] = config.for_recommender().final_config_dict
            if values.get("api_base") == LOCAL:
                keys["served_llm"] = str(self.study.settings.get("llm_path", "tiny"))
            files = sorted(path for path in Path(config["data_path"]).iterdir() if path.is_file())
            keys["files"] = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
            keys["prompts"] = template_texts(config["domain"], config["prompt_file"])
            vectors = vectors_file(config["item_embeddings"])
            keys["vectors"] = None if vectors is None else vectors_sha256(vectors)
            for kind in ("run", "recommender"):
                keys[kind] = {key: value for key, value in keys.get(kind, {}).items() if key not in WITHOUT_EFFECT}
            self._keys[arm] = keys
        return self._keys[arm]

    @staticmethod
    def _config(model: str, values: Mapping[str, Any]) -> RunConfig:
        """The configuration of an arm; a chat model that the study will serve has no address yet."""
        address = {"api_base": "http://127.0.0.1:9/v1", "api_model": "none", "api_key_env": ""}
        is_local = values.get("api_base") == LOCAL
        return RunConfig(model, config_dict={**values, **(address if is_local else {})})

    def _kept(self, arm: Arm) -> Entry | None:
        place = self._place(arm)
        if not place.is_file():
            return None
        entry = Entry(**json.loads(place.read_text(encoding="utf-8")))
        return entry if Path(entry.paths["cases_file"]).is_file() else None

    # --- what is told --------------------------------------------------------------------------

    def _verdict(self, outcome: Entry | Failure) -> str:
        if isinstance(outcome, Failure):
            return f"FAILED: {outcome.message}"
        return f"HitRatio@1 {outcome.result['correct'] / outcome.result['n']:.4f}, {outcome.seconds:.0f} s"

    def _seconds_left(self, arms: Sequence[Arm]) -> float | None:
        """What these arms will take, by what like ones took; None where nothing is known."""
        known = {arm: entry.seconds for arm, entry in self.outcomes.items() if isinstance(entry, Entry)}
        if not known:
            return None
        return sum(self._like(arm, known) for arm in arms)

    def _like(self, arm: Arm, known: Mapping[Arm, float]) -> float:
        """The mean seconds of the arms most like one: of its system, else of its model, else of all."""
        model = self.study.model_of(arm.system)
        for is_like in (
            lambda other: other.system == arm.system,
            lambda other: self.study.model_of(other.system) == model,
            lambda other: is_llm_recommender(self.study.model_of(other.system)) == is_llm_recommender(model),
            lambda other: True,
        ):
            seconds = [value for other, value in known.items() if other.is_draw == arm.is_draw and is_like(other)]
            if seconds:
                return sum(seconds) / len(seconds)
        return sum(known.values()) / len(known)


def settings_for(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a study's settings, what a model takes: an LLM all of them, another what it shares with an LLM.

    A model that learns as a recommender does takes the ``rec_`` keys besides, without their prefix.
    """
    if is_llm_recommender(model):
        return dict(settings)
    values = {key: value for key, value in settings.items() if key in shared_keys() | {"dataset", "max_eval_rows"}}
    if model in stock_models() or replaces_item_table(model):
        prefixed = {key.removeprefix(REC_PREFIX): value for key, value in settings.items() if key.startswith(REC_PREFIX)}
        values |= {key: value for key, value in prefixed.items() if key in recommender_keys(model) - {"max_eval_rows"}}
    return values


@cache
def _tiny_sha256() -> str | None:
    """Digest of the embedded LLM."""
    weights = TINY_LLAMA_DIR / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else None
