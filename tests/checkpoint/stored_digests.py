"""All digests that files of the package store: where each stands, what it is of, and which function compares it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """A digest that a file holds, or that names it.

    Args:
        files: pattern of the files below ``checkpoint_dir``.
        fact: pattern of its place in them; "name" = it stands in the path.
        of: what it is a digest of.
        compared: the function that compares it with what is there when the file is read.
        otherwise: what follows a difference: "refused"; "warned of" where something is measured; "made again" with a warning (of an LLM's
            probe and of tokens, which another LLM changes rightly, with a line of the log); "looked for elsewhere" where it is the
            name under which a thing is kept; "told" where no code reads it.
    """

    files: str
    fact: str
    of: str
    compared: str
    otherwise: str


_ENTRY, _META, _STATE = "recommenders/*/meta.json", "*/checkpoint/meta.json", "*/training_state/*"


STORED = (
    # What a run keeps.
    Stored(
        "*/checkpoint.safetensors",
        "snapshot_sha256",
        "what it knows of the items",
        "checkpoint.weights.read_checkpoint",
        "refused",
    ),
    Stored(
        "*/checkpoint.safetensors",
        "belongs_to.*",
        "MoRec's text encoder",
        "recommender.stock.load_recommender",
        "refused",
    ),
    Stored(
        "*/checkpoint.safetensors", "training_digest", "training interactions", "quick_start.run_recbole_llara", "warned of"
    ),
    Stored(
        "*/recommender/model.safetensors", "snapshot_sha256", "what it knows of the items", "serving.loaded.load", "refused"
    ),
    Stored("*/recommender/model.safetensors", "training_digest", "training interactions", "", "told"),
    Stored("*/recommender/meta.json", "sha256", "all that its weights depend on", "recommender.frozen.unseal", "refused"),
    Stored("*/recommender/meta.json", "weights_sha256", "the file beside it", "recommender.frozen.unseal", "refused"),
    Stored("*/recommender/meta.json", "candidate_sha256.*", "the candidates' file", "recommender.frozen.unseal", "refused"),
    Stored("*/recommender/meta.json", "meta_sha256", "the other facts", "recommender.frozen.unseal", "refused"),
    Stored(_META, "training_digest", "training interactions", "quick_start.run_recbole_llara", "warned of"),
    Stored(_META, "sha256.*", "each file beside it", "model.weights.load_llm_recommender", "refused"),
    Stored(
        _META,
        "belongs_to.*",
        "items and their fields, split, LLM, tokenizer, recommender",
        "model.weights.load_llm_recommender",
        "refused",
    ),
    Stored(f"{_STATE}/meta.json", "sha256.*", "each file beside it", "checkpoint.training_state.load_newest", "made again"),
    Stored(f"{_STATE}/meta.json", "belongs_to.*", "as of a checkpoint", "checkpoint.training_state.load_newest", "refused"),
    Stored(f"{_STATE}/meta.json", "training_digest", "training interactions; rows_digest holds them too", "", "told"),
    Stored(
        f"{_STATE}/training.json",
        "trainer.rows_digest",
        "rows, candidates and the recommender of training",
        "trainer.trainer.resume_checkpoint",
        "refused",
    ),
    Stored(_META, "probe.*", "the LLM that was tried, and the prompts", "model.kept.tried", "made again"),
    Stored(f"{_STATE}/meta.json", "probe.*", "the LLM that was tried, and the prompts", "", "told"),
    Stored(
        "*/checkpoint/item_pieces.safetensors", "key", "tokenizer, texts and prompts", "model.kept.kept_pieces", "made again"
    ),
    Stored(f"{_STATE}/item_pieces.safetensors", "key", "tokenizer, texts and prompts", "", "told"),
    Stored(_META, "prompts_digest", "the templates", "model.weights.has_other_prompts", "warned of"),
    Stored(f"{_STATE}/meta.json", "prompts_digest", "the templates", "trainer.trainer.resume_checkpoint", "refused"),
    Stored("*/result.json", "prompts_digest", "the templates", "", "told"),
    Stored("*/result.json", "llm_digest", "the LLM's weights before it was tuned", "", "told"),
    Stored("*/result.json", "recommender.sha256", "its weights and items", "serving.loaded.load", "refused"),
    Stored(
        "*/result.json",
        "recommender.path",
        "see recommenders/*",
        "recommender.frozen.prepare_recommender",
        "looked for elsewhere",
    ),
    Stored("*/result.json", "versions.code", "the package's source files", "", "told"),
    Stored("*/result.json", "proposing.sha256", "its weights' file", "", "told"),
    Stored("*/result.json", "proposing.path", "see recommenders/*", "", "told"),
    Stored("*/result.json", "recommender_of_training.sha256", "its weights' file", "", "told"),
    Stored("*/result.json", "recommender_of_training.path", "see recommenders/*", "", "told"),
    Stored("*/result.json", "candidate_sha256.test", "the candidates' file", "evaluator.report.refuse_unlike", "refused"),
    Stored("*/result.json", "candidate_sha256.valid", "the candidates' file", "", "told"),
    # What runs share.
    Stored(
        "recommenders/*",
        "name",
        "all that its weights depend on",
        "recommender.frozen.prepare_recommender",
        "looked for elsewhere",
    ),
    Stored(
        "recommenders/*/model.safetensors",
        "snapshot_sha256",
        "what it knows of the items",
        "checkpoint.weights.read_checkpoint",
        "refused",
    ),
    Stored(
        "recommenders/*/model.safetensors",
        "training_digest",
        "training interactions",
        "quick_start.run_recbole_llara",
        "warned of",
    ),
    Stored(_ENTRY, "sha256", "all that its weights depend on", "recommender.frozen.unseal", "made again"),
    Stored(_ENTRY, "weights_sha256", "the file beside it", "recommender.frozen.unseal", "made again"),
    Stored(_ENTRY, "candidate_sha256.*", "the candidates' file", "recommender.frozen.unseal", "made again"),
    Stored(_ENTRY, "meta_sha256", "the other facts", "recommender.frozen.unseal", "made again"),
    Stored("candidates/*.tsv", "name", "the file", "data.candidates.save_candidates", "refused"),
    Stored(
        "proposals/*",
        "name",
        "rows, recommender and keys of the draw",
        "recommender.proposals.with_proposals",
        "looked for elsewhere",
    ),
    Stored("proposals/*", "sha256", "the table", "recommender.proposals.with_proposals", "made again"),
    Stored("text_features/*", "name", "text encoder and texts", "recommender.morec.cached_features", "looked for elsewhere"),
    Stored("text_features/*", "sha256", "the features", "recommender.morec.cached_features", "made again"),
    Stored("search/*", "name", "keys, parameters and data", "experiments.search_trials.SearchTrials", "looked for elsewhere"),
    Stored("search/*/trials.sqlite", "facts.data", "the data's files", "experiments.search_trials.SearchTrials", "refused"),
    Stored("chat/answers.sqlite", "answers.digest", "the request", "model.chat_client.AnswerCache", "looked for elsewhere"),
    Stored(
        "studies/finished/*", "name", "all that a result depends on", "experiments.study_runs.StudyRuns", "looked for elsewhere"
    ),
)
