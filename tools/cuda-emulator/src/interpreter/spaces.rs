//! All memory that a block sees.

use super::shared::Shared;
use crate::{
    memory::{Fault, Memory, RANGE_BITS, Work, fault},
    ptx::Space,
};

/// All memory that a block sees.
pub struct Spaces<'a> {
    pub memory: &'a mut Memory,
    pub shared: Shared,
    /// One thread's after the other's.
    pub local: Vec<u8>,
    pub local_bytes: usize,
    pub parameters: &'a [u8],
}

impl Spaces<'_> {
    /// Bytes that a thread reads; `by`: its number, and how often its warp has waited.
    #[inline]
    pub fn read(&mut self, by: (usize, u32), space: Space, address: u64, n_bytes: usize) -> Work<&[u8]> {
        let (space, address) = resolved(space, address);
        check_alignment(address, n_bytes)?;
        match space {
            Space::Global | Space::Generic => self.memory.read(address, n_bytes),
            Space::Shared => self.shared.read(by, address, n_bytes),
            Space::Local => self.local(by.0, address, n_bytes).map(|bytes| &*bytes),
            Space::Parameter => {
                let range = address as usize..(address as usize).saturating_add(n_bytes);
                self.parameters.get(range).ok_or_else(|| outside(address, n_bytes, self.parameters.len()))
            }
        }
    }

    /// Bytes that a thread writes.
    #[inline]
    pub fn write(&mut self, by: (usize, u32), space: Space, address: u64, n_bytes: usize) -> Work<&mut [u8]> {
        let (space, address) = resolved(space, address);
        check_alignment(address, n_bytes)?;
        match space {
            Space::Global | Space::Generic => self.memory.write(address, n_bytes),
            Space::Shared => self.shared.write(by, address, n_bytes),
            Space::Local => self.local(by.0, address, n_bytes),
            Space::Parameter => Err(fault!("writes to a parameter")),
        }
    }

    fn local(&mut self, thread: usize, address: u64, n_bytes: usize) -> Work<&mut [u8]> {
        let len = self.local_bytes;
        let range = address as usize..(address as usize).saturating_add(n_bytes);
        let own = &mut self.local[thread * len..][..len];
        own.get_mut(range).ok_or_else(|| outside(address, n_bytes, len))
    }
}

#[inline]
fn check_alignment(address: u64, n_bytes: usize) -> Work {
    match address & (n_bytes as u64 - 1) {
        0 => Ok(()),
        _ => Err(fault!("{n_bytes} bytes at {address:#x}, which is no multiple of them")),
    }
}

/// Where a space begins among all addresses.
pub fn window(space: Space) -> u64 {
    let number: u64 = match space {
        Space::Generic | Space::Global => 0,
        Space::Shared => 1,
        Space::Local => 2,
        Space::Parameter => 3,
    };
    number << RANGE_BITS
}

/// A generic address by the space that it lies in.
fn resolved(space: Space, address: u64) -> (Space, u64) {
    if space != Space::Generic {
        return (space, address);
    }
    let inner = [Space::Shared, Space::Local, Space::Parameter];
    let found = inner.into_iter().find(|&space| address >> RANGE_BITS == window(space) >> RANGE_BITS);
    found.map_or((Space::Global, address), |space| (space, address - window(space)))
}

pub fn outside(address: u64, n_bytes: usize, len: usize) -> Fault {
    fault!("{n_bytes} bytes at byte {address} of {len} bytes")
}

/// The number in 1, 2, 4 or 8 bytes.
#[inline]
pub fn word(bytes: &[u8]) -> u64 {
    match *bytes {
        [a] => a.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        _ => <[u8; 8]>::try_from(bytes).map_or(0, u64::from_le_bytes),
    }
}

/// Reverse of [`word`].
#[inline]
pub fn put_word(bytes: &mut [u8], word: u64) {
    match bytes {
        [byte] => *byte = word as u8,
        [_, _] => bytes.copy_from_slice(&(word as u16).to_le_bytes()),
        [_, _, _, _] => bytes.copy_from_slice(&(word as u32).to_le_bytes()),
        _ => bytes.copy_from_slice(&word.to_le_bytes()),
    }
}
