//! What is looked at in a model's encoding before tract sees it: small encodings that stand for huge tensors.

use tract_onnx::pb::{GraphProto, ModelProto, TensorProto, attribute_proto, tensor_proto::DataType};

use crate::{
    MAX_NODES, MAX_RANK, MAX_TENSOR,
    model::{Error, ErrorKind},
};

/// Operators that make a tensor whose dimensions or repeats are the values of another.
const GROWING: &[&str] =
    &["ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot", "CenterCropPad"];
/// How deep graphs may lie within operators of graphs.
const MAX_DEPTH: usize = 8;

/// Refuses constants over the bounds, and operators that would make such from constants.
pub(crate) fn check(model: &ModelProto) -> Result<(), Error> {
    let graph = model.graph.as_ref();
    let graph = graph
        .ok_or_else(|| Error::new(ErrorKind::InvalidEncoding, "the model has no graph: it is not ONNX"))?;
    let mut nodes = 0;
    check_graph(graph, 0, &mut nodes)
}

fn large(words: String) -> Error {
    Error::new(ErrorKind::TooLarge, words)
}

fn check_graph(graph: &GraphProto, depth: usize, nodes: &mut usize) -> Result<(), Error> {
    *nodes += graph.node.len();
    if *nodes > MAX_NODES || depth > MAX_DEPTH {
        return Err(large(format!(
            "the model has more than {MAX_NODES} operators, or graphs deeper than {MAX_DEPTH}"
        )));
    }
    for constant in &graph.initializer {
        check_constant(constant, &constant.name)?;
    }
    for node in &graph.node {
        for attribute in &node.attribute {
            if let Some(constant) = &attribute.t {
                check_constant(constant, &node.name)?;
            }
            let graphs = attribute.g.iter().chain(&attribute.graphs);
            graphs.into_iter().try_for_each(|graph| check_graph(graph, depth + 1, nodes))?;
            let growing = GROWING.contains(&node.op_type.as_str());
            if growing && attribute.r#type() == attribute_proto::AttributeType::Ints {
                check_values(attribute.ints.iter().copied(), &node.name)?;
            }
        }
        if GROWING.contains(&node.op_type.as_str()) {
            let constants = graph.initializer.iter().filter(|c| node.input.contains(&c.name));
            for constant in constants {
                if DataType::try_from(constant.data_type) == Ok(DataType::Int64) && constant.dims.len() <= 1 {
                    let raw = constant.raw_data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
                    check_values(constant.int64_data.iter().copied().chain(raw), &node.name)?;
                }
            }
        }
    }
    Ok(())
}

/// The product of what may be dimensions.
fn check_values(values: impl Iterator<Item = i64>, node: &str) -> Result<(), Error> {
    let values = values.filter_map(|v| usize::try_from(v).ok()).filter(|v| *v > 0).take(MAX_RANK * 2);
    let product = values.into_iter().try_fold(1usize, usize::checked_mul);
    match product.is_some_and(|product| product <= MAX_TENSOR) {
        true => Ok(()),
        false => Err(large(format!(
            "the model's operator {node} makes a tensor of more than {MAX_TENSOR} elements from a constant"
        ))),
    }
}

fn check_constant(constant: &TensorProto, name: &str) -> Result<(), Error> {
    let dims = constant.dims.iter().map(|d| usize::try_from(*d).ok());
    let elements = dims.into_iter().try_fold(1usize, |all, dim| all.checked_mul(dim?));
    match elements.is_some_and(|elements| elements <= MAX_TENSOR) && constant.dims.len() <= MAX_RANK {
        true => Ok(()),
        false => Err(large(format!(
            "the model's constant {name} has the dimensions {:?}; at most {MAX_RANK} dimensions and {MAX_TENSOR} bytes \
             are loaded",
            constant.dims
        ))),
    }
}
