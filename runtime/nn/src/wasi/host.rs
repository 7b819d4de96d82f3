//! The functions of wasi:nn.

use std::sync::Arc;

use wasmtime::component::Resource;

use super::{Charge, Execution, Graph, Held, Inference, View};
use crate::model::{Error, ErrorKind, Kind, Tensor};

#[allow(missing_docs)]
pub(super) mod generated {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "ml",
        imports: {
            "wasi:nn/graph.load": async | trappable,
            "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
            default: trappable,
        },
        require_store_data_send: true,
        with: {
            "wasi:nn/graph.graph": crate::wasi::Graph,
            "wasi:nn/tensor.tensor": crate::wasi::Held,
            "wasi:nn/inference.graph-execution-context": crate::wasi::Execution,
            "wasi:nn/errors.error": crate::model::Error,
        },
    });
}

use generated::wasi::nn::{errors, graph, inference, tensor};

type Fallible<T> = wasmtime::Result<Result<T, Resource<Error>>>;

impl View<'_> {
    fn inference(&self) -> wasmtime::Result<Arc<Inference>> {
        // Containers are refused without it before they start.
        self.context.clone().ok_or_else(|| wasmtime::Error::msg("wasi:nn was not granted to this container"))
    }

    /// The guest's copy of an error.
    fn fail<T>(&mut self, error: Error) -> Fallible<T> {
        Ok(Err(self.table.push(error)?))
    }

    fn hold(&mut self, tensor: Tensor) -> wasmtime::Result<Resource<Held>> {
        let charge = Charge::new(&self.inference()?.account, tensor.data.len())?;
        Ok(self.table.push(Held { tensor, _charge: charge })?)
    }
}

fn kind(ty: tensor::TensorType) -> Kind {
    match ty {
        tensor::TensorType::Fp16 => Kind::F16,
        tensor::TensorType::Fp32 => Kind::F32,
        tensor::TensorType::Fp64 => Kind::F64,
        tensor::TensorType::Bf16 => Kind::Bf16,
        tensor::TensorType::U8 => Kind::U8,
        tensor::TensorType::I32 => Kind::I32,
        tensor::TensorType::I64 => Kind::I64,
    }
}

fn type_of(kind: Kind) -> tensor::TensorType {
    match kind {
        Kind::F16 => tensor::TensorType::Fp16,
        Kind::F32 => tensor::TensorType::Fp32,
        Kind::F64 => tensor::TensorType::Fp64,
        Kind::Bf16 => tensor::TensorType::Bf16,
        Kind::U8 => tensor::TensorType::U8,
        Kind::I32 => tensor::TensorType::I32,
        Kind::I64 => tensor::TensorType::I64,
    }
}

impl tensor::Host for View<'_> {}

impl tensor::HostTensor for View<'_> {
    /// Not checked here: a constructor cannot fail. What a model takes is.
    fn new(
        &mut self,
        dimensions: Vec<u32>,
        ty: tensor::TensorType,
        data: Vec<u8>,
    ) -> wasmtime::Result<Resource<Held>> {
        self.hold(Tensor { dimensions, kind: kind(ty), data })
    }

    fn dimensions(&mut self, tensor: Resource<Held>) -> wasmtime::Result<Vec<u32>> {
        Ok(self.table.get(&tensor)?.tensor.dimensions.clone())
    }

    fn ty(&mut self, tensor: Resource<Held>) -> wasmtime::Result<tensor::TensorType> {
        Ok(type_of(self.table.get(&tensor)?.tensor.kind))
    }

    fn data(&mut self, tensor: Resource<Held>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&tensor)?.tensor.data.clone())
    }

    fn drop(&mut self, tensor: Resource<Held>) -> wasmtime::Result<()> {
        self.table.delete(tensor)?;
        Ok(())
    }
}

impl errors::Host for View<'_> {}

impl errors::HostError for View<'_> {
    fn code(&mut self, error: Resource<Error>) -> wasmtime::Result<errors::ErrorCode> {
        Ok(match self.table.get(&error)?.kind {
            ErrorKind::InvalidArgument => errors::ErrorCode::InvalidArgument,
            ErrorKind::InvalidEncoding => errors::ErrorCode::InvalidEncoding,
            ErrorKind::RuntimeError => errors::ErrorCode::RuntimeError,
            ErrorKind::UnsupportedOperation => errors::ErrorCode::UnsupportedOperation,
            ErrorKind::TooLarge => errors::ErrorCode::TooLarge,
            ErrorKind::NotFound => errors::ErrorCode::NotFound,
        })
    }

    fn data(&mut self, error: Resource<Error>) -> wasmtime::Result<String> {
        Ok(self.table.get(&error)?.words.clone())
    }

    fn drop(&mut self, error: Resource<Error>) -> wasmtime::Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

impl graph::Host for View<'_> {
    async fn load(
        &mut self,
        builder: Vec<Vec<u8>>,
        encoding: graph::GraphEncoding,
        target: graph::ExecutionTarget,
    ) -> Fallible<Resource<Graph>> {
        let inference = self.inference()?;
        if !matches!(encoding, graph::GraphEncoding::Onnx | graph::GraphEncoding::Autodetect) {
            let words = format!("a model in the encoding {encoding:?}; this host reads onnx");
            return self.fail(Error::new(ErrorKind::InvalidEncoding, words));
        }
        let mut parts = builder.into_iter();
        let (Some(onnx), None) = (parts.next(), parts.next()) else {
            return self.fail(Error::new(ErrorKind::InvalidArgument, "an ONNX model is one buffer"));
        };
        match target {
            graph::ExecutionTarget::Cpu => {}
            graph::ExecutionTarget::Gpu => inference.tell_target("GPU"),
            graph::ExecutionTarget::Tpu => inference.tell_target("TPU"),
        }
        match inference.load(onnx).await? {
            Ok(loaded) => Ok(Ok(self.table.push(Graph(loaded))?)),
            Err(error) => self.fail(error),
        }
    }

    fn load_by_name(&mut self, name: String) -> Fallible<Resource<Graph>> {
        let words = format!("this host keeps no model {name:?}: load one from bytes");
        self.fail(Error::new(ErrorKind::NotFound, words))
    }
}

impl graph::HostGraph for View<'_> {
    fn init_execution_context(&mut self, graph: Resource<Graph>) -> Fallible<Resource<Execution>> {
        let loaded = self.table.get(&graph)?.0.clone();
        Ok(Ok(self.table.push(Execution(loaded))?))
    }

    fn drop(&mut self, graph: Resource<Graph>) -> wasmtime::Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::Host for View<'_> {}

impl inference::HostGraphExecutionContext for View<'_> {
    async fn compute(
        &mut self,
        execution: Resource<Execution>,
        inputs: Vec<(String, Resource<Held>)>,
    ) -> Fallible<Vec<(String, Resource<Held>)>> {
        let inference = self.inference()?;
        let loaded = self.table.get(&execution)?.0.clone();
        let mut given = Vec::with_capacity(inputs.len());
        for (name, tensor) in inputs {
            given.push((name, self.table.delete(tensor)?));
        }
        let account = inference.account.clone();
        let job = move || {
            let (given, _charges): (Vec<_>, Vec<_>) =
                given.into_iter().map(|(name, held)| ((name, held.tensor), held._charge)).unzip();
            let mut over = None;
            let result = loaded.model.run(given, |bytes| {
                Charge::new(&account, bytes).map_err(|error| {
                    over = Some(error);
                    Error::new(ErrorKind::TooLarge, "the container's memory does not suffice")
                })
            });
            Ok((result, over))
        };
        let outputs = match inference.job(job).await {
            // Over its limit: that ends the container.
            Ok((_, Some(over))) => return Err(over),
            Ok((Ok(outputs), None)) => outputs,
            Ok((Err(error), None)) | Err(error) => return self.fail(error),
        };
        let mut results = Vec::with_capacity(outputs.len());
        for (name, tensor) in outputs {
            results.push((name, self.hold(tensor)?));
        }
        Ok(Ok(results))
    }

    fn drop(&mut self, execution: Resource<Execution>) -> wasmtime::Result<()> {
        self.table.delete(execution)?;
        Ok(())
    }
}
