//! Handles, and what they stand for.

use std::collections::BTreeMap;

/// A pointer that a program only hands back.
pub type Handle = usize;

/// What handles of one kind stand for.
pub struct Table<T> {
    entries: BTreeMap<Handle, T>,
    last: Handle,
}

impl<T> Table<T> {
    /// No two tables have the same `kind`: a handle of one is then unknown to the others.
    pub const fn new(kind: u16) -> Self {
        Self { entries: BTreeMap::new(), last: (kind as Handle) << 32 }
    }

    pub fn add(&mut self, entry: T) -> Handle {
        self.last += 1;
        self.entries.insert(self.last, entry);
        self.last
    }

    pub fn get(&self, handle: Handle) -> Option<&T> {
        self.entries.get(&handle)
    }

    /// The handle of an entry like this.
    pub fn find(&self, is_it: impl Fn(&T) -> bool) -> Option<Handle> {
        self.entries.iter().find(|(_, entry)| is_it(entry)).map(|(handle, _)| *handle)
    }

    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        self.entries.get_mut(&handle)
    }

    pub fn remove(&mut self, handle: Handle) -> Option<T> {
        self.entries.remove(&handle)
    }

    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.entries.retain(|_, entry| keep(entry));
    }
}
