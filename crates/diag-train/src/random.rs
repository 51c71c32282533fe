//! Independent random streams of one seed.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a stream is for: equal indices in two domains share nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Domain {
    Shuffle,
    Augmentation,
    LabelShuffle,
    Balance,
    Mixing,
    Dropout,
    SliceSplit,
    Thinning,
    LabelNoise,
    Attention,
    Probe,
}

/// The stream of an epoch (or 0) and an item. It does not depend on what was
/// drawn before, so a resumed run and any number of threads see the same numbers.
pub(crate) fn stream(seed: u64, domain: Domain, epoch: u32, item: u32) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = 1 + domain as u8;
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(u64::from(epoch) << 32 | u64::from(item));
    rng
}
