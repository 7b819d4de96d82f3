use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation,
};

use super::*;

/// The model of the example: 64 cells to the probabilities of four shapes, any number of drawings at once.
const SHAPES: &[u8] = include_bytes!("../../../../examples/gpu-infer/model/shapes.onnx");

const TRIANGLE: &str = "...........#......#.#.....#.#....#...#...#####..................";
const CROSS: &str = "...##......##......##...################...##......##......##...";

fn drawings(drawings: &[&str]) -> Tensor {
    let cells = drawings.iter().flat_map(|d| d.chars()).map(|c| if c == '#' { 1f32 } else { 0. });
    let data = cells.flat_map(f32::to_le_bytes).collect();
    Tensor { dimensions: vec![drawings.len() as u32, 64], kind: Kind::F32, data }
}

fn run(model: &Model, input: Tensor) -> Result<(Vec<u32>, Vec<f32>), Error> {
    let outputs = model.run(vec![("cells".into(), input)], |_| Ok(()))?;
    let [(name, output)] = outputs.as_slice() else { panic!("{outputs:?}") };
    assert_eq!((name.as_str(), output.kind), ("probabilities", Kind::F32));
    let numbers = output.data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    Ok((output.dimensions.clone(), numbers))
}

/// The expected numbers are another implementation's: ONNX Runtime 1.31 on the same model and drawings.
#[test]
fn the_numbers_are_right() {
    let model = Model::load(SHAPES).unwrap();
    assert_eq!(
        (model.inputs().collect::<Vec<_>>(), model.outputs()),
        (vec!["cells"], &["probabilities".to_owned()][..])
    );
    let (shape, one) = run(&model, drawings(&[TRIANGLE])).unwrap();
    assert_eq!(shape, [1, 4]);
    let expected = [0.008_404_624, 0.017_931_383, 0.001_821_201, 0.971_842_8];
    assert!(one.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{one:?}");
    let (shape, two) = run(&model, drawings(&[CROSS, TRIANGLE])).unwrap();
    assert_eq!((shape, two.len()), (vec![2, 4], 8));
    assert!((two[1] - 0.999_996_4).abs() < 1e-5 && (two[7] - 0.971_842_8).abs() < 1e-5, "{two:?}");
}

#[test]
fn what_does_not_fit_the_model_is_refused() {
    let model = Model::load(SHAPES).unwrap();
    let fitting = || drawings(&[CROSS]);
    type Case = (&'static str, ErrorKind, Vec<(String, Tensor)>);
    let cases: [Case; 8] = [
        ("has 1 inputs (cells), and 0 were given", ErrorKind::InvalidArgument, vec![]),
        ("no input \"pixels\"", ErrorKind::InvalidArgument, vec![("pixels".into(), fitting())]),
        ("no input \"1\"", ErrorKind::InvalidArgument, vec![("1".into(), fitting())]),
        (
            "of type F32",
            ErrorKind::InvalidArgument,
            vec![("cells".into(), Tensor { kind: Kind::I32, ..fitting() })],
        ),
        (
            "was given",
            ErrorKind::InvalidArgument,
            vec![("0".into(), Tensor { dimensions: vec![64], ..fitting() })],
        ),
        (
            "was given",
            ErrorKind::InvalidArgument,
            vec![("".into(), Tensor { dimensions: vec![2, 32], ..fitting() })],
        ),
        (
            "128 were given",
            ErrorKind::InvalidArgument,
            vec![("".into(), Tensor { data: vec![0; 128], ..fitting() })],
        ),
        (
            "is over",
            ErrorKind::TooLarge,
            vec![("".into(), Tensor { dimensions: vec![u32::MAX, 64], ..fitting() })],
        ),
    ];
    for (words, kind, inputs) in cases {
        let error = model.run(inputs, |_| Ok(())).unwrap_err();
        assert!(error.kind == kind && error.words.contains(words), "{words}: {error:?}");
    }
}

/// Between the operators lie at least the hidden numbers, 16 a drawing, and the outputs, 4.
#[test]
fn a_run_asks_for_what_lies_between_its_operators() {
    let model = Model::load(SHAPES).unwrap();
    let mut asked = 0;
    let input = vec![(String::new(), drawings(&[CROSS; 100]))];
    let refused = model.run(input, |bytes| {
        asked = bytes;
        Err::<(), _>(Error::new(ErrorKind::TooLarge, "no"))
    });
    assert_eq!(refused, Err(Error::new(ErrorKind::TooLarge, "no")));
    assert!((100 * 4 * 20..100 * 4 * 200).contains(&asked), "{asked}");
}

#[test]
fn what_is_not_a_model_is_refused() {
    for broken in [&b""[..], b"hello", &SHAPES[..SHAPES.len() / 2], &[0xff; 100]] {
        assert_eq!(Model::load(broken).unwrap_err().kind, ErrorKind::InvalidEncoding);
    }
    // An operator that nobody knows.
    let name = SHAPES.windows(4).position(|w| w == b"Relu").unwrap();
    let mut unknown = SHAPES.to_vec();
    unknown[name..name + 4].copy_from_slice(b"Rulu");
    let error = Model::load(&unknown).unwrap_err();
    assert!(error.kind == ErrorKind::UnsupportedOperation && error.words.contains("Rulu"), "{error:?}");
}

fn graph(initializer: Vec<TensorProto>, node: Vec<NodeProto>) -> ModelProto {
    ModelProto { graph: Some(GraphProto { initializer, node, ..Default::default() }), ..Default::default() }
}

/// A few bytes that stand for more memory than there is.
#[test]
fn small_encodings_of_huge_tensors_are_refused() {
    const INT64: i32 = 7;
    let shape = TensorProto {
        name: "shape".into(),
        data_type: INT64,
        dims: vec![3],
        int64_data: vec![1 << 20; 3],
        ..Default::default()
    };
    let fill =
        NodeProto { op_type: "ConstantOfShape".into(), input: vec!["shape".into()], ..Default::default() };
    let raw = TensorProto {
        int64_data: vec![],
        raw_data: [1i64 << 40; 3].iter().flat_map(|d| d.to_le_bytes()).collect(),
        ..shape.clone()
    };
    let empty = TensorProto { name: "w".into(), dims: vec![1 << 40], ..Default::default() };
    for model in [
        graph(vec![shape.clone()], vec![fill.clone()]),
        graph(vec![raw], vec![fill.clone()]),
        graph(vec![empty], vec![]),
    ] {
        assert_eq!(proto::check(&model).unwrap_err().kind, ErrorKind::TooLarge);
    }
    let small = TensorProto { int64_data: vec![2, 3, 4], ..shape };
    assert_eq!(proto::check(&graph(vec![small], vec![fill])), Ok(()));
}

/// The host's files are not the guest's to name.
#[test]
fn weights_in_files_are_refused() {
    let location = StringStringEntryProto { key: "location".into(), value: "/etc/passwd".into() };
    let outside = TensorProto {
        name: "w".into(),
        data_type: 2,
        dims: vec![8],
        data_location: Some(DataLocation::External as i32),
        external_data: vec![location],
        ..Default::default()
    };
    let mut framework = tract_onnx::onnx();
    framework.provider = Arc::new(NoFiles);
    assert!(framework.model_for_proto_model(&graph(vec![outside], vec![])).is_err());
    assert!(NoFiles.read_bytes_from_path(&mut Vec::new(), Path::new("/etc/hostname"), 0, None).is_err());
}
