#!/usr/bin/env python3
"""Detects objects in images with a detector that `dsrcnn export` wrote; needs NumPy, OpenCV and ONNX Runtime alone.

pip install numpy opencv-python onnxruntime
python examples/onnx_predict.py detector.onnx image.jpg ..
"""

import argparse
import json

import cv2
import numpy as np
import onnxruntime


def main() -> None:
    """Prints the detections, and writes each image with its boxes beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", help="an .onnx file")
    parser.add_argument("images", nargs="+")
    args = parser.parse_args()

    session = onnxruntime.InferenceSession(args.detector, providers=["CPUExecutionProvider"])
    entries = session.get_modelmeta().custom_metadata_map
    metadata = {name: json.loads(value) for name, value in entries.items()}
    if not metadata["nms_inside"] and metadata["nms_threshold"] < 1:
        raise SystemExit("export without --no-nms: this example leaves non-maximum suppression to the file")

    for path in args.images:
        image = cv2.imread(path)
        if image is None:
            raise SystemExit(f"{path} is no image that OpenCV can read")
        boxes, scores, classes = session.run(None, prepare(image, metadata))
        strong = scores[0] >= metadata["score_threshold"]
        for box, score, index in zip(boxes[0][strong], scores[0][strong], classes[0][strong], strict=True):
            name = metadata["class_names"][index]
            print(f"{path}: {name} {score:.2f} at {', '.join(f'{x:.1f}' for x in box)}")
            left, top, right, bottom = (round(float(x)) for x in box)
            cv2.rectangle(image, (left, top), (right, bottom), (0, 0, 255), 1)
            cv2.putText(image, name, (left, top + 12), cv2.FONT_HERSHEY_PLAIN, 1, (0, 0, 255))
        cv2.imwrite(f"{path.rpartition('.')[0]}_detections.png", image)


def prepare(image: np.ndarray, metadata: dict) -> dict[str, np.ndarray]:
    """The inputs of the detector for one image, (H, W, 3) BGR as OpenCV reads it."""
    height, width = image.shape[:2]
    scale = find_scale(height, width, metadata)
    new_height, new_width = max(1, int(scale * height + 0.5)), max(1, int(scale * width + 0.5))
    resized = cv2.resize(
        image, (new_width, new_height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    if metadata["image_format"] == "RGB":
        resized = resized[..., ::-1]
    # At the top left of an image whose sides are what the detector needs; the rest is not looked at.
    unit = metadata["divisibility"]
    padded = metadata["size"] or [-(-side // unit) * unit for side in (new_height, new_width)]
    batch = np.zeros((1, 3, *padded), np.uint8)
    batch[0, :, :new_height, :new_width] = resized.transpose(2, 0, 1)
    return {
        "images": batch,
        "image_sizes": np.array([[new_height, new_width]]),
        "original_sizes": np.array([[height, width]]),
    }


def find_scale(height: int, width: int, metadata: dict) -> float:
    """How much larger the detector wants to see an image."""
    if metadata["size"] is not None:
        return min(metadata["size"][0] / height, metadata["size"][1] / width)
    if metadata["short_edge"] == 0:
        return 1.0
    return min(metadata["short_edge"] / min(height, width), metadata["max_size"] / max(height, width))


if __name__ == "__main__":
    main()
