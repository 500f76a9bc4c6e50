// The page: controls, and the samples that they ask for.

import { drawGrids } from "./grid.js";
import { findBackends, load, loadManifest } from "./models.js";
import { normalNoise } from "./noise.js";
import { Panel } from "./panel.js";
import { allowed, readState, writeState } from "./state.js";

const HALVINGS = 10; // from 1024 steps to one
const BACKENDS = { wasm: "WebAssembly", webgpu: "WebGPU" };
const byId = (id) => document.getElementById(id);
const say = (text) => (byId("status").textContent = text);
const panels = { teacher: new Panel(byId("teacher"), "Teacher"), student: new Panel(byId("student"), "Student") };
let [manifest, state, drawing] = [null, readState(location.hash), new AbortController()];

/** Draws the noise of the n-th sample of sample.py: first the initial z, then that of each stochastic step. */
const noiseOf = (number) => normalNoise((manifest.noise_seed + number) % 2 ** 32, manifest.size ** 2);
const teacher = () => manifest.models.find((model) => !model.steps);
const students = () => manifest.models.filter((model) => model.steps && model.matched === Boolean(state.matched));
const student = () => students().find((model) => model.steps === state.steps);

/** Shows the state in the controls and the address. */
function show() {
  for (const input of byId("digits").querySelectorAll("input")) input.checked = Number(input.value) === state.digit;
  byId("noise").value = state.noise;
  byId("matched").value = state.matched;
  byId("steps").value = HALVINGS - Math.log2(state.steps);
  showSteps(state.steps);
  byId("guidance").value = byId("guidance-text").textContent = state.guidance;
  history.replaceState(null, "", writeState(state));
}

function showSteps(steps) {
  byId("steps-text").textContent = steps;
  byId("steps").setAttribute("aria-valuetext", `${steps} steps`);
}

/** Changes the state, and samples again. */
function change(changes) {
  state = { ...state, ...changes };
  state.digit = Math.min(state.digit, manifest.class_names.length - 1);
  state.matched &= manifest.models.some((model) => model.matched);
  const [low, high] = manifest.guidance ?? [1, 1];
  state.guidance = Math.min(Math.max(state.guidance, low), high);
  show();
  work(draw);
}

/** Aborts the current work and does another; shows errors. */
async function work(task) {
  drawing.abort();
  drawing = new AbortController();
  const { signal } = drawing;
  try {
    await task(signal);
  } catch (error) {
    if (!signal.aborted) say(explain(error));
  }
}

async function draw(signal) {
  const { size, schedule } = manifest;
  const noise = noiseOf(state.noise);
  const options = { ...state, schedule, size, z: noise(), noise, signal };
  const backend = byId("backend").value;
  const known = students().map((model) => model.steps);
  const missing = student() ? "" : `There is no student of ${state.steps} steps here, only of ${known.join(", ")}.`;
  panels.student.begin(state.steps, options.z, size, missing);
  panels.teacher.begin(state.steps, options.z, size, "");
  byId("grid").replaceChildren();
  for (const [name, model] of [["student", student()], ["teacher", teacher()]]) {
    if (!model) continue;
    say(`Loading the ${name} …`);
    await load(model, backend);
    if (signal.aborted) return;
    say(`The ${name} is sampling …`);
    if ((await panels[name].draw(model, backend, options)) === null) return;
  }
  say(missing ? "The teacher is done." : "Both are done.");
}

function drawMore(signal) {
  const { size, schedule } = manifest;
  const options = { ...state, schedule, size, noiseOf, first: state.noise + 1, signal };
  const models = [["Teacher", teacher()], ["Student", student()]];
  return drawGrids(byId("grid"), models, byId("backend").value, options, say);
}

/** The message for an error. */
function explain(error) {
  if (typeof WebAssembly !== "object") return "This browser has no WebAssembly, which the networks need; a newer one does.";
  return `A model could not be loaded or run: ${error.message}`;
}

/** Saves both samples, side by side and enlarged eight times, as one PNG. */
function save() {
  const side = 8 * manifest.size;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * side + 8, side];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(panels.teacher.z, 0, 0, side, side);
  context.drawImage(panels.student.z, side + 8, 0, side, side);
  const link = document.createElement("a");
  link.href = canvas.toDataURL("image/png");
  link.download = `digit-${state.digit}-noise-${state.noise}-steps-${state.steps}.png`;
  link.click();
}

function listen() {
  const on = (id, event, act) => byId(id).addEventListener(event, act);
  on("digits", "change", ({ target }) => change({ digit: Number(target.value) }));
  on("noise", "change", ({ target }) => change({ noise: allowed("noise", target.value, state.noise) }));
  on("other-noise", "click", () => change({ noise: Math.floor(1000 * Math.random()) }));
  on("steps", "input", ({ target }) => showSteps(2 ** (HALVINGS - target.value)));
  on("steps", "change", ({ target }) => change({ steps: 2 ** (HALVINGS - target.value) }));
  on("matched", "change", ({ target }) => change({ matched: Number(target.value) }));
  on("guidance", "change", ({ target }) => change({ guidance: Number(target.value) }));
  on("backend", "change", () => work(draw));
  on("more", "click", () => work(drawMore));
  on("save", "click", save);
  on("controls", "submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => change(readState(location.hash)));
}

function fillControls(backends) {
  for (const [k, name] of manifest.class_names.entries()) {
    const label = byId("digits").appendChild(document.createElement("label"));
    label.innerHTML = `<input type="radio" name="digit" value="${k}" />`;
    label.append(name); // as text: names may come from anywhere
  }
  byId("backend").innerHTML = backends.map((name) => `<option value="${name}">${BACKENDS[name]}</option>`).join("");
  byId("backend-label").hidden = backends.length === 1;
  byId("matched-label").hidden = !manifest.models.some((model) => model.matched);
  if (manifest.guidance) {
    [byId("guidance").min, byId("guidance").max] = manifest.guidance;
    byId("guidance-label").hidden = false;
  }
  byId("controls").disabled = byId("actions").disabled = false;
}

await work(async () => {
  say("Loading …");
  manifest = await loadManifest();
  fillControls(await findBackends());
  listen();
  change({});
});
