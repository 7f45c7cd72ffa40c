// What in_python.py does, for the packages of npm: node in_node.mjs REQUEST.json
// Started in a folder with node_modules.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const asked = JSON.parse(readFileSync(process.argv[2], "utf-8"));
const require = createRequire(`${process.cwd()}/`);
const ort = require(asked.package);
const web = asked.package === "onnxruntime-web";
if (web) ort.env.wasm.numThreads = 1;

async function load(file, checked) {
  const options = { intraOpNumThreads: 1, interOpNumThreads: 1, logSeverityLevel: 3 };
  const facts = {};
  options.executionProviders = [web ? "wasm" : "cpu"];
  if (asked.precise && !web) options.extra = { session: { x64quantprecision: "1" } };
  if (checked && !web) facts.optimized = options.optimizedModelFilePath = `${file}.optimized`;
  const held = await ort.InferenceSession.create(web ? readFileSync(file) : file, options);
  const run = async (pixels) => (await held.run({ [held.inputNames[0]]: pixels }))[held.outputNames[0]];
  return [run, facts];
}

function pixelsOf({ pixels, shape }) {
  const bytes = readFileSync(pixels);
  return new ort.Tensor("float32", new Float32Array(new Uint8Array(bytes).buffer), shape);
}

async function check(part) {
  const pixels = pixelsOf(part), found = {};
  for (const [name, file] of Object.entries(part.files)) {
    try {
      const [run, facts] = await load(file, true);
      const { data, dims } = await run(pixels), wide = dims[1];
      const rows = Array.from({ length: dims[0] }, (_, i) => Array.from(data.slice(i * wide, (i + 1) * wide)));
      found[name] = { ...facts, outputs: rows };
    } catch (error) {
      found[name] = { error: String(error) };
    }
  }
  return found;
}

async function time(part) {
  const pixels = pixelsOf(part), held = {}, taken = {};
  for (const [name, file] of Object.entries(part.files)) {
    [held[name]] = await load(file, false);
    taken[name] = [];
  }
  const end = performance.now() + 1000 * part.seconds * Object.keys(held).length;
  for (let turn = 0; turn <= 2 * part.warm_up || performance.now() < end; turn++) {
    for (const [name, run] of Object.entries(held)) {
      const start = performance.now();
      await run(pixels);
      if (turn >= part.warm_up) taken[name].push(performance.now() - start);
    }
  }
  return taken;
}

const answer = { version: JSON.parse(readFileSync(`node_modules/${asked.package}/package.json`)).version };
if (asked.check) answer.check = await check(asked.check);
if (asked.time) answer.time = await time(asked.time);
process.stdout.write(JSON.stringify(answer));
