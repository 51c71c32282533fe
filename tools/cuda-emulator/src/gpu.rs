//! The emulated GPU: memory, and streams of work that run as late as they may.
//!
//! Work that is queued on a stream waits there until somebody waits for it: a host that
//! synchronises, or another stream that waits for an event. A program that forgets to wait
//! therefore sees old numbers every time, not once in a thousand runs. In the other order all
//! streams but the first run at once: that shows who forgets that they have to wait for it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{
    driver,
    memory::{Fault, Memory, Work},
};

/// How many GPUs there are, and the MiB of memory of each, unless these variables say otherwise.
const DEVICES: (&str, usize) = ("CUDA_EMULATOR_DEVICES", 1);
const MEMORY: (&str, usize) = ("CUDA_EMULATOR_MEMORY_MIB", 4096);

/// Set, things happen in the other order: streams run ahead of the first one, and the blocks of a
/// kernel from the last to the first.
const OTHER_ORDER: &str = "CUDA_EMULATOR_OTHER_ORDER";

const BETWEEN_ATTEMPTS: Duration = Duration::from_micros(100);

/// Numbers of streams and events begin behind those by which CUDA names streams that always exist,
/// and name their device in the bits from here on.
const FIRST_ID: u64 = 16;
const DEVICE_SHIFT: u32 = 32;

/// Number of a stream; 0 is the default stream.
pub type StreamId = u64;
/// Number of an event.
pub type EventId = u64;

/// What a stream does in its turn.
pub type Task = Box<dyn FnOnce(&mut Memory) -> Work + Send>;
/// What a stream tries again and again until it says that it is done.
pub type Attempt = Box<dyn FnMut(&mut Memory) -> Work<bool> + Send>;

enum Queued {
    /// What it is called in messages, and what it does.
    Task(String, Task),
    Attempt(String, Attempt),
    /// The event's n-th record.
    Record(EventId, u64),
    Wait(EventId, u64),
}

#[derive(Default)]
struct Event {
    /// How often it was recorded so far.
    count: u64,
    /// The streams of those records that the GPU has yet to come to.
    ahead: HashMap<u64, StreamId>,
    /// When it came to the last one.
    when: Option<Instant>,
    /// Nobody will ask for it, but work may still wait for it.
    destroyed: bool,
}

/// An emulated GPU.
pub struct Gpu {
    pub memory: Memory,
    streams: HashMap<StreamId, VecDeque<Queued>>,
    /// Those that are destroyed; what is queued on them still runs.
    destroyed: HashSet<StreamId>,
    first: Option<StreamId>,
    events: HashMap<EventId, Event>,
    next_id: u64,
    failure: Option<Fault>,
}

static GPUS: LazyLock<Vec<Mutex<Gpu>>> = LazyLock::new(|| {
    let setting = |(name, default): (&str, usize)| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let gpu = |device| Mutex::new(Gpu::new(setting(MEMORY) << 20, device));
    (0..setting(DEVICES).max(1) as u64).map(gpu).collect()
});

static IN_OTHER_ORDER: LazyLock<bool> = LazyLock::new(|| std::env::var_os(OTHER_ORDER).is_some());

pub fn in_other_order() -> bool {
    *IN_OTHER_ORDER
}

pub fn n_gpus() -> usize {
    GPUS.len()
}

/// The GPU that the calling thread is bound to, or the first one, for the caller alone.
pub fn gpu() -> MutexGuard<'static, Gpu> {
    lock(driver::current_device().unwrap_or(0).into())
}

/// The GPU of a stream, whatever the calling thread is bound to.
pub fn gpu_of(stream: StreamId) -> MutexGuard<'static, Gpu> {
    match stream >> DEVICE_SHIFT {
        device if stream >= FIRST_ID && (device as usize) < n_gpus() => lock(device),
        _ => gpu(),
    }
}

fn lock(device: u64) -> MutexGuard<'static, Gpu> {
    GPUS[device as usize].lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// One with so many bytes of memory. Addresses and numbers are those of this device alone.
    pub fn new(capacity: usize, device: u64) -> Self {
        Self {
            memory: Memory::new(capacity, device),
            streams: HashMap::from([(0, VecDeque::new())]),
            destroyed: HashSet::new(),
            first: None,
            events: HashMap::new(),
            next_id: (device << DEVICE_SHIFT) + FIRST_ID,
            failure: None,
        }
    }

    /// A number that no stream and no event has.
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn has_stream(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream) && !self.destroyed.contains(&stream)
    }

    /// Whether the GPU has come to where an event was last recorded; `None` where there is no
    /// such event.
    pub fn reached(&self, event: EventId) -> Option<bool> {
        let event = self.events.get(&event).filter(|event| !event.destroyed)?;
        Some(!event.ahead.contains_key(&event.count))
    }

    pub fn create_stream(&mut self) -> StreamId {
        let id = self.id();
        self.streams.insert(id, VecDeque::new());
        self.first.get_or_insert(id);
        id
    }

    /// Takes no more work for a stream. Nothing runs earlier for that.
    pub fn destroy_stream(&mut self, stream: StreamId) {
        self.destroyed.insert(stream);
    }

    pub fn create_event(&mut self) -> EventId {
        let id = self.id();
        self.events.insert(id, Event::default());
        id
    }

    /// Queues work; `name` is for messages.
    ///
    /// # Errors
    /// What went wrong on the GPU before; a stream that does not exist.
    pub fn queue(&mut self, stream: StreamId, name: impl Into<String>, task: Task) -> Work {
        self.push(stream, Queued::Task(name.into(), task))
    }

    /// As [`queue`](Self::queue), for what may have to wait for another GPU.
    pub fn queue_attempts(&mut self, stream: StreamId, name: &str, attempt: Attempt) -> Work {
        self.push(stream, Queued::Attempt(name.to_owned(), attempt))
    }

    fn push(&mut self, stream: StreamId, queued: Queued) -> Work {
        self.check()?;
        match self.streams.get_mut(&stream) {
            Some(queue) => queue.push_back(queued),
            None => return Err(Fault(format!("there is no stream {stream}"))),
        }
        match in_other_order() && self.first != Some(stream) {
            true => self.synchronize(stream),
            false => Ok(()),
        }
    }

    /// Marks a place in a stream.
    pub fn record(&mut self, event: EventId, stream: StreamId) -> Work {
        let Some(at) = self.events.get_mut(&event) else {
            return Err(Fault(format!("there is no event {event}")));
        };
        at.count += 1;
        let count = at.count;
        at.ahead.insert(count, stream);
        self.push(stream, Queued::Record(event, count))
    }

    /// Has what is queued on a stream from now on wait for an event as it was last recorded.
    pub fn wait(&mut self, stream: StreamId, event: EventId) -> Work {
        match self.events.get(&event).map(|event| event.count) {
            None => Err(Fault(format!("there is no event {event}"))),
            Some(count) => self.push(stream, Queued::Wait(event, count)),
        }
    }

    /// Runs all that an event waits for.
    pub fn synchronize_event(&mut self, event: EventId) -> Work {
        if let Some(count) = self.events.get(&event).map(|event| event.count) {
            self.run_to(event, count);
        }
        self.check()
    }

    /// Forgets an event when the GPU has come to its records. Nothing runs earlier for that: a
    /// program may well destroy an event for which it forgot to wait.
    pub fn destroy_event(&mut self, event: EventId) {
        if let Some(at) = self.events.get_mut(&event) {
            at.destroyed = true;
            if at.ahead.is_empty() {
                self.events.remove(&event);
            }
        }
    }

    /// Milliseconds between two events; `None` unless the GPU has come to both.
    pub fn elapsed_ms(&self, start: EventId, end: EventId) -> Option<f32> {
        let when = |event| self.events.get(&event).and_then(|event: &Event| event.when);
        Some(when(end)?.saturating_duration_since(when(start)?).as_secs_f32() * 1e3)
    }

    /// Runs everything that is queued on a stream.
    pub fn synchronize(&mut self, stream: StreamId) -> Work {
        while let Some(queued) = self.streams.get_mut(&stream).and_then(VecDeque::pop_front) {
            self.run(queued);
        }
        self.check()
    }

    /// Runs everything.
    pub fn synchronize_all(&mut self) -> Work {
        let mut streams: Vec<_> = self.streams.keys().copied().collect();
        streams.sort_unstable();
        for stream in streams {
            self.synchronize(stream)?;
        }
        Ok(())
    }

    /// What went wrong; as on a real GPU, nothing runs after that.
    pub fn check(&self) -> Work {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// Runs the stream of an event's record as far as this record.
    fn run_to(&mut self, event: EventId, count: u64) {
        while let Some(&stream) = self.events.get(&event).and_then(|event| event.ahead.get(&count)) {
            let Some(queued) = self.streams.get_mut(&stream).and_then(VecDeque::pop_front) else { return };
            self.run(queued);
        }
    }

    fn run(&mut self, queued: Queued) {
        match queued {
            Queued::Task(name, task) => {
                if self.failure.is_none()
                    && let Err(Fault(words)) = task(&mut self.memory)
                {
                    self.fail(Fault(format!("{name}: {words}")));
                }
            }
            Queued::Attempt(name, mut attempt) => {
                while self.failure.is_none() {
                    match attempt(&mut self.memory) {
                        Ok(true) => break,
                        Ok(false) => thread::sleep(BETWEEN_ATTEMPTS),
                        Err(Fault(words)) => self.fail(Fault(format!("{name}: {words}"))),
                    }
                }
            }
            Queued::Wait(event, count) => self.run_to(event, count),
            Queued::Record(event, count) => {
                let Some(at) = self.events.get_mut(&event) else { return };
                at.ahead.remove(&count);
                if count == at.count {
                    at.when = Some(Instant::now());
                }
                if at.destroyed && at.ahead.is_empty() {
                    self.events.remove(&event);
                }
            }
        }
    }

    /// Says what went wrong and keeps it: CUDA has only numbers for it.
    #[expect(clippy::print_stderr, reason = "an error code cannot say what happened")]
    fn fail(&mut self, fault: Fault) {
        eprintln!("cuda-emulator: {}", fault.0);
        self.failure.get_or_insert(fault);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A GPU with two streams, and work that says its name.
    fn two_streams() -> (Gpu, [StreamId; 2], Arc<Mutex<Vec<&'static str>>>) {
        let mut gpu = Gpu::new(1, 0);
        let streams = [0; 2].map(|_| gpu.create_stream());
        (gpu, streams, Arc::default())
    }

    fn say(gpu: &mut Gpu, stream: StreamId, said: &Arc<Mutex<Vec<&'static str>>>, name: &'static str) {
        let said = Arc::clone(said);
        let task = move |_: &mut Memory| {
            said.lock().unwrap().push(name);
            Ok(())
        };
        gpu.queue(stream, name, Box::new(task)).unwrap();
    }

    #[test]
    fn a_destroyed_event_runs_nothing_and_is_still_waited_for() {
        let (mut gpu, [first, second], said) = two_streams();
        let event = gpu.create_event();
        say(&mut gpu, first, &said, "first");
        gpu.record(event, first).unwrap();
        gpu.wait(second, event).unwrap();
        say(&mut gpu, second, &said, "second");
        gpu.destroy_event(event);
        assert_eq!(gpu.reached(event), None);
        assert!(said.lock().unwrap().is_empty());
        gpu.synchronize(second).unwrap();
        assert_eq!(*said.lock().unwrap(), ["first", "second"]);
        assert!(gpu.events.is_empty());
    }

    #[test]
    fn a_wait_is_for_the_record_before_it() {
        let (mut gpu, [first, second], said) = two_streams();
        let event = gpu.create_event();
        say(&mut gpu, first, &said, "first");
        gpu.record(event, first).unwrap();
        gpu.wait(second, event).unwrap();
        say(&mut gpu, second, &said, "second");
        // From now on the event stands for another stream.
        gpu.record(event, second).unwrap();
        gpu.synchronize(second).unwrap();
        assert_eq!(*said.lock().unwrap(), ["first", "second"]);
        assert_eq!(gpu.reached(event), Some(true));
    }
}
