// What the page does: decode, preprocess and embed the images of one job, as an app would. The driver calls
// samespace.hello and samespace.embed; bytes come from and go to the paths under job/.

import { preprocess } from "./preprocess.js";

const PACKAGES = new URL("../packages/", import.meta.url);

/** A refusal: a sentence for people, that blames the artifact or an image. */
class Refused extends Error {}
/** What this browser cannot do at all. */
class Unfit extends Error {}

const bytesOf = async (name) => new Uint8Array(await (await fetch(`job/${name}`)).arrayBuffer());
const send = (name, array) => fetch(`job/${name}`, { method: "POST", body: array });

/** What this browser is; see driver.py. */
async function hello(accelerator) {
  const found = { isolated: crossOriginIsolated };
  if (accelerator === "webgpu") {
    const adapter = await navigator.gpu?.requestAdapter();
    const info = adapter?.info ?? {};
    found.webgpu = adapter ? [info.vendor, info.architecture, info.description].filter(Boolean).join(" ") || "yes" : "none";
    found["shader-f16"] = adapter?.features.has("shader-f16") ?? false;
  }
  return found;
}

/** Embed; returns what was refused ("" when nothing was), or what is unfit. */
async function embed(job) {
  try {
    await computed(job);
    return { refused: "" };
  } catch (error) {
    if (error instanceof Unfit) return { config: error.message };
    return { refused: error instanceof Refused ? error.message : `${job.path}: ${error?.message ?? error}` };
  }
}

async function computed(job) {
  const { size } = job.preprocess;
  const step = size * size * 3;
  const tensors = new Uint8Array(job.images * step);
  for (let i = 0; i < job.images; i++) {
    try {
      tensors.set(await preprocess(await bytesOf(`image/${i}`), job.preprocess), i * step);
    } catch (error) {
      throw new Refused(`image ${i}: ${error.message}`);
    }
  }
  await send("tensors", tensors);
  const half = job.accelerator === "webgpu" ? await lacksHalf(job) : false;
  const run = job.format === "tflite" ? await openLiteRt(job) : await openOnnx(job);
  const embeddings = new Float32Array(job.images * job.dim);
  for (let i = 0; i < job.images; i++) {
    const input = asInput(tensors.subarray(i * step, (i + 1) * step), size, job.input);
    const row = await run(input);
    if (row.length !== job.dim) throw new Refused(`${job.path} answered with ${row.length} values, expected ${job.dim}`);
    if (job.accelerator === "webgpu" && row.every((value) => value === 0)) {
      const why = half ? " (its adapter has no shader-f16, without which fp16 may give zeros)" : "";
      throw new Refused(`${job.path}: WebGPU gives nothing but zeros for image ${i}, and no error${why}: use wasm`);
    }
    embeddings.set(row, i * job.dim);
  }
  await send("embeddings", new Uint8Array(embeddings.buffer));
}

/** Whether the adapter has no shader-f16. An artifact that computes in fp16 is refused: some runtimes then give zeros, and no error. */
async function lacksHalf(job) {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) throw new Unfit("this browser has no WebGPU adapter; use the device 'browser'");
  if (adapter.features.has("shader-f16")) return false;
  // TFLite's fp16 is fp16 weights and float arithmetic.
  if (job.precision === "fp16" && job.format !== "tflite") {
    throw new Refused(
      `${job.path}: fp16 needs shader-f16, which this WebGPU adapter has not (zeros would come of it, or an error): use fp32 or wasm`,
    );
  }
  return true;
}

/** Values 0-255 in the dtype and layout that the artifact takes. */
function asInput(tensor, size, { dtype, layout }) {
  let values = tensor;
  if (layout === "nchw") {
    values = new Uint8Array(tensor.length);
    const plane = size * size;
    for (let i = 0; i < plane; i++) for (let c = 0; c < 3; c++) values[c * plane + i] = tensor[3 * i + c];
  }
  const shape = layout === "nchw" ? [1, 3, size, size] : [1, size, size, 3];
  if (dtype === "uint8") return { values: Uint8Array.from(values), shape, dtype };
  if (dtype === "float32") return { values: Float32Array.from(values), shape, dtype };
  throw new Refused(`an input of the type ${dtype} is not known here`);
}

async function openOnnx(job) {
  const ort = await import(new URL(`onnxruntime-web/dist/ort.${job.accelerator}.min.mjs`, PACKAGES));
  ort.env.wasm.wasmPaths = new URL("onnxruntime-web/dist/", PACKAGES).href;
  ort.env.wasm.numThreads = job.threads;
  ort.env.logLevel = "error";
  const session = await ort.InferenceSession.create(await bytesOf("artifact"), {
    executionProviders: [job.accelerator],
    graphOptimizationLevel: job.optimise ? "all" : "disabled",
  });
  return async ({ values, shape, dtype }) => {
    const found = await session.run({ [job.input.name]: new ort.Tensor(dtype, values, shape) });
    const output = found[job.output];
    if (!output) throw new Refused(`${job.path} has no output ${job.output}; it has ${Object.keys(found).join(", ")}`);
    return output.getData();
  };
}

async function openLiteRt(job) {
  const litert = await import("@litertjs/core");
  const warnings = [];
  const { warn } = console;
  console.warn = (...parts) => {
    warnings.push(parts.join(" "));
    warn(...parts);
  };
  await litert.loadLiteRt(new URL("@litertjs/core/wasm/", PACKAGES).href, { threads: job.threads > 1 });
  const model = await litert.loadAndCompile(await bytesOf("artifact"), {
    accelerator: job.accelerator,
    cpuOptions: { numThreads: job.threads },
    gpuOptions: { precision: "fp32" },
  });
  if (job.accelerator === "webgpu" && warnings.some((text) => /not fully compiled|falling back/i.test(text))) {
    throw new Refused(`${job.path}: LiteRT.js cannot run all of it by WebGPU, and would compute it by wasm: use the device 'browser'`);
  }
  return async ({ values, shape }) => {
    const input = new litert.Tensor(values, shape);
    const outputs = await model.run([input]);
    const output = await outputs[0].moveTo("wasm");
    const row = Float32Array.from(output.toTypedArray());
    for (const tensor of [input, output]) if (!tensor.deleted) tensor.delete();
    return row;
  };
}

globalThis.samespace = { hello, embed };
