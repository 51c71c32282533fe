//! NCCL: sums over the emulated GPUs of several processes, through a socket of this machine.
//!
//! Whoever makes the id of a meeting keeps a thread that adds up what the ranks send, in the
//! order of their numbers. The sums of a communicator are matched in the order in which they
//! were asked for, as NCCL does it, whatever streams they are queued on.

use std::{
    collections::HashMap,
    ffi::{c_char, c_int, c_void},
    io::{self, Read},
    net::Shutdown,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use crate::{
    driver::{self, Table, lock},
    gpu::{EventId, gpu},
    memory::{Fault, Memory, fault},
};

mod rendezvous;

use rendezvous::{Hello, Message, Number};

/// 2.27.3.
const VERSION: c_int = 22_703;

/// `ncclResult_t`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Success = 0,
    UnhandledCudaError = 1,
    SystemError = 2,
    InvalidArgument = 4,
    InvalidUsage = 5,
}

/// Bytes of the name of a meeting; zeros behind it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([u8; 128]);

impl UniqueId {
    fn address(&self) -> io::Result<SocketAddr> {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(self.0.len());
        SocketAddr::from_abstract_name(&self.0[..end])
    }
}

/// The way of one rank to its meeting.
struct Communicator {
    stream: Mutex<UnixStream>,
    n_asked: AtomicU64,
    /// The end of the sum before: one follows the other, on whatever streams.
    last: EventId,
    /// Sums that came back and were not yet taken, by turn.
    sums: Mutex<HashMap<u64, Message>>,
    aborted: AtomicBool,
}

impl Communicator {
    /// Returns when all ranks are there; `None` where they may not meet.
    fn meet(id: &UniqueId, hello: &Hello) -> io::Result<Option<Arc<Self>>> {
        let mut stream = UnixStream::connect_addr(&id.address()?)?;
        hello.send(&mut stream)?;
        let mut may_meet = [0];
        stream.read_exact(&mut may_meet)?;
        if may_meet == [0] {
            return Ok(None);
        }
        let mut receiving = stream.try_clone()?;
        let communicator = Arc::new(Self {
            stream: Mutex::new(stream),
            n_asked: AtomicU64::new(0),
            last: gpu().create_event(),
            sums: Mutex::default(),
            aborted: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&communicator);
        thread::spawn(move || {
            while let Ok(message) = Message::receive(&mut receiving) {
                let Some(communicator) = weak.upgrade() else { return };
                lock(&communicator.sums).insert(message.turn, message);
            }
        });
        Ok(Some(communicator))
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Its receiving thread holds the socket too. It may be closed already.
        let _ = lock(&self.stream).shutdown(Shutdown::Both);
    }
}

static COMMUNICATORS: Mutex<Table<Arc<Communicator>>> = Mutex::new(Table::new(0x2cc1));
static N_MEETINGS: AtomicU64 = AtomicU64::new(0);

#[expect(clippy::print_stderr, reason = "a status cannot say what was wrong")]
fn refuse(status: Status, words: &str) -> Status {
    eprintln!("cuda-emulator: nccl: {words}");
    status
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> Status {
    if version.is_null() {
        return refuse(Status::InvalidArgument, "version is null");
    }
    // SAFETY: not null, and the caller has room for a number there.
    unsafe { version.write(VERSION) };
    Status::Success
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> Status {
    let meeting = N_MEETINGS.fetch_add(1, Ordering::Relaxed);
    let name = format!("cuda-emulator-{}-{meeting}", std::process::id());
    let mut bytes = [0; 128];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let listener = UniqueId(bytes).address().and_then(|address| UnixListener::bind_addr(&address));
    let listener = match listener {
        Ok(listener) if !id.is_null() => listener,
        Ok(_) => return refuse(Status::InvalidArgument, "id is null"),
        Err(err) => return refuse(Status::SystemError, &format!("no socket for a meeting: {err}")),
    };
    thread::spawn(move || {
        if let Err(err) = rendezvous::hold(&listener)
            && err.kind() != io::ErrorKind::UnexpectedEof
        {
            refuse(Status::SystemError, &format!("a meeting ends: {err}"));
        }
    });
    // SAFETY: not null, and the caller has room for an id there.
    unsafe { id.write(UniqueId(bytes)) };
    Status::Success
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    communicator: *mut *mut c_void,
    n_ranks: c_int,
    id: UniqueId,
    rank: c_int,
) -> Status {
    let (Ok(rank), Ok(n_ranks)) = (u32::try_from(rank), u32::try_from(n_ranks)) else {
        return refuse(Status::InvalidArgument, "a negative rank");
    };
    let Some(device) = driver::current_device() else {
        return refuse(Status::InvalidUsage, "the thread is bound to no device");
    };
    match Communicator::meet(&id, &Hello { rank, n_ranks, device }) {
        Err(err) => refuse(Status::SystemError, &format!("rank {rank} finds no meeting: {err}")),
        Ok(None) => refuse(Status::InvalidUsage, "two ranks have one number or one GPU"),
        Ok(Some(_)) if communicator.is_null() => refuse(Status::InvalidArgument, "comm is null"),
        Ok(Some(met)) => {
            let handle = lock(&COMMUNICATORS).add(met);
            // SAFETY: not null, and the caller has room for a pointer there.
            unsafe { communicator.write(std::ptr::without_provenance_mut(handle)) };
            Status::Success
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    from: *const c_void,
    to: *mut c_void,
    count: usize,
    number: u32,
    operation: u32,
    communicator: *mut c_void,
    stream: *mut c_void,
) -> Status {
    let known = Number::of(number).filter(|_| operation == 0);
    let Some(n_bytes) = known.map(|number| number.bytes() * count) else {
        return refuse(Status::InvalidArgument, "only sums of f32 and f64 are emulated");
    };
    let Some(communicator) = lock(&COMMUNICATORS).get(communicator.addr()).map(Arc::clone) else {
        return refuse(Status::InvalidArgument, "there is no such communicator");
    };
    let (from, to) = (from.addr() as u64, to.addr() as u64);
    let last = communicator.last;
    let turn = communicator.n_asked.fetch_add(1, Ordering::SeqCst);
    let mut sent = false;
    let attempt = move |memory: &mut Memory| {
        if !std::mem::replace(&mut sent, true) {
            let bytes = memory.read(from, n_bytes)?.to_vec();
            // Where a rank is gone nobody learns of it here: the sum never comes, as on a GPU.
            let _ = Message { turn, number, bytes }.send(&mut *lock(&communicator.stream));
        }
        if communicator.aborted.load(Ordering::SeqCst) {
            return Ok(true);
        }
        let Some(sum) = lock(&communicator.sums).remove(&turn) else { return Ok(false) };
        if sum.number == Message::DIFFERENT {
            return Err(fault!("the ranks add up different numbers"));
        }
        memory.write(to, n_bytes)?.copy_from_slice(&sum.bytes);
        Ok(true)
    };
    let stream = stream.addr() as u64;
    let mut gpu = gpu();
    let queued = gpu
        .wait(stream, last)
        .and_then(|()| gpu.queue_attempts(stream, "nccl all-reduce", Box::new(attempt)))
        .and_then(|()| gpu.record(last, stream));
    match queued {
        Ok(()) => Status::Success,
        Err(Fault(words)) => refuse(Status::UnhandledCudaError, &words),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> Status {
    Status::Success
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> Status {
    Status::Success
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(communicator: *mut c_void) -> Status {
    match lock(&COMMUNICATORS).remove(communicator.addr()) {
        None => refuse(Status::InvalidArgument, "there is no such communicator"),
        Some(communicator) => {
            // What is queued ends without a sum.
            communicator.aborted.store(true, Ordering::SeqCst);
            Status::Success
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetErrorString(status: c_int) -> *const c_char {
    let text = match status {
        0 => c"no error",
        2 => c"unhandled system error",
        4 => c"invalid argument",
        5 => c"invalid usage",
        _ => c"unhandled cuda error",
    };
    text.as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetLastError(_communicator: *mut c_void) -> *const c_char {
    c"".as_ptr()
}
