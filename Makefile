# Everything on a fresh machine with Python 3.11 or later: `make train`, `make test`. No hub, GPU or cluster is needed.
PYTHON ?= python3
# seqeval comes as source, which builds with every pip in an environment of its own only.
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --use-pep517
TOOLS = pytest pytest-xdist hypothesis ruff mypy types-PyYAML types-requests
# Two tests at once: most of them wait for processes to import torch.
PYTEST = $(1)/bin/python -m pytest -n 2 --dist worksteal
CLUSTER_CONSTRAINTS = tests/fixtures/constraints-cluster.txt

.PHONY: help venv train test test-slow docs check test-kills test-cluster test-cluster-stack benchmark clean

help:
	@echo "make train               train the embedded example, about a minute on two CPU cores"
	@echo "make test                check style and types, and run the tests that are fast: five minutes on two cores"
	@echo "make test-slow           run the others: kills, memory, benchmarks, training on WNUT 17, variants of resume"
	@echo "make test-kills          kill trainings 200 times at random moments, and resume them"
	@echo "make test-cluster        run small jobs on the Determined cluster that DET_MASTER names"
	@echo "make benchmark           compare speed and memory with transformers.Trainer; DATA, MODEL and ROUNDS are options"
	@echo "make docs                write docs/configuration.md from the code"
	@echo "make venv                make the environment alone, in .venv"
	@echo "make test-cluster-stack  run the end-to-end tests with the packages of a cluster's default image"

venv: .venv/done

.venv/done: requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python $(PIP_INSTALL) -r requirements.txt $(TOOLS) -c constraints.txt
	touch $@

train: .venv/done
	.venv/bin/python train.py sample/ner_config.yaml

docs: .venv/done
	.venv/bin/python docs/make_configuration.py

check: .venv/done
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy .

test: check
	$(call PYTEST,.venv) -m "not slow"

test-slow: .venv/done
	$(call PYTEST,.venv) -m slow

test-kills: .venv/done
	KILLS=200 .venv/bin/python -m pytest tests/test_resume.py -k every_kill

test-cluster: .venv/done
	@test -n "$$DET_MASTER" || { echo "Set DET_MASTER to the address of a cluster's master."; exit 1; }
	.venv/bin/python -m pytest tests/cluster

benchmark: .venv/done
	.venv/bin/python tests/benchmarks/benchmark.py $(addprefix --data ,$(DATA)) $(addprefix --model ,$(MODEL)) \
		$(addprefix --rounds ,$(ROUNDS)) --json outputs/benchmark.json

# Two pip calls: determined and datasets 4 want different versions of requests, and work with either.
.venv-cluster/done: $(CLUSTER_CONSTRAINTS)
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/python $(PIP_INSTALL) -c $< determined torch numpy tensorboard pytest pytest-xdist hypothesis
	.venv-cluster/bin/python $(PIP_INSTALL) -c $< torch numpy transformers datasets accelerate seqeval sentencepiece \
		pydantic wcwidth
	touch $@

test-cluster-stack: .venv-cluster/done
	$(call PYTEST,.venv-cluster) -m "not slow" $(addprefix tests/test_,$(addsuffix .py,trial data cluster_resume \
		batch_predict ner_utils ner_windows context ner_formats ner_data bad_inputs ner_labels ner_inspect predict ner_report export callbacks))

clean:
	rm -rf .venv .venv-cluster outputs
