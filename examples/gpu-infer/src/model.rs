//! The model, and one inference with it.
wit_bindgen::generate!({ path: "../../runtime/nn/wit", world: "ml", generate_all });

use std::cell::OnceCell;

use wasi::nn::{
    errors::Error,
    graph::{ExecutionTarget, Graph, GraphEncoding, load},
    tensor::{Tensor, TensorType},
};

/// Written by model/train.py.
const SHAPES: &[u8] = include_bytes!("../model/shapes.onnx");

thread_local! {
    /// Loaded by the first request of this instance.
    static GRAPH: OnceCell<Graph> = const { OnceCell::new() };
}

fn words(error: Error) -> String {
    format!("wasi:nn: {:?}: {}", error.code(), error.data())
}

/// The probability of each class for a drawing of 64 cells.
pub fn run(cells: &[f32]) -> Result<Vec<f32>, String> {
    GRAPH.with(|kept| {
        if kept.get().is_none() {
            let graph = load(&[SHAPES.to_vec()], GraphEncoding::Onnx, ExecutionTarget::Gpu).map_err(words)?;
            let _ = kept.set(graph);
        }
        let graph = kept.get().ok_or("there is no model")?;
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_le_bytes()).collect();
        let input = Tensor::new(&[1, 64], TensorType::Fp32, &bytes);
        let context = graph.init_execution_context().map_err(words)?;
        let outputs = context.compute(vec![("cells".to_owned(), input)]).map_err(words)?;
        let (_, output) = outputs.into_iter().next().ok_or("the model has no output")?;
        let data = output.data();
        Ok(data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    })
}
