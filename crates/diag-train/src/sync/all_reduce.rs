//! Data-parallel steps: every rank computes its rows of the batch, and the all-reduce gives
//! each of them the loss and the gradients of the whole batch.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, TensorId, Var};
use candle_train_ops::{BatchSum, take_weight_gradients};
use diag_data::run::LossRecord;

use super::gpu_all_reduce::GpuAllReduce;
use super::ranks::Ranks;

/// A bucket with so many numbers is full, 1 MiB: small enough that the first all-reduce starts
/// early, large enough that the number of messages does not matter.
const BUCKET_LEN: usize = 1 << 18;

/// All-reduces the loss and the gradients of every step over the ranks.
pub(crate) struct GradientAllReduce {
    ranks: Arc<Ranks>,
    sum: BatchSum,
    /// Present where gradients on GPUs are all-reduced by NCCL.
    gpu: Option<GpuAllReduce>,
    /// The variables whose gradients are all-reduced.
    vars: Vec<Var>,
    /// Index in `vars` by tensor.
    indices: Arc<HashMap<TensorId, usize>>,
    worker: Worker,
}

impl GradientAllReduce {
    /// `partial`: every variable of whose gradient each rank computes a summand, in the same
    /// order on all ranks. `gpu`: NCCL, where it is used.
    pub fn new<'a>(
        ranks: &Arc<Ranks>,
        gpu: Option<GpuAllReduce>,
        partial: impl Iterator<Item = &'a (String, Var)>,
    ) -> Self {
        let of_sum = Arc::clone(ranks);
        let add_up = move |numbers: &mut [f64]| of_sum.all_reduce_sum(numbers);
        let sum = match &gpu {
            Some(gpu) => gpu.batch_sum(add_up),
            None => BatchSum::new(add_up),
        };
        let vars: Vec<Var> = partial.map(|(_, var)| var.clone()).collect();
        let indices = vars.iter().enumerate().map(|(index, var)| (var.id(), index)).collect();
        Self {
            ranks: Arc::clone(ranks),
            sum,
            gpu,
            indices: Arc::new(indices),
            vars,
            worker: Worker::start(Arc::clone(ranks)),
        }
    }

    /// Sums over the whole batch, for the operations that need them inside a pass.
    pub fn sum(&self) -> &BatchSum {
        &self.sum
    }

    /// Whether gradients are all-reduced on the GPUs.
    pub fn is_on_gpus(&self) -> bool {
        self.gpu.is_some()
    }

    /// Begins a batch of which this rank holds a `fraction`; with 0 its rows count nothing.
    pub fn begin(&self, fraction: f64) {
        self.sum.leave_out(fraction == 0.0);
    }

    /// The loss of the whole batch, from that of this rank's fraction.
    pub fn record(&self, mut record: LossRecord, fraction: f64) -> Result<LossRecord> {
        let terms = record.heads.values().flat_map(|terms| terms.values());
        let mut numbers: Vec<f64> = terms.chain([&record.total]).map(|value| fraction * value).collect();
        self.sum.add_up(&mut numbers)?;
        let terms = record.heads.values_mut().flat_map(|terms| terms.values_mut());
        for (value, number) in terms.chain([&mut record.total]).zip(numbers) {
            *value = number;
        }
        Ok(record)
    }

    /// The gradients of the whole batch's loss. Those of convolutions are all-reduced in
    /// buckets while the backward pass still runs, the few others after it.
    pub fn backward(&self, total: &Tensor, fraction: f64) -> Result<GradStore> {
        let buckets = Rc::new(RefCell::new(Buckets {
            indices: Arc::clone(&self.indices),
            added: vec![false; self.vars.len()],
            counts_nothing: self.sum.is_left_out(),
            bucket: Vec::new(),
            to_worker: self.worker.sender()?.clone(),
            n_sent: 0,
            gpu: self.gpu.clone(),
            on_gpu: Vec::new(),
            n_started: 0,
        }));
        let shared = Rc::clone(&buckets);
        let hook = move |weight: &Tensor, gradient: Tensor| {
            let mut buckets = shared.borrow_mut();
            match buckets.indices.get(&weight.id()).copied() {
                Some(index) => buckets.add(index, gradient).map(|()| None),
                None => Ok(Some(gradient)),
            }
        };
        // A factor of 0 would make candle skip the pass, and with it the all-reduce that the
        // other ranks wait for; these rows count nothing anyway.
        let fraction = if fraction == 0.0 { 1.0 } else { fraction };
        let mut gradients = take_weight_gradients(hook, || (total * fraction)?.backward())?;
        let mut buckets = buckets.borrow_mut();
        for (index, var) in self.vars.iter().enumerate() {
            if let Some(gradient) = gradients.get(var) {
                // A copy: candle may hold the same tensor as the gradient of another variable.
                buckets.add(index, gradient.force_contiguous()?)?;
            }
        }
        buckets.send()?;
        buckets.start_on_gpu()?;
        let waiting = Instant::now();
        for _ in 0..buckets.n_sent {
            for (index, sum) in self.worker.next_sum()? {
                let var = &self.vars[index];
                gradients.insert(var, sum.to_device(var.device())?);
            }
        }
        self.ranks.add_wait_time(waiting.elapsed());
        if let Some(gpu) = &self.gpu {
            gpu.finish()?;
        }
        for (index, sum) in buckets.on_gpu.drain(..) {
            gradients.insert(&self.vars[index], sum);
        }
        Ok(gradients)
    }
}

/// Gradients to be all-reduced on the CPU, each with the index of its variable.
type Bucket = Vec<(usize, Tensor)>;

/// The buckets of one backward pass.
struct Buckets {
    indices: Arc<HashMap<TensorId, usize>>,
    added: Vec<bool>,
    counts_nothing: bool,
    bucket: Bucket,
    to_worker: mpsc::Sender<Bucket>,
    n_sent: usize,
    gpu: Option<GpuAllReduce>,
    /// Gradients that NCCL all-reduces in place; those from `n_started` on wait for a full bucket.
    on_gpu: Vec<(usize, Tensor)>,
    n_started: usize,
}

impl Buckets {
    fn add(&mut self, index: usize, gradient: Tensor) -> Result<()> {
        if std::mem::replace(&mut self.added[index], true) {
            candle_core::bail!("the weight of a convolution is used twice: its gradient was sent ahead");
        }
        if self.counts_nothing {
            gradient.zero_set()?;
        }
        if self.gpu.is_some() && gradient.device().is_cuda() {
            self.on_gpu.push((index, gradient));
            return if is_full(&self.on_gpu[self.n_started..]) { self.start_on_gpu() } else { Ok(()) };
        }
        self.bucket.push((index, gradient.to_device(&Device::Cpu)?));
        if is_full(&self.bucket) { self.send() } else { Ok(()) }
    }

    /// Starts the all-reduce of the gradients that wait on the GPU.
    fn start_on_gpu(&mut self) -> Result<()> {
        let waiting: Vec<Tensor> =
            self.on_gpu[self.n_started..].iter().map(|(_, gradient)| gradient.clone()).collect();
        self.n_started = self.on_gpu.len();
        match &self.gpu {
            Some(gpu) if !waiting.is_empty() => gpu.start(&waiting),
            _ => Ok(()),
        }
    }

    fn send(&mut self) -> Result<()> {
        self.n_sent += 1;
        self.to_worker.send(std::mem::take(&mut self.bucket)).map_err(candle_core::Error::wrap)
    }
}

fn is_full(bucket: &[(usize, Tensor)]) -> bool {
    bucket.iter().map(|(_, gradient)| gradient.elem_count()).sum::<usize>() >= BUCKET_LEN
}

/// The thread that all-reduces buckets, in the order in which they come.
struct Worker {
    /// Dropped to end the thread.
    buckets: Option<mpsc::Sender<Bucket>>,
    sums: mpsc::Receiver<Result<Bucket>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(ranks: Arc<Ranks>) -> Self {
        let (buckets, received) = mpsc::channel::<Bucket>();
        let (reduced, sums) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut buffers = Buffers::default();
            for bucket in received {
                let sum = buffers.all_reduce(&ranks, &bucket).map(|()| bucket);
                let failed = sum.is_err();
                if reduced.send(sum).is_err() || failed {
                    return;
                }
            }
        });
        Self { buckets: Some(buckets), sums, thread: Some(thread) }
    }

    fn sender(&self) -> Result<&mpsc::Sender<Bucket>> {
        self.buckets.as_ref().ok_or_else(|| candle_core::Error::msg("the all-reduce thread has ended"))
    }

    fn next_sum(&self) -> Result<Bucket> {
        self.sums.recv().map_err(candle_core::Error::wrap)?
    }
}

impl Drop for Worker {
    /// Waits for the thread: MPI must not be finalised while it communicates.
    fn drop(&mut self) {
        self.buckets = None;
        if let Some(thread) = self.thread.take() {
            // Its errors arrive through `sums`.
            let _ = thread.join();
        }
    }
}

/// Memory of the worker, kept from bucket to bucket.
#[derive(Default)]
struct Buffers {
    /// The numbers of a bucket of several gradients, concatenated.
    flat: Vec<f32>,
    /// Numbers of the other ranks.
    received: Vec<f32>,
}

impl Buffers {
    /// Replaces gradients by their sums over the ranks, in place.
    fn all_reduce(&mut self, ranks: &Ranks, bucket: &Bucket) -> Result<()> {
        let Self { flat, received } = self;
        if let [(_, gradient)] = &bucket[..] {
            return with_numbers(gradient, |numbers| ranks.all_reduce_gradients(numbers, received));
        }
        flat.clear();
        for (_, gradient) in bucket {
            with_numbers(gradient, |numbers| {
                flat.extend_from_slice(numbers);
                Ok(())
            })?;
        }
        ranks.all_reduce_gradients(flat, received)?;
        let mut rest = &flat[..];
        for (_, gradient) in bucket {
            with_numbers(gradient, |numbers| {
                let (own, others) = rest.split_at(numbers.len());
                numbers.copy_from_slice(own);
                rest = others;
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Applies `change` to the numbers of a contiguous f32 tensor on the CPU, in place.
fn with_numbers(tensor: &Tensor, change: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&InPlace(Cell::new(Some(change))))
}

struct InPlace<F>(Cell<Option<F>>);

impl<F: FnOnce(&mut [f32]) -> Result<()>> InplaceOp1 for InPlace<F> {
    fn name(&self) -> &'static str {
        "in_place"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        match (storage, layout.contiguous_offsets(), self.0.take()) {
            (CpuStorage::F32(numbers), Some((start, end)), Some(change)) => change(&mut numbers[start..end]),
            _ => candle_core::bail!("a gradient is not contiguous f32 on the CPU"),
        }
    }
}
