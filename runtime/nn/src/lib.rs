//! Inference for guests: ONNX models on tract, bounded, and wasi:nn in front of it.
