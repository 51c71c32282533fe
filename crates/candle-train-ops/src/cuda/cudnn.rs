//! Convolution through cuDNN's graph interface, channels last: for every shape and
//! direction the fastest of the engines that its heuristics propose.
#![expect(unsafe_code, reason = "cuDNN is a C library; each block says why it is sound")]

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    ffi::c_void,
    ptr,
    rc::Rc,
};

use candle_core::{
    Result,
    cuda_backend::cudarc::{
        cudnn::sys::{
            self, cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
            cudnnBackendDescriptorType_t as Object,
        },
        driver::sys::CUevent_flags,
    },
};

use super::context::{Address, Context, Kind};
use crate::{OpError, activation::Dims, conv::Geometry};

/// Uses of a shape after which its engines are timed. To prepare them takes seconds for a
/// large network: a last, smaller batch of an epoch is not worth that.
const USES_BEFORE_TIMING: u32 = 32;

/// Engines that are timed for one shape, as ranked by the heuristics.
const CANDIDATES: usize = 8;

/// Runs of each engine that are timed, after one that is not.
const RUNS: usize = 4;

/// Variant packs that a plan keeps; more come from memory that is not found again.
const MOST_PACKS: usize = 64;

/// An engine that wants more scratch memory is used only where no other can be.
const LARGEST_WORKSPACE: usize = 1 << 30;

/// Which of the three tensors of a convolution is computed from the other two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    Forward,
    InputGradient,
    WeightGradient,
}

/// Everything that a plan depends on, besides the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    direction: Direction,
    kind: Kind,
    /// `[N, I, H, W]`.
    input: [i64; 4],
    /// `[O, I / groups, KH, KW]`.
    weight: [i64; 4],
    /// `[N, O, OH, OW]`.
    output: [i64; 4],
    stride: i64,
    padding: i64,
    deterministic: bool,
}

impl PlanKey {
    pub fn new(direction: Direction, kind: Kind, geometry: &Geometry, deterministic: bool) -> Self {
        let Geometry { input, output, window, groups } = *geometry;
        let sizes = |sizes: [usize; 4]| sizes.map(|size| size as i64);
        let dims = |Dims { n, c, h, w }: Dims| sizes([n, c, h, w]);
        Self {
            direction,
            kind,
            input: dims(input),
            weight: sizes([output.c, input.c / groups, window.kernel_h, window.kernel_w]),
            output: dims(output),
            stride: window.stride as i64,
            padding: window.padding as i64,
            deterministic,
        }
    }
}

/// Where the three tensors of a convolution are; the computed one is overwritten.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub x: Address,
    pub weight: Address,
    pub y: Address,
}

/// Queues a convolution: by the engine that the heuristics rank first, or, once its shape
/// proves to be a common one, by the fastest. Engines are tried, and timed, on these very tensors,
/// so that the first convolution of a shape runs more than once.
pub(super) fn run(context: &Context, key: PlanKey, addresses: Addresses) -> Result<()> {
    let known = context.plans.borrow().get(&key).map(Rc::clone);
    let plan = match known {
        Some(plan) if plan.uses.get() != USES_BEFORE_TIMING || key.deterministic => plan,
        known => {
            let timed = known.is_some();
            let plan = Rc::new(Plan::choose(context, &key, addresses, timed)?);
            plan.uses.set(if timed { USES_BEFORE_TIMING } else { 0 });
            context.plans.borrow_mut().insert(key, Rc::clone(&plan));
            plan
        }
    };
    plan.uses.set(plan.uses.get().saturating_add(1));
    context.convolution_ms.set(context.convolution_ms.get() + f64::from(plan.time));
    plan.run(context, addresses)
}

/// A choice among engines: the first that runs, or the fastest of several.
#[derive(Default)]
struct Choice {
    timed: bool,
    tried: usize,
    best: Option<Plan>,
    failure: Option<candle_core::Error>,
}

impl Choice {
    fn is_made(&self) -> bool {
        if self.timed { self.tried == CANDIDATES } else { self.best.is_some() }
    }

    fn consider(&mut self, mut plan: Plan, context: &Context, addresses: Addresses) {
        // Some engines find out only now that they cannot.
        let ran = if self.timed { plan.measure(context, addresses) } else { plan.run(context, addresses) };
        match ran {
            Ok(()) => {
                self.tried += 1;
                if self.best.as_ref().is_none_or(|best| plan.time < best.time) {
                    self.best = Some(plan);
                }
            }
            Err(err) => self.failure = Some(err),
        }
    }
}

/// An engine prepared for one shape and direction.
pub(super) struct Plan {
    plan: Descriptor,
    workspace: usize,
    /// What the plan was made of, which it may refer to.
    _engine: Descriptor,
    _parts: Rc<Vec<Descriptor>>,
    /// Variant packs by the addresses in them, workspace last: a step finds its memory where the
    /// one before had it.
    packs: RefCell<HashMap<[Address; 4], Descriptor>>,
    /// Milliseconds of one run; 0 where it was not timed.
    time: f32,
    uses: Cell<u32>,
}

impl Plan {
    fn choose(context: &Context, key: &PlanKey, addresses: Addresses, timed: bool) -> Result<Self> {
        let (parts, graph) = operation(context, key)?;
        let parts = Rc::new(parts);
        let mut choice = Choice { timed, ..Choice::default() };
        // The second mode proposes engines that take anything, slowly.
        for mode in [
            sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A,
            sys::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_FALLBACK,
        ] {
            let mut large = Vec::new();
            for engine in engines(&parts[graph], mode)? {
                if choice.is_made() {
                    break;
                }
                if !allowed(&engine, key)? {
                    continue;
                }
                match Self::prepare(context, &parts, engine)? {
                    Some(plan) if plan.workspace > LARGEST_WORKSPACE => large.push(plan),
                    // Memory that is not there is no reason to take another engine, with other bits.
                    Some(plan) => {
                        context.workspace(plan.workspace)?;
                        choice.consider(plan, context, addresses);
                    }
                    None => {}
                }
            }
            for plan in large {
                if choice.best.is_some() {
                    break;
                }
                choice.consider(plan, context, addresses);
            }
            if choice.best.is_some() {
                break;
            }
        }
        if timed {
            // Engines that were not taken may have wanted more than any that will run.
            context.release_workspace();
        }
        choice.best.ok_or_else(|| {
            let last =
                choice.failure.map_or(String::new(), |err| format!("; the last one tried said: {err}"));
            let reason = format!("cuDNN has no engine for {key:?}{last}");
            OpError::Setting { op: "conv2d", reason }.into()
        })
    }

    /// `None` where the engine turns out not to take the shape.
    fn prepare(context: &Context, parts: &Rc<Vec<Descriptor>>, engine: Descriptor) -> Result<Option<Self>> {
        let plan = Descriptor::new(Object::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Type::CUDNN_TYPE_HANDLE, &[context.cudnn.0])?;
        plan.set_parts(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[&engine])?;
        if plan.finalize().is_err() {
            return Ok(None);
        }
        let mut workspace = [0i64];
        plan.get(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, Type::CUDNN_TYPE_INT64, &mut workspace)?;
        let workspace = usize::try_from(workspace[0]).unwrap_or(0);
        Ok(Some(Self {
            plan,
            workspace,
            _engine: engine,
            _parts: Rc::clone(parts),
            packs: RefCell::default(),
            time: 0.0,
            uses: Cell::new(0),
        }))
    }

    fn measure(&mut self, context: &Context, addresses: Addresses) -> Result<()> {
        let wrap = candle_core::Error::wrap;
        self.run(context, addresses)?;
        let event = || context.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(wrap);
        let start = event()?;
        for _ in 0..RUNS {
            self.run(context, addresses)?;
        }
        self.time = start.elapsed_ms(&event()?).map_err(wrap)? / RUNS as f32;
        Ok(())
    }

    fn run(&self, context: &Context, addresses: Addresses) -> Result<()> {
        context.stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let Addresses { x, weight, y } = addresses;
        let workspace = if self.workspace > 0 { context.workspace(self.workspace)? } else { 0 };
        let key = [x, weight, y, workspace];
        let mut packs = self.packs.borrow_mut();
        if packs.len() == MOST_PACKS && !packs.contains_key(&key) {
            packs.clear();
        }
        let pack = match packs.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(variant_pack(key)?),
        };
        // SAFETY: both descriptors are complete; the tensors have the extents that the plan
        // was made for and stay valid in the order of the stream; the workspace is large enough.
        unsafe { sys::cudnnBackendExecute(context.cudnn.0, self.plan.0, pack.0) }
            .result()
            .map_err(candle_core::Error::wrap)
    }
}

/// The addresses of x, weight, y and workspace as a plan takes them.
fn variant_pack(addresses: [Address; 4]) -> Result<Descriptor> {
    let pack = Descriptor::new(Object::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
    let [x, weight, y, workspace] = addresses.map(|address| address as *mut c_void);
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, Type::CUDNN_TYPE_INT64, &IDS)?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, Type::CUDNN_TYPE_VOID_PTR, &[x, weight, y])?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, Type::CUDNN_TYPE_VOID_PTR, &[workspace])?;
    pack.finalize()?;
    Ok(pack)
}

/// Names of the three tensors within a plan: x, weight, y.
const IDS: [i64; 3] = [1, 2, 3];

/// The descriptors of one convolution, and which of them is the whole graph.
fn operation(context: &Context, key: &PlanKey) -> Result<(Vec<Descriptor>, usize)> {
    let x = tensor(IDS[0], key.kind, key.input)?;
    let weight = tensor(IDS[1], key.kind, key.weight)?;
    let y = tensor(IDS[2], key.kind, key.output)?;

    let conv = Descriptor::new(Object::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?;
    let compute = [sys::cudnnDataType_t::CUDNN_DATA_FLOAT];
    conv.set(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, Type::CUDNN_TYPE_DATA_TYPE, &compute)?;
    let mode = [sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION];
    conv.set(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, Type::CUDNN_TYPE_CONVOLUTION_MODE, &mode)?;
    for (name, values) in [
        (Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2i64][..]),
        (Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &[key.padding; 2]),
        (Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &[key.padding; 2]),
        (Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1; 2]),
        (Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &[key.stride; 2]),
    ] {
        conv.set(name, Type::CUDNN_TYPE_INT64, values)?;
    }
    conv.finalize()?;

    let (object, names) = match key.direction {
        Direction::Forward => (
            Object::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
            [
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
            ],
        ),
        Direction::InputGradient => (
            Object::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
            [
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
            ],
        ),
        Direction::WeightGradient => (
            Object::CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
            [
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA,
                Name::CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA,
            ],
        ),
    };
    let operation = Descriptor::new(object)?;
    for (name, part) in names.into_iter().zip([&x, &weight, &y, &conv]) {
        operation.set_parts(name, &[part])?;
    }
    operation.set(names[4], Type::CUDNN_TYPE_FLOAT, &[1f32])?;
    operation.set(names[5], Type::CUDNN_TYPE_FLOAT, &[0f32])?;
    operation.finalize()?;

    let graph = Descriptor::new(Object::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?;
    graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Type::CUDNN_TYPE_HANDLE, &[context.cudnn.0])?;
    graph.set_parts(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &[&operation])?;
    graph.finalize()?;
    // Dropped in this order: what refers to others first.
    Ok((vec![graph, operation, conv, x, weight, y], 0))
}

/// A tensor of four extents that lies in memory with its second axis innermost.
fn tensor(id: i64, kind: Kind, extents: [i64; 4]) -> Result<Descriptor> {
    let data_type = match kind {
        Kind::F32 => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
        Kind::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
    };
    let [_, c, h, w] = extents;
    let tensor = Descriptor::new(Object::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, Type::CUDNN_TYPE_DATA_TYPE, &[data_type])?;
    for (name, values) in [
        (Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &extents[..]),
        (Name::CUDNN_ATTR_TENSOR_STRIDES, &[h * w * c, 1, w * c, c]),
        (Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[id]),
        (Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[16]),
    ] {
        tensor.set(name, Type::CUDNN_TYPE_INT64, values)?;
    }
    tensor.finalize()?;
    Ok(tensor)
}

/// The engines that cuDNN proposes for a graph, best first.
fn engines(graph: &Descriptor, mode: sys::cudnnBackendHeurMode_t) -> Result<Vec<Descriptor>> {
    let heuristics = Descriptor::new(Object::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
    heuristics.set_parts(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[graph])?;
    heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, Type::CUDNN_TYPE_HEUR_MODE, &[mode])?;
    if heuristics.finalize().is_err() {
        return Ok(Vec::new());
    }
    heuristics.get_parts(
        Name::CUDNN_ATTR_ENGINEHEUR_RESULTS,
        Object::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
        None,
    )
}

/// Whether an engine computes what was asked for: f32 without rounding its factors, and
/// the same bits every time where that is wanted.
fn allowed(engine: &Descriptor, key: &PlanKey) -> Result<bool> {
    let engine = engine.get_parts(
        Name::CUDNN_ATTR_ENGINECFG_ENGINE,
        Object::CUDNN_BACKEND_ENGINE_DESCRIPTOR,
        Some(1),
    )?;
    let Some(engine) = engine.first() else {
        return Ok(false);
    };
    // Plain numbers: a later cuDNN may know notes that this program does not.
    let mut notes = [0u32; 32];
    let n_notes =
        engine.get(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, Type::CUDNN_TYPE_NUMERICAL_NOTE, &mut notes)?;
    let has = |note: sys::cudnnBackendNumericalNote_t| notes[..n_notes].contains(&(note as u32));
    let rounds = has(sys::cudnnBackendNumericalNote_t::CUDNN_NUMERICAL_NOTE_TENSOR_CORE)
        || has(sys::cudnnBackendNumericalNote_t::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS)
        || has(sys::cudnnBackendNumericalNote_t::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION);
    let varies = has(sys::cudnnBackendNumericalNote_t::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC);
    Ok(!(key.kind == Kind::F32 && rounds || key.deterministic && varies))
}

/// An object of cuDNN's graph interface, destroyed when dropped.
struct Descriptor(sys::cudnnBackendDescriptor_t);

impl Descriptor {
    fn new(object: Object) -> Result<Self> {
        let mut descriptor = ptr::null_mut();
        // SAFETY: writes one pointer.
        unsafe { sys::cudnnBackendCreateDescriptor(object, &mut descriptor) }
            .result()
            .map_err(candle_core::Error::wrap)?;
        Ok(Self(descriptor))
    }

    /// Sets an attribute. `kind` must be the type of `values` as cuDNN names it: it reads values of
    /// that size.
    fn set<T>(&self, name: Name, kind: Type, values: &[T]) -> Result<()> {
        // SAFETY: reads as many values as it is told, of the size that the caller named.
        unsafe {
            sys::cudnnBackendSetAttribute(self.0, name, kind, values.len() as i64, values.as_ptr().cast())
        }
        .result()
        .map_err(|err| candle_core::Error::wrap(err).context(format!("{name:?}")))
    }

    fn set_parts(&self, name: Name, parts: &[&Self]) -> Result<()> {
        let parts: Vec<_> = parts.iter().map(|part| part.0).collect();
        self.set(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, &parts)
    }

    fn finalize(&self) -> Result<()> {
        // SAFETY: the descriptor is live.
        unsafe { sys::cudnnBackendFinalize(self.0) }.result().map_err(candle_core::Error::wrap)
    }

    /// Fills `values` as far as there are some; how many. `kind` as in [`set`](Self::set).
    fn get<T>(&self, name: Name, kind: Type, values: &mut [T]) -> Result<usize> {
        let mut count = 0i64;
        // SAFETY: writes no more values than there is room for.
        unsafe {
            let to = values.as_mut_ptr().cast();
            sys::cudnnBackendGetAttribute(self.0, name, kind, values.len() as i64, &mut count, to)
        }
        .result()
        .map_err(|err| candle_core::Error::wrap(err).context(format!("{name:?}")))?;
        Ok(usize::try_from(count).unwrap_or(0).min(values.len()))
    }

    /// The descriptors that an attribute holds: `count` of them, or all.
    fn get_parts(&self, name: Name, object: Object, count: Option<i64>) -> Result<Vec<Self>> {
        let kind = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        let mut there = count.unwrap_or(0);
        if count.is_none() {
            // SAFETY: asked for no values, it tells how many there are.
            unsafe { sys::cudnnBackendGetAttribute(self.0, name, kind, 0, &mut there, ptr::null_mut()) }
                .result()
                .map_err(|err| candle_core::Error::wrap(err).context(format!("{name:?}")))?;
        }
        let parts = (0..there).map(|_| Self::new(object)).collect::<Result<Vec<_>>>()?;
        let mut pointers: Vec<_> = parts.iter().map(|part| part.0).collect();
        let got = self.get(name, kind, &mut pointers)?;
        Ok(parts.into_iter().take(got).collect())
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: made by `cudnnBackendCreateDescriptor`, destroyed once.
        let _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}
