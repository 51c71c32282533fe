//! What finished descriptors hold, and how it is made of their attributes.

use super::{
    Checked, Refusal, Status,
    attributes::*,
    convolution::{Algorithm, Direction, Element, Operation, Tensor, Window},
    descriptors::{Descriptor, Library},
    refusal,
};
use crate::driver::Handle;

pub enum Content {
    Tensor(Tensor),
    Convolution(Window),
    Operation(Operation),
    Graph(Graph),
    Heuristics(Vec<Engine>),
    /// Also of an engine's configuration.
    Engine(Engine),
    Plan(Engine),
    VariantPack(VariantPack),
}

#[derive(Clone, Copy)]
pub struct Graph {
    pub handle: Handle,
    pub operation: Operation,
}

/// One way to compute a graph.
#[derive(Clone, Copy)]
pub struct Engine {
    pub graph: Graph,
    pub algorithm: Algorithm,
}

/// Where the tensors of these ids are. Invariant: no two ids are alike.
pub struct VariantPack {
    pub ids: [i64; 3],
    pub pointers: [u64; 3],
    pub workspace: u64,
}

/// The content of a descriptor whose attributes are all set, each of a kind that it may be.
pub fn build(library: &Library, descriptor: &Descriptor) -> Checked<Content> {
    let part = |name| library.content(descriptor.one(name)? as Handle);
    match descriptor.kind {
        Kind::Tensor => tensor(descriptor).map(Content::Tensor),
        Kind::Convolution => window(descriptor).map(Content::Convolution),
        Kind::Forward | Kind::BackwardData | Kind::BackwardFilter => {
            operation(library, descriptor).map(Content::Operation)
        }
        Kind::OperationGraph => {
            let Content::Operation(operation) = part(OPERATIONGRAPH_OPS)? else { return Err(unexpected()) };
            let handle = descriptor.one(OPERATIONGRAPH_HANDLE)? as Handle;
            Ok(Content::Graph(Graph { handle, operation: *operation }))
        }
        Kind::Heuristics => {
            let Content::Graph(graph) = part(ENGINEHEUR_OPERATION_GRAPH)? else { return Err(unexpected()) };
            engines(*graph, descriptor.one(ENGINEHEUR_MODE)?).map(Content::Heuristics)
        }
        kind @ (Kind::Engine | Kind::EngineConfig) => {
            Err(refusal!(NotSupported, "a {kind:?} not filled by heuristics is not emulated"))
        }
        Kind::ExecutionPlan => {
            let Content::Engine(engine) = part(EXECUTION_PLAN_ENGINE_CONFIG)? else {
                return Err(unexpected());
            };
            if engine.graph.handle != descriptor.one(EXECUTION_PLAN_HANDLE)? as Handle {
                return Err(refusal!(BadParam, "the plan has another handle than its graph"));
            }
            if engine.algorithm == Algorithm::Unavailable {
                // Nobody's fault: heuristics promise nothing.
                return Err(Refusal { status: Status::NotSupported, reason: None });
            }
            Ok(Content::Plan(*engine))
        }
        Kind::VariantPack => variant_pack(descriptor).map(Content::VariantPack),
    }
}

/// A content that the kind of its descriptor excludes.
fn unexpected() -> Refusal {
    refusal!(InternalError, "a part has the content of another kind")
}

fn tensor(descriptor: &Descriptor) -> Checked<Tensor> {
    let element = match descriptor.one(TENSOR_DATA_TYPE)? {
        DATA_FLOAT => Element::F32,
        DATA_BFLOAT16 => Element::Bf16,
        other => return Err(refusal!(UnsupportedDataType, "tensors of data type {other} are not emulated")),
    };
    Tensor::new(
        descriptor.one(TENSOR_UNIQUE_ID)? as i64,
        element,
        descriptor.integers(TENSOR_DIMENSIONS)?,
        descriptor.integers(TENSOR_STRIDES)?,
        descriptor.one(TENSOR_BYTE_ALIGNMENT)? as i64,
    )
}

fn window(descriptor: &Descriptor) -> Checked<Window> {
    let axes = descriptor.one(CONVOLUTION_SPATIAL_DIMS)?;
    if axes != 2 {
        return Err(refusal!(NotSupported, "convolutions along {axes} axes are not emulated"));
    }
    if descriptor.one(CONVOLUTION_COMP_TYPE)? != DATA_FLOAT {
        return Err(refusal!(UnsupportedDataType, "only convolutions that compute in f32 are emulated"));
    }
    if descriptor.one(CONVOLUTION_CONV_MODE)? != CROSS_CORRELATION {
        return Err(refusal!(NotSupported, "only cross-correlation is emulated"));
    }
    Window::new(
        [descriptor.integers(CONVOLUTION_PRE_PADDINGS)?, descriptor.integers(CONVOLUTION_POST_PADDINGS)?],
        descriptor.integers(CONVOLUTION_FILTER_STRIDES)?,
        descriptor.integers(CONVOLUTION_DILATIONS)?,
    )
}

fn operation(library: &Library, descriptor: &Descriptor) -> Checked<Operation> {
    let (direction, first) = match descriptor.kind {
        Kind::Forward => (Direction::Forward, OPERATION_CONVOLUTION_FORWARD_ALPHA),
        Kind::BackwardData => (Direction::BackwardData, OPERATION_CONVOLUTION_BWD_DATA_ALPHA),
        _ => (Direction::BackwardFilter, OPERATION_CONVOLUTION_BWD_FILTER_ALPHA),
    };
    // In every direction the attributes follow each other in this order.
    let [alpha, beta, window, weight, x, y] = [0, 1, 2, 3, 4, 5].map(|offset| descriptor.one(first + offset));
    let [alpha, beta] = [alpha?, beta?].map(|factor| f32::from_bits(factor as u32));
    if (alpha, beta) != (1.0, 0.0) {
        return Err(refusal!(NotSupported, "alpha {alpha} and beta {beta} are not emulated, only 1 and 0"));
    }
    let Content::Convolution(window) = library.content(window? as Handle)? else { return Err(unexpected()) };
    let tensor = |id| match library.content(id as Handle)? {
        Content::Tensor(tensor) => Ok(*tensor),
        _ => Err(unexpected()),
    };
    Operation::new(direction, [tensor(x?)?, tensor(weight?)?, tensor(y?)?], *window)
}

fn variant_pack(descriptor: &Descriptor) -> Checked<VariantPack> {
    let ids @ [x, weight, y] = descriptor.integers(VARIANT_PACK_UNIQUE_IDS)?;
    if x == weight || x == y || weight == y {
        return Err(refusal!(DuplicatedEntries, "unique ids {ids:?} are not unique"));
    }
    let pointers = descriptor.some(VARIANT_PACK_DATA_POINTERS)?;
    Ok(VariantPack { ids, pointers, workspace: descriptor.one(VARIANT_PACK_WORKSPACE)? })
}

/// The engines that the heuristics propose, made so that a program that takes the wrong one shows it.
fn engines(graph: Graph, mode: u64) -> Checked<Vec<Engine>> {
    let algorithms: &[_] = match mode {
        HEUR_MODE_A => &[
            Algorithm::TensorCore,
            Algorithm::Nondeterministic,
            Algorithm::Unavailable,
            Algorithm::Workspace,
            Algorithm::Plain,
        ],
        HEUR_MODE_FALLBACK => &[Algorithm::Plain],
        _ => return Err(refusal!(NotSupported, "heuristics in mode {mode} are not emulated")),
    };
    let rounds = graph.operation.element() == Element::F32;
    let algorithms = algorithms.iter().filter(|&&algorithm| rounds || algorithm != Algorithm::TensorCore);
    Ok(algorithms.map(|&algorithm| Engine { graph, algorithm }).collect())
}

impl Engine {
    pub fn notes(&self) -> Vec<u64> {
        let mut notes = Vec::new();
        // Every engine for bf16 is of this kind on a GPU of today, and loses nothing by it.
        if self.algorithm == Algorithm::TensorCore || self.graph.operation.element() == Element::Bf16 {
            notes.push(NOTE_TENSOR_CORE);
        }
        if self.algorithm == Algorithm::Nondeterministic {
            notes.push(NOTE_NONDETERMINISTIC);
        }
        notes
    }
}
