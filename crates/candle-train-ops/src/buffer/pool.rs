//! Free buffers by size, and the bookkeeping that bounds them.

use std::collections::BTreeMap;

/// Buffers `B` that wait to be used again. A size is whatever their owner counts: numbers or
/// bytes. Together with those in use they never take more than a quarter above the highest
/// real need.
pub(crate) struct Pool<B> {
    free: BTreeMap<usize, Vec<B>>,
    free_size: usize,
    live_size: usize,
    peak_live_size: usize,
}

impl<B> Pool<B> {
    pub(crate) const fn new() -> Self {
        Self { free: BTreeMap::new(), free_size: 0, live_size: 0, peak_live_size: 0 }
    }

    /// A free buffer of at least `size` and at most a quarter more, with its size; or `None`,
    /// and room was made for a new one of `size`. Either is in use from now on.
    pub(crate) fn take(&mut self, size: usize) -> Option<(usize, B)> {
        let found = self.take_free(size);
        if found.is_none() {
            self.make_room(size);
        }
        self.live_size += found.as_ref().map_or(size, |(size, _)| *size);
        self.peak_live_size = self.peak_live_size.max(self.live_size);
        found
    }

    /// A buffer is no longer used.
    pub(crate) fn give(&mut self, size: usize, buffer: B) {
        self.forget(size);
        self.free_size += size;
        self.free.entry(size).or_default().push(buffer);
    }

    /// A buffer in use is no more, or could not be had.
    pub(crate) fn forget(&mut self, size: usize) {
        self.live_size = self.live_size.saturating_sub(size);
    }

    /// All free buffers.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = B> + use<B> {
        self.free_size = 0;
        std::mem::take(&mut self.free).into_values().flatten()
    }

    fn take_free(&mut self, size: usize) -> Option<(usize, B)> {
        let (&size, bin) = self.free.range_mut(size..=size + size / 4).next()?;
        let buffer = bin.pop()?;
        if bin.is_empty() {
            self.free.remove(&size);
        }
        self.free_size -= size;
        Some((size, buffer))
    }

    /// Frees the largest buffers until `size` more fits under the bound.
    fn make_room(&mut self, size: usize) {
        let peak = self.peak_live_size.max(self.live_size + size);
        while self.live_size + self.free_size + size > peak + peak / 4 {
            let Some((&size, _)) = self.free.last_key_value() else {
                return;
            };
            self.take_free(size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_free_is_taken_again_and_bounded() {
        let mut pool = Pool::new();
        assert!(pool.take(100).is_none() && pool.take(100).is_none());
        pool.give(100, 'a');
        pool.give(100, 'b');
        // A little more than asked for will do.
        assert_eq!(pool.take(80), Some((100, 'b')));
        // Much more will not, and with 'a' it would be over a quarter above the 200 there were.
        assert!(pool.take(79).is_none());
        pool.give(100, 'b');
        // Within the bound both stay.
        assert!(pool.take(50).is_none());
        assert_eq!(pool.drain().collect::<Vec<_>>(), ['b']);
        assert!(pool.take(100).is_none());
    }
}
