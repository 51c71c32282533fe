//! The memory of the emulated GPU, in which every access is checked.

/// What went wrong on the GPU, in words.
#[derive(Clone, Debug)]
pub struct Fault(pub String);

/// Result of work on the GPU.
pub type Work<T = ()> = Result<T, Fault>;

/// Makes a [`Fault`] of a format string.
macro_rules! fault {
    ($($words:tt)*) => { $crate::memory::Fault(format!($($words)*)) };
}
pub(crate) use fault;

/// Each allocation has a range of addresses of its own, of this many bits: an address
/// behind its end never belongs to another one, and none is used twice.
pub const RANGE_BITS: u32 = 36;

/// Ranges below are not allocations: 0 holds the null address, others the windows through
/// which a kernel sees memory that only it has.
pub const FIRST_RANGE: u64 = 16;

/// A device has so many ranges, as a power of two.
const DEVICE_BITS: u32 = 20;

/// What memory holds that nobody wrote: a NaN in every number format, so that it shows.
pub const NEVER_WRITTEN: u8 = 0xff;

/// The allocations of all streams.
pub struct Memory {
    allocations: Vec<Allocation>,
    in_use: usize,
    capacity: usize,
    /// The range of the first allocation.
    first_range: u64,
}

struct Allocation {
    bytes: Vec<u8>,
    state: State,
}

/// Memory that is asked for on a stream is there when the stream comes to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Reserved,
    Live,
    Freed,
}

impl Memory {
    /// No more than `capacity` bytes will be given out at a time, at addresses that no other
    /// `device` has.
    pub fn new(capacity: usize, device: u64) -> Self {
        let first_range = FIRST_RANGE + (device << DEVICE_BITS);
        Self { allocations: Vec::new(), in_use: 0, capacity, first_range }
    }

    /// Memory to be used after [`commit`](Self::commit); `None` where there is
    /// not enough.
    pub fn reserve(&mut self, n_bytes: usize) -> Option<u64> {
        if n_bytes == 0 || n_bytes > self.capacity - self.in_use || n_bytes >= 1 << RANGE_BITS {
            return None;
        }
        self.in_use += n_bytes;
        let range = self.first_range + self.allocations.len() as u64;
        self.allocations.push(Allocation { bytes: vec![NEVER_WRITTEN; n_bytes], state: State::Reserved });
        Some(range << RANGE_BITS)
    }

    /// # Errors
    /// An address that is no allocation.
    pub fn commit(&mut self, address: u64) -> Work {
        self.allocation(address)?.0.state = State::Live;
        Ok(())
    }

    /// # Errors
    /// An address that is not the beginning of an allocation, or that of one already freed.
    pub fn free(&mut self, address: u64) -> Work {
        let (allocation, offset) = self.find(address)?;
        if offset != 0 {
            return Err(fault!("frees {address:#x}, which is {offset} bytes into an allocation"));
        }
        allocation.state = State::Freed;
        let n_bytes = std::mem::take(&mut allocation.bytes).len();
        self.in_use -= n_bytes;
        Ok(())
    }

    fn find(&mut self, address: u64) -> Work<(&mut Allocation, usize)> {
        let (allocation, offset) = self.allocation(address)?;
        match allocation.state {
            State::Live => Ok((allocation, offset)),
            State::Reserved => {
                Err(fault!("{address:#x} is used before its allocation, in the order of streams"))
            }
            State::Freed => Err(fault!("{address:#x} lies in freed memory")),
        }
    }

    fn allocation(&mut self, address: u64) -> Work<(&mut Allocation, usize)> {
        let range = address >> RANGE_BITS;
        let offset = (address & ((1 << RANGE_BITS) - 1)) as usize;
        let index = range.checked_sub(self.first_range).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.allocations.get_mut(index)) {
            None => Err(fault!("{address:#x} is no address of this GPU")),
            Some(allocation) => Ok((allocation, offset)),
        }
    }

    /// Bytes to be read.
    ///
    /// # Errors
    /// Bytes outside an allocation, or in a freed one.
    #[inline]
    pub fn read(&mut self, address: u64, n_bytes: usize) -> Work<&[u8]> {
        self.bytes("reads", address, n_bytes).map(|bytes| &*bytes)
    }

    /// Bytes to be written.
    ///
    /// # Errors
    /// Bytes outside an allocation, or in a freed one.
    #[inline]
    pub fn write(&mut self, address: u64, n_bytes: usize) -> Work<&mut [u8]> {
        self.bytes("writes", address, n_bytes)
    }

    #[inline]
    fn bytes(&mut self, does: &str, address: u64, n_bytes: usize) -> Work<&mut [u8]> {
        let (allocation, offset) = self.find(address)?;
        let len = allocation.bytes.len();
        match allocation.bytes.get_mut(offset..offset + n_bytes) {
            Some(bytes) => Ok(bytes),
            None => Err(fault!("{does} {n_bytes} bytes at byte {offset} of an allocation of {len} bytes")),
        }
    }
}
