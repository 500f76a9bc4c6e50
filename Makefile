# make lesson      digits: train, distill from 1024 sampling steps to 1, compare; resumes what is unfinished
# make match       moment matching: students of 8, 4, 2 and 1 steps; trains the lesson first
# make evaluate    FID of the lesson's teacher and students, with a figure; four minutes on two cores
#                  (match, evaluate and pretrained also take LESSON=fashion or LESSON=faces)
# make fashion     clothes, with guidance; an hour; downloads 30 MB the first time
# make faces       faces in colour, with guidance; half an hour
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
TORCH :=  # cpu: PyTorch without CUDA, from PyTorch's own index
WHEELS := https://download.pytorch.org/whl
FULL_SIZE := configs/ddpm_32x32_v_continuous.yaml

# Each lesson: the name of its configuration; the training steps of the teacher; of the students of 8, 4, 2 and 1 steps;
# of the matched students of 8, 4, 2 and 1 steps; and, with guidance, of the conversion. The configuration has the same.
LESSON := digits
digits := ddpm_32x32_v_continuous_small 3600 360 260 220 200 400 400 400 600
fashion := fashion_mnist_32x32_v_continuous_small 5000 600 600 800 1000 800 800 800 1200 2000
faces := faces_16x16_v_continuous 7000 360 260 220 200 400 400 400 600 1000
$(if $($(LESSON)),,$(error LESSON=$(LESSON): should be digits, fashion or faces))
entry = $(word $(1),$($(LESSON)))

NAME := $(call entry,1)
CONFIG := configs/$(NAME).yaml
TEACHER := output/$(NAME)/diffusion-$(call entry,2).pt
STUDENTS := output/distilled/$(NAME)
STUDENT_8 := $(STUDENTS)/7_8/diffusion-$(call entry,3).pt
STUDENT_4 := $(STUDENTS)/8_4/diffusion-$(call entry,4).pt
STUDENT_2 := $(STUDENTS)/9_2/diffusion-$(call entry,5).pt
STUDENT_1 := $(STUDENTS)/10_1/diffusion-$(call entry,6).pt
MATCHED := output/matched/$(NAME)
ALL_MATCHED := $(MATCHED)/8/diffusion-$(call entry,7).pt $(MATCHED)/4/diffusion-$(call entry,8).pt \
	$(MATCHED)/2/diffusion-$(call entry,9).pt $(MATCHED)/1/diffusion-$(call entry,10).pt
MATCHED_TEACHER := $(if $(call entry,11),$(STUDENTS)/0_conversion/diffusion-$(call entry,11).pt,$(TEACHER))
SHORT := output/matched/$(NAME)_short
SHORT_MATCHED := $(SHORT)/2/diffusion-120.pt $(SHORT)/1/diffusion-160.pt
PICTURE := output/lesson-4-2-1-steps.png
PICTURE_AT_8 := output/lesson-8-steps.png
PICTURE_MATCHED := output/lesson-matched.png
PRETRAINED := pretrained/$(if $(filter digits,$(LESSON)),mnist,$(LESSON))
PROGRESSIVE := $(if $(filter digits,$(LESSON)),4 2 1)
PICTURE_GUIDED := output/$(LESSON)-2-1-steps.png

PAGE := output/page
PORT := 8000

.PHONY: lesson match evaluate fashion faces guided notebook gpu pretrained page serve test stress lint

lesson: $(PICTURE) $(PICTURE_AT_8) $(PICTURE_MATCHED)
	@echo "The lesson is done. Its images (all panels from the same noise; matched students add their own):"
	@echo "  $(PICTURE)   teacher at 1024 steps | teacher and student at 4 | at 2 | at 1"
	@echo "  $(PICTURE_AT_8)   teacher at 1024 steps | teacher at 8 | student at 8"
	@echo "  $(PICTURE_MATCHED)   teacher at 32 steps | students of 2: progressive, matched | students of 1"
	@ls $(STUDENTS)/*/sample-*.png $(SHORT)/*/sample-*.png output/$(NAME)/sample-*.png | sort -V | sed 's/^/  /'

match: $(ALL_MATCHED)
	@ls $(MATCHED)/*/sample-*.png | sort -V | sed 's/^/  /'

evaluate: $(if $(filter digits,$(LESSON)),$(SHORT_MATCHED),$(ALL_MATCHED))
	$(BIN)/python evaluate.py --config_path $(CONFIG) --teacher $(TEACHER) \
		--students $(STUDENTS) $(if $(filter 4,$(words $(wildcard $(ALL_MATCHED)))),$(MATCHED),$(SHORT)) --student_steps 8 4 2 1

fashion faces:
	$(MAKE) LESSON=$@ guided

guided: $(PICTURE_GUIDED)
	@echo "  $(PICTURE_GUIDED)   teacher at 32 steps, 2, 1 | student of 2 | matched students of 2, of 1"

notebook: .venv/notebook-installed
	$(BIN)/jupyter execute --inplace docs/1_method.ipynb
	$(MAKE) $(SHORT_MATCHED)
	$(BIN)/jupyter execute --inplace docs/2_digits.ipynb

define PRETRAIN
$(BIN)/python convert.py --half --checkpoint $(1) --to_safetensors $(PRETRAINED)-$(2).safetensors

endef

pretrained: $(ALL_MATCHED) .venv/tests-installed
	rm -f $(PRETRAINED)-*.safetensors
	$(call PRETRAIN,$(TEACHER),teacher)
	$(foreach n,$(PROGRESSIVE),$(call PRETRAIN,$(STUDENT_$(n)),student-$(n)))
	$(foreach n,4 2 1,$(call PRETRAIN,$(filter $(MATCHED)/$(n)/%,$(ALL_MATCHED)),matched-$(n)))
	$(BIN)/python -m web.make_models $(LESSON) $(PRETRAINED)-teacher.safetensors \
		$(foreach n,$(PROGRESSIVE),$(PRETRAINED)-student-$(n).safetensors) \
		$(foreach n,4 2 1,$(PRETRAINED)-matched-$(n).safetensors)

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
MATCH = $(BIN)/python match.py --config_path $(CONFIG) --teacher_model_checkpoint $(MATCHED_TEACHER) \
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

$(PICTURE_GUIDED): $(ALL_MATCHED)
	$(BIN)/python sample.py --num_samples $(if $(filter faces,$(LESSON)),8,20) --output $@ \
		--compare $(addprefix $(TEACHER):,32 2 1) $(STUDENT_2) $(wordlist 3,4,$(ALL_MATCHED))

$(PAGE)/index.html: $(wildcard web/*.* web/models/*/*) web/node_modules/installed
	$(PYTHON) -m web.make_page $(PAGE)

web/node_modules/installed: web/package-lock.json
	npm ci --prefix web --ignore-scripts --no-audit --no-fund
	touch $@

$(INSTALLED): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"error: needs Python 3.11 or newer, such as: make PYTHON=python3.12; this is $(VERSION)")'
	test -e .venv/lib/python$(VERSION) || $(PYTHON) -m venv --clear .venv
	$(if $(TORCH),$(BIN)/python -m pip install --quiet torch torchvision --index-url $(WHEELS)/$(TORCH))
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/tests-installed: tests/requirements.txt $(INSTALLED)
	$(BIN)/python -m pip install --quiet -r tests/requirements.txt
	touch $@

.venv/notebook-installed: $(INSTALLED)
	$(BIN)/python -m pip install --quiet nbclient ipykernel
	touch $@
