// usage: node run.mjs FOLDER MODEL.onnx IMAGES.bin CHANNELS HEIGHT WIDTH OUTPUT.bin
// Runs a file in the onnxruntime-web that is installed in FOLDER, as WebAssembly, on float32 images,
// all at once, and writes its first output.
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, model, images, channels, height, width, output] = process.argv.slice(2);
const ort = createRequire(`${folder}/`)("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const bytes = readFileSync(images);
const numbers = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const shape = [channels, height, width].map(Number);
const count = numbers.length / shape.reduce((a, b) => a * b);

const options = { executionProviders: ["wasm"] };
const session = await ort.InferenceSession.create(readFileSync(model), options);
const input = new ort.Tensor("float32", numbers, [count, ...shape]);
const results = await session.run({ [session.inputNames[0]]: input });
const found = results[session.outputNames[0]].data;
writeFileSync(output, Buffer.from(found.buffer, found.byteOffset, found.byteLength));
