"""Running a study: one run for each of its arms, from an earlier call or now; where one fails, the rest are still run."""

import json
import logging
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from filelock import AcquireReturnProxy

from recbole_llara.config.keys import REC_PREFIX, SHARED_KEYS, WITHOUT_EFFECT, own_keys, recommender_keys, with_effect
from recbole_llara.config.models import is_llm_recommender, load_plugins, replaces_item_table, stock_models
from recbole_llara.config.run_config import RunConfig
from recbole_llara.config.settings import EARLIER, vectors_file
from recbole_llara.data.dataset import prepare_data
from recbole_llara.evaluator.answer import names_one_item
from recbole_llara.experiments.runner import Plan, duration, run_model
from recbole_llara.experiments.study_arms import Arm, FailedArm, FinishedArm, Outcome, arms_of
from recbole_llara.experiments.study_definition import EVALUATES, FUSES, Study
from recbole_llara.experiments.study_forecast import Work, is_worth_it, speed_of, work_of
from recbole_llara.experiments.study_fusion import fuse_systems
from recbole_llara.llm.loading import read_files
from recbole_llara.llm.source import embedded_llm_read, resolve_llm_path
from recbole_llara.prompt.template import template_texts
from recbole_llara.recommender.frozen import prepare_recommender, vectors_sha256
from recbole_llara.utils import __version__
from recbole_llara.utils.atomic import take_lock, write_text
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.hashing import facts_digest, file_sha256, json_ready

PATHS = ("run_dir", "result_file", "cases_file", "valid_cases_file", "checkpoint")  # those that a run has written
# Of a study's settings those that decide from which rows the recommender that its LLMs read has learned.
LEARNED = ("recommender_rows", "later_rows_share", "recommender_at_test")
LIKE = 2  # of the groups of arms the nearest: the same system, the same model
LOCAL = "local"  # api_base of a chat model that the study serves itself


class StudyRuns(Plan):
    """The runs of a study, ``fresh`` or taken from earlier calls; ``UserError`` where a system cannot take its keys."""

    kind = "Study"
    reuse_hint = " (--fresh runs them again)"

    def __init__(self, study: Study, fresh: bool = False) -> None:
        load_plugins(study.settings.get("plugins"))  # before any model is looked up
        self.study = study
        self.places: dict[Arm, Path] = {}  # where an arm's outcome is kept
        self._sha256_of: dict[Path, str] = {}  # of the data's files
        self._work: dict[Arm, Work] = {}  # of those that answer by a model
        self._expected: dict[Arm, float] = {}  # seconds, of those that were forecast
        self._fused = {name for system in study.systems for name in study.fused_in(system)}
        self._own_keys = {model: own_keys(model) for model in map(study.model_of, study.systems)}
        self._check_settings()
        for arm in arms_of(study):  # refuses wrong keys before any training time is spent
            self.places[arm] = self._place(arm)
        self.count = len(self.places)
        self._outcomes: dict[Arm, Outcome | None] = dict.fromkeys(self.places)
        for arm, place in self.places.items():
            if fresh:
                place.unlink(missing_ok=True)
            self._take_kept(arm)

    @property
    def outcomes(self) -> dict[Arm, Outcome]:
        """The outcomes so far, in the order of the arms."""
        return {arm: outcome for arm, outcome in self._outcomes.items() if outcome is not None}

    def check_llms(self) -> None:
        """Refuse an LLM that is not there or cannot be read, before any system is trained; a GGUF file is dequantised here."""
        wanted = [(arm, self._values(arm)) for arm in self._wanted()]
        llms = {
            (str(keys.get("llm_path", "tiny")), bool(keys.get("llm_trust_remote_code")))
            for arm, keys in wanted
            if self._is_llm(arm)
        }
        for llm_path, trusts in sorted(llms):
            read_files(llm_path, trusts)
        for encoder in sorted({str(keys["text_encoder_path"]) for _, keys in wanted if keys.get("text_encoder_path")}):
            resolve_llm_path(encoder, "text_encoder_path")

    def forecast(self) -> Iterator[str]:
        wanted = [arm for arm in self._wanted() if arm in self._work]
        for is_llm in (False, True):
            of_kind = [arm for arm in wanted if self._is_llm(arm) == is_llm]
            if any(
                one in self._work and self._work[one].training_rows and self._is_llm(one) == is_llm for one in self._known()
            ):
                continue  # an earlier call tells more
            configs = ((arm, RunConfig(self.study.model_of(arm.system), config_dict=self._values(arm))) for arm in of_kind)
            arm, config = next((pair for pair in configs if is_worth_it(pair[1], self._work[pair[0]])), (None, None))
            if arm is None:
                continue
            yield f"{arm.system}: timing optimiser steps ..."
            try:
                speed = speed_of(config, self._values(arm))
            except Exception:  # noqa: BLE001 - whatever it fails by, its own run tells
                continue
            self._expected |= {other: speed.seconds(self._work[other]) for other in of_kind}
            step = speed.seconds_a_row * config["train_batch_size"]
            yield f"{arm.system}: {step:.2g} s a step of {config['train_batch_size']} rows, so about {duration(self._expected[arm])} in all"
        if self._expected and (left := self.seconds_left()) is not None:
            yield f"all runs: about {duration(left)}; after Ctrl-C the same command resumes them"

    def claim(self) -> tuple[Arm, AcquireReturnProxy] | None:
        wanted = self._wanted()
        for arm in sorted(wanted, key=lambda arm: self._would_wait(arm, wanted)):
            place = self.places[arm]
            place.parent.mkdir(parents=True, exist_ok=True)
            if (
                any(source in wanted for source in self._sources(arm))
                or (lock := take_lock(place.with_name(f".{place.name}.lock"))) is None
            ):
                continue
            if not self._take_kept(arm):
                return arm, lock
            lock.lock.release()  # another process has finished it meanwhile
        return None

    def perform(self, arm: Arm) -> str:
        outcome = self.outcome_of(arm)
        self.keep(arm, outcome)
        if isinstance(outcome, FailedArm):
            return f"FAILED: {outcome.message}"
        return f"HitRatio@1 {outcome.result['correct'] / outcome.result['n']:.4f}, {outcome.seconds:.0f} s"

    def keep(self, arm: Arm, outcome: Outcome) -> None:
        """Take the outcome of an arm, and write it where another call finds it; a failed one is run again by the next call."""
        self._outcomes[arm] = outcome
        if isinstance(outcome, FinishedArm):
            write_text(self.places[arm], json.dumps(vars(outcome), indent=2))

    def outcome_of(self, arm: Arm) -> Outcome:
        """Run an arm."""
        started = perf_counter()
        try:
            written = self._fuse(arm) if self.study.fused_in(arm.system) else self._run(arm, self._checkpoint(arm))
        except UserError as error:
            return FailedArm(str(error))
        except Exception as error:  # noqa: BLE001 - whatever an arm fails by, the others are still wanted
            logging.getLogger().error(traceback.format_exc())
            return FailedArm(f"{type(error).__name__}: {error}")
        result = json.loads(Path(written["result_file"]).read_text(encoding="utf-8"))
        paths = {key: written[key] for key in PATHS if key in written}
        return FinishedArm(result, paths, round(perf_counter() - started, 1))

    def _run(self, arm: Arm, checkpoint: Mapping[str, str]) -> dict[str, Any]:
        """Train the model of an arm, or evaluate the checkpoint that is named; returns what the run returns."""
        values = {**self._values(arm), **checkpoint}
        with ExitStack() as stack:
            if values.get("api_base") == LOCAL:
                from recbole_llara.model.chat_llm import served

                values |= stack.enter_context(served(str(self.study.settings.get("llm_path", "tiny"))))
            return run_model(self.study.model_of(arm.system), arm.dataset, values)

    def _fuse(self, arm: Arm) -> dict[str, str]:
        """Add the systems of an arm that have answered; returns the paths of what was written."""
        sources = self._sources(arm)
        for source in sources:
            if not isinstance(self._outcomes[source], FinishedArm):
                raise UserError(f"{arm} adds the answers of {source}, which failed")
        files = {}
        for source in sources:
            paths = self._with_valid_cases(source).paths
            files[source.system] = {"valid": paths["valid_cases_file"], "test": paths["cases_file"]}
        config = RunConfig(self.study.model_of(sources[0].system), config_dict=self._values(sources[0]))
        return fuse_systems(arm.system, config, files)

    def _with_valid_cases(self, arm: Arm) -> FinishedArm:
        """A finished arm with its answers to the validation rows; an earlier call's that kept none is evaluated again."""
        outcome = self._outcomes[arm]
        if Path(outcome.paths.get("valid_cases_file", "")).is_file():
            return outcome
        again = {"checkpoint": outcome.paths["checkpoint"]} if Path(outcome.paths["checkpoint"]).exists() else {}
        recommender = outcome.result.get("recommender")
        if again and recommender and vectors_file(self._values(arm).get("item_embeddings")) is None:
            again["rec_checkpoint"] = recommender["path"]
        written = self._run(arm, again)
        outcome = replace(outcome, paths={**outcome.paths, "valid_cases_file": written["valid_cases_file"]})
        self.keep(arm, outcome)
        return outcome

    def finished(self) -> list[Outcome]:
        return list(self.outcomes.values())

    def is_over(self) -> bool:
        return not self._wanted()

    def seconds_left(self) -> float | None:
        known = self._known()
        left = [self._seconds_of(arm, known) for arm in self._wanted()]
        return sum(left) if None not in left else None

    def _is_llm(self, arm: Arm) -> bool:
        return is_llm_recommender(self.study.model_of(arm.system))

    def _known(self) -> dict[Arm, float]:
        return {arm: one.seconds for arm, one in self._outcomes.items() if isinstance(one, FinishedArm)}

    def _seconds_of(self, arm: Arm, known: Mapping[Arm, float]) -> float | None:
        """What arms like this took; before there are any, what was forecast, corrected by how forecasts of its kind came out."""
        like = self._seconds_of_like(arm, known, LIKE)
        if like is None and arm in self._expected:
            kind = self._is_llm(arm)
            pairs = [
                (known[one], was) for one, was in self._expected.items() if was and one in known and self._is_llm(one) == kind
            ]
            return self._expected[arm] * (sum(seconds for seconds, _ in pairs) / sum(was for _, was in pairs) if pairs else 1)
        if like is None and self._expected and self.study.fused_in(arm.system):
            return 0.0  # answers are added
        source = self._source(arm)
        if like is None and source in known and (passes := self._work[source].passes):
            return known[source] * self._work[arm].passes / passes
        return like if like is not None else self._seconds_of_like(arm, known)

    def _seconds_of_like(self, arm: Arm, known: Mapping[Arm, float], levels: int | None = None) -> float | None:
        """The mean seconds of its system, else of its model, else of its kind of model, else of all; None where none is known.

        Runs that train and runs that evaluate what another has trained are told apart, except among "all".

        Args:
            levels: so many of these groups are looked at, the nearest; None = all.
        """

        def groups(one: Arm) -> list[Any]:
            model = self.study.model_of(one.system)
            kinds = (one.system, model, is_llm_recommender(model))
            trains = self._source(one) is None
            return [*((trains, kind) for kind in kinds), trains, None]

        for level, kind in enumerate(groups(arm)[:levels]):
            if like := [seconds for one, seconds in known.items() if groups(one)[level] == kind]:
                return fmean(like)
        return None

    def _wanted(self) -> list[Arm]:
        """The arms that have no outcome yet."""
        return [arm for arm, outcome in self._outcomes.items() if outcome is None]

    def _take_kept(self, arm: Arm) -> bool:
        """Take the outcome of an arm that an earlier call or another process has finished, if there is one."""
        place = self.places[arm]
        if not place.is_file():
            return False
        finished = FinishedArm(**json.loads(place.read_text(encoding="utf-8")))
        if not Path(finished.paths["cases_file"]).is_file():
            return False
        self._outcomes[arm] = finished
        return True

    def _values(self, arm: Arm) -> dict[str, Any]:
        """The keys of an arm's run, without those that name the checkpoint that it evaluates."""
        model = self.study.model_of(arm.system)
        taken = {key: self.study.settings[name] for name, key in self._taken(model).items()}
        kept = {"keep_valid_cases": True} if arm.system in self._fused else {}  # for those that add them
        asked = {"dataset": arm.dataset, "seed": arm.seed, "candidate_seed": arm.candidate_seed}
        return {**taken, **kept, **asked, **self.study.keys_of(arm.system)}

    def _taken(self, model: str) -> dict[str, str]:
        """Of the study's settings those that a model takes -> as which key.

        An LLM takes all but what other models of the study alone have, another model those that it shares with an LLM, and its own;
        a model that is trained as a recommender takes the ``rec_`` keys too, without their prefix.
        """
        settings = self._settings_of(model)
        if is_llm_recommender(model):
            return {key: key for key in settings}
        same = SHARED_KEYS | self._own_keys[model] | {"max_eval_rows", "keep_valid_cases"}
        if replaces_item_table(model):  # by what it reads of the items, which is what an LLM reads
            same |= {"item_fields"}
        names = {key: key for key in same}
        if model in stock_models() or replaces_item_table(model):
            names |= {f"{REC_PREFIX}{key}": key for key in recommender_keys(model) - {"max_eval_rows"}}
        return {key: names[key] for key in settings if key in names}

    def _check_settings(self) -> None:
        """Refuse a setting that changes nothing: no system takes it, or each that does has its own."""
        study = self.study
        run = {system: study.model_of(system) for system in study.systems if not study.fused_in(system)}
        taken = {system: self._taken(model) for system, model in run.items()}
        recommenders = frozenset().union(*(recommender_keys(model) for model in run.values() if model in stock_models()))
        for key in study.settings.keys() - WITHOUT_EFFECT - {"plugins"}:
            own = [names[key] in study.keys_of(system) for system, names in taken.items() if key in names]
            if not own:
                near = nearest(key, {*recommenders, *(REC_PREFIX + name for name in recommenders)})
                hint = f"expected {REC_PREFIX}{key} for its recommenders" if key in recommenders else near
                raise UserError(f"{key}: found {study.settings[key]!r}, but no system of the study takes it; {hint}")
            if all(own):
                raise UserError(
                    f"{key}: found {study.settings[key]!r}, but every system of the study that takes it has its own; "
                    "expected another key, or a copy of the study's file with other systems"
                )

    def _settings_of(self, model: str) -> dict[str, Any]:
        """The study's settings without those that other models of it alone have."""
        others = frozenset().union(*self._own_keys.values()) - self._own_keys.get(model, frozenset())
        return {key: value for key, value in self.study.settings.items() if key not in others}

    def _sources(self, arm: Arm) -> list[Arm]:
        """The arms whose outcomes this one reads."""
        if fused := self.study.fused_in(arm.system):
            return [replace(arm, system=name) for name in fused]
        source = self._source(arm)
        return [] if source is None else [source]

    def _would_wait(self, arm: Arm, wanted: Sequence[Arm]) -> bool:
        """Whether an arm reads a recommender that another one, perhaps of another process, has not trained yet."""
        if not self._is_llm(arm):
            return False
        read = (arm.dataset, arm.seed, self._rec_model(arm.system))
        trains = (one for one in wanted if self._source(one) is None)
        return any((one.dataset, one.seed, self.study.model_of(one.system)) == read for one in trains)

    def _rec_model(self, system: str) -> str:
        """The recommender that an LLM system reads."""
        return self.study.keys_of(system).get("rec_model", self.study.settings.get("rec_model", "SASRec"))

    def _source(self, arm: Arm) -> Arm | None:
        """The arm whose checkpoint this one evaluates; None where it trains, adds others' answers, or has nothing to learn."""
        keys = self.study.systems[arm.system]
        if FUSES in keys or (EVALUATES not in keys and not arm.is_draw):
            return None
        return Arm(keys.get(EVALUATES, arm.system), arm.dataset, arm.seed, self.study.candidate_seed)

    def _checkpoint(self, arm: Arm) -> dict[str, str]:
        """The keys that name what an arm evaluates instead of training; none where it trains."""
        study, source = self.study, self._source(arm)
        if source is None:
            if (reader := self._reader(arm)) is None:
                return {}
            model = study.model_of(arm.system)
            own = {"dataset": arm.dataset, "seed": arm.seed, "candidate_seed": study.candidate_seed, "rec_model": model}
            shared = {
                key: value for key, value in study.keys_of(reader).items() if key in SHARED_KEYS or key.startswith(REC_PREFIX)
            }
            config = RunConfig("LLaRA", config_dict={**self._settings_of("LLaRA"), **shared, **own})
            return {"checkpoint": str(prepare_recommender(config, prepare_data(config)).weights)}
        trained = self._outcomes.get(source)
        if not isinstance(trained, FinishedArm):
            raise UserError(f"{arm} evaluates what {source} trains, which failed")
        values: dict[str, str] = {}
        if Path(trained.paths["checkpoint"]).exists():  # a system that learns nothing has none
            values["checkpoint"] = trained.paths["checkpoint"]
        recommender = trained.result.get("recommender")
        if arm.is_draw and recommender and vectors_file(self._values(arm).get("item_embeddings")) is None:
            values["rec_checkpoint"] = recommender["path"]
        return values

    def _reader(self, arm: Arm) -> str | None:
        """The first LLM system that reads the recommender that an arm is, which is then evaluated as trained for it; None = none does.

        A system with keys of its own is another recommender than an LLM reads, as is one that is given histories of another length.
        """
        study, model = self.study, self.study.model_of(arm.system)
        if study.keys_of(arm.system):
            return None
        for name in study.systems:
            if is_llm_recommender(study.model_of(name)) and self._rec_model(name) == model:
                lengths = {self._history_length(replace(arm, system=one)) for one in (name, arm.system)}
                if len(lengths) == 1:
                    return name
        return None

    def _history_length(self, arm: Arm) -> int:
        """How many items of a history an arm is given."""
        return RunConfig(self.study.model_of(arm.system), config_dict=self._values(arm))["MAX_ITEM_LIST_LENGTH"]

    def _place(self, arm: Arm) -> Path:
        """Where an arm's outcome is kept; the name covers all that its result depends on except the code."""
        folder = Path(str(self.study.settings["checkpoint_dir"])) / "studies" / "finished"
        sources = self._sources(arm)
        if self.study.fused_in(arm.system):
            self._check_ranking(arm, sources)
            facts = {"fuses": {source.system: self.places[source].name for source in sources}, "version": __version__}
            return folder / f"{FUSES}-{facts_digest(json_ready({**facts, 'name': arm.system}))}.json"
        model = self.study.model_of(arm.system)
        facts = {"model": model, "keys": self._facts(arm), "version": __version__}
        if sources:
            facts["evaluates"] = self.places[sources[0]].name
        elif self._reader(arm) is not None and (
            rows := {key: self.study.settings[key] for key in LEARNED if key in self.study.settings}
        ):
            facts["learned"] = rows
        return folder / f"{model}-{facts_digest(json_ready(facts))}.json"

    def _check_ranking(self, arm: Arm, sources: Sequence[Arm]) -> None:
        """Refuse to add systems that rank nothing."""
        for source in sources:
            model = self.study.model_of(source.system)
            decoding = self._values(source).get("decoding", "score") if is_llm_recommender(model) else "score"
            if model == "ChatLLM" or names_one_item(decoding):
                shown = "chat" if model == "ChatLLM" else decoding
                raise UserError(
                    f"{arm.system} fuses {source.system}, which ranks nothing under decoding {shown}; expected systems "
                    "that have scores of all candidates, an LLM by decoding score"
                )

    def _facts(self, arm: Arm) -> dict[str, Any]:
        """Every key of an arm as its run sees it, those of its recommender, the data's files, the prompts of its domain."""
        model, values = self.study.model_of(arm.system), self._values(arm)
        is_local = values.get("api_base") == LOCAL  # the chat model that the study will serve has no address yet
        address = {"api_base": "http://127.0.0.1:9/v1", "api_model": "none", "api_key_env": ""} if is_local else {}
        try:
            config = RunConfig(model, config_dict={**values, **address})
        except UserError as error:
            raise UserError(f"{arm.system} on {arm.dataset}: {error}") from error
        if not config["keep_cases"]:
            raise UserError(
                f"{arm.system} on {arm.dataset}: keep_cases: found False, expected True: a study compares answers row by row"
            )
        is_trained = self._source(arm) is None
        self._work[arm] = work_of(config, is_trained)
        if is_trained and self._reader(arm) is not None and self.study.settings.get("recommender_rows") == EARLIER:
            again = self._work[arm].training_rows  # on the earlier rows first
            self._work[arm] = replace(self._work[arm], training_rows=2 * again)
        configs = {"run": config.final_config_dict, "recommender": {}}
        if is_llm_recommender(model):
            configs["recommender"] = config.for_recommender().final_config_dict
        facts: dict[str, Any] = {kind: with_effect(values) for kind, values in configs.items()}
        if is_local:
            facts["served_llm"] = str(self.study.settings.get("llm_path", "tiny"))
        if embedded := embedded_llm_read({"llm_path": facts["served_llm"]} if is_local else facts["run"]):
            facts["embedded_llm"] = embedded
        files = sorted(path for path in Path(config["data_path"]).iterdir() if path.is_file())
        self._sha256_of |= {path: file_sha256(path) for path in files if path not in self._sha256_of}
        facts["files"] = [(path.name, self._sha256_of[path]) for path in files]
        facts["prompts"] = template_texts(config["domain"], config["prompt_file"])
        vectors = vectors_file(config["item_embeddings"])
        facts["vectors"] = None if vectors is None else vectors_sha256(vectors)
        return facts
