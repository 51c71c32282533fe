//! What a slice looks like, in 256 bits: a difference hash (Krawetz 2013) on a
//! finer grid than usual, since all chests look alike on a coarse one.
//!
//! The picture is reduced to 16 rows of 17 cells; a bit says whether a cell is
//! brighter than its left neighbour by more than one grey level. Two slices look
//! alike when at most 15 bits differ. That line was drawn on real data, and
//! `docs/shard-format.md` gives the figures: none of the half million pairs of
//! slices of different LUNA16 patients come so near, and saving a slice again as
//! JPEG of quality 70, at half its size or with another gamma moves it by less.
//! A cut border or a turned picture is not recognised.

use serde::{Deserialize, Serialize};

/// Most bits in which two slices differ that look alike.
pub const MAX_DISTANCE: u32 = 15;
/// Rows of cells, and bits a row.
const SIDE: usize = 16;
/// How much brighter a cell must be than its neighbour, in grey levels: flat
/// areas would else be decided by noise.
const MARGIN: f32 = 1.0;
/// A picture with fewer bits set shows next to nothing.
const MIN_BITS: u32 = 16;
/// Groups of bits of which two hashes that are near share at least one:
/// 15 differing bits cannot touch all 16.
const N_BANDS: usize = MAX_DISTANCE as usize + 1;

/// The bits, row by row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DifferenceHash([u64; 4]);

impl DifferenceHash {
    /// The hash of a square picture of `side * side` grey levels; `None` where
    /// it shows next to nothing, or is too small.
    pub fn of(pixels: &[u8], side: usize) -> Option<Self> {
        if side <= SIDE || pixels.len() != side * side {
            return None;
        }
        let edge = |i: usize, n: usize| (2 * i * side + n) / (2 * n);
        let mut bits = [0u64; 4];
        for row in 0..SIDE {
            let (top, bottom) = (edge(row, SIDE), edge(row + 1, SIDE));
            let mut columns = vec![0u32; side];
            for line in pixels[top * side..bottom * side].chunks_exact(side) {
                columns.iter_mut().zip(line).for_each(|(sum, grey)| *sum += u32::from(*grey));
            }
            let cell = |col: usize| {
                let (left, right) = (edge(col, SIDE + 1), edge(col + 1, SIDE + 1));
                let sum: u32 = columns[left..right].iter().sum();
                sum as f32 / ((right - left) * (bottom - top)) as f32
            };
            for col in 0..SIDE {
                let bit = row * SIDE + col;
                bits[bit / 64] |= u64::from(cell(col + 1) - cell(col) > MARGIN) << (bit % 64);
            }
        }
        let hash = Self(bits);
        (hash.0.iter().map(|word| word.count_ones()).sum::<u32>() >= MIN_BITS).then_some(hash)
    }

    /// Number of bits that differ.
    pub fn distance(self, other: Self) -> u32 {
        self.0.iter().zip(other.0).map(|(a, b)| (a ^ b).count_ones()).sum()
    }

    /// Every sixteenth bit: neighbouring bits go together, so a band of
    /// neighbours (all background) would be the same in every slice.
    fn band(self, band: usize) -> u16 {
        // A different column in each row, so that each band sees the whole width.
        let bit = |row: usize| row * SIDE + (band + 5 * row) % SIDE;
        (0..SIDE).fold(0, |key, row| {
            let bit = bit(row);
            key << 1 | (self.0[bit / 64] >> (bit % 64) & 1) as u16
        })
    }
}

/// Calls `found` with every pair of hashes within [`MAX_DISTANCE`] that `wanted`
/// accepts, smaller number first, once each, in a fixed order.
pub fn near_pairs(
    hashes: &[(usize, DifferenceHash)],
    wanted: &dyn Fn(usize, usize) -> bool,
    found: &mut dyn FnMut(usize, usize, u32),
) {
    let mut pairs = Vec::new();
    for band in 0..N_BANDS {
        let mut order: Vec<(u16, usize)> =
            hashes.iter().enumerate().map(|(i, (_, hash))| (hash.band(band), i)).collect();
        order.sort_unstable();
        for bucket in order.chunk_by(|a, b| a.0 == b.0) {
            for (n, &(_, i)) in bucket.iter().enumerate() {
                let (a, hash) = hashes[i];
                for &(_, j) in &bucket[n + 1..] {
                    let (b, other) = hashes[j];
                    let distance = hash.distance(other);
                    if distance <= MAX_DISTANCE && wanted(a, b) {
                        pairs.push((a.min(b), a.max(b), distance));
                    }
                }
            }
        }
    }
    pairs.sort_unstable();
    pairs.dedup();
    pairs.into_iter().for_each(|(a, b, distance)| found(a, b, distance));
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 68;

    /// A picture of waves; `phase` makes another one.
    fn waves(phase: f32) -> Vec<u8> {
        let grey = |i: usize| {
            let (y, x) = ((i / WIDTH) as f32, (i % WIDTH) as f32);
            128.0 + 60.0 * (x / 5.0 + phase + y / 11.0).sin() + 50.0 * (y / 7.0 - phase * x / 9.0).cos()
        };
        (0..WIDTH * WIDTH).map(|i| grey(i) as u8).collect()
    }

    fn hash(pixels: &[u8]) -> DifferenceHash {
        DifferenceHash::of(pixels, WIDTH).unwrap()
    }

    #[test]
    fn brightness_and_coarser_grey_levels_move_few_bits() {
        let picture = waves(0.0);
        let brighter: Vec<u8> = picture.iter().map(|grey| grey + 10).collect();
        assert_eq!(hash(&picture).distance(hash(&brighter)), 0);
        let coarser: Vec<u8> = picture.iter().map(|grey| grey / 8 * 8).collect();
        assert!(hash(&picture).distance(hash(&coarser)) <= MAX_DISTANCE);
        assert!(hash(&picture).distance(hash(&waves(2.0))) > 4 * MAX_DISTANCE);
    }

    #[test]
    fn what_shows_nothing_has_no_hash() {
        assert_eq!(DifferenceHash::of(&[7; WIDTH * WIDTH], WIDTH), None);
        assert_eq!(DifferenceHash::of(&[0; 64], 8), None);
    }

    #[test]
    fn the_bands_find_every_pair_that_comparing_all_finds() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize
        };
        let mut hashes: Vec<(usize, DifferenceHash)> = Vec::new();
        for i in 0..300 {
            let mut bits = match hashes.last() {
                Some((_, last)) if i % 3 != 0 => last.0,
                _ => std::array::from_fn(|_| (random() as u64) << 32 | random() as u64),
            };
            for _ in 0..random() % 20 {
                let bit = random() % 256;
                bits[bit / 64] ^= 1 << (bit % 64);
            }
            hashes.push((i, DifferenceHash(bits)));
        }
        let mut want = Vec::new();
        for a in 0..300 {
            for b in a + 1..300 {
                let distance = hashes[a].1.distance(hashes[b].1);
                if distance <= MAX_DISTANCE && (a + b) % 5 != 0 {
                    want.push((a, b, distance));
                }
            }
        }
        let mut got = Vec::new();
        near_pairs(&hashes, &|a, b| (a + b) % 5 != 0, &mut |a, b, distance| got.push((a, b, distance)));
        assert_eq!(got, want);
        assert!(want.len() > 100, "{}", want.len());
    }
}
