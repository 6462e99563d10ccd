# The command dsrcnn on a CPU, with export and the runtimes that run what was exported.
#
#   docker build -t dsrcnn .
#   docker build --build-arg TORCH_INDEX=URL -t dsrcnn .   # URL of PyTorch's index of CPU wheels: a smaller image
#   docker run --rm -v "$PWD:/work" dsrcnn predict photos/ --weights output/mine
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1
WORKDIR /opt/dsrcnn

# Layers that change seldom come first.
ARG TORCH_INDEX=
COPY constraints.txt ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision

# What the package requires, with a package that is empty but for its version. OpenCV without its desktop libraries.
ARG EXTRAS=lite,onnx,openvino
COPY setup.py pyproject.toml ./
COPY projects/DynamicSparseRCNN/dynamic_sparse_rcnn/__init__.py projects/DynamicSparseRCNN/dynamic_sparse_rcnn/
RUN mkdir configs && pip install --constraint constraints.txt ".[$EXTRAS]" \
    && pip uninstall --yes opencv-python opencv-python-headless \
    && pip install --constraint constraints.txt opencv-python-headless

COPY projects/DynamicSparseRCNN/dynamic_sparse_rcnn/detectron2_build projects/DynamicSparseRCNN/dynamic_sparse_rcnn/detectron2_build
RUN PYTHONPATH=projects/DynamicSparseRCNN python -c \
    "from dynamic_sparse_rcnn.detectron2_build.install import install; install(constraint='constraints.txt')"

COPY . .
RUN pip install --no-deps --force-reinstall . && rm -rf build

RUN useradd --create-home --uid 1000 dsrcnn && mkdir /work && chown dsrcnn /work
USER dsrcnn
WORKDIR /work
ENTRYPOINT ["dsrcnn"]
CMD ["--help"]
