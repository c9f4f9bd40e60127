"""The keys that make rows and candidate sets, read once out of RecBole's Config and checked.

RecBole's Config answers None for a key nobody set; here that is an error, so that no default hides in code: the
defaults stand in properties/overall.yaml and properties/protocol/.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_llara.utils.errors import UserError

READY_MADE = "benchmark"
EXCLUDE_RULES = ("user", "window")
REPEATED_TARGETS = ("keep", "drop", "match")
# Protocol -> how its rows are split: whole users by time, RecBole's eval_args within every user, or ready-made files.
SPLITS = {"llara": "user_time", "leave_one_out": "leave_one_out", "windows": READY_MADE}


@dataclass(frozen=True)
class DataProtocol:
    """How rows are split, thinned and given candidates; the names are the YAML keys."""

    name: str
    split: str
    split_ratio: tuple[float, float, float]
    min_train_history: int
    min_eval_history: int
    max_train_rows: int
    max_eval_rows: int
    candidate_num: int
    candidate_exclude: str
    repeated_targets: str
    candidate_seed: int
    candidate_file: Path | None
    seed: int

    @classmethod
    def from_config(cls, config: Any) -> "DataProtocol":
        """Read and check the keys.

        Args:
            config: RecBole's Config, or anything else that answers `config[key]`, None where a key is not set.

        Raises:
            UserError: a key is missing, of the wrong type or out of range, or RecBole's own keys contradict ours.
        """
        seed = _whole_number(config, "seed", 0)
        candidate_file = config["candidate_file"]
        name = _one_of(config, "protocol", tuple(SPLITS))
        _check_recbole_keys(config, name)
        exclude, repeated = (
            _one_of(config, "candidate_exclude", EXCLUDE_RULES),
            _one_of(config, "repeated_targets", REPEATED_TARGETS),
        )
        if repeated == "match" and exclude != "user":
            raise UserError(
                f"repeated_targets: found 'match' with candidate_exclude {exclude!r}, expected candidate_exclude 'user': match adds "
                "negatives of the user's past to those that the user never had"
            )
        return cls(
            name=name,
            split=SPLITS[name],
            split_ratio=_shares(config["split_ratio"]),
            min_train_history=_whole_number(config, "min_train_history", 1),
            min_eval_history=_whole_number(config, "min_eval_history", 1),
            max_train_rows=_whole_number(config, "max_train_rows", 0),
            max_eval_rows=_whole_number(config, "max_eval_rows", 0),
            candidate_num=_whole_number(config, "candidate_num", 2),
            candidate_exclude=exclude,
            repeated_targets=repeated,
            candidate_seed=seed if config["candidate_seed"] is None else _whole_number(config, "candidate_seed", 0),
            candidate_file=None if candidate_file is None else Path(str(candidate_file)),
            seed=seed,
        )


def _shares(split_ratio: Any) -> tuple[float, float, float]:
    """Three shares: fractions of 1, or whole numbers such as [8, 1, 1]."""
    is_three = isinstance(split_ratio, list | tuple) and len(split_ratio) == 3
    if not is_three or not all(type(share) in (int, float) and 0 < share < math.inf for share in split_ratio):
        raise UserError(f"split_ratio is {split_ratio!r}, expected three positive shares like [0.8, 0.1, 0.1].")
    if not all(isinstance(share, int) for share in split_ratio) and not math.isclose(sum(split_ratio), 1, abs_tol=1e-6):
        raise UserError(
            f"split_ratio is {split_ratio!r}, expected shares that add up to 1 (found {sum(split_ratio):g}), or whole numbers "
            "like [8, 1, 1]."
        )
    return tuple(float(share) for share in split_ratio)


def _whole_number(config: Any, key: str, least: int) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{key} is {value!r}, expected a whole number of at least {least}.")
    return value


def _one_of(config: Any, key: str, known: tuple[str, ...]) -> str:
    value = config[key]
    if value not in known:
        raise UserError(f"{key} is {value!r}, expected one of {', '.join(known)}.")
    return value


def _check_recbole_keys(config: Any, protocol: str) -> None:
    """RecBole's keys must say what the protocols take for granted: time order, the full ranking, one .inter file."""
    eval_args = config["eval_args"]
    if eval_args["order"] != "TO":
        raise UserError(f"eval_args.order is {eval_args['order']!r}, expected TO: histories are in the order of time.")
    mode = eval_args["mode"]
    modes = set(mode.values()) if isinstance(mode, dict) else {mode}
    if modes != {"full"}:
        raise UserError(f"eval_args.mode is {mode!r}, expected full: the candidate sets take the place of sampling.")
    files = config["benchmark_filename"]
    if SPLITS[protocol] != READY_MADE and files is not None:
        raise UserError(
            f"benchmark_filename is {files!r}, expected none: protocol {protocol} makes the splits; "
            "ready-made ones take --protocol=windows."
        )
    if SPLITS[protocol] == READY_MADE and not (isinstance(files, list) and len(files) == 3):
        raise UserError(f"benchmark_filename is {files!r}, expected three names such as [train, valid, test].")
    history = f"{config['ITEM_ID_FIELD']}{config['LIST_SUFFIX']}"
    if SPLITS[protocol] == READY_MADE and history not in (config["alias_of_item_id"] or ()):
        raise UserError(
            f"alias_of_item_id is {config['alias_of_item_id']!r}, expected {history} (ITEM_ID_FIELD and LIST_SUFFIX) among them: "
            "histories and targets would be numbered apart."
        )
