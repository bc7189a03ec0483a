// Classify a drawing with Node: its three best classes, then the scores of all classes for many rows.
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
const server = process.env.SKETCHBATCH_SERVER ?? "localhost:50051";
const includeDirs = [path("../../protos"), path("../protos")]; // the second has google/rpc/status.proto
const definition = protoLoader.loadSync("sketchbatch/v1/classifier.proto", { includeDirs });
const { ClassifierService } = grpc.loadPackageDefinition(definition).sketchbatch.v1;

const client = new ClassifierService(server, grpc.credentials.createInsecure(), {
  "grpc.service_config": readFileSync(path("../retry.json"), "utf8"), // retries UNAVAILABLE and a full queue
  "grpc.max_receive_message_length": 64 << 20, // default: 4 MiB
  "grpc.per_rpc_retry_buffer_size": 16 << 20, // larger requests are not retried
  "grpc.keepalive_time_ms": 20000,
});

// Sends one request with a deadline of 10 s, retries included.
const call = (method, request) =>
  new Promise((resolve, reject) => {
    const deadline = Date.now() + 10_000;
    client[method](request, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
  });

try {
  const { model } = await call("getModel", {});
  const cat = readFileSync(path("../cat.bitmap")); // 784 bytes, 28 x 28, 0 = paper, 255 = ink

  const best = await call("classify", { bitmaps: cat, topK: 3 });
  best.classIndex.forEach((index, place) => console.log(`${model.labels[index]} ${best.score[place].toFixed(3)}`));

  const rows = Math.min(4096, model.maxRequestRows);
  const all = await call("classify", { bitmaps: Buffer.concat(Array(rows).fill(cat)) }); // topK 0: all classes
  const first = new Float32Array(model.labels.length).map((_, index) => all.scores.readFloatLE(4 * index));
  const label = model.labels[first.indexOf(Math.max(...first))];
  console.log(`${all.rows} rows, ${all.scores.length} bytes of scores; the first row: ${label}`);
} catch (error) {
  console.error(`error: ${grpc.status[error.code] ?? error.name}: ${error.details ?? error.message}`);
  process.exitCode = 1;
} finally {
  client.close();
}
