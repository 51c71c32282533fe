//! Random streams and identifiers, derived by name from one seed.
//!
//! Every case and every part of a case draws from its own stream, so that the
//! order of work, and with it the number of threads, cannot change a byte.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// Hash of a seed and a path of names; the parts are length-prefixed, so no two paths collide.
fn digest(seed: u64, path: &[&str]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(b"ct-phantom/1");
    hasher.update(seed.to_le_bytes());
    for part in path {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    hasher.finalize().into()
}

/// The random stream of that name.
pub(crate) fn stream(seed: u64, path: &[&str]) -> ChaCha8Rng {
    ChaCha8Rng::from_seed(digest(seed, path))
}

/// A DICOM UID under 2.25 (a 128-bit number in decimal), at most 44 characters.
pub(crate) fn uid(seed: u64, path: &[&str]) -> String {
    let digest = digest(seed, path);
    let mut number = [0u8; 16];
    number.copy_from_slice(&digest[..16]);
    format!("2.25.{}", u128::from_be_bytes(number))
}

/// Uniform draw from `[lo, hi]`; `lo` where the range is empty.
pub(crate) fn between(rng: &mut ChaCha8Rng, lo: f32, hi: f32) -> f32 {
    lo + (hi - lo) * rng.random::<f32>()
}

/// Standard normal draw (Box and Muller 1958).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}

/// True with the given probability.
pub(crate) fn chance(rng: &mut ChaCha8Rng, probability: f32) -> bool {
    rng.random::<f32>() < probability
}
