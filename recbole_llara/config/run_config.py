"""RecBole's Config with our YAML layers, safe values and errors instead of silence.

Precedence, lowest first: RecBole's properties < overall.yaml < recommender.yaml (stock models) or
llm_recommender.yaml, llm/tiny.yaml (ours) < model/ < llm/tiny-MODEL.yaml < dataset/ < protocol/ < config files <
config dict < command line.
"""

import copy
import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.utils import InputType

from recbole_llara.config import keys, models, recbole_keys, settings
from recbole_llara.config.columns import read_header, title_column
from recbole_llara.config.secrets import without_secrets
from recbole_llara.config.settings import TRUST
from recbole_llara.config.validation import check_name
from recbole_llara.config.yaml_files import (
    ValueLoader,
    parse_arguments,
    parse_value,
    plain,
    property_files,
    read_properties,
    read_yaml,
)
from recbole_llara.utils.compat import name_numpy_types
from recbole_llara.utils.errors import UserError, nearest
from recbole_llara.utils.processes import launched, local_count, local_index

_CALLER = ("config_dict", "command line")
_PACKAGED_DATASET = "ml-100k"  # lies in the RecBole package
_DATASET_NAME = re.compile(r"\w[\w.+-]*")


class RunConfig(Config):
    """The configuration of one run: RecBole's steps one by one, and ours between them.

    Args:
        model: one of our models or a RecBole sequential one, by name or as a class; None = the key ``model``.
        dataset: ml-100k, or the name of a folder of ``data_path``; None = the key ``dataset``.
        config_file_list: YAML files, later ones over earlier ones.
        config_dict: values over those of the files; texts are read as YAML values, as RecBole would.
        argv: ``--key=value`` arguments over all others. ``sys.argv`` is never read.
        reads_data: whether the files of the dataset have to be there; a finished run answers without them.

    Raises:
        UserError: an unknown key, model, dataset, protocol or recommender, or a value of the wrong kind.

    Attributes:
        notes: what was settled between keys that contradict each other, for the log.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: Sequence[str | Path] | None = None,
        config_dict: Mapping[str, Any] | None = None,
        argv: Sequence[str] | None = None,
        *,
        reads_data: bool = True,
    ) -> None:
        self.notes: tuple[str, ...] = ()
        self.reads_data = reads_data
        name_numpy_types()
        self._init_parameters_category()
        # RecBole extends its module's own lists in place; a second Config would see the first one's keys.
        self.parameters = {category: list(names) for category, names in self.parameters.items()}
        self.yaml_loader = ValueLoader
        if isinstance(config_file_list, str | Path):
            raise UserError(f"config_file_list: found the text {str(config_file_list)!r}, expected a list of paths")
        given = [(str(path), read_yaml(path)) for path in config_file_list or ()]
        parsed = {key: parse_value(value) if isinstance(value, str) else value for key, value in (config_dict or {}).items()}
        given += zip(_CALLER, (parsed, parse_arguments(argv or ())), strict=True)
        self.external_config_dict = {key: value for _, values in given for key, value in values.items()}
        sources = {key: source for source, values in given for key in values}

        self._name_run(model, dataset)
        self._lay_layers(sources)
        final = self.final_config_dict = self._get_final_config_dict()
        self._settle(final)
        self._init_device()
        self._check_device(sources)
        self._set_train_neg_sample_args()
        for phase in ("valid", "test"):
            self._set_eval_neg_sample_args(phase)

        if final.get(TRUST) and sources.get(TRUST) not in _CALLER:
            raise UserError(
                f"{TRUST}: found True in {sources.get(TRUST)}, expected it on the command line or in the config dict: config "
                f"files are passed on, but the code of an LLM's folder runs only with your own consent; give --{TRUST}=True"
            )
        is_llm = models.is_llm_recommender(self.model)
        for kind in settings.COMMON if is_llm else (settings.DataSettings, settings.TrainingSettings):
            kind.from_config(self)
        if issubclass(self.model_class, ChecksConfig):
            self.model_class.check(self)
        if not is_llm and self.external_config_dict.get("fusion") not in (None, settings.NO_FUSION):
            raise UserError(
                f"fusion: found {self.external_config_dict['fusion']!r} with {self.model}, expected an LLM recommender, to whose scores "
                "those of its frozen recommender are added; a study adds any systems by the key fuses"
            )
        if is_llm:
            self.for_recommender()  # before anything is done for a recommender that cannot be

    def for_recommender(self) -> "RunConfig":
        """The configuration of this run's frozen recommender.

        It shares data, candidates, folders, device and seed with this run, and takes the run's ``rec_`` keys without their
        prefix; everything else is the stock model's own.
        """
        rec_model, given = self["rec_model"], self.external_config_dict
        shared, own = keys.SHARED_KEYS, keys.recommender_keys(rec_model)
        values = {key: value for key, value in given.items() if key in shared}
        prefixed = {key.removeprefix(keys.REC_PREFIX): value for key, value in given.items() if key.startswith(keys.REC_PREFIX)}
        values |= {key: value for key, value in prefixed.items() if key in own}
        try:
            return RunConfig(rec_model, self.dataset, config_dict=plain(values), reads_data=self.reads_data)
        except UserError as error:
            is_own = str(error).partition(":")[0] in own
            raise UserError(f"{keys.REC_PREFIX if is_own else f'rec_model {rec_model}: '}{error}") from error

    def redacted(self) -> "RunConfig":
        """A copy whose values hold no secrets, for logs."""
        other = copy.copy(self)
        other.final_config_dict = without_secrets(self.final_config_dict)
        return other

    def __str__(self) -> str:
        return Config.__str__(self.redacted())

    def _name_run(self, model: Any, dataset: Any) -> None:
        """Find ``model``, ``model_class`` and ``dataset``."""
        given = self.external_config_dict
        keys.refuse_old_names(given)
        models.load_plugins(given.get("plugins"))
        for key in {"model", "rec_model"} & given.keys():
            given[key] = models.name_of(given[key])
        self.model = models.name_of(given.get("model") if model is None else model)
        self.dataset = given.get("dataset") if dataset is None else dataset
        for key, value in (("model", self.model), ("dataset", self.dataset)):
            if not isinstance(value, str) or not value:
                raise UserError(f"{key}: found {value!r}, expected a name; give --{key}=NAME")
        self.model_class = models.resolve_model(self.model)
        if not _DATASET_NAME.fullmatch(self.dataset):  # such as ../secret
            raise UserError(
                f"dataset: found {self.dataset!r}, expected a folder's name of letters, digits and . _ + -; its parent is the "
                "key data_path"
            )

    def _lay_layers(self, sources: Mapping[str, str]) -> None:
        """Lay RecBole's files and ours over one another, and check names of keys and the model's hyper-parameters."""
        model, given, is_llm = self.model, self.external_config_dict, models.is_llm_recommender(self.model)
        inner = None  # the recommender that a model is, but for its item table
        if models.replaces_item_table(model):
            inner = models.checked_recommender({**models.model_defaults(model), **given}["rec_model"], has_other_table=True)
        base = models.recbole_base(model if inner is None else inner)
        base_class = self.model_class if base == model else models.resolve_model(base)
        self._load_internal_config_dict(base, base_class, self.dataset)
        layers, loss_type = self.internal_config_dict, self._value("loss_type")
        if loss_type != "BPR" and (loss_type is not None or getattr(base_class, "input_type", None) != InputType.PAIRWISE):
            layers["train_neg_sample_args"] = None  # the target is compared with all items
        layers.update(read_properties("overall"))
        layers.update(read_properties("llm_recommender" if is_llm else "recommender"))
        is_tiny = is_llm and {**layers, **models.model_defaults(model), **given}["llm_path"] == "tiny"
        layers.update(read_properties("llm/tiny") if is_tiny else {})
        layers.update({} if inner is None else models.model_defaults(inner))
        layers.update(models.model_defaults(model, is_tiny))
        protocol = self._value("protocol")
        check_name("protocol", protocol, property_files("protocol"))
        # RecBole loads user and item columns for the models that read them; a dataset's or protocol's own list adds to these.
        recbole_keys.check_column_lists("load_col", given.get("load_col"))
        for name in (f"dataset/{self.dataset}", f"protocol/{protocol}"):
            load_col = layers["load_col"] or {}
            layers.update(read_properties(name))
            layers["load_col"] = {**load_col, **(layers["load_col"] or {})}
        if settings.SPLITS[protocol] == settings.READY_MADE:
            self._name_columns()
        elif self.reads_data and not read_properties(f"dataset/{self.dataset}"):
            self._find_columns()
        self._fit_protocol(protocol)
        rec_model = models.checked_recommender(self._value("rec_model")) if is_llm else None
        keys.check_keys(sources, keys.known_keys(model, rec_model, inner))
        own = models.own_defaults(model).keys() if is_llm else keys.model_keys(model if inner is None else inner)
        recbole_keys.check_hyper_parameters(given, layers, own)

    def _value(self, key: str) -> Any:
        """A key's value, as far as the layers are laid."""
        return self.external_config_dict.get(key, self.internal_config_dict.get(key))

    def _name_columns(self) -> None:
        """Call the columns of ready-made windows as the run's ``*_FIELD`` keys and ``LIST_SUFFIX`` do."""
        user, item, suffix = map(self._value, ("USER_ID_FIELD", "ITEM_ID_FIELD", "LIST_SUFFIX"))
        names, layers = {"user_id": user, "item_id": item, "item_id_list": f"{item}{suffix}"}, self.internal_config_dict
        layers["load_col"] = {**layers["load_col"], "inter": [names.get(name, name) for name in layers["load_col"]["inter"]]}
        layers["alias_of_item_id"] = [names.get(name, name) for name in layers["alias_of_item_id"]]

    def _find_columns(self) -> None:
        """Load the time, and take for titles the column that is called so, of a dataset that no properties describe."""
        layers, given = self.internal_config_dict, self.external_config_dict
        separator, encoding = str(self._value("field_separator")), self._value("encoding") or "utf-8"
        folder, found = Path(str(self._value("data_path"))) / self.dataset, {}
        for suffix in ("inter", "item"):
            try:
                found[suffix] = read_header(folder / f"{self.dataset}.{suffix}", separator, encoding)
            except (LookupError, TypeError, ValueError, OSError):  # keys of a wrong kind are refused where they are checked
                return
        if "load_col" not in given:
            wanted = [self._value(key) for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")]
            if set(wanted) <= set(found["inter"]):
                layers["load_col"] = {**(layers["load_col"] or {}), "inter": wanted}
        if "title_field" not in given and (title := title_column(found["item"])):
            given["title_field"] = title  # the run's folder tells it, for answers without the file
            self.notes += (f"title_field: {title}, as {self.dataset}.item has no other column of titles",)

    def _fit_protocol(self, protocol: str) -> None:
        """Leave out the protocol's filters on columns that the dataset does not have; the user's own filters stay."""
        filters, loaded = self.internal_config_dict["val_interval"], (self._value("load_col") or {}).get("inter")
        if not filters or loaded is None or "val_interval" in self.external_config_dict:
            return
        if absent := [name for name in filters if name not in loaded]:
            kept = {name: interval for name, interval in filters.items() if name in loaded}
            self.internal_config_dict["val_interval"] = kept or None
            self.notes += (
                f"protocol {protocol} filters {', '.join(absent)}, which dataset {self.dataset} has not: all are kept",
            )

    def _settle(self, final: dict[str, Any]) -> None:
        """Check the keys of every run, before RecBole looks at them and fills in what follows from them."""
        if not self.reads_data:
            final["candidate_file"] = None
        for kind in recbole_keys.RECBOLES:
            kind.from_config(final)
        loss_type = None if hasattr(self.model_class, "input_type") else final.get("loss_type")
        recbole_keys.check_negatives(final["train_neg_sample_args"], loss_type)
        for key, kind in (("metrics", str), ("topk", int)):
            if isinstance(final[key], kind):  # RecBole takes one value for a list of one
                final[key] = [final[key]]
        names_one = import_module("recbole_llara.evaluator.answer").names_one_item(final["decoding"])
        if models.is_llm_recommender(self.model) and names_one and final["topk"] != [1]:
            self.notes += (f"decoding {final['decoding']} names one item a row: topk {final['topk']} becomes [1]",)
            final["topk"] = [1]
        asked = settings.EvaluationSettings.from_config(final)
        candidate_num = settings.DataProtocol.from_config(final).candidate_num
        if "topk" in self.external_config_dict and max(asked.topk) > candidate_num:  # our own default is one for all
            raise UserError(
                f"topk: found {max(asked.topk)}, expected at most candidate_num ({candidate_num}): there is no further place "
                "among the candidates; lower topk or raise candidate_num"
            )
        if asked.full_rank and settings.SPLITS[final["protocol"]] == settings.COLD_ITEMS:
            raise UserError(
                "full_rank: found True with protocol cold_items, whose targets no recommender has learned, so that it proposes none of them; "
                "expected False"
            )
        try:
            self._set_default_parameters()
        except (ValueError, TypeError) as error:
            raise UserError(f"configuration: {error}") from error
        if self.reads_data:
            _check_dataset_files(self.dataset, Path(final["data_path"]), final["benchmark_filename"])

    def _init_device(self) -> None:
        """Of a process that a launcher started, take the GPU of its own number among all or among ``gpu_id``'s."""
        final, count = self.final_config_dict, launched()
        if isinstance(final["gpu_id"], list):  # RecBole knows tuples only
            final["gpu_id"] = tuple(final["gpu_id"])
        if count > 1 and "gpu_id" not in self.external_config_dict:
            final["gpu_id"] = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(local_count())))
        super()._init_device()
        if count > 1 and final["device"].type == "cuda":
            final["device"] = torch.device("cuda", local_index())
        if not final["use_gpu"]:
            final["device"] = torch.device("cpu")  # RecBole looks at gpu_id only

    def _check_device(self, sources: Mapping[str, str]) -> None:
        """Refuse a GPU that the command line asks for and torch does not see; of a file or dict, which may go to any machine, note it."""
        final = self.final_config_dict
        asked = [key for key in ("gpu_id", "use_gpu") if key in sources]
        if not asked or not final["use_gpu"] or final["device"].type != "cpu":
            return
        found = f"{asked[0]}: found {final[asked[0]]!r}, but torch {torch.__version__} sees no such GPU"
        if self.reads_data and any(sources[key] == _CALLER[-1] for key in asked):
            raise UserError(
                f"{found}: install the torch wheel that fits the driver and see torch.cuda.device_count(), or give --use_gpu=False to "
                "compute on the CPU"
            )
        self.notes += (f"{found}: the CPU computes",)


def _check_dataset_files(dataset: str, folder: Path, benchmark: list[str] | None) -> None:
    """Refuse a dataset whose interactions do not lie in ``folder``; the message lists the datasets that are there."""
    wanted = [f"{dataset}.{part}.inter" for part in benchmark or ()] or [f"{dataset}.inter"]
    missing = [name for name in wanted if not (folder / name).is_file()]
    own = sorted(path.name for path in folder.glob("*.inter"))
    if missing and own:
        raise UserError(
            f"dataset: {str(folder)!r} holds {', '.join(own)}, expected {', '.join(missing)}; protocol windows reads "
            "ready-made splits, the other protocols one file"
        )
    if missing:
        parent = folder.parent
        there = [path.name for path in parent.iterdir() if any(path.glob("*.inter"))] if parent.is_dir() else []
        raise UserError(
            f"dataset: found {dataset!r}, expected {_PACKAGED_DATASET} or a folder with {missing[0]!r} in data_path "
            f"{str(parent)!r}; {nearest(dataset, [_PACKAGED_DATASET, *there])}"
        )


def check_titles(config: Any) -> None:
    """Refuse a run without ``title_field``, for a model that reads titles."""
    if not config["title_field"]:
        dataset = config["dataset"]
        file = Path(config["data_path"]) / f"{dataset}.item"
        absent = "" if file.is_file() else f" and no file {file}"
        raise UserError(
            f"title_field: found {config['title_field']!r}{absent}, expected a column of titles in {dataset}.item, which {config['model']} "
            f"reads: set title_field on the command line, in a config file or in properties/dataset/{dataset}.yaml"
        )


class ChecksConfig:
    """Put before a model's base class; ``RunConfig`` calls ``check`` as soon as all keys are settled."""

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuse, by a ``UserError``, keys that do not fit together; single values are checked already."""
