# make lesson      digits: train, distill from 1024 sampling steps to 1, compare; resumes what is unfinished
# make evaluate    FID of the lesson's teacher and students, with a figure; three minutes on two cores
# make fashion     clothes, with guidance; two to three times as long as the lesson; downloads 30 MB the first time
# make notebook    runs both notebooks of docs/; the second needs the lesson, and trains it if it is missing
# make gpu         measures a GPU in nine minutes: docs/gpu.py; CONFIG=configs/... for another lesson
# make pretrained  replaces the models of pretrained/ and of the page by those of the lesson
# make page        the page that samples digits in a browser, as a folder for any web server; needs npm
# make serve       the page, on this machine
# make test        lint, then all tests
# make stress      tests that take half an hour: 70 kills, 10,000 mutated files
# make lint        style and format (ruff), and the direction of imports (import-linter)

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
INSTALLED := .venv/installed-$(VERSION)
BIN := .venv/bin
NAME := ddpm_32x32_v_continuous_small
CONFIG := configs/$(NAME).yaml
FULL_SIZE := configs/ddpm_32x32_v_continuous.yaml
TEACHER := output/$(NAME)/diffusion-3600.pt
STUDENTS := output/distilled/$(NAME)
LAST_STUDENT := $(STUDENTS)/10_1/diffusion-200.pt
PICTURE := output/lesson-4-2-1-steps.png
PICTURE_AT_8 := output/lesson-8-steps.png

PAGE := output/page
PORT := 8000
ORT := ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm \
	ort.webgpu.min.mjs ort-wasm-simd-threaded.asyncify.mjs ort-wasm-simd-threaded.asyncify.wasm

FASHION := fashion_mnist_32x32_v_continuous_small
FASHION_CONFIG := configs/$(FASHION).yaml
FASHION_TEACHER := output/$(FASHION)/diffusion-5000.pt
FASHION_STUDENTS := output/distilled/$(FASHION)
FASHION_LAST := $(FASHION_STUDENTS)/10_1/diffusion-1000.pt
FASHION_PICTURE := output/fashion-4-2-steps.png

.PHONY: lesson evaluate fashion notebook gpu pretrained page serve test stress lint

lesson: $(PICTURE) $(PICTURE_AT_8)
	@echo "The lesson is done. Its images, each with the same noise in all panels:"
	@echo "  $(PICTURE)   teacher at 1024 steps | teacher and student at 4 | at 2 | at 1"
	@echo "  $(PICTURE_AT_8)   teacher at 1024 steps | teacher at 8 | student at 8"
	@ls $(STUDENTS)/*/sample-*.png output/$(NAME)/sample-*.png | sort -V | sed 's/^/  /'

evaluate: $(LAST_STUDENT)
	$(BIN)/python evaluate.py --config_path $(CONFIG) --teacher $(TEACHER) --students $(STUDENTS) \
		--student_steps 8 4 2 1

fashion: $(FASHION_PICTURE)
	@echo "  $(FASHION_PICTURE)   teacher at 128 steps | teacher and student at 4 | at 2"

notebook: .venv/notebook-installed
	$(BIN)/jupyter execute --inplace docs/1_method.ipynb
	$(MAKE) $(LAST_STUDENT)
	$(BIN)/jupyter execute --inplace docs/2_digits.ipynb

pretrained: $(LAST_STUDENT) .venv/tests-installed
	rm -f pretrained/mnist-*.safetensors
	$(BIN)/python convert.py --half --checkpoint $(TEACHER) --to_safetensors pretrained/mnist-teacher.safetensors
	$(BIN)/python convert.py --half --checkpoint $(STUDENTS)/8_4/diffusion-260.pt \
		--to_safetensors pretrained/mnist-student-4.safetensors
	$(BIN)/python convert.py --half --checkpoint $(STUDENTS)/9_2/diffusion-220.pt \
		--to_safetensors pretrained/mnist-student-2.safetensors
	$(BIN)/python convert.py --half --checkpoint $(LAST_STUDENT) --to_safetensors pretrained/mnist-student-1.safetensors
	$(BIN)/python -m web.make_models pretrained/mnist-teacher.safetensors \
		$(foreach n,4 2 1,pretrained/mnist-student-$(n).safetensors)

gpu: | $(INSTALLED)
	$(BIN)/python -m docs.gpu --config_path $(if $(filter command line,$(origin CONFIG)),$(CONFIG),$(FULL_SIZE))

page: $(PAGE)/index.html

serve: page
	@echo "http://localhost:$(PORT)/ (Ctrl-C ends it)"
	@$(PYTHON) -m http.server --directory $(PAGE) --bind localhost $(PORT)

test: lint
	$(BIN)/python -m pytest -n 2

stress: .venv/tests-installed
	$(BIN)/python -m pytest tests/stress -s

lint: .venv/tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

$(TEACHER): | $(INSTALLED)
	$(BIN)/python train.py --config_path $(CONFIG)

$(LAST_STUDENT): $(TEACHER)
	$(BIN)/python distill.py --config_path $(CONFIG) --teacher_model_checkpoint $(TEACHER) \
		--initial_sampling_steps 512 --distillation_iterations 10

$(PICTURE_AT_8): $(LAST_STUDENT)
	$(BIN)/python sample.py --num_samples 30 --output $@ --compare $(TEACHER):1024 \
		$(TEACHER):8 $(STUDENTS)/7_8/diffusion-360.pt

$(PICTURE): $(LAST_STUDENT)
	$(BIN)/python sample.py --num_samples 20 --output $@ --compare $(TEACHER):1024 \
		$(TEACHER):4 $(STUDENTS)/8_4/diffusion-260.pt \
		$(TEACHER):2 $(STUDENTS)/9_2/diffusion-220.pt \
		$(TEACHER):1 $(LAST_STUDENT)

$(FASHION_TEACHER): | $(INSTALLED)
	$(BIN)/python train.py --config_path $(FASHION_CONFIG)

$(FASHION_LAST): $(FASHION_TEACHER)
	$(BIN)/python distill.py --config_path $(FASHION_CONFIG) --teacher_model_checkpoint $(FASHION_TEACHER) \
		--initial_sampling_steps 512 --distillation_iterations 10

$(FASHION_PICTURE): $(FASHION_LAST)
	$(BIN)/python sample.py --num_samples 20 --output $@ --compare $(FASHION_TEACHER):128 \
		$(FASHION_TEACHER):4 $(FASHION_STUDENTS)/8_4/diffusion-600.pt \
		$(FASHION_TEACHER):2 $(FASHION_STUDENTS)/9_2/diffusion-800.pt

$(PAGE)/index.html: $(wildcard web/*.* web/models/*) web/node_modules/installed
	rm -rf $(PAGE)
	mkdir -p $(PAGE)/ort
	# Some servers do not know .mjs, so these files are called .js.
	cp -r web/index.html web/style.css web/*.js web/models $(PAGE)/
	for name in $(ORT); do \
		cp web/node_modules/onnxruntime-web/dist/$$name $(PAGE)/ort/$$(echo $$name | sed 's/mjs$$/js/') || exit 1; \
	done

web/node_modules/installed: web/package-lock.json
	npm ci --prefix web --ignore-scripts --no-audit --no-fund
	touch $@

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"error: needs Python 3.11 or newer, such as: make PYTHON=python3.12; this is $(VERSION)")'
	test -e .venv/lib/python$(VERSION) || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/tests-installed: tests/requirements.txt $(INSTALLED)
	$(BIN)/python -m pip install --quiet -r tests/requirements.txt
	touch $@

.venv/notebook-installed: $(INSTALLED)
	$(BIN)/python -m pip install --quiet nbclient ipykernel
	touch $@
