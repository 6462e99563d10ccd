"""The config files; installed as the package data of dynamic_sparse_rcnn.configs."""
