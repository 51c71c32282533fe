//! A step that several ranks take together: every one works on its rows of the batch,
//! and all end with the loss and the gradients of the whole.

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

use crate::gpu_sum::GpuSum;
use crate::ranks::Ranks;

/// Numbers from which on a bucket is full, 1 MiB: small enough that the first sums are under way
/// early, large enough that the number of messages does not matter.
const BUCKET_LEN: usize = 1 << 18;

/// What ties a learner to those of the other ranks.
pub(crate) struct Joint {
    ranks: Arc<Ranks>,
    sum: BatchSum,
    /// Present where gradients on GPUs are added up there.
    gpu: Option<GpuSum>,
    /// The variables of whose gradients each rank has a part.
    vars: Vec<Var>,
    /// Where each of them stands.
    places: Arc<HashMap<TensorId, usize>>,
    adder: Adder,
}

impl Joint {
    /// `in_parts`: every variable of whose gradient each rank has a part, in an order that
    /// all ranks share. `gpu`: what adds up on GPUs, if anything does.
    pub fn new<'a>(
        ranks: &Arc<Ranks>,
        gpu: Option<GpuSum>,
        in_parts: impl Iterator<Item = &'a (String, Var)>,
    ) -> Self {
        let of_sum = Arc::clone(ranks);
        let add_up = move |numbers: &mut [f64]| of_sum.add_up(numbers);
        let sum = match &gpu {
            Some(gpu) => gpu.batch_sum(add_up),
            None => BatchSum::new(add_up),
        };
        let vars: Vec<Var> = in_parts.map(|(_, var)| var.clone()).collect();
        let places = vars.iter().enumerate().map(|(place, var)| (var.id(), place)).collect();
        Self {
            ranks: Arc::clone(ranks),
            sum,
            gpu,
            places: Arc::new(places),
            vars,
            adder: Adder::start(Arc::clone(ranks)),
        }
    }

    /// Adds up what follows from a whole batch.
    pub fn sum(&self) -> &BatchSum {
        &self.sum
    }

    /// Whether GPUs add up without the host.
    pub fn is_on_gpus(&self) -> bool {
        self.gpu.is_some()
    }

    /// A batch begins of which this rank holds a `share`, 0 where it stands in for none.
    pub fn begin(&self, share: f64) {
        self.sum.leave_out(share == 0.0);
    }

    /// The loss of the whole batch, from this rank's share of it.
    pub fn record(&self, mut record: LossRecord, share: f64) -> Result<LossRecord> {
        let parts = record.heads.values().flat_map(|parts| parts.values());
        let mut numbers: Vec<f64> = parts.chain([&record.total]).map(|value| share * value).collect();
        self.sum.add_up(&mut numbers)?;
        let parts = record.heads.values_mut().flat_map(|parts| parts.values_mut());
        for (value, number) in parts.chain([&mut record.total]).zip(numbers) {
            *value = number;
        }
        Ok(record)
    }

    /// The gradients of the whole batch's loss. Those of convolutions are added up over
    /// the ranks in buckets while the pass still runs, the few others behind it.
    pub fn backward(&self, total: &Tensor, share: f64) -> Result<GradStore> {
        let filling = Rc::new(RefCell::new(Filling {
            places: Arc::clone(&self.places),
            given: vec![false; self.vars.len()],
            counts_nothing: self.sum.is_left_out(),
            bucket: Vec::new(),
            buckets: self.adder.buckets()?.clone(),
            n_sent: 0,
            gpu: self.gpu.clone(),
            on_gpu: Vec::new(),
            n_started: 0,
        }));
        let taking = Rc::clone(&filling);
        let taker = move |weight: &Tensor, gradient: Tensor| {
            let mut filling = taking.borrow_mut();
            match filling.places.get(&weight.id()).copied() {
                Some(place) => filling.add(place, gradient).map(|()| None),
                None => Ok(Some(gradient)),
            }
        };
        // A factor of 0 would make candle skip the pass, and with it the sums that the other
        // ranks wait for; what stands in counts nothing anyway.
        let share = if share == 0.0 { 1.0 } else { share };
        let mut gradients = take_weight_gradients(taker, || (total * share)?.backward())?;
        let mut filling = filling.borrow_mut();
        for (place, var) in self.vars.iter().enumerate() {
            if let Some(gradient) = gradients.get(var) {
                // A copy: what candle holds may be the gradient of something else too.
                filling.add(place, gradient.force_contiguous()?)?;
            }
        }
        filling.send()?;
        filling.start()?;
        let waiting = Instant::now();
        for _ in 0..filling.n_sent {
            for (place, sum) in self.adder.next_sum()? {
                let var = &self.vars[place];
                gradients.insert(var, sum.to_device(var.device())?);
            }
        }
        self.ranks.add_waited(waiting.elapsed());
        if let Some(gpu) = &self.gpu {
            gpu.finish()?;
        }
        for (place, sum) in filling.on_gpu.drain(..) {
            gradients.insert(&self.vars[place], sum);
        }
        Ok(gradients)
    }
}

/// Gradients on their way to be added up, on the CPU, each with the place of its variable.
type Bucket = Vec<(usize, Tensor)>;

/// The buckets of one backward pass.
struct Filling {
    places: Arc<HashMap<TensorId, usize>>,
    given: Vec<bool>,
    counts_nothing: bool,
    bucket: Bucket,
    buckets: mpsc::Sender<Bucket>,
    n_sent: usize,
    gpu: Option<GpuSum>,
    /// Gradients that a GPU adds up in place, by place; the last ones wait for more.
    on_gpu: Vec<(usize, Tensor)>,
    n_started: usize,
}

impl Filling {
    fn add(&mut self, place: usize, gradient: Tensor) -> Result<()> {
        if std::mem::replace(&mut self.given[place], true) {
            candle_core::bail!("the weight of a convolution is used twice: its gradient was sent ahead");
        }
        if self.counts_nothing {
            gradient.zero_set()?;
        }
        if self.gpu.is_some() && gradient.device().is_cuda() {
            self.on_gpu.push((place, gradient));
            return if is_full(&self.on_gpu[self.n_started..]) { self.start() } else { Ok(()) };
        }
        self.bucket.push((place, gradient.to_device(&Device::Cpu)?));
        if is_full(&self.bucket) { self.send() } else { Ok(()) }
    }

    /// Has the GPU add up what waits for it.
    fn start(&mut self) -> Result<()> {
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
        self.buckets.send(std::mem::take(&mut self.bucket)).map_err(candle_core::Error::wrap)
    }
}

fn is_full(bucket: &[(usize, Tensor)]) -> bool {
    bucket.iter().map(|(_, gradient)| gradient.elem_count()).sum::<usize>() >= BUCKET_LEN
}

/// The thread that adds up buckets over the ranks, in the order in which they come.
struct Adder {
    /// Present until the thread is to end.
    buckets: Option<mpsc::Sender<Bucket>>,
    sums: mpsc::Receiver<Result<Bucket>>,
    thread: Option<JoinHandle<()>>,
}

impl Adder {
    fn start(ranks: Arc<Ranks>) -> Self {
        let (buckets, to_add) = mpsc::channel::<Bucket>();
        let (added, sums) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut room = Room::default();
            for bucket in to_add {
                let sum = room.add_up(&ranks, &bucket).map(|()| bucket);
                let failed = sum.is_err();
                if added.send(sum).is_err() || failed {
                    return;
                }
            }
        });
        Self { buckets: Some(buckets), sums, thread: Some(thread) }
    }

    fn buckets(&self) -> Result<&mpsc::Sender<Bucket>> {
        self.buckets.as_ref().ok_or_else(|| candle_core::Error::msg("gradients are no longer added up"))
    }

    fn next_sum(&self) -> Result<Bucket> {
        self.sums.recv().map_err(candle_core::Error::wrap)?
    }
}

impl Drop for Adder {
    /// Waits for the thread: MPI must not be left while it talks.
    fn drop(&mut self) {
        self.buckets = None;
        if let Some(thread) = self.thread.take() {
            // It cannot panic on data; and if it did, its error is on its way already.
            let _ = thread.join();
        }
    }
}

/// Memory of the adding thread, kept from bucket to bucket.
#[derive(Default)]
struct Room {
    /// The numbers of a bucket of several gradients, one after the other.
    joined: Vec<f32>,
    /// What the other ranks sent.
    received: Vec<f32>,
}

impl Room {
    /// Replaces gradients by their sums over the ranks, in place.
    fn add_up(&mut self, ranks: &Ranks, bucket: &Bucket) -> Result<()> {
        let Self { joined, received } = self;
        if let [(_, gradient)] = &bucket[..] {
            return with_numbers(gradient, |numbers| ranks.add_up_gradients(numbers, received));
        }
        joined.clear();
        for (_, gradient) in bucket {
            with_numbers(gradient, |numbers| {
                joined.extend_from_slice(numbers);
                Ok(())
            })?;
        }
        ranks.add_up_gradients(joined, received)?;
        let mut rest = &joined[..];
        for (_, gradient) in bucket {
            with_numbers(gradient, |numbers| {
                let (own, behind) = rest.split_at(numbers.len());
                numbers.copy_from_slice(own);
                rest = behind;
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// Has `change` work on the numbers of a contiguous f32 tensor on the CPU.
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
