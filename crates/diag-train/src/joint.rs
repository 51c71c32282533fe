//! A step that several ranks take together: every one works on its rows of the batch,
//! and all end with the loss and the gradients of the whole.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId, Var};
use candle_train_ops::{BatchSum, observe_weight_gradients};
use diag_data::run::LossRecord;

use crate::gpu_sum::GpuSum;
use crate::ranks::Ranks;

/// Numbers of a bucket, 1 MiB: small enough that the first sums are under way early,
/// large enough that the number of messages does not matter.
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
            bucket: Bucket::default(),
            buckets: self.adder.buckets()?.clone(),
            n_sent: 0,
            gpu: self.gpu.clone(),
            on_gpu: Vec::new(),
            n_started: 0,
        }));
        let seen = Rc::clone(&filling);
        let observer = move |weight: &Tensor, gradient: &Tensor| {
            let mut filling = seen.borrow_mut();
            let place = filling.places.get(&weight.id()).copied();
            place.map_or(Ok(()), |place| filling.add(place, gradient))
        };
        // A factor of 0 would make candle skip the pass, and with it the sums that the other
        // ranks wait for; what stands in counts nothing anyway.
        let share = if share == 0.0 { 1.0 } else { share };
        let mut gradients = observe_weight_gradients(observer, || (total * share)?.backward())?;
        let mut filling = filling.borrow_mut();
        for (place, var) in self.vars.iter().enumerate() {
            if let Some(gradient) = gradients.get(var)
                && !filling.given[place]
            {
                // A copy: what candle holds may be the gradient of something else too.
                filling.add(place, &gradient.force_contiguous()?)?;
            }
        }
        filling.send()?;
        filling.start()?;
        let waiting = Instant::now();
        for _ in 0..filling.n_sent {
            let bucket = self.adder.next_sum()?;
            let mut rest = &bucket.numbers[..];
            for place in bucket.places {
                let var = &self.vars[place];
                let (own, behind) = rest.split_at(var.elem_count());
                gradients.insert(var, Tensor::from_slice(own, var.shape(), var.device())?);
                rest = behind;
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

/// Gradients on their way to be added up.
#[derive(Default)]
struct Bucket {
    /// Whose gradients, by place.
    places: Vec<usize>,
    /// Their numbers, one variable after the other.
    numbers: Vec<f32>,
}

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
    fn add(&mut self, place: usize, gradient: &Tensor) -> Result<()> {
        if std::mem::replace(&mut self.given[place], true) {
            candle_core::bail!("a convolution's weight is used twice; its gradient cannot be sent ahead");
        }
        if self.gpu.is_some() && gradient.device().is_cuda() {
            if self.counts_nothing {
                gradient.zero_set()?;
            }
            self.on_gpu.push((place, gradient.clone()));
            let waiting = self.on_gpu[self.n_started..].iter().map(|(_, gradient)| gradient.elem_count());
            return if waiting.sum::<usize>() >= BUCKET_LEN { self.start() } else { Ok(()) };
        }
        let start = self.bucket.numbers.len();
        self.bucket.numbers.extend(gradient.flatten_all()?.to_vec1::<f32>()?);
        if self.counts_nothing {
            self.bucket.numbers[start..].fill(0.0);
        }
        self.bucket.places.push(place);
        if self.bucket.numbers.len() >= BUCKET_LEN { self.send() } else { Ok(()) }
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
            for mut bucket in to_add {
                let sum = ranks.add_up_gradients(&mut bucket.numbers).map(|()| bucket);
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
