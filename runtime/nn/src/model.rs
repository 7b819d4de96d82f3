//! A model: read from ONNX, optimised once, run many times.

use std::{borrow::Cow, io, path::Path, sync::Arc};

use tract_onnx::{
    data_resolver::ModelDataResolver,
    prelude::*,
    tract_core::{
        internal::{ShapeFact, f16},
        ops::konst::Const,
    },
};

use crate::{MAX_MODEL, MAX_NODES, MAX_PORTS, MAX_RANK, MAX_TENSOR, MAX_WORK, proto};

/// The most sizes by symbols that are kept of a model.
const MAX_STEPS: usize = 1000;

/// What the elements of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    F16,
    F32,
    F64,
    Bf16,
    U8,
    I32,
    I64,
}

impl Kind {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Kind::U8 => 1,
            Kind::F16 | Kind::Bf16 => 2,
            Kind::F32 | Kind::I32 => 4,
            Kind::F64 | Kind::I64 => 8,
        }
    }

    fn of(datum: DatumType) -> Option<Kind> {
        Some(match datum {
            DatumType::F16 => Kind::F16,
            DatumType::F32 => Kind::F32,
            DatumType::F64 => Kind::F64,
            DatumType::U8 => Kind::U8,
            DatumType::I32 => Kind::I32,
            DatumType::I64 => Kind::I64,
            _ => return None,
        })
    }
}

/// Numbers in row-major order, little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub dimensions: Vec<u32>,
    pub kind: Kind,
    pub data: Vec<u8>,
}

/// The class of a failure; the names are those of wasi:nn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    InvalidArgument,
    InvalidEncoding,
    RuntimeError,
    UnsupportedOperation,
    TooLarge,
    NotFound,
}

/// Why a model was not loaded or run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Error {
    pub kind: ErrorKind,
    pub words: String,
}

impl Error {
    /// An error of this class in these words.
    pub fn new(kind: ErrorKind, words: impl Into<String>) -> Error {
        Error { kind, words: words.into() }
    }

    fn argument(words: impl Into<String>) -> Error {
        Error::new(ErrorKind::InvalidArgument, words)
    }
}

struct Input {
    name: String,
    kind: DatumType,
    shape: ShapeFact,
}

/// A model that can be run, by several threads at once.
pub struct Model {
    plan: Arc<TypedRunnableModel>,
    /// Bytes between the operators at each step of a run; a size that the inputs' shapes decide is an expression.
    steps: Vec<TDim>,
    inputs: Vec<Input>,
    outputs: Vec<String>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inputs: Vec<_> = self.inputs.iter().map(|i| &i.name).collect();
        f.debug_struct("Model").field("inputs", &inputs).field("outputs", &self.outputs).finish()
    }
}

/// Weights in files beside the model: there is no file of a host that a guest may name.
struct NoFiles;

impl ModelDataResolver for NoFiles {
    fn read_bytes_from_path(
        &self,
        _: &mut Vec<u8>,
        path: &Path,
        _: usize,
        _: Option<usize>,
    ) -> TractResult<()> {
        let words = format!(
            "the model keeps weights in the file {}: they have to be inside the model",
            path.display()
        );
        Err(io::Error::new(io::ErrorKind::PermissionDenied, words).into())
    }
}

/// The message and its causes, each once, in one line.
fn words(error: &TractError) -> String {
    let mut words = format!("{error:#}").replace('\n', " ");
    words.truncate(words.floor_char_boundary(2000));
    words
}

impl Model {
    /// Reads and optimises an ONNX model. Blocking, and long for a large model. A malformed one can panic in tract: the
    /// caller runs this where a panic is caught.
    ///
    /// # Errors
    /// When it is not ONNX, larger than the bounds of this crate, or has operators that tract does not know.
    pub fn load(onnx: &[u8]) -> Result<Model, Error> {
        if onnx.len() > MAX_MODEL {
            let words = format!("the model has {} bytes; at most {MAX_MODEL} are loaded", onnx.len());
            return Err(Error::new(ErrorKind::TooLarge, words));
        }
        let broken = |e: TractError| {
            Error::new(
                ErrorKind::InvalidEncoding,
                format!("the model is not ONNX that can be read: {}", words(&e)),
            )
        };
        let mut framework = tract_onnx::onnx();
        framework.provider = Arc::new(NoFiles);
        let parsed = framework.proto_model_for_read(&mut io::Cursor::new(onnx)).map_err(broken)?;
        proto::check(&parsed)?;
        let model = framework.model_for_proto_model(&parsed).map_err(broken)?;
        drop(parsed);
        let (inputs, outputs) = ports(&model)?;
        let refused = |e: TractError| {
            Error::new(ErrorKind::UnsupportedOperation, format!("the model cannot be run: {}", words(&e)))
        };
        let typed = model.into_typed().map_err(refused)?;
        bounded(&typed, None)?;
        let optimised = typed.into_decluttered().and_then(TypedModel::into_optimized).map_err(refused)?;
        bounded(&optimised, None)?;
        let facts = optimised.input_outlets().map_err(refused)?.iter().map(|outlet| {
            let fact = optimised.outlet_fact(*outlet)?;
            Ok((fact.datum_type, fact.shape.clone()))
        });
        let facts: Vec<_> = facts.collect::<TractResult<_>>().map_err(refused)?;
        let inputs = inputs.into_iter().zip(facts);
        let inputs = inputs.map(|(name, (kind, shape))| Input { name, kind, shape }).collect();
        let steps = steps(&optimised).map_err(refused)?;
        let plan = optimised.into_runnable().map_err(refused)?;
        Ok(Model { plan, steps, inputs, outputs })
    }

    /// The names of the inputs, in the model's order.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.iter().map(|input| input.name.as_str())
    }

    /// The names of the outputs, in the model's order.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// One inference. `reserve` is asked for the bytes that lie between the model's operators while it runs, and what it
    /// answers is held until the end. A name can also be the position of the input (`0`), and a single input needs none. Blocking; can
    /// panic in tract like [`Model::load`].
    ///
    /// # Errors
    /// When the inputs are not those of the model, in number, type or shape, or when an operator fails.
    pub fn run<T>(
        &self,
        given: Vec<(String, Tensor)>,
        reserve: impl FnOnce(usize) -> Result<T, Error>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        if given.len() != self.inputs.len() {
            let words = format!(
                "the model has {} inputs ({}), and {} were given",
                self.inputs.len(),
                self.names(),
                given.len()
            );
            return Err(Error::argument(words));
        }
        let mut slots: Vec<Option<TValue>> = vec![None; self.inputs.len()];
        let mut symbols = SymbolValues::default();
        for (name, tensor) in given {
            let index = self.find(&name)?;
            let (Some(input), Some(slot)) = (self.inputs.get(index), slots.get_mut(index)) else { continue };
            if slot.is_some() {
                return Err(Error::argument(format!("the input {name:?} was given twice")));
            }
            input.check(&tensor, &mut symbols)?;
            *slot = Some(into_tract(&input.name, tensor)?.into());
        }
        let inputs: TVec<TValue> = slots.into_iter().flatten().collect();
        bounded(self.plan.model(), Some(&symbols))?;
        let _reserved = reserve(self.work(&symbols)?)?;
        let failed = |e: TractError| {
            Error::new(ErrorKind::RuntimeError, format!("the inference failed: {}", words(&e)))
        };
        let computed = self.plan.run(inputs).map_err(failed)?;
        self.outputs
            .iter()
            .zip(computed)
            .map(|(name, value)| Ok((name.clone(), from_tract(name, &value)?)))
            .collect()
    }

    /// The most bytes that lie between the operators at once. Sizes that show only in the run are not in it.
    fn work(&self, symbols: &SymbolValues) -> Result<usize, Error> {
        let bytes = self.steps.iter().filter_map(|step| step.eval(symbols).as_i64()).max().unwrap_or(0);
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        if bytes > MAX_WORK {
            let words = format!("the inference needs {bytes} bytes at once; at most {MAX_WORK} can be had");
            return Err(Error::new(ErrorKind::TooLarge, words));
        }
        Ok(bytes)
    }

    fn names(&self) -> String {
        self.inputs().collect::<Vec<_>>().join(", ")
    }

    fn find(&self, name: &str) -> Result<usize, Error> {
        if let Some(index) = self.inputs.iter().position(|input| input.name == name) {
            return Ok(index);
        }
        match name.parse::<usize>() {
            Ok(index) if index < self.inputs.len() => Ok(index),
            _ if name.is_empty() && self.inputs.len() == 1 => Ok(0),
            _ => Err(Error::argument(format!("the model has no input {name:?}; it has {}", self.names()))),
        }
    }
}

/// What lies between operators at each step; each size once.
fn steps(model: &TypedModel) -> TractResult<Vec<TDim>> {
    let order = model.eval_order()?;
    let sizes = model.eval_tmp_memory_usage(&order, |node| !node.op_is::<Const>())?;
    let mut steps: Vec<TDim> = Vec::new();
    let mut most = 0;
    for (_, size) in sizes {
        match size.as_i64() {
            Some(bytes) => most = most.max(bytes),
            None if !steps.contains(&size) && steps.len() < MAX_STEPS => steps.push(size),
            None => {}
        }
    }
    steps.push(most.into());
    Ok(steps)
}

/// Names of inputs and outputs.
fn ports(model: &InferenceModel) -> Result<(Vec<String>, Vec<String>), Error> {
    let broken = |e: TractError| Error::new(ErrorKind::InvalidEncoding, words(&e));
    let named = |outlet: &OutletId| {
        let label = model.outlet_label(*outlet).map(str::to_owned);
        label.unwrap_or_else(|| model.node(outlet.node).name.clone())
    };
    let inputs: Vec<String> = model.input_outlets().map_err(broken)?.iter().map(named).collect();
    let outputs: Vec<String> = model.output_outlets().map_err(broken)?.iter().map(named).collect();
    if outputs.is_empty() || outputs.len() > MAX_PORTS || inputs.len() > MAX_PORTS {
        let words = format!(
            "the model has {} inputs and {} outputs; 1 to {MAX_PORTS} outputs and at most {MAX_PORTS} inputs can be used",
            inputs.len(),
            outputs.len()
        );
        return Err(Error::new(ErrorKind::InvalidEncoding, words));
    }
    Ok((inputs, outputs))
}

/// Refuses a model with a tensor over the bound. Dimensions that are not known (yet) are left alone.
fn bounded(model: &TypedModel, symbols: Option<&SymbolValues>) -> Result<(), Error> {
    let large = |words: String| Err(Error::new(ErrorKind::TooLarge, words));
    if model.nodes().len() > MAX_NODES {
        return large(format!(
            "the model has {} operators; at most {MAX_NODES} are run",
            model.nodes().len()
        ));
    }
    for node in model.nodes() {
        for output in &node.outputs {
            let shape = &output.fact.shape;
            let dims = match (shape.as_concrete(), symbols) {
                (Some(dims), None) => Cow::Borrowed(dims),
                (None, Some(symbols)) => match shape.eval_to_usize(symbols) {
                    Ok(dims) => Cow::Owned(dims.to_vec()),
                    Err(_) => continue,
                },
                _ => continue,
            };
            let each = output.fact.datum_type.size_of().max(1);
            let bytes = dims.iter().try_fold(each, |bytes, dim| bytes.checked_mul(*dim));
            if bytes.is_none_or(|bytes| bytes > MAX_TENSOR) {
                return large(format!(
                    "the model's operator {} makes a tensor of {dims:?}; tensors of at most {MAX_TENSOR} bytes can be made",
                    node.name
                ));
            }
        }
    }
    Ok(())
}

impl Input {
    /// Type, size and shape; what a symbol of the model stands for is kept in `symbols`.
    fn check(&self, tensor: &Tensor, symbols: &mut SymbolValues) -> Result<(), Error> {
        let name = &self.name;
        if Kind::of(self.kind) != Some(tensor.kind) {
            let words = format!(
                "the input {name} is of type {:?}; a tensor of {:?} was given",
                self.kind, tensor.kind
            );
            return Err(Error::argument(words));
        }
        size(tensor).map_err(|e| Error::new(e.kind, format!("the input {name}: {}", e.words)))?;
        let wrong = || {
            let words =
                format!("the input {name} has the shape {:?}; {:?} was given", self.shape, tensor.dimensions);
            Error::argument(words)
        };
        if self.shape.rank() != tensor.dimensions.len() {
            return Err(wrong());
        }
        for (expected, given) in self.shape.iter().zip(&tensor.dimensions) {
            if let TDim::Sym(symbol) = expected
                && symbols.get(symbol).is_none()
            {
                symbols.set(symbol, i64::from(*given));
            }
            if expected.eval(symbols).as_i64().is_some_and(|e| e != i64::from(*given)) {
                return Err(wrong());
            }
        }
        Ok(())
    }
}

/// Checks that a tensor's data are of its dimensions, and within the bounds.
pub(crate) fn size(tensor: &Tensor) -> Result<(), Error> {
    if tensor.dimensions.len() > MAX_RANK {
        let words =
            format!("a tensor of {} dimensions; at most {MAX_RANK} can be used", tensor.dimensions.len());
        return Err(Error::new(ErrorKind::TooLarge, words));
    }
    let bytes = tensor.dimensions.iter().try_fold(tensor.kind.size(), |b, d| b.checked_mul(*d as usize));
    let bytes = bytes.filter(|bytes| *bytes <= MAX_TENSOR).ok_or_else(|| {
        let words = format!("a tensor of {:?} elements is over {MAX_TENSOR} bytes", tensor.dimensions);
        Error::new(ErrorKind::TooLarge, words)
    })?;
    if bytes != tensor.data.len() {
        let words = format!(
            "a tensor of {:?} elements of {:?} has {bytes} bytes of data; {} were given",
            tensor.dimensions,
            tensor.kind,
            tensor.data.len()
        );
        return Err(Error::argument(words));
    }
    Ok(())
}

type Native = tract_onnx::prelude::Tensor;

/// Elements of `N` bytes.
fn read<T: Datum + Copy, const N: usize>(
    shape: &[usize],
    data: &[u8],
    from: fn([u8; N]) -> T,
) -> TractResult<Native> {
    let elements: Vec<T> = data.as_chunks::<N>().0.iter().map(|bytes| from(*bytes)).collect();
    Native::from_shape(shape, &elements)
}

fn into_tract(name: &str, tensor: Tensor) -> Result<Native, Error> {
    let shape: Vec<usize> = tensor.dimensions.iter().map(|d| *d as usize).collect();
    let data = &tensor.data;
    let made = match tensor.kind {
        Kind::F16 => read(&shape, data, f16::from_le_bytes),
        Kind::F32 => read(&shape, data, f32::from_le_bytes),
        Kind::F64 => read(&shape, data, f64::from_le_bytes),
        Kind::U8 => Native::from_shape(&shape, data),
        Kind::I32 => read(&shape, data, i32::from_le_bytes),
        Kind::I64 => read(&shape, data, i64::from_le_bytes),
        Kind::Bf16 => {
            let words = format!("the input {name} is of type BF16, which is not supported");
            return Err(Error::new(ErrorKind::UnsupportedOperation, words));
        }
    };
    made.map_err(|e| Error::argument(format!("the input {name}: {}", words(&e))))
}

fn from_tract(name: &str, value: &Native) -> Result<Tensor, Error> {
    let failed =
        |e: TractError| Error::new(ErrorKind::RuntimeError, format!("the output {name}: {}", words(&e)));
    // wasi:nn has fewer types than ONNX: what it cannot say is widened to what it can.
    let datum = value.datum_type();
    let (kind, datum) = match (Kind::of(datum), datum) {
        (Some(kind), _) => (kind, datum),
        (None, DatumType::Bool) => (Kind::U8, DatumType::U8),
        (None, DatumType::I8 | DatumType::I16 | DatumType::U16) => (Kind::I32, DatumType::I32),
        (None, DatumType::U32 | DatumType::TDim) => (Kind::I64, DatumType::I64),
        (None, other) => {
            let words = format!("the output {name} is of type {other:?}, for which wasi:nn has no name");
            return Err(Error::new(ErrorKind::UnsupportedOperation, words));
        }
    };
    let value = value.cast_to_dt(datum).map_err(failed)?;
    let dimensions = value.shape().iter().map(|d| u32::try_from(*d));
    let dimensions = dimensions.collect::<Result<_, _>>().map_err(|e| failed(e.into()))?;
    Ok(Tensor { dimensions, kind, data: value.as_bytes().to_vec() })
}

#[cfg(test)]
mod tests;
