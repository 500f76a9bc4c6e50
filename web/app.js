// The page: controls, and the samples that they ask for.

import { drawGrids } from "./grid.js";
import { findBackends, load, loadManifest, numbersOf } from "./models.js";
import { normalNoise } from "./noise.js";
import { Panel } from "./panel.js";
import { allowed, readState, writeState } from "./state.js";

const HALVINGS = 10; // from 1024 steps to one
const DATA = ["digits", "faces"]; // folders of models/
const BACKENDS = { wasm: "WebAssembly", webgpu: "WebGPU" };
const byId = (id) => document.getElementById(id);
const say = (text) => (byId("status").textContent = text);
const panels = { teacher: new Panel(byId("teacher"), "Teacher"), student: new Panel(byId("student"), "Student") };
let [manifest, loaded, state, drawing] = [null, null, readState(location.hash), new AbortController()];

/** Draws the noise of the n-th sample of sample.py: first the initial z, then that of each stochastic step. */
const noiseOf = (number) => normalNoise((manifest.noise_seed + number) % 2 ** 32, numbersOf(manifest));
const teacher = () => manifest.models.find((model) => !model.steps);
/** 0 if there are progressive students, 1 if there are matched ones. */
const kinds = () => [...new Set(manifest.models.filter((model) => model.steps).map((model) => Number(model.matched)))];
const students = () => manifest.models.filter((model) => model.steps && model.matched === Boolean(state.matched));
const student = () => students().find((model) => model.steps === state.steps);

/** Shows the state in the controls and the address. */
function show() {
  const parts = partsOf(manifest.class_names)[state.label];
  for (const input of byId("classes").querySelectorAll("input")) input.checked = parts.includes(input.value);
  byId("data").value = state.data;
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
  state.data = Math.min(state.data, DATA.length - 1);
  work(async (signal) => {
    if (loaded !== state.data) {
      const found = await loadManifest(DATA[state.data]);
      if (signal.aborted) return;
      [manifest, loaded] = [found, state.data];
      fillForData();
    }
    fitState();
    show();
    await draw(signal);
  });
}

/** Makes the state one that the models have. */
function fitState() {
  state.label = Math.min(state.label, manifest.class_names.length - 1);
  if (!kinds().includes(state.matched)) [state.matched] = kinds();
  const [low, high] = manifest.guidance ?? [1, 1];
  state.guidance = Math.min(Math.max(state.guidance, low), high);
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
  const options = { ...state, name: className(), schedule, size, z: noise(), noise, signal };
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
  const options = { ...state, name: className(), schedule, size, noiseOf, first: state.noise + 1, signal };
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
  link.download = `${DATA[state.data]}-${className()}-noise-${state.noise}-steps-${state.steps}.png`;
  link.click();
}

function listen() {
  const on = (id, event, act) => byId(id).addEventListener(event, act);
  on("data", "change", ({ target }) => change({ data: Number(target.value) }));
  on("classes", "change", () => {
    const checked = [...byId("classes").querySelectorAll(":checked")].map((input) => input.value);
    change({ label: partsOf(manifest.class_names).findIndex((parts) => parts.length === checked.length && parts.every((part) => checked.includes(part))) });
  });
  on("noise", "change", ({ target }) => change({ noise: allowed("noise", target.value, state.noise) }));
  on("other-noise", "click", () => change({ noise: Math.floor(1000 * Math.random()) }));
  on("steps", "input", ({ target }) => showSteps(2 ** (HALVINGS - target.value)));
  on("steps", "change", ({ target }) => change({ steps: 2 ** (HALVINGS - target.value) }));
  on("matched", "change", ({ target }) => change({ matched: Number(target.value) }));
  on("guidance", "change", ({ target }) => change({ guidance: Number(target.value) }));
  on("backend", "change", () => change({}));
  on("more", "click", () => work(drawMore));
  on("save", "click", save);
  document.forms[0].addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", () => change(readState(location.hash)));
}

/** The parts of class names: long_glasses_hat is one of the first parts, with any of the others; digits have one part. */
function partsOf(names) {
  const split = names.map((name) => name.split("_"));
  const count = new Set(split.map(([first]) => first)).size * 2 ** new Set(split.flatMap(([, ...others]) => others)).size;
  return count === names.length ? split : names.map((name) => [name]);
}

const className = () => manifest.class_names[state.label];

/** Shows the controls that fit the models: radio buttons for the first parts of the class names, check boxes for others. */
function fillForData() {
  const parts = partsOf(manifest.class_names);
  const choices = new Map(parts.flatMap((list) => list.map((part, k) => [part, k ? "checkbox" : "radio"])));
  const inputs = (type) => [...choices].filter((choice) => choice[1] === type);
  byId("classes").replaceChildren(...[...inputs("radio"), ...inputs("checkbox")].map(([part, type]) => {
    const label = document.createElement("label");
    label.innerHTML = `<input type="${type}" name="class" />`;
    label.firstChild.value = part;
    label.append(part); // as text: names may come from anywhere
    return label;
  }));
  byId("matched-label").hidden = kinds().length === 1;
  byId("guidance-label").hidden = !manifest.guidance;
  [byId("guidance").min, byId("guidance").max] = manifest.guidance ?? [1, 1];
  byId("actions").disabled = false;
}

function fillControls(backends) {
  const fill = (id, options) => {
    byId(id).innerHTML = options.map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
    byId(`${id}-label`).hidden = options.length === 1;
  };
  fill("backend", backends.map((name) => [name, BACKENDS[name]]));
  fill("data", [...DATA.entries()]);
  byId("controls").disabled = false;
}

say("Loading …");
fillControls(await findBackends());
listen();
change({});
