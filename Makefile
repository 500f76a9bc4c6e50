# make lesson      digits: train, distill from 1024 sampling steps to 1, compare; resumes what is unfinished
# make match       moment matching: students of 8, 4, 2 and 1 steps; trains the lesson first
# make evaluate    FID of the lesson's teacher and students, with a figure; four minutes on two cores
# make fashion     clothes, with guidance; half an hour; downloads 30 MB the first time
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
STUDENT_8 := $(STUDENTS)/7_8/diffusion-360.pt
STUDENT_4 := $(STUDENTS)/8_4/diffusion-260.pt
STUDENT_2 := $(STUDENTS)/9_2/diffusion-220.pt
STUDENT_1 := $(STUDENTS)/10_1/diffusion-200.pt
MATCHED := output/matched/$(NAME)
ALL_MATCHED := $(addprefix $(MATCHED)/,8/diffusion-400.pt 4/diffusion-400.pt 2/diffusion-400.pt 1/diffusion-600.pt)
SHORT := output/matched/$(NAME)_short
SHORT_MATCHED := $(SHORT)/2/diffusion-120.pt $(SHORT)/1/diffusion-160.pt
PICTURE := output/lesson-4-2-1-steps.png
PICTURE_AT_8 := output/lesson-8-steps.png
PICTURE_MATCHED := output/lesson-matched.png

PAGE := output/page
PORT := 8000
ORT := ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm \
	ort.webgpu.min.mjs ort-wasm-simd-threaded.asyncify.mjs ort-wasm-simd-threaded.asyncify.wasm

FASHION := fashion_mnist_32x32_v_continuous_small
FASHION_CONFIG := configs/$(FASHION).yaml
FASHION_TEACHER := output/$(FASHION)/diffusion-5000.pt
FASHION_STUDENTS := output/distilled/$(FASHION)
FASHION_STUDENT_8 := $(FASHION_STUDENTS)/7_8/diffusion-600.pt
FASHION_STUDENT_4 := $(FASHION_STUDENTS)/8_4/diffusion-600.pt
FASHION_STUDENT_2 := $(FASHION_STUDENTS)/9_2/diffusion-800.pt
FASHION_STUDENT_1 := $(FASHION_STUDENTS)/10_1/diffusion-1000.pt
FASHION_MATCHED := $(addprefix output/matched/$(FASHION)/,8/diffusion-800.pt 4/diffusion-800.pt \
	2/diffusion-800.pt 1/diffusion-1200.pt)
FASHION_PICTURE := output/fashion-2-1-steps.png

.PHONY: lesson match evaluate fashion notebook gpu pretrained page serve test stress lint

lesson: $(PICTURE) $(PICTURE_AT_8) $(PICTURE_MATCHED)
	@echo "The lesson is done. Its images (all panels from the same noise; matched students add their own):"
	@echo "  $(PICTURE)   teacher at 1024 steps | teacher and student at 4 | at 2 | at 1"
	@echo "  $(PICTURE_AT_8)   teacher at 1024 steps | teacher at 8 | student at 8"
	@echo "  $(PICTURE_MATCHED)   teacher at 32 steps | students of 2: progressive, matched | students of 1"
	@ls $(STUDENTS)/*/sample-*.png $(SHORT)/*/sample-*.png output/$(NAME)/sample-*.png | sort -V | sed 's/^/  /'

match: $(ALL_MATCHED)
	@ls $(MATCHED)/*/sample-*.png | sort -V | sed 's/^/  /'

evaluate: $(SHORT_MATCHED)
	$(BIN)/python evaluate.py --config_path $(CONFIG) --teacher $(TEACHER) \
		--students $(STUDENTS) $(if $(filter 4,$(words $(wildcard $(ALL_MATCHED)))),$(MATCHED),$(SHORT)) --student_steps 8 4 2 1

fashion: $(FASHION_PICTURE)
	@echo "  $(FASHION_PICTURE)   teacher at 128 steps, at 2 | student of 2 | matched students of 2, of 1"

notebook: .venv/notebook-installed
	$(BIN)/jupyter execute --inplace docs/1_method.ipynb
	$(MAKE) $(SHORT_MATCHED)
	$(BIN)/jupyter execute --inplace docs/2_digits.ipynb

define PRETRAIN
$(BIN)/python convert.py --half --checkpoint $(1) --to_safetensors pretrained/mnist-$(2).safetensors

endef

pretrained: $(ALL_MATCHED) .venv/tests-installed
	rm -f pretrained/mnist-*.safetensors
	$(call PRETRAIN,$(TEACHER),teacher)
	$(foreach n,4 2 1,$(call PRETRAIN,$(STUDENT_$(n)),student-$(n)))
	$(foreach n,4 2 1,$(call PRETRAIN,$(filter $(MATCHED)/$(n)/%,$(ALL_MATCHED)),matched-$(n)))
	$(BIN)/python -m web.make_models pretrained/mnist-teacher.safetensors \
		$(foreach n,4 2 1,pretrained/mnist-student-$(n).safetensors pretrained/mnist-matched-$(n).safetensors)

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

$(STUDENT_1): $(TEACHER)
	$(BIN)/python distill.py --config_path $(CONFIG) --teacher_model_checkpoint $(TEACHER) \
		--initial_sampling_steps 512 --distillation_iterations 10

# The student of as many steps as the name of the target's folder says.
MATCH = $(BIN)/python match.py --config_path $(CONFIG) --teacher_model_checkpoint $(TEACHER) \
	--student_checkpoint $(STUDENT_$(notdir $(@D)))

$(ALL_MATCHED): $(STUDENT_1)
	$(MATCH)

$(SHORT_MATCHED): $(STUDENT_1)
	$(MATCH) --num_training_steps $(patsubst diffusion-%.pt,%,$(@F)) --ema_decay 0.98 --output_dir $(@D) \
		--learning_rate $(if $(filter %/1,$(@D)),1e-3,4e-4)

$(PICTURE_MATCHED): $(SHORT_MATCHED)
	$(BIN)/python sample.py --num_samples 20 --output $@ --compare $(TEACHER):32 \
		$(foreach n,2 1,$(STUDENT_$(n)) $(filter $(SHORT)/$(n)/%,$(SHORT_MATCHED)))

$(PICTURE_AT_8): $(STUDENT_1)
	$(BIN)/python sample.py --num_samples 30 --output $@ --compare $(TEACHER):1024 \
		$(TEACHER):8 $(STUDENT_8)

$(PICTURE): $(STUDENT_1)
	$(BIN)/python sample.py --num_samples 20 --output $@ --compare $(TEACHER):1024 \
		$(TEACHER):4 $(STUDENT_4) \
		$(TEACHER):2 $(STUDENT_2) \
		$(TEACHER):1 $(STUDENT_1)

$(FASHION_TEACHER): | $(INSTALLED)
	$(BIN)/python train.py --config_path $(FASHION_CONFIG)

$(FASHION_STUDENT_1): $(FASHION_TEACHER)
	$(BIN)/python distill.py --config_path $(FASHION_CONFIG) --teacher_model_checkpoint $(FASHION_TEACHER) \
		--initial_sampling_steps 512 --distillation_iterations 10

$(FASHION_MATCHED): $(FASHION_STUDENT_1)
	$(BIN)/python match.py --config_path $(FASHION_CONFIG) \
		--teacher_model_checkpoint $(FASHION_STUDENTS)/0_conversion/diffusion-2000.pt \
		--student_checkpoint $(FASHION_STUDENT_$(notdir $(@D)))

$(FASHION_PICTURE): $(FASHION_MATCHED)
	$(BIN)/python sample.py --num_samples 20 --output $@ --compare $(FASHION_TEACHER):128 \
		$(FASHION_TEACHER):2 $(FASHION_STUDENT_2) $(wordlist 3,4,$(FASHION_MATCHED))

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
