// The models: ONNX files of convert.py, run by onnxruntime-web, each loaded when it is first needed.

import { cosineSchedule } from "./sampler.js";

const RUNTIMES = {
  wasm: ["./ort/ort.wasm.min.js", "./ort/ort-wasm-simd-threaded"],
  webgpu: ["./ort/ort.webgpu.min.js", "./ort/ort-wasm-simd-threaded.asyncify"],
};
const UNCONDITIONAL = -1; // in place of a class
const addressOf = (path) => new URL(path, import.meta.url).href;

/** The available backends: WebAssembly, which loads faster, and WebGPU if the browser has it. */
export async function findBackends() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return adapter ? ["wasm", "webgpu"] : ["wasm"];
}

/** The models.json of a data set, with the full URL of each file and the shape of an image. */
export async function loadManifest(data) {
  const path = `models/${data}/models.json`;
  const response = await fetch(addressOf(`./${path}`));
  if (!response.ok) throw new Error(`${path} cannot be loaded (${response.status})`);
  const manifest = await response.json();
  manifest.shape = [manifest.channels, manifest.size, manifest.size];
  for (const model of manifest.models) Object.assign(model, { url: addressOf(`./models/${data}/${model.file}`), shape: manifest.shape });
  return { ...manifest, schedule: cosineSchedule(manifest.schedule) };
}

const runtimes = new Map();
const sessions = new Map();
let running = Promise.resolve(); // the last call; a session runs one at a time

/** Caches what `make` returns for a key, except failures, so that another attempt may succeed. */
function once(made, key, make) {
  if (!made.has(key)) {
    const promise = make();
    made.set(key, promise);
    promise.catch(() => made.delete(key));
  }
  return made.get(key);
}

async function loadRuntime(backend) {
  const [script, code] = RUNTIMES[backend];
  const ort = await import(script);
  ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = { mjs: addressOf(`${code}.js`), wasm: addressOf(`${code}.wasm`) };
  return ort;
}

/** The number of values of an image. */
export const numbersOf = ({ shape: [channels, height, width] }) => channels * height * width;

/** Loads a model, once for each backend, and evaluates it once, since the first call is slow. */
export function load(model, backend) {
  return once(sessions, `${backend} ${model.url}`, async () => {
    const ort = await once(runtimes, backend, () => loadRuntime(backend));
    const loaded = { ort, session: await ort.InferenceSession.create(model.url, { executionProviders: [backend] }) };
    await counting(loaded, model, { count: 1, label: 0, guidance: 1 }).velocity(new Float32Array(numbersOf(model)), 0);
    return loaded;
  });
}

/**
 * A model's velocity v(z, logsnr) for images of one class; `evaluations` counts the network evaluations.
 *
 * @param count the number of images in z, one after the other
 */
export const velocityOf = async (model, backend, options) => counting(await load(model, backend), model, options);

function counting({ ort, session }, model, { count, label: own, guidance }) {
  const filled = (type, value) => new ort.Tensor(type === BigInt64Array ? "int64" : "float32", type.from({ length: count }, () => value), [count]);
  const counted = { evaluations: 0 };
  const evaluate = async (label, z, logsnr) => {
    counted.evaluations += 1;
    const inputs = { label: filled(BigInt64Array, BigInt(label)), z: new ort.Tensor("float32", z, [count, ...model.shape]), logsnr: filled(Float32Array, logsnr) };
    if (model.guidance) inputs.guidance = filled(Float32Array, guidance);
    const output = running.then(() => session.run(inputs));
    running = output.catch(() => {});
    return (await output).v.data;
  };
  counted.velocity = async (z, logsnr) => {
    const v = await evaluate(own, z, logsnr);
    if (model.guidance || guidance === 1) return v;
    const unconditional = await evaluate(UNCONDITIONAL, z, logsnr); // as in models/guidance.py
    return v.map((value, k) => unconditional[k] + guidance * (value - unconditional[k]));
  };
  return counted;
}
