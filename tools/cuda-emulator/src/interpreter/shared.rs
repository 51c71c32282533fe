//! The memory that the threads of a block share, and who used it since their last barrier.

use super::{LANES, spaces::outside};
use crate::memory::{NEVER_WRITTEN, Work, fault};

/// Shared memory of one block.
pub struct Shared {
    bytes: Vec<u8>,
    /// Of every byte.
    uses: Vec<Uses>,
    /// Barriers passed so far, over all blocks.
    epoch: u32,
}

#[derive(Clone, Copy, Default)]
struct Uses {
    written: Use,
    read: Use,
}

/// Who used a byte last, and when.
#[derive(Clone, Copy, Default)]
struct Use {
    epoch: u32,
    warp_epoch: u32,
    /// A thread's number.
    by: u32,
    /// Other threads of its warp did too, or of others.
    others: Others,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Others {
    #[default]
    None,
    OfWarp,
    Any,
}

impl Use {
    /// Whether it is unordered with what `thread` does now.
    fn clashes(&self, epoch: u32, thread: usize, warp_epoch: u32) -> bool {
        if self.epoch != epoch {
            return false;
        }
        let same_warp = self.by as usize / LANES == thread / LANES;
        match self.others {
            Others::Any => true,
            _ if !same_warp => true,
            Others::OfWarp => self.warp_epoch == warp_epoch,
            Others::None => self.by as usize != thread && self.warp_epoch == warp_epoch,
        }
    }

    fn note(&mut self, epoch: u32, thread: usize, warp_epoch: u32) {
        let others = match self.epoch == epoch {
            false => Others::None,
            true if self.by as usize / LANES != thread / LANES => Others::Any,
            true if self.by as usize != thread && self.warp_epoch == warp_epoch => self.others.max_warp(),
            true if self.warp_epoch == warp_epoch || self.others == Others::Any => self.others,
            true => Others::None,
        };
        *self = Self { epoch, warp_epoch, by: thread as u32, others };
    }
}

impl Others {
    fn max_warp(self) -> Self {
        if self == Self::Any { self } else { Self::OfWarp }
    }
}

impl Shared {
    pub fn new(n_bytes: usize) -> Self {
        Self { bytes: vec![NEVER_WRITTEN; n_bytes], uses: vec![Uses::default(); n_bytes], epoch: 0 }
    }

    /// For the next block: what the last one left is nobody's.
    pub fn begin(&mut self) {
        self.bytes.fill(NEVER_WRITTEN);
        self.epoch += 1;
    }

    pub fn pass_barrier(&mut self) {
        self.epoch += 1;
    }

    /// # Errors
    /// Bytes outside, or that another thread wrote since the last barrier.
    pub fn read(&mut self, (thread, warp_epoch): (usize, u32), address: u64, n_bytes: usize) -> Work<&[u8]> {
        let range = self.range(address, n_bytes)?;
        for uses in &mut self.uses[range.clone()] {
            if uses.written.clashes(self.epoch, thread, warp_epoch) {
                let by = uses.written.by;
                return Err(fault!(
                    "reads byte {address} of shared memory, which thread {by} of the block wrote, without a barrier between"
                ));
            }
            uses.read.note(self.epoch, thread, warp_epoch);
        }
        Ok(&self.bytes[range])
    }

    /// # Errors
    /// Bytes outside, or that another thread wrote or read since the last barrier.
    pub fn write(
        &mut self,
        (thread, warp_epoch): (usize, u32),
        address: u64,
        n_bytes: usize,
    ) -> Work<&mut [u8]> {
        let range = self.range(address, n_bytes)?;
        for uses in &mut self.uses[range.clone()] {
            for (did, use_) in [("wrote", &uses.written), ("read", &uses.read)] {
                if use_.clashes(self.epoch, thread, warp_epoch) {
                    let by = use_.by;
                    return Err(fault!(
                        "writes byte {address} of shared memory, which thread {by} of the block {did}, without a barrier between"
                    ));
                }
            }
            uses.written.note(self.epoch, thread, warp_epoch);
        }
        Ok(&mut self.bytes[range])
    }

    fn range(&self, address: u64, n_bytes: usize) -> Work<std::ops::Range<usize>> {
        let (start, len) = (address as usize, self.bytes.len());
        match start.checked_add(n_bytes).filter(|&end| end <= len) {
            Some(end) => Ok(start..end),
            None => Err(outside(address, n_bytes, len)),
        }
    }
}
