"""RecBole's Config with our YAML layers, safe values and errors instead of silence.

Precedence, lowest first: RecBole's properties < overall.yaml < recommender.yaml (stock models) or
llm_recommender.yaml, llm/tiny.yaml (ours) < model/ < llm/tiny-MODEL.yaml < dataset/ < protocol/ < config files <
config dict < command line.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.utils import InputType

from recbole_llara.config.checks import (
    check_dataset_files,
    check_metrics,
    check_paths,
    check_topk,
    checked_dataset,
    checked_protocol,
    checked_recommender,
)
from recbole_llara.config.keys import (
    REC_PREFIX,
    check_keys,
    known_keys,
    model_keys,
    recommender_keys,
    refuse_old_names,
    shared_keys,
)
from recbole_llara.config.models import (
    is_llm_recommender,
    lineage,
    model_defaults,
    name_of,
    own_defaults,
    recbole_base,
    replaces_item_table,
    resolve_model,
)
from recbole_llara.config.plugins import load_plugins
from recbole_llara.config.recbole_keys import check_column_lists, check_hyper_parameters, check_recbole_keys
from recbole_llara.config.secrets import without_secrets
from recbole_llara.config.settings import (
    READY_MADE,
    SPLITS,
    TRUST,
    DataProtocol,
    DataSettings,
    LLMSettings,
    OptimSettings,
    PromptSettings,
    RecommenderSettings,
    TrainingSettings,
)
from recbole_llara.config.yaml_files import PROPERTIES, PlainText, ValueLoader, parse_arguments, parse_value, read_yaml
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.processes import launched, local_count, local_index
from recbole_llara.utils.protocols import ChecksConfig

CALLER_DICT, CALLER_LINE = "config_dict", "command line"


class RunConfig(Config):
    """The configuration of one run.

    Args:
        model: one of our models or a RecBole sequential one, by name or as a class; None = the key ``model``.
        dataset: ml-100k, or the name of a folder of ``data_path``; None = the key ``dataset``.
        config_file_list: YAML files, later ones over earlier ones.
        config_dict: values over those of the files; texts are read as YAML values, as RecBole would.
        argv: ``--key=value`` arguments over all others. ``sys.argv`` is never read.

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
    ) -> None:
        import_module("recbole_llara.evaluator.ranking").register_metrics()  # RecBole looks them up while it is built
        self._argv = tuple(argv or ())
        self._sources: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()
        super().__init__(model, dataset, config_file_list, config_dict)
        source = self._sources.get(TRUST)
        if self.final_config_dict.get(TRUST) and source not in (CALLER_DICT, CALLER_LINE):
            raise UserError(
                f"{TRUST}: found True in {source}, expected it on the command line or in the config dict: files are passed on, and "
                f"whoever lets code of an LLM's folder run has to say so; give --{TRUST}=True"
            )
        if not self.final_config_dict["use_gpu"]:
            self.final_config_dict["device"] = torch.device("cpu")  # RecBole looks at gpu_id only
        ours = (RecommenderSettings, LLMSettings, PromptSettings, OptimSettings)
        for settings in (DataSettings, *(ours if is_llm_recommender(self.model) else (TrainingSettings,))):
            settings.from_config(self)
        if issubclass(self.model_class, ChecksConfig):
            self.model_class.check(self)
        check_paths(self.final_config_dict)
        if is_llm_recommender(self.model):
            self.for_recommender()  # before anything is done for a recommender that cannot be

    def for_recommender(self) -> "RunConfig":
        """The configuration of this run's frozen recommender.

        It shares data, candidates, folders, device and seed with this run, and takes the run's ``rec_`` keys
        without their prefix; everything else is the stock model's own, whatever the LLM was given.
        """
        rec_model = self["rec_model"]
        shared, own = shared_keys(), recommender_keys(rec_model)
        values = {key: value for key, value in self.external_config_dict.items() if key in shared}
        for key, value in self.external_config_dict.items():
            if key.startswith(REC_PREFIX) and key.removeprefix(REC_PREFIX) in own:
                values[key.removeprefix(REC_PREFIX)] = value
        # Values were parsed once; a quoted "1" of a config file must not become a number now.
        values = {key: PlainText(value) if isinstance(value, str) else value for key, value in values.items()}
        try:
            return RunConfig(rec_model, self.dataset, config_dict=values)
        except UserError as error:
            is_own = str(error).partition(":")[0] in own
            raise UserError(f"{REC_PREFIX if is_own else f'rec_model {rec_model}: '}{error}") from error

    def redacted(self) -> "RunConfig":
        """A copy whose values hold no secrets, for logs."""
        other = copy.copy(self)
        other.final_config_dict = without_secrets(self.final_config_dict)
        return other

    def __str__(self) -> str:
        return Config.__str__(self.redacted())

    # --- where values come from ----------------------------------------------------------------

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole extends its module's own lists in place; a second Config would see the first one's keys.
        self.parameters = {category: list(names) for category, names in self.parameters.items()}

    def _build_yaml_loader(self) -> type[ValueLoader]:
        return ValueLoader

    def _load_config_files(self, file_list: Sequence[str | Path] | None) -> dict[str, Any]:
        if isinstance(file_list, (str, Path)):
            raise UserError(f"config_file_list: found the text {str(file_list)!r}, expected a list of paths")
        values: dict[str, Any] = {}
        for path in file_list or ():
            content = read_yaml(path)
            values.update(content)
            self._sources.update(dict.fromkeys(content, str(path)))
        return values

    def _load_variable_config_dict(self, config_dict: Mapping[str, Any] | None) -> dict[str, Any]:
        values = {key: parse_value(value) if isinstance(value, str) else value for key, value in (config_dict or {}).items()}
        self._sources.update(dict.fromkeys(values, CALLER_DICT))
        return values

    def _load_cmd_line(self) -> dict[str, Any]:
        values = parse_arguments(self._argv)
        self._sources.update(dict.fromkeys(values, CALLER_LINE))
        return values

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        refuse_old_names(self.external_config_dict)
        model = model if model is not None else self.external_config_dict.get("model")
        dataset = dataset if dataset is not None else self.external_config_dict.get("dataset")
        load_plugins(self.external_config_dict.get("plugins"))
        model = name_of(model)
        for key in {"model", "rec_model"} & self.external_config_dict.keys():
            self.external_config_dict[key] = name_of(self.external_config_dict[key])
        check_column_lists("load_col", self.external_config_dict.get("load_col"))  # the layers below add to it
        for key, value in (("model", model), ("dataset", dataset)):
            if not isinstance(value, str) or not value:
                raise UserError(f"{key}: found {value!r}, expected a name; give --{key}=NAME")
        return model, resolve_model(model), checked_dataset(dataset)

    def _init_device(self) -> None:
        """RecBole's; of a process that a launcher started, the GPU of its own number among all or among ``gpu_id``'s."""
        final, count = self.final_config_dict, launched()
        if isinstance(final["gpu_id"], list):  # RecBole knows tuples only
            final["gpu_id"] = tuple(final["gpu_id"])
        if count > 1 and "gpu_id" not in self.external_config_dict:
            final["gpu_id"] = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(local_count())))
        super()._init_device()
        if count > 1 and final["device"].type == "cuda":
            final["device"] = torch.device("cuda", local_index())

    # --- our layers ----------------------------------------------------------------------------

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        inner = self._recommender_within(model)
        base = recbole_base(model if inner is None else inner)
        base_class = model_class if base == model else resolve_model(base)
        super()._load_internal_config_dict(base, base_class, dataset)
        if not _draws_negatives(base_class, self._value("loss_type")):
            self.internal_config_dict["train_neg_sample_args"] = None
        self._layer("overall")
        is_tiny = False
        if is_llm_recommender(model):
            self._layer("llm_recommender")
            llm_path = {**self.internal_config_dict, **model_defaults(model), **self.external_config_dict}["llm_path"]
            is_tiny = llm_path == "tiny"
            if is_tiny:
                self._layer("llm/tiny")
        else:
            self._layer("recommender")
        if inner is not None:
            self._layer(f"model/{inner}")
        for name in lineage(model):
            self._layer(f"model/{name}")
        for name in lineage(model) if is_tiny else ():
            self._layer(f"llm/tiny-{name}")
        for name in lineage(model):
            self.internal_config_dict.update(own_defaults(name))
        # RecBole loads user and item columns for the models that read them; a dataset's or protocol's own list adds to these.
        for name in (f"dataset/{dataset}", f"protocol/{checked_protocol(self._value('protocol'))}"):
            load_col = self.internal_config_dict["load_col"] or {}
            self._layer(name)
            self.internal_config_dict["load_col"] = {**load_col, **(self.internal_config_dict["load_col"] or {})}
        self._name_columns()
        self._fit_protocol(self._value("protocol"))
        rec_model = checked_recommender(self._value("rec_model")) if is_llm_recommender(model) else None
        check_keys(self._sources, known_keys(model, rec_model, inner))
        checked = own_defaults(model).keys() if is_llm_recommender(model) else model_keys(model if inner is None else inner)
        check_hyper_parameters(self.external_config_dict, self.internal_config_dict, checked)

    def _name_columns(self) -> None:
        """Call the columns of ready-made windows as the run's ``*_FIELD`` keys and ``LIST_SUFFIX`` do."""
        if SPLITS[self._value("protocol")] != READY_MADE:
            return
        item = self._value("ITEM_ID_FIELD")
        names = {
            "user_id": self._value("USER_ID_FIELD"),
            "item_id": item,
            "item_id_list": f"{item}{self._value('LIST_SUFFIX')}",
        }
        columns = self.internal_config_dict["load_col"]
        self.internal_config_dict["load_col"] = {**columns, "inter": [names.get(name, name) for name in columns["inter"]]}
        aliases = self.internal_config_dict["alias_of_item_id"]
        self.internal_config_dict["alias_of_item_id"] = [names.get(name, name) for name in aliases]

    def _fit_protocol(self, protocol: str) -> None:
        """Leave out the protocol's filters on columns that the dataset does not have; the user's own filters stay."""
        filters, columns = self.internal_config_dict["val_interval"], self._value("load_col")
        loaded = (columns or {}).get("inter")
        if not filters or loaded is None:
            return
        absent = [name for name in filters if name not in loaded]
        if absent and "val_interval" not in self.external_config_dict:
            kept = {name: interval for name, interval in filters.items() if name not in absent}
            self.internal_config_dict["val_interval"] = kept or None
            self.notes += (
                f"protocol {protocol} filters {', '.join(absent)}, which dataset {self.dataset} has not: all are kept",
            )

    def _recommender_within(self, model: str) -> str | None:
        """The recommender that a model is, but for its item table; None for all others."""
        if not replaces_item_table(model):
            return None
        return checked_recommender({**model_defaults(model), **self.external_config_dict}["rec_model"])

    def _layer(self, name: str) -> None:
        self.internal_config_dict.update(_layer_values(name))

    def _value(self, key: str) -> Any:
        """A key's value, as far as the layers are laid."""
        return self.external_config_dict.get(key, self.internal_config_dict.get(key))

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = super()._get_final_config_dict()
        check_recbole_keys(final, self.model_class)
        return final

    def _set_default_parameters(self) -> None:
        final = self.final_config_dict
        for key in ("metrics", "topk"):  # RecBole takes one value for a list of one
            if isinstance(final[key], str if key == "metrics" else int):
                final[key] = [final[key]]
        names_one = import_module("recbole_llara.evaluator.answer").names_one_item(final["decoding"])
        if is_llm_recommender(self.model) and names_one and final["topk"] != [1]:
            self.notes += (f"decoding {final['decoding']} names one item a row: topk {final['topk']} becomes [1]",)
            final["topk"] = [1]
        check_metrics(final)
        check_topk(final["topk"], final["candidate_num"], "topk" in self.external_config_dict)
        try:
            super()._set_default_parameters()
        except (ValueError, TypeError) as error:
            raise UserError(f"configuration: {error}") from error
        DataProtocol.from_config(self)
        check_dataset_files(self.dataset, final["data_path"], final["benchmark_filename"])


def _layer_values(name: str) -> dict[str, Any]:
    path = PROPERTIES / f"{name}.yaml"
    return read_yaml(path) if path.is_file() else {}


def _draws_negatives(model_class: type, loss_type: str | None) -> bool:
    """Whether a stock model's loss compares the target with sampled negatives."""
    if loss_type is not None:
        return loss_type == "BPR"
    return getattr(model_class, "input_type", None) == InputType.PAIRWISE
