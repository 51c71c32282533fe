//! Independent random streams derived from one seed.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream is used for: streams of different domains are independent.
///
/// The order is part of every result: new domains go to the end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Domain {
    Shuffle,
    Augmentation,
    LabelShuffle,
    Balance,
    Mixing,
    Dropout,
    SliceSplit,
    Subsampling,
    LabelNoise,
    Attention,
    Probe,
    TrivialBaseline,
}

/// The stream of an epoch (or 0) and an item. It does not depend on what was
/// drawn before, so that a resumed run and any number of threads draw the same numbers.
pub(crate) fn stream(seed: u64, domain: Domain, epoch: u32, item: u32) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = 1 + domain as u8;
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(u64::from(epoch) << 32 | u64::from(item));
    rng
}
