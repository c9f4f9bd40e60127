"""RecBole's SequentialDataset with our protocols, and a candidate set beside every valid and test row.

Stock models and ours take the same loaders from `prepare_data`; the candidates ride along as one more column.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.data.utils import create_samplers, get_dataloader
from recbole.utils import FeatureType, ModelType

from recbole_llara.config.settings import READY_MADE, DataProtocol
from recbole_llara.data.atomic_files import CheckedFiles
from recbole_llara.data.candidates import CandidateRows, CandidateSampler, OwnPast, load_candidate_file, save_candidates
from recbole_llara.data.numbering import Numbering, given_numbering, user_hashes
from recbole_llara.data.rows import (
    SPLITS,
    Knowledge,
    Rows,
    repeat_message,
    rows_by_user_split,
    sliding_windows,
    split_users,
)
from recbole_llara.data.titles import Catalogue, load_catalogue
from recbole_llara.utils.errors import UserError
from recbole_llara.utils.hashing import sample_rows

ROW_FIELD = "row_id"
CANDIDATE_FIELD = "candidate_id_list"
PLACE_FIELD = "target_place"  # among all interactions, by user and time
# These bring a dataset class of their own into RecBole's create_dataset, for columns that ours does not make.
MODELS_WITH_OWN_DATASET = ("DIEN", "GRU4RecKG", "KSR")

_logger = logging.getLogger()


class CandidateDataset(CheckedFiles):
    """A SequentialDataset split by our protocols.

    After `build`, each split's `inter_feat` has the int64 column `row_id` [rows], counted before max_train_rows or
    max_eval_rows thin the split, and valid and test have `candidate_id_list` [rows, C]. Rows cut out of sequences have
    `target_place` [rows] too.

    Args:
        config: RecBole's Config with our keys.
        numbering: the numbers that items, users and features get; None = RecBole's, in the order of the files.

    Attributes:
        knowledge: what each split knows of the users; after `build`, of every split too.
    """

    knowledge: Knowledge
    _interactions: tuple[np.ndarray, np.ndarray]  # [M] users and [M] items, by user and time

    def __init__(self, config: Any, numbering: Numbering | None = None) -> None:
        self.protocol = DataProtocol.from_config(config)
        self.repeat_share: dict[str, float] = {}  # of the rows of each split
        self.numbering = numbering
        super().__init__(config)

    @property
    def is_ready_made(self) -> bool:
        """Whether rows come from three files as they are."""
        return self.protocol.split == READY_MADE

    def _remap(self, remap_list: list[tuple[Any, str, FeatureType]]) -> None:
        """Number the ids of some fields as RecBole does, then by ``numbering`` where it knows one of them."""
        super()._remap(remap_list)
        fields = {name for _, name, _ in remap_list}
        if self.uid_field in fields:
            self.user_hashes = user_hashes(self.field2id_token[self.uid_field])
        if self.numbering is None:
            return
        kinds = {self.uid_field: "users", self.iid_field: "items", **{name: name for name in self.numbering.features}}
        known = [name for name in kinds if name in fields]
        if known:
            self._renumber(remap_list, known[0], kinds[known[0]], self.numbering)

    def _renumber(self, remap_list: list[tuple[Any, str, FeatureType]], field: str, kind: str, numbering: Numbering) -> None:
        """Give the ids of fields that share their numbers other ones."""
        new = numbering.renumbered(kind, self.field2id_token[field])
        token_id = {token: int(number) for number, token in zip(new.numbers, new.tokens[new.numbers], strict=True)}
        is_known = np.zeros(len(new.tokens), dtype=bool)
        for feat, name, ftype in remap_list:
            self.field2id_token[name], self.field2token_id[name] = new.tokens, token_id
            if ftype == FeatureType.TOKEN:
                numbers = feat[name] = new.numbers[feat[name].to_numpy()]
            else:
                numbers = new.numbers[np.concatenate(feat[name].to_numpy())]
                feat[name] = np.split(numbers, np.cumsum(feat[name].map(len))[:-1])
            if feat is self.inter_feat:
                is_known[numbers] = True
        if kind == "users":
            self.user_hashes = new.hashes
        elif kind == "items":
            numbering.check_known(is_known)

    def _change_feat_format(self) -> None:
        """Give rows their final form, by time or as they are."""
        if self.is_ready_made:
            self._take_windows()
        else:
            self._sort_by_time()

    def _take_windows(self) -> None:
        """Ready-made rows: the last L items of each history, 0-padded to L on the right.

        RecBole pads to the longest history and never cuts; recommenders of a fixed width take L.
        """
        field, length = self.item_id_list_field, self.item_list_length_field
        histories = [np.asarray(items, dtype=np.int64)[-self.max_item_list_len :] for items in self.inter_feat[field]]
        lengths = np.array([len(items) for items in histories])
        if not lengths.all():
            row = int((lengths == 0).argmax())
            raise UserError(f"row {row + 1} of the windows of {self.dataset_name} has no history, expected at least one item")
        self.users_in_order = np.unique(self.inter_feat[self.uid_field].to_numpy(np.int64))
        self.inter_feat[field], self.inter_feat[length] = histories, lengths
        self.field2seqlen[field] = self.max_item_list_len
        super()._change_feat_format()
        padded = self.inter_feat[field]
        self.inter_feat[field] = F.pad(padded, (0, self.max_item_list_len - padded.shape[1]))

    def _sort_by_time(self) -> None:
        """Sort by time in float64 first: RecBole keeps time as float32, whose steps are a minute or more today.

        RecBole's own sorts are stable and float32 keeps the order of float64, so what is sorted here stays sorted.
        """
        self.inter_feat = self.inter_feat.sort_values(self.time_field, kind="stable", ignore_index=True)
        self.users_in_order = self.inter_feat[self.uid_field].unique().astype(np.int64)
        super()._change_feat_format()

    def data_augmentation(self) -> None:
        """RecBole's rows by array operations: (history, target) for each position of each user but the first."""
        self._aug_presets()
        self._check_field("uid_field", "time_field")
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        windows = sliding_windows(self.inter_feat[self.uid_field].numpy(), self.max_item_list_len)
        target, history = torch.from_numpy(windows.target), torch.from_numpy(windows.history)
        is_padding = torch.arange(self.max_item_list_len)[None] >= torch.from_numpy(windows.length)[:, None]  # [R, L]
        columns = {field: values[target] for field, values in self.inter_feat.interaction.items()}
        columns[self.item_list_length_field] = torch.from_numpy(windows.length)
        columns[PLACE_FIELD] = target
        self._interactions = self.inter_feat[self.uid_field].numpy(), self.inter_feat[self.iid_field].numpy()
        for field, values in self.inter_feat.interaction.items():
            if field != self.uid_field:
                columns[field + self.config["LIST_SUFFIX"]] = values[history]  # [R, L, ...]
                columns[field + self.config["LIST_SUFFIX"]][is_padding] = 0
        self.inter_feat = Interaction(columns)

    def build(self) -> list["CandidateDataset"]:
        """Split into train, valid and test, and give the rows their numbers and candidates.

        Raises:
            UserError: a split is left without rows, or candidates cannot be drawn.
        """
        splits = self._build_by_user() if self.protocol.split == "user_time" else super().build()
        knowledge = self._knowledge([self.rows_of(split.inter_feat) for split in splits])
        self.knowledge = knowledge
        if self.is_ready_made:
            splits = [split.copy(split.inter_feat[rows]) for split, rows in zip(splits, self._long_enough(splits), strict=True)]
        for name, split in zip(SPLITS, splits, strict=True):
            split.knowledge = knowledge
            split.inter_feat = self._finish(self._settle_repeats(split.inter_feat, name), name)
        return splits

    def rows_of(self, inter_feat: Interaction) -> Rows:
        """What candidates are drawn by, of rows of a split."""
        places = inter_feat[PLACE_FIELD].numpy() if PLACE_FIELD in inter_feat else None
        history = inter_feat[self.iid_field + self.config["LIST_SUFFIX"]].numpy()
        return Rows(inter_feat[self.uid_field].numpy(), inter_feat[self.iid_field].numpy(), history, places)

    def _knowledge(self, splits: list[Rows]) -> Knowledge:
        """What the splits know; items that only the .item file has come last in RecBole's numbering and are never candidates."""
        if not self.is_ready_made:
            users, items = self._interactions
            return Knowledge.from_interactions(users, items, splits, int(items.max(initial=0)) + 1)
        n_items = 1 + max(int(values.max(initial=0)) for rows in splits for values in (rows.targets, rows.history))
        return Knowledge.from_windows(splits, n_items)

    def _settle_repeats(self, inter_feat: Interaction, split: str) -> Interaction:
        """Look for targets that the user had before; leave them out, or tell of them, as `repeated_targets` says."""
        rows = self.rows_of(inter_feat)
        is_repeat = self.knowledge.is_repeat(split, rows)
        self.repeat_share[split] = float(is_repeat.mean()) if len(is_repeat) else 0.0
        if not is_repeat.any():
            return inter_feat
        if self.protocol.repeated_targets == "drop":
            _logger.info(f"{split}: {int(is_repeat.sum())} of {len(is_repeat)} rows left out, repeated_targets is drop")
            return inter_feat[torch.from_numpy(~is_repeat)]
        if self.protocol.repeated_targets == "keep" and split != "train":
            _logger.warning(repeat_message(split, int(is_repeat.sum()), len(is_repeat)))
        return inter_feat

    def _build_by_user(self) -> list["CandidateDataset"]:
        self._change_feat_format()
        self._drop_unused_col()
        rows = rows_by_user_split(
            self.inter_feat[self.uid_field].numpy(),
            self.inter_feat[self.item_list_length_field].numpy(),
            split_users(self.users_in_order, self.protocol.split_ratio),
            self.protocol.min_train_history,
            self.protocol.min_eval_history,
        )
        return [self.copy(self.inter_feat[row]) for row in rows]

    def _long_enough(self, splits: list["CandidateDataset"]) -> list[torch.Tensor]:
        """Which ready-made rows of each split are kept, for the length of their history."""
        least = (self.protocol.min_train_history, self.protocol.min_eval_history, self.protocol.min_eval_history)
        kept = [split.inter_feat[self.item_list_length_field] >= number for split, number in zip(splits, least, strict=True)]
        dropped = {name: int((~rows).sum()) for name, rows in zip(SPLITS, kept, strict=True) if not rows.all()}
        if dropped:
            _logger.info(f"rows left out for a history shorter than min_train_history or min_eval_history: {dropped}")
        return kept

    def _finish(self, inter_feat: Interaction, split: str) -> Interaction:
        """Number the rows of one split, thin them, and add the candidates to valid and test."""
        protocol, is_train = self.protocol, split == "train"
        if len(inter_feat) == 0:
            raise UserError(
                f"The {split} split has no rows: {len(self.users_in_order)} users with {len(self.knowledge.known['test'].keys)} different "
                f"interactions are left by the filters, under protocol {protocol.protocol}, split_ratio "
                f"{list(protocol.split_ratio)}, min_train_history {protocol.min_train_history} and min_eval_history "
                f"{protocol.min_eval_history}."
            )
        limit = protocol.max_train_rows if is_train else protocol.max_eval_rows
        # Experiments that share candidate_seed share their valid and test rows too, whatever their own seed.
        seed = protocol.seed if is_train else protocol.eval_seed
        rows = sample_rows(len(inter_feat), limit, seed, f"rows/{split}")
        inter_feat = inter_feat[rows] if len(rows) < len(inter_feat) else inter_feat
        inter_feat[ROW_FIELD] = torch.from_numpy(rows)
        if not is_train:
            inter_feat[CANDIDATE_FIELD] = torch.from_numpy(self._candidates(inter_feat, split))
        return inter_feat

    def _candidates(self, inter_feat: Interaction, split: str) -> np.ndarray:
        """The candidate sets of a split, [rows, C]: the user's own, else drawn."""
        rows = self.rows_of(inter_feat)
        if self.protocol.candidate_file is not None:
            user_ids, item_ids = self.field2token_id[self.uid_field], self.field2token_id[self.iid_field]
            own = load_candidate_file(Path(self.protocol.candidate_file), user_ids, item_ids, self.protocol.candidate_num)
            return own.look_up(rows.users, rows.targets, split)
        sampler, numbers = self.candidate_sampler(split, self.protocol.eval_seed), inter_feat[ROW_FIELD].numpy()
        return sampler.draw(numbers, rows.users, rows.targets, split, history=rows.history, places=rows.places)

    def order_by_text(self, catalogue: Catalogue) -> None:
        """Put the rows of an evaluation in the order of their texts' length, so that prompts of one batch need little padding.

        ``row_id`` still tells which row is which, and answers depend on no other row.
        """
        characters = torch.tensor([len(title) for title in catalogue.titles])
        history = self.inter_feat[self.iid_field + self.config["LIST_SUFFIX"]]
        length = characters[history].sum(1) + characters[self.inter_feat[CANDIDATE_FIELD]].sum(1)  # [R]
        self.inter_feat = self.inter_feat[length.argsort(stable=True)]

    def candidate_sampler(self, split: str, seed: int) -> CandidateSampler:
        """A sampler for the rows of a split, over the items that have interactions; only after `build`."""
        protocol, known = self.protocol, self.knowledge.known[split]
        own_past = None
        if protocol.repeated_targets == "match":
            own_past = OwnPast(self.repeat_share[split], lambda rows: self.knowledge.past(split, rows))
        return CandidateSampler(known, known.n_items, protocol.candidate_num, seed, protocol.candidate_exclude, own_past)


@dataclass(frozen=True)
class PreparedData:
    """All that training and evaluation take from the data.

    Attributes:
        dataset: the training split, as RecBole's models want it for their sizes.
        train_data, valid_data, test_data: RecBole's loaders.
        catalogue: the items' texts; None where the dataset names no title_field.
        sampler: draws the candidates of training rows, new ones for each epoch.
        candidate_sha256: of valid and test.
        candidate_files: where the candidates of valid and test are kept.
    """

    dataset: CandidateDataset
    train_data: TrainDataLoader
    valid_data: FullSortEvalDataLoader
    test_data: FullSortEvalDataLoader
    catalogue: Catalogue | None
    sampler: CandidateSampler
    candidate_sha256: dict[str, str]
    candidate_files: dict[str, Path]


def prepare_data(config: Any, numbering: Numbering | None = None) -> PreparedData:
    """Load, split, freeze the candidates and wrap all in RecBole's loaders; never unpickles a cached dataset.

    Args:
        config: RecBole's Config of a sequential model, with our keys.
        numbering: the numbers by which a trained model knows the items; None = those of `checkpoint` or `rec_checkpoint`
            where one is given, else RecBole's.

    Raises:
        UserError: the model is not one that takes sequential rows, or the data and keys do not fit.
    """
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL or config["model"] in MODELS_WITH_OWN_DATASET:
        raise UserError(
            f"model is {config['model']}, expected a sequential model that reads RecBole's plain SequentialDataset "
            f"(not {', '.join(MODELS_WITH_OWN_DATASET)})."
        )
    dataset = CandidateDataset(config, numbering or given_numbering(config))
    splits = dict(zip(SPLITS, dataset.build(), strict=True))
    _check_features(dataset, config)
    samplers = dict(zip(SPLITS, create_samplers(config, dataset, list(splits.values())), strict=True))
    loaders = {
        name: get_dataloader(config, name)(
            config, split, samplers[name], shuffle=bool(config["shuffle"]) if name == "train" else False
        )
        for name, split in splits.items()
    }
    files, sha256 = {}, {}
    for name in ("valid", "test"):
        files[name], sha256[name] = _freeze(splits[name], name, Path(config["checkpoint_dir"]) / "candidates")
        _logger.info(f"{name}: {len(splits[name])} rows, candidates {files[name]}, SHA-256 {sha256[name]}")
    _logger.info(f"train: {len(splits['train'])} rows")
    catalogue = load_catalogue(dataset, config) if config["title_field"] else None
    if catalogue is not None:
        for name in ("valid", "test"):
            splits[name].order_by_text(catalogue)
    return PreparedData(
        dataset=splits["train"],
        train_data=loaders["train"],
        valid_data=loaders["valid"],
        test_data=loaders["test"],
        catalogue=catalogue,
        sampler=dataset.candidate_sampler("train", dataset.protocol.seed),
        candidate_sha256=sha256,
        candidate_files=files,
    )


def _check_features(dataset: CandidateDataset, config: Any) -> None:
    """Refuse features that a model reads and nobody loads, and places below the last item."""
    for name in config["selected_features"] or ():
        if name not in dataset.field2type:
            raise UserError(
                f"selected_features: found {name!r}, expected loaded columns of {config['dataset']}: {', '.join(dataset.field2type)}; "
                f"add it to load_col.item, or change selected_features"
            )
    topk = config["topk"] or [1]
    if max(topk) > dataset.item_num:
        raise UserError(f"topk: found {max(topk)}, expected at most the {dataset.item_num - 1} items of {config['dataset']}")


def _freeze(split: CandidateDataset, name: str, folder: Path) -> tuple[Path, str]:
    """Save a split's candidate sets and hash them."""
    rows = CandidateRows(
        users=split.inter_feat[split.uid_field].numpy(),
        targets=split.inter_feat[split.iid_field].numpy(),
        candidates=split.inter_feat[CANDIDATE_FIELD].numpy(),
    )
    user_tokens, item_tokens = split.field2id_token[split.uid_field], split.field2id_token[split.iid_field]
    return save_candidates(folder, f"{split.dataset_name}-{split.protocol.protocol}-{name}", rows, user_tokens, item_tokens)
