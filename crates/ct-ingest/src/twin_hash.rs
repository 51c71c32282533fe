//! SHA-256 of two files at once.
//!
//! A round of SHA-256 waits for the one before it, so that the processor's SHA
//! instructions idle much of their time on one stream. Source files come in
//! series of equal length: two are hashed side by side, in far less time than
//! one after the other. Hashing is the largest part of reading plain CT.

use diag_data::files;

const BLOCK: usize = 64;
const START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// SHA-256 of each, in hex.
pub fn sha256_hex(one: &[u8], other: &[u8]) -> [String; 2] {
    let Some(twin) = kernel() else {
        return [files::sha256_hex(one), files::sha256_hex(other)];
    };
    let mut states = [START; 2];
    let n_common = one.len().min(other.len()) / BLOCK * BLOCK;
    twin(&mut states, &one[..n_common], &other[..n_common]);
    let [first, second] = states;
    [finish(twin, first, one, n_common), finish(twin, second, other, n_common)]
}

type Kernel = fn(&mut [[u32; 8]; 2], &[u8], &[u8]);

/// Hashes what is left of one message from `at` on, and its padding (FIPS 180-4, 5.1.1).
fn finish(twin: Kernel, state: [u32; 8], message: &[u8], at: usize) -> String {
    let (whole, rest) = message[at..].split_at((message.len() - at) / BLOCK * BLOCK);
    let mut last = [0; 2 * BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    last[rest.len()] = 0x80;
    let n_last = if rest.len() < BLOCK - 8 { BLOCK } else { 2 * BLOCK };
    last[n_last - 8..n_last].copy_from_slice(&(8 * message.len() as u64).to_be_bytes());
    // The twin hashes the same, for nobody.
    let mut states = [state; 2];
    twin(&mut states, whole, whole);
    twin(&mut states, &last[..n_last], &last[..n_last]);
    states[0].iter().map(|word| format!("{word:08x}")).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn kernel() -> Option<Kernel> {
    None
}

#[cfg(target_arch = "x86_64")]
fn kernel() -> Option<Kernel> {
    let has_all = is_x86_feature_detected!("sha")
        && is_x86_feature_detected!("avx")
        && is_x86_feature_detected!("ssse3")
        && is_x86_feature_detected!("sse4.1");
    #[expect(unsafe_code, reason = "the processor has just said that it has these instructions")]
    has_all.then_some(|states, one, other| unsafe { x86::compress(states, one, other) })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32,
    };

    use super::BLOCK;

    /// Round constants (FIPS 180-4, 4.2.2).
    const K: [[u32; 4]; 16] = [
        [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
        [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
        [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
        [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
        [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
        [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
        [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
        [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
        [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
        [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
        [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
        [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
        [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
        [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
        [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
        [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
    ];

    /// One stream's working variables: a, b, e, f and c, d, g, h; and 16 words of its message.
    struct Lane {
        abef: __m128i,
        cdgh: __m128i,
        words: [__m128i; 4],
    }

    /// Compresses equally many whole blocks of two messages.
    #[target_feature(enable = "sha,avx,ssse3,sse4.1")]
    pub fn compress(states: &mut [[u32; 8]; 2], one: &[u8], other: &[u8]) {
        let mut packed = [pack(&states[0]), pack(&states[1])];
        let (one, _) = one.as_chunks::<BLOCK>();
        let (other, _) = other.as_chunks::<BLOCK>();
        for (a, b) in one.iter().zip(other) {
            let mut first = lane(packed[0], a);
            let mut second = lane(packed[1], b);
            // Unrolled by hand: the words' places in the ring must be known when this is compiled.
            macro_rules! rounds {
                ($($i:literal)*) => {$(
                    four_rounds::<$i>(&mut first);
                    four_rounds::<$i>(&mut second);
                )*};
            }
            rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for (state, lane) in packed.iter_mut().zip([first, second]) {
                *state = (_mm_add_epi32(state.0, lane.abef), _mm_add_epi32(state.1, lane.cdgh));
            }
        }
        *states = [unpack(packed[0]), unpack(packed[1])];
    }

    #[inline]
    #[target_feature(enable = "sha,avx,ssse3,sse4.1")]
    fn four_rounds<const I: usize>(lane: &mut Lane) {
        let words = lane.words[I % 4];
        let [a, b, c, d] = K[I].map(|k| k as i32);
        let sum = _mm_add_epi32(words, _mm_set_epi32(d, c, b, a));
        lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, sum);
        lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, _mm_shuffle_epi32::<0x0E>(sum));
        if I < 12 {
            let (w1, w2, w3) = (lane.words[(I + 1) % 4], lane.words[(I + 2) % 4], lane.words[(I + 3) % 4]);
            let mixed = _mm_add_epi32(_mm_sha256msg1_epu32(words, w1), _mm_alignr_epi8::<4>(w3, w2));
            lane.words[I % 4] = _mm_sha256msg2_epu32(mixed, w3);
        }
    }

    #[inline]
    #[target_feature(enable = "sha,avx,ssse3,sse4.1")]
    fn lane((abef, cdgh): (__m128i, __m128i), block: &[u8; BLOCK]) -> Lane {
        let words = [four_words(block, 0), four_words(block, 1), four_words(block, 2), four_words(block, 3)];
        Lane { abef, cdgh, words }
    }

    #[inline]
    #[target_feature(enable = "sha,avx,ssse3,sse4.1")]
    fn four_words(block: &[u8; BLOCK], i: usize) -> __m128i {
        let (halves, _) = block.as_chunks::<8>();
        let bytes = _mm_set_epi64x(i64::from_le_bytes(halves[2 * i + 1]), i64::from_le_bytes(halves[2 * i]));
        // The message counts in big endian.
        _mm_shuffle_epi8(bytes, _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203))
    }

    #[inline]
    #[target_feature(enable = "sha,avx,ssse3,sse4.1")]
    fn pack(state: &[u32; 8]) -> (__m128i, __m128i) {
        let [a, b, c, d, e, f, g, h] = state.map(|word| word as i32);
        (_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h))
    }

    #[inline]
    #[target_feature(enable = "sha,avx,ssse3,sse4.1")]
    fn unpack((abef, cdgh): (__m128i, __m128i)) -> [u32; 8] {
        [
            _mm_extract_epi32::<3>(abef),
            _mm_extract_epi32::<2>(abef),
            _mm_extract_epi32::<3>(cdgh),
            _mm_extract_epi32::<2>(cdgh),
            _mm_extract_epi32::<1>(abef),
            _mm_extract_epi32::<0>(abef),
            _mm_extract_epi32::<1>(cdgh),
            _mm_extract_epi32::<0>(cdgh),
        ]
        .map(|word| word as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hashes_are_those_of_one_after_the_other() {
        let bytes: Vec<u8> = (0..2000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        for one in (0..200).chain([511, 512, 1024, 1999]) {
            for other in [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000, one] {
                let (a, b) = (&bytes[..one], &bytes[bytes.len() - other..]);
                let want = [files::sha256_hex(a), files::sha256_hex(b)];
                assert_eq!(sha256_hex(a, b), want, "{one} and {other} bytes");
            }
        }
    }
}
