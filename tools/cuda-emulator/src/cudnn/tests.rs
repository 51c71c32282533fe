//! Calls as a program makes them, and those that are refused.

mod convolutions;

use std::mem::MaybeUninit;

use super::{
    Status, cudnnBackendCreateDescriptor, cudnnBackendDestroyDescriptor, cudnnBackendFinalize,
    cudnnBackendGetAttribute, cudnnBackendSetAttribute, cudnnCreate, cudnnDestroy, cudnnSetStream,
    descriptors::library,
};
use crate::{
    driver::{Handle, Out},
    memory::Memory,
};

// As in NVIDIA's header, apart from the names in the module.
const HANDLE: u32 = 0;
const DATA_TYPE: u32 = 1;
const INT64: u32 = 3;
const FLOAT: u32 = 4;
const VOID_PTR: u32 = 6;
const CONVOLUTION_MODE: u32 = 7;
const HEUR_MODE: u32 = 8;
const NUMERICAL_NOTE: u32 = 11;
const DESCRIPTOR: u32 = 15;

const MODE_FALLBACK: u32 = 2;
const MODE_A: u32 = 3;

const FORWARD: u32 = 10;
const BACKWARD_FILTER: u32 = 11;
const BACKWARD_DATA: u32 = 12;

/// What a call hands out.
#[track_caller]
fn made(call: impl FnOnce(Out<'_, Handle>) -> Status) -> Handle {
    let mut value = MaybeUninit::new(0);
    assert_eq!(call(Some(&mut value)), Status::Success);
    // SAFETY: initialized above.
    unsafe { value.assume_init() }
}

fn create(kind: u32) -> Handle {
    made(|to| cudnnBackendCreateDescriptor(kind, to))
}

fn try_set<T>(descriptor: Handle, name: u32, kind: u32, values: &[T]) -> Status {
    let (count, elements) = (values.len() as i64, values.as_ptr().cast());
    // SAFETY: so many values of this type are there.
    unsafe { cudnnBackendSetAttribute(descriptor, name, kind, count, elements) }
}

#[track_caller]
fn set<T>(descriptor: Handle, name: u32, kind: u32, values: &[T]) {
    assert_eq!(try_set(descriptor, name, kind, values), Status::Success, "attribute {name}");
}

fn try_get<T>(descriptor: Handle, name: u32, kind: u32, values: &mut [T]) -> (Status, usize) {
    let mut count = MaybeUninit::new(0);
    let (requested, elements) = (values.len() as i64, values.as_mut_ptr().cast());
    let to = Some(&mut count);
    // SAFETY: there is room for so many values of this type.
    let status = unsafe { cudnnBackendGetAttribute(descriptor, name, kind, requested, to, elements) };
    // SAFETY: initialized above.
    (status, unsafe { count.assume_init() } as usize)
}

#[track_caller]
fn get<T>(descriptor: Handle, name: u32, kind: u32, values: &mut [T]) -> usize {
    let (status, count) = try_get(descriptor, name, kind, values);
    assert_eq!(status, Status::Success, "attribute {name}");
    count
}

#[track_caller]
fn finalize(descriptor: Handle) {
    assert_eq!(cudnnBackendFinalize(descriptor), Status::Success);
}

fn destroy(descriptor: Handle) {
    assert_eq!(cudnnBackendDestroyDescriptor(descriptor), Status::Success);
}

fn handle() -> Handle {
    made(|to| cudnnCreate(to))
}

fn tensor(id: i64, bf16: bool, extents: [i64; 4], strides: [i64; 4]) -> Handle {
    let tensor = create(17);
    set(tensor, 901, DATA_TYPE, &[if bf16 { 9u32 } else { 0 }]);
    set(tensor, 902, INT64, &extents);
    set(tensor, 903, INT64, &strides);
    set(tensor, 906, INT64, &[id]);
    set(tensor, 900, INT64, &[16i64]);
    tensor
}

/// Two groups, and no two sizes alike along height and width.
#[derive(Clone, Copy)]
struct Case {
    bf16: bool,
    /// x, weight, y.
    extents: [[i64; 4]; 3],
    strides: [[i64; 4]; 3],
    before: [i64; 2],
    after: [i64; 2],
    stride: [i64; 2],
    dilation: [i64; 2],
}

fn channels_last([_, c, h, w]: [i64; 4]) -> [i64; 4] {
    [h * w * c, 1, w * c, c]
}

fn case(bf16: bool) -> Case {
    let extents = [[2, 6, 7, 5], [4, 3, 3, 2], [2, 4, 4, 5]];
    let strides = extents.map(channels_last);
    let (before, after, stride, dilation) = ([1, 2], [2, 0], [2, 1], [1, 2]);
    Case { bf16, extents, strides, before, after, stride, dilation }
}

/// x, weight, y, convolution, operation and graph.
fn graph(case: Case, direction: u32, handle: Handle) -> [Handle; 6] {
    let tensors =
        [0, 1, 2].map(|index| tensor(index as i64 + 1, case.bf16, case.extents[index], case.strides[index]));
    tensors.into_iter().for_each(finalize);
    let convolution = create(1);
    set(convolution, 100, DATA_TYPE, &[0u32]);
    set(convolution, 101, CONVOLUTION_MODE, &[1u32]);
    set(convolution, 102, INT64, &case.dilation);
    set(convolution, 103, INT64, &case.stride);
    set(convolution, 104, INT64, &case.after);
    set(convolution, 105, INT64, &case.before);
    set(convolution, 106, INT64, &[2i64]);
    finalize(convolution);
    let operation = create(direction);
    let [alpha, beta, conv, weight, x, y] = match direction {
        FORWARD => [700, 701, 702, 703, 704, 705],
        BACKWARD_DATA => [706, 707, 708, 709, 710, 711],
        _ => [712, 713, 714, 715, 716, 717],
    };
    set(operation, alpha, FLOAT, &[1f32]);
    set(operation, beta, FLOAT, &[0f32]);
    set(operation, conv, DESCRIPTOR, &[convolution]);
    set(operation, x, DESCRIPTOR, &tensors[..1]);
    set(operation, weight, DESCRIPTOR, &tensors[1..2]);
    set(operation, y, DESCRIPTOR, &tensors[2..]);
    finalize(operation);
    let graph = create(15);
    set(graph, 800, HANDLE, &[handle]);
    set(graph, 801, DESCRIPTOR, &[operation]);
    finalize(graph);
    [tensors[0], tensors[1], tensors[2], convolution, operation, graph]
}

/// The engine configurations that heuristics give, which are gone by then.
fn configurations(graph: Handle, mode: u32) -> Vec<Handle> {
    let heuristics = create(4);
    set(heuristics, 201, DESCRIPTOR, &[graph]);
    set(heuristics, 200, HEUR_MODE, &[mode]);
    finalize(heuristics);
    let count = get::<Handle>(heuristics, 202, DESCRIPTOR, &mut []);
    let mut results: Vec<_> = (0..count).map(|_| create(3)).collect();
    assert_eq!(get(heuristics, 202, DESCRIPTOR, &mut results), count);
    destroy(heuristics);
    results
}

fn notes(configuration: Handle) -> Vec<u32> {
    let mut engine = [create(2)];
    assert_eq!(get(configuration, 300, DESCRIPTOR, &mut engine), 1);
    let mut notes = [99u32; 8];
    let count = get(engine[0], 1303, NUMERICAL_NOTE, &mut notes);
    destroy(engine[0]);
    notes[..count].to_vec()
}

fn plan(handle: Handle, configuration: Handle) -> Handle {
    let plan = create(5);
    set(plan, 400, HANDLE, &[handle]);
    set(plan, 401, DESCRIPTOR, &[configuration]);
    plan
}

fn pack(ids: &[i64], addresses: &[u64], workspace: u64) -> Handle {
    let pack = create(16);
    set(pack, 1000, INT64, ids);
    set(pack, 1001, VOID_PTR, addresses);
    set(pack, 1003, VOID_PTR, &[workspace]);
    pack
}

fn execute(
    memory: &mut Memory,
    handle: Handle,
    plan: Handle,
    addresses: [u64; 3],
    workspace: u64,
) -> Result<(), Status> {
    let pack = pack(&[1, 2, 3], &addresses, workspace);
    finalize(pack);
    let launch = library().launch(handle, plan, pack);
    destroy(pack);
    let (_, launch) = launch.map_err(|refusal| refusal.status)?;
    launch.run(memory).map_err(|_| Status::ExecutionFailed)
}

fn allocate(memory: &mut Memory, n_bytes: usize) -> u64 {
    let address = memory.reserve(n_bytes).unwrap();
    memory.commit(address).unwrap();
    address
}

#[test]
fn attributes_are_checked() {
    let tensor = tensor(1, false, [1, 2, 3, 4], channels_last([1, 2, 3, 4]));
    assert_eq!(try_set(tensor, 902, DATA_TYPE, &[1u32; 4]), Status::AttributeType);
    assert_eq!(try_set(tensor, 902, INT64, &[1i64; 3]), Status::BadParam);
    assert_eq!(try_set(tensor, 102, INT64, &[1i64; 2]), Status::BadParam, "of another descriptor");
    assert_eq!(try_get(tensor, 902, INT64, &mut [0i64; 4]).0, Status::NotInitialized);
    finalize(tensor);
    assert_eq!(try_set(tensor, 906, INT64, &[2i64]), Status::NotInitialized, "after its end");
    assert_eq!(cudnnBackendFinalize(tensor), Status::BadParam, "twice");
    assert_eq!(cudnnBackendFinalize(create(17)), Status::BadParam, "with nothing set");
    assert_eq!(cudnnBackendFinalize(0), Status::BadParam);
    destroy(tensor);
    assert_eq!(cudnnBackendFinalize(tensor), Status::BadParam, "destroyed");
}

#[test]
fn tensors_must_be_sound() {
    let refused = |extents, strides, want| {
        assert_eq!(
            cudnnBackendFinalize(tensor(1, false, extents, strides)),
            want,
            "{extents:?}, {strides:?}"
        );
    };
    refused([1, 2, 3, 0], [24, 1, 8, 2], Status::BadParam);
    refused([1, 2, 3, 4], [24, 1, 8, 1], Status::BadParam);
    refused([i64::MAX; 4], [1, 2, 3, 4], Status::BadParam);
    refused([1, 1, 1, i64::MAX], [1, 1, 1, 4], Status::NotSupported);
}

#[test]
fn parts_must_be_finished_and_fit() {
    let operation = create(FORWARD);
    let unfinished = tensor(1, false, [1; 4], [1; 4]);
    assert_eq!(try_set(operation, 704, DESCRIPTOR, &[unfinished]), Status::NotFinalized);
    assert_eq!(try_set(operation, 704, DESCRIPTOR, &[operation]), Status::DescriptorType);
    assert_eq!(try_set(operation, 700, 5, &[1f64]), Status::AttributeType, "f64");
    let handle = handle();
    let [x, weight, y, convolution, ..] = graph(case(false), FORWARD, handle);
    for (name, part) in [(702, convolution), (703, weight), (704, y), (705, x)] {
        set(operation, name, DESCRIPTOR, &[part]);
    }
    set(operation, 700, FLOAT, &[1f32]);
    set(operation, 701, FLOAT, &[0f32]);
    assert_eq!(cudnnBackendFinalize(operation), Status::ShapeMismatch);
    let one_high = tensor(4, false, [2, 4, 5, 5], channels_last([2, 4, 5, 5]));
    finalize(one_high);
    set(operation, 704, DESCRIPTOR, &[x]);
    set(operation, 705, DESCRIPTOR, &[one_high]);
    assert_eq!(cudnnBackendFinalize(operation), Status::ShapeMismatch);
    destroy(y);
    assert_eq!(try_set(operation, 705, DESCRIPTOR, &[y]), Status::BadParam);
}

#[test]
fn executions_are_checked() {
    let handle = handle();
    assert_eq!(cudnnSetStream(handle, 0), Status::Success);
    let case = case(false);
    let parts = graph(case, FORWARD, handle);
    let engines = configurations(parts[5], MODE_A);
    let mut memory = Memory::new(64 << 20, 0);
    let addresses = [4 * 420, 4 * 72, 4 * 160].map(|n_bytes| allocate(&mut memory, n_bytes));
    memory.write(addresses[0], 4 * 420).unwrap().fill(0);
    memory.write(addresses[1], 4 * 72).unwrap().fill(0);
    let [x, weight, y] = addresses;
    let [scratched, plain] = [engines[3], engines[4]].map(|configuration| plan(handle, configuration));
    assert_eq!(execute(&mut memory, handle, plain, addresses, 0), Err(Status::NotFinalized));
    finalize(scratched);
    finalize(plain);
    let mut check = |plan, addresses, workspace, want| {
        assert_eq!(execute(&mut memory, handle, plan, addresses, workspace), want);
    };
    check(plain, addresses, 0, Ok(()));
    check(plain, [x, weight, y + 8], 0, Err(Status::MisalignedPointer));
    check(plain, [x, weight, x + 16], 0, Err(Status::BadParam));
    check(plain, [x, 0, y], 0, Err(Status::NullPointer));
    check(plain, [x, weight, y + 16], 0, Err(Status::ExecutionFailed));
    check(scratched, addresses, 0, Err(Status::NullPointer));
    check(scratched, addresses, y, Err(Status::BadParam));
    let small = allocate(&mut memory, 1 << 20);
    assert_eq!(execute(&mut memory, handle, scratched, addresses, small), Err(Status::ExecutionFailed));

    assert_eq!(cudnnBackendFinalize(pack(&[1, 2, 2], &addresses, 0)), Status::DuplicatedEntries);
    assert_eq!(try_set(create(16), 1000, INT64, &[1i64, 2]), Status::BadParam, "a tensor too few");
    let wrong_ids = pack(&[1, 2, 4], &addresses, 0);
    finalize(wrong_ids);
    let launch = |handle, plan, pack| {
        let launch = library().launch(handle, plan, pack);
        launch.map_err(|refusal| refusal.status).err()
    };
    assert_eq!(launch(handle, plain, wrong_ids), Some(Status::BadParam));
    let right = pack(&[1, 2, 3], &addresses, 0);
    finalize(right);
    assert_eq!(launch(self::handle(), plain, right), Some(Status::BadParam), "another handle");
    assert_eq!(launch(handle, plain, right), None);
    destroy(engines[3]);
    assert_eq!(launch(handle, scratched, right), Some(Status::BadParam), "its engine is gone");
    destroy(parts[0]);
    assert_eq!(launch(handle, plain, right), Some(Status::BadParam), "a tensor is gone");
    assert_eq!((cudnnDestroy(handle), cudnnDestroy(handle)), (Status::Success, Status::NotInitialized));
    assert_eq!(launch(handle, plain, right), Some(Status::NotInitialized));
}
