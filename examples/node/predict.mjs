// Detects objects in images with a detector that `dsrcnn export` wrote, in Node.
//
//     npm install --ignore-scripts     # the skipped script only downloads CUDA libraries
//     node predict.mjs detector.onnx detector.json image.jpg ..
//
// detector.json is the metadata of the file, which ONNX Runtime does not show to JavaScript. Write it once, with Python:
//
//     python -c "import json, onnx; print(json.dumps({entry.key: json.loads(entry.value)
//         for entry in onnx.load('detector.onnx').metadata_props}))" > detector.json

import { readFile } from "node:fs/promises";
import ort from "onnxruntime-node";
import sharp from "sharp";

const [detector, description, ...files] = process.argv.slice(2);
const metadata = JSON.parse(await readFile(description, "utf8"));
if (!metadata.nms_inside && metadata.nms_threshold < 1)
  throw new Error("export without --no-nms: this example leaves non-maximum suppression to the file");
const session = await ort.InferenceSession.create(detector);

for (const file of files) {
  const { boxes, scores, classes } = await session.run(await prepare(file));
  scores.data.forEach((score, i) => {
    if (score < metadata.score_threshold) return;
    const box = Array.from(boxes.data.slice(4 * i, 4 * i + 4), (x) => x.toFixed(1));
    console.log(`${file}: ${metadata.class_names[Number(classes.data[i])]} ${score.toFixed(2)} at ${box.join(", ")}`);
  });
}

/** The inputs of the detector for one image. */
async function prepare(file) {
  const { width, height } = (await sharp(file).metadata()).autoOrient;
  const scale = findScale(height, width);
  const [newHeight, newWidth] = [height, width].map((side) => Math.max(1, Math.round(scale * side)));
  const image = sharp(file).autoOrient().removeAlpha().toColourspace("srgb");
  const { data } = await image
    .resize({ width: newWidth, height: newHeight, fit: "fill" })
    .raw()
    .toBuffer({ resolveWithObject: true });
  // Channel by channel, at the top left of an image whose sides are what the detector needs.
  const unit = metadata.divisibility;
  const [rows, columns] = metadata.size ?? [newHeight, newWidth].map((side) => Math.ceil(side / unit) * unit);
  const order = metadata.image_format === "RGB" ? [0, 1, 2] : [2, 1, 0];
  const pixels = new Uint8Array(3 * rows * columns);
  for (const [channel, source] of order.entries())
    for (let y = 0; y < newHeight; y++)
      for (let x = 0; x < newWidth; x++)
        pixels[(channel * rows + y) * columns + x] = data[3 * (y * newWidth + x) + source];
  return {
    images: new ort.Tensor("uint8", pixels, [1, 3, rows, columns]),
    image_sizes: sizes(newHeight, newWidth),
    original_sizes: sizes(height, width),
  };
}

/** How much larger the detector wants to see an image. */
function findScale(height, width) {
  if (metadata.size) return Math.min(metadata.size[0] / height, metadata.size[1] / width);
  if (metadata.short_edge === 0) return 1;
  return Math.min(metadata.short_edge / Math.min(height, width), metadata.max_size / Math.max(height, width));
}

function sizes(height, width) {
  return new ort.Tensor("int64", BigInt64Array.from([BigInt(height), BigInt(width)]), [1, 2]);
}
