//! Convolutions with checked sizes, and their computation.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Checked, refusal};
use crate::memory::{Fault, Memory, RANGE_BITS, Work, fault};

/// Alignment of tensors, in bytes: engines load as much at a time.
const ALIGNMENT: u64 = 16;

/// Paddings, strides and dilations are smaller.
const LARGEST_STEP: usize = 1 << 16;

/// Which tensor of a convolution is computed from the other two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    BackwardData,
    BackwardFilter,
}

/// How an engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// From factors rounded to bf16.
    TensorCore,
    /// With last bits that differ from call to call.
    Nondeterministic,
    /// Not at all, as shows when a plan is made.
    Unavailable,
    /// With scratch memory, all of which it overwrites.
    Workspace,
    Plain,
}

impl Algorithm {
    /// Bytes of scratch memory.
    pub fn workspace(self) -> usize {
        if self == Self::Workspace { 4 << 20 } else { 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32,
    Bf16,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// A number from memory, where bf16 is the upper half of f32.
    fn decode(self, bytes: &[u8]) -> f32 {
        let mut whole = [0; 4];
        whole[4 - bytes.len()..].copy_from_slice(bytes);
        f32::from_le_bytes(whole)
    }

    /// The nearest number of this type; of two, the one with an even last digit.
    fn round(self, value: f32) -> f32 {
        if self == Self::F32 || value.is_nan() {
            return value;
        }
        let bits = value.to_bits();
        f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
    }

    /// The next number, up or down.
    fn neighbour(self, value: f32) -> f32 {
        let last = if self == Self::F32 { 1 } else { 1 << 16 };
        if value.is_normal() { f32::from_bits(value.to_bits() ^ last) } else { value }
    }
}

/// Four axes: activations as `[N, C, H, W]`, weights as `[O, I / groups, KH, KW]`.
/// Invariant: extents and strides are at least 1, and no two elements share memory.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    pub id: i64,
    element: Element,
    extents: [usize; 4],
    strides: [usize; 4],
    alignment: u64,
    /// Elements from the first to the last in memory, with those between that are not its own.
    span: usize,
}

impl Tensor {
    pub fn new(
        id: i64,
        element: Element,
        extents: [i64; 4],
        strides: [i64; 4],
        alignment: i64,
    ) -> Checked<Self> {
        let sizes = |sizes: [i64; 4]| sizes.map(|size| usize::try_from(size).unwrap_or(0));
        let mut axes: Vec<_> = strides.into_iter().zip(extents).collect();
        axes.sort_unstable();
        let mut last = 0i64;
        for (stride, extent) in axes {
            if stride < 1 || extent < 1 {
                return Err(refusal!(BadParam, "tensor {id} has extents {extents:?}, strides {strides:?}"));
            }
            if extent > 1 && stride <= last {
                return Err(refusal!(BadParam, "extents {extents:?} overlap with strides {strides:?}"));
            }
            last = last.saturating_add((extent - 1).saturating_mul(stride));
        }
        if last >= 1 << (RANGE_BITS - 2) {
            return Err(refusal!(NotSupported, "tensors of extents {extents:?} are not emulated"));
        }
        let alignment = match u64::try_from(alignment) {
            Ok(alignment) if alignment.is_power_of_two() && alignment >= ALIGNMENT => alignment,
            _ => return Err(refusal!(NotSupported, "tensors aligned to {alignment} bytes are not emulated")),
        };
        let (extents, strides) = (sizes(extents), sizes(strides));
        Ok(Self { id, element, extents, strides, alignment, span: last as usize + 1 })
    }

    fn bytes(&self) -> u64 {
        (self.span * self.element.bytes()) as u64
    }

    /// Extents and strides in another order.
    fn axes<const N: usize>(&self, order: [usize; N]) -> [(usize, usize); N] {
        order.map(|axis| (self.extents[axis], self.strides[axis]))
    }
}

/// How windows lie on an image; each pair is along its height and width.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Before and behind the image.
    padding: [[usize; 2]; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
}

impl Window {
    pub fn new(padding: [[i64; 2]; 2], stride: [i64; 2], dilation: [i64; 2]) -> Checked<Self> {
        let sizes = |what: &str, sizes: [i64; 2], least| {
            let checked = sizes.map(|size| usize::try_from(size).unwrap_or(LARGEST_STEP));
            if checked.iter().all(|size| (least..LARGEST_STEP).contains(size)) {
                Ok(checked)
            } else {
                Err(refusal!(BadParam, "a convolution has {what} {sizes:?}"))
            }
        };
        let padding = [sizes("padding", padding[0], 0)?, sizes("padding", padding[1], 0)?];
        Ok(Self { padding, stride: sizes("stride", stride, 1)?, dilation: sizes("dilation", dilation, 1)? })
    }
}

/// One convolution. Invariant: the extents of its tensors fit each other.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub direction: Direction,
    /// x, weight, y.
    pub tensors: [Tensor; 3],
    window: Window,
    groups: usize,
}

impl Operation {
    pub fn new(direction: Direction, tensors: [Tensor; 3], window: Window) -> Checked<Self> {
        let [x, weight, y] = &tensors;
        if x.element != weight.element || x.element != y.element {
            return Err(refusal!(UnsupportedDataType, "tensors of several data types are not emulated"));
        }
        if x.id == weight.id || x.id == y.id || weight.id == y.id {
            let ids = [x.id, weight.id, y.id];
            return Err(refusal!(DuplicatedEntries, "unique ids {ids:?} are not unique"));
        }
        let ([n, c, ..], [o, i, ..]) = (x.extents, weight.extents);
        let groups = c / i;
        let output = [0, 1].map(|axis| {
            let padded = x.extents[2 + axis] + window.padding[0][axis] + window.padding[1][axis];
            let reach = window.dilation[axis] * (weight.extents[2 + axis] - 1) + 1;
            padded.checked_sub(reach).map(|free| free / window.stride[axis] + 1)
        });
        let fits = c.is_multiple_of(i) && o.is_multiple_of(groups);
        if !fits || y.extents.map(Some) != [Some(n), Some(o), output[0], output[1]] {
            let extents = tensors.map(|tensor| tensor.extents);
            let what = "extents of x, weight and y";
            return Err(refusal!(ShapeMismatch, "{what} do not fit: {extents:?} with {window:?}"));
        }
        Ok(Self { direction, tensors, window, groups })
    }

    pub fn element(&self) -> Element {
        self.tensors[0].element
    }

    /// Where the elements of x, weight and y are, in the order in which they are computed with:
    /// that which makes the innermost axis the longest loop.
    fn offsets(&self) -> [Vec<usize>; 3] {
        let [x, weight, y] = &self.tensors;
        let [kernel_h, kernel_w, (outputs, stride), inputs] = weight.axes([2, 3, 0, 1]);
        let outputs = outputs / self.groups;
        let groups = (self.groups, stride * outputs);
        let outputs = (outputs, stride);
        let [inner, innermost] =
            if self.direction == Direction::Forward { [inputs, outputs] } else { [outputs, inputs] };
        [
            offsets(&x.axes([0, 2, 3, 1])),
            offsets(&[kernel_h, kernel_w, groups, inner, innermost]),
            offsets(&y.axes([0, 2, 3, 1])),
        ]
    }

    /// Adds to the computed tensor; all in the order of [`offsets`](Self::offsets).
    fn convolve(&self, x: &mut [f32], weight: &mut [f32], y: &mut [f32]) {
        let [[_, c, h, w], [o, i, _, kernel_w], [_, _, out_h, out_w]] =
            self.tensors.map(|tensor| tensor.extents);
        let Window { padding, stride, dilation } = self.window;
        // Pixel of x under a tap of the window, unless it is padding.
        let at = |axis: usize, pixel: usize, tap: usize, extent: usize| {
            let padded = pixel * stride[axis] + tap * dilation[axis];
            padded.checked_sub(padding[0][axis]).filter(|&pixel| pixel < extent)
        };
        for (pixel, y) in y.chunks_exact_mut(o).enumerate() {
            let (image, y_h, y_w) = (pixel / (out_h * out_w), pixel / out_w % out_h, pixel % out_w);
            for (tap, weight) in weight.chunks_exact_mut(o * i).enumerate() {
                let Some(x_h) = at(0, y_h, tap / kernel_w, h) else { continue };
                let Some(x_w) = at(1, y_w, tap % kernel_w, w) else { continue };
                let x = &mut x[((image * h + x_h) * w + x_w) * c..][..c];
                self.convolve_pixel(x, weight, y);
            }
        }
    }

    /// The channels of one pixel of x and y, by the weights between them.
    fn convolve_pixel(&self, x: &mut [f32], weight: &mut [f32], y: &mut [f32]) {
        let (inputs, outputs) = (x.len() / self.groups, y.len() / self.groups);
        let weights = weight.chunks_exact_mut(inputs * outputs);
        let groups = x.chunks_exact_mut(inputs).zip(y.chunks_exact_mut(outputs)).zip(weights);
        for ((x, y), weight) in groups {
            match self.direction {
                Direction::Forward => {
                    x.iter().zip(weight.chunks_exact(outputs)).for_each(|(&x, weight)| add(y, x, weight));
                }
                Direction::BackwardData => {
                    y.iter().zip(weight.chunks_exact(inputs)).for_each(|(&dy, weight)| add(x, dy, weight));
                }
                Direction::BackwardFilter => {
                    y.iter().zip(weight.chunks_exact_mut(inputs)).for_each(|(&dy, dw)| add(dw, dy, x));
                }
            }
        }
    }
}

/// Adds the products of some values with a factor.
fn add(sums: &mut [f32], factor: f32, values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += factor * value;
    }
}

/// Offsets of all elements with these extents and strides, the last axis fastest.
fn offsets(axes: &[(usize, usize)]) -> Vec<usize> {
    axes.iter().fold(vec![0], |starts, &(extent, stride)| {
        starts.iter().flat_map(|start| (0..extent).map(move |index| start + index * stride)).collect()
    })
}

/// Executions so far, in all of the process.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// One execution of a plan.
pub struct Launch {
    pub operation: Operation,
    algorithm: Algorithm,
    /// Of x, weight and y.
    addresses: [u64; 3],
    workspace: u64,
    call: u64,
}

const NAMES: [&str; 3] = ["x", "weight", "y"];

impl Launch {
    pub fn new(
        operation: Operation,
        algorithm: Algorithm,
        addresses: [u64; 3],
        workspace: u64,
    ) -> Checked<Self> {
        let mut ranges = Vec::new();
        for ((tensor, address), name) in operation.tensors.iter().zip(addresses).zip(NAMES) {
            ranges.push((name, address, tensor.bytes(), tensor.alignment));
        }
        if algorithm.workspace() > 0 {
            ranges.push(("the workspace", workspace, algorithm.workspace() as u64, ALIGNMENT));
        }
        for &(name, address, _, alignment) in &ranges {
            if address == 0 {
                return Err(refusal!(NullPointer, "the address of {name} is null"));
            }
            if address % alignment != 0 {
                let what = format!("{name} at {address:#x}");
                return Err(refusal!(MisalignedPointer, "{what} is not aligned to {alignment} bytes"));
            }
        }
        // What is written must be apart from all else.
        for written in [Self::output(operation.direction), 3] {
            let Some(&(name, start, bytes, _)) = ranges.get(written) else { continue };
            let overlap = |other: u64, len: u64| {
                start < other.saturating_add(len) && other < start.saturating_add(bytes)
            };
            let others = ranges.iter().enumerate().filter(|&(index, _)| index != written);
            for (_, &(other, address, bytes, _)) in others {
                if overlap(address, bytes) {
                    return Err(refusal!(BadParam, "{name} and {other} overlap in memory"));
                }
            }
        }
        Ok(Self { operation, algorithm, addresses, workspace, call: CALLS.fetch_add(1, Ordering::Relaxed) })
    }

    /// Index of the computed tensor.
    fn output(direction: Direction) -> usize {
        match direction {
            Direction::BackwardData => 0,
            Direction::BackwardFilter => 1,
            Direction::Forward => 2,
        }
    }

    pub fn run(self, memory: &mut Memory) -> Work {
        let named = |name: &'static str| move |Fault(words)| fault!("{name}: {words}");
        let n_bytes = self.algorithm.workspace();
        if n_bytes > 0 {
            memory.write(self.workspace, n_bytes).map_err(named("workspace"))?.fill(0xff);
        }
        let Operation { tensors, direction, .. } = &self.operation;
        let output = Self::output(*direction);
        let offsets = self.operation.offsets();
        let mut values = offsets.each_ref().map(|offsets| vec![0f32; offsets.len()]);
        for index in (0..3).filter(|&index| index != output) {
            let (tensor, address) = (&tensors[index], self.addresses[index]);
            values[index] = load(memory, address, tensor, &offsets[index]).map_err(named(NAMES[index]))?;
            if self.algorithm == Algorithm::TensorCore {
                values[index].iter_mut().for_each(|value| *value = Element::Bf16.round(*value));
            }
        }
        let [x, weight, y] = &mut values;
        self.operation.convolve(x, weight, y);
        let element = tensors[output].element;
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        for (index, value) in values[output].iter_mut().enumerate() {
            *value = element.round(*value);
            // What another order of summation does, here to any eighth of the sums.
            if self.algorithm == Algorithm::Nondeterministic && hasher.hash_one((self.call, index)) % 8 == 0 {
                *value = element.neighbour(*value);
            }
        }
        store(memory, self.addresses[output], &tensors[output], &offsets[output], &values[output])
            .map_err(named(NAMES[output]))
    }
}

fn load(memory: &mut Memory, address: u64, tensor: &Tensor, offsets: &[usize]) -> Work<Vec<f32>> {
    let (element, size) = (tensor.element, tensor.element.bytes());
    let bytes = memory.read(address, tensor.span * size)?;
    Ok(offsets.iter().map(|&at| element.decode(&bytes[at * size..][..size])).collect())
}

fn store(memory: &mut Memory, address: u64, tensor: &Tensor, offsets: &[usize], values: &[f32]) -> Work {
    let size = tensor.element.bytes();
    let numbers = offsets.iter().map(|&at| at * size).zip(values.iter().map(|value| value.to_le_bytes()));
    if offsets.len() == tensor.span {
        let bytes = memory.write(address, tensor.span * size)?;
        numbers.for_each(|(at, number)| bytes[at..][..size].copy_from_slice(&number[4 - size..]));
        return Ok(());
    }
    // What lies between is not this tensor's.
    for (at, number) in numbers {
        memory.write(address + at as u64, size)?.copy_from_slice(&number[4 - size..]);
    }
    Ok(())
}
