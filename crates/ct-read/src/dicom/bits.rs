//! The coded bits of a JPEG or JPEG-LS scan, freed from what keeps markers apart from them.
//!
//! A decoder then needs to know one number, the place of its next bit, and takes whole words
//! from there; nothing has to be watched for on the way.

/// Bits of one scan or restart interval, the high ones of a byte first.
#[derive(Debug)]
pub struct Bits {
    /// With a whole word of zeros behind the last bit.
    bytes: Vec<u8>,
    n_bits: usize,
}

/// Bytes that are looked at together.
const CHUNK: usize = 32;

impl Bits {
    /// Bits that [`word`](Self::word) holds for certain.
    pub const N_CERTAIN: u32 = 57;

    /// Takes the coded data at the start of `data`, in which a zero follows every `FF`
    /// (T.81 F.1.2.3). Returns it with the number of its bytes, behind which a marker stands.
    pub fn of_jpeg(data: &[u8]) -> (Self, usize) {
        let mut bytes = Vec::with_capacity(data.len() + 8);
        let mut at = 0;
        loop {
            match data[at..].first_chunk::<CHUNK>() {
                Some(chunk) if !has_ff(chunk) => {
                    bytes.extend_from_slice(chunk);
                    at += CHUNK;
                }
                _ => {
                    let n_plain = data[at..].iter().position(|byte| *byte == 0xFF);
                    let n_plain = n_plain.unwrap_or(data.len() - at);
                    bytes.extend_from_slice(&data[at..at + n_plain]);
                    at += n_plain;
                    if data.get(at + 1) != Some(&0) {
                        break;
                    }
                    bytes.push(0xFF);
                    at += 2;
                }
            }
        }
        let n_bits = 8 * bytes.len();
        bytes.extend([0; 8]);
        (Self { bytes, n_bits }, at)
    }

    /// Takes the coded data at the start of `data`, in which the byte after an `FF` holds
    /// seven bits (T.87 A.1). A marker, or the end of `data`, ends it.
    pub fn of_jpeg_ls(data: &[u8]) -> Self {
        let mut packer = Packer { bytes: Vec::with_capacity(data.len() + 16), word: 0, n_bits: 0 };
        let (mut at, mut is_after_ff) = (0, false);
        while at < data.len() {
            if let Some(chunk) = data[at..].first_chunk::<CHUNK>()
                && !is_after_ff
                && !has_ff(chunk)
            {
                let (words, _) = chunk.as_chunks();
                words.iter().for_each(|word| packer.push_word(u64::from_be_bytes(*word)));
                at += CHUNK;
                continue;
            }
            let byte = data[at];
            if is_after_ff && byte & 0x80 != 0 {
                break;
            }
            packer.push(byte, if is_after_ff { 7 } else { 8 });
            is_after_ff = byte == 0xFF;
            at += 1;
        }
        packer.finish()
    }

    /// The bits from `at` on, from the top of a word: [`N_CERTAIN`](Self::N_CERTAIN) of them,
    /// zeros behind the last one. `None` where no bit is left.
    #[inline(always)]
    pub fn word(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes.get(at / 8..at / 8 + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?) << (at % 8))
    }

    /// Whether a decoder that stands at `at` has taken no more than there was, and has left
    /// nothing but padding: less than two bytes, or bytes of zeros or ones.
    pub fn ends_at(&self, at: usize) -> bool {
        let n_bytes = self.n_bits / 8;
        let left = self.bytes[..n_bytes].get(at.div_ceil(8) + 1..).unwrap_or(&[]);
        at <= self.n_bits && left.iter().all(|byte| matches!(byte, 0 | 0xFF))
    }

    /// Number of bits.
    pub fn len(&self) -> usize {
        self.n_bits
    }
}

/// Without a branch a byte, so that many bytes are compared at once.
fn has_ff(chunk: &[u8; CHUNK]) -> bool {
    chunk.iter().fold(false, |any, byte| any | (*byte == 0xFF))
}

/// Puts bits side by side.
struct Packer {
    bytes: Vec<u8>,
    /// Bits that do not fill a word yet, from its top.
    word: u64,
    n_bits: u32,
}

impl Packer {
    fn push_word(&mut self, word: u64) {
        self.bytes.extend_from_slice(&(self.word | word >> self.n_bits).to_be_bytes());
        // Twice, since all of a word cannot be shifted away at once.
        self.word = word << 1 << (63 - self.n_bits);
    }

    fn push(&mut self, byte: u8, n_bits: u32) {
        let bits = u64::from(byte) << (64 - n_bits);
        self.word |= bits >> self.n_bits;
        self.n_bits += n_bits;
        if self.n_bits >= 64 {
            self.bytes.extend_from_slice(&self.word.to_be_bytes());
            self.n_bits -= 64;
            self.word = bits << (n_bits - self.n_bits);
        }
    }

    fn finish(mut self) -> Bits {
        let n_bits = 8 * self.bytes.len() + self.n_bits as usize;
        self.bytes.extend_from_slice(&self.word.to_be_bytes());
        self.bytes.extend([0; 8]);
        Bits { bytes: self.bytes, n_bits }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bits one by one, as text.
    fn text(bits: &Bits) -> String {
        let bit = |at: usize| if bits.word(at).unwrap() >> 63 == 1 { '1' } else { '0' };
        (0..bits.len()).map(bit).collect()
    }

    /// Bytes with an `FF` now and then, and what each way of stuffing makes of them.
    #[test]
    fn stuffing_is_taken_out_wherever_it_lies() {
        for n_before in 0..100 {
            let mut data: Vec<u8> = (0..n_before).map(|i| (i * 37 + 11) as u8 & 0x7F).collect();
            let plain: String = data.iter().map(|byte| format!("{byte:08b}")).collect();
            data.extend([0xFF, 0x00, 0x2A, 0xFF, 0xD9, 0x55]);
            let (jpeg, n_bytes) = Bits::of_jpeg(&data);
            assert_eq!(text(&jpeg), format!("{plain}1111111100101010"), "{n_before}");
            assert_eq!(n_bytes, n_before + 3);
            let jpeg_ls = Bits::of_jpeg_ls(&data);
            assert_eq!(text(&jpeg_ls), format!("{plain}1111111100000000010101011111111"), "{n_before}");
        }
    }

    #[test]
    fn many_stuffed_bytes_are_packed_without_gaps() {
        let data: Vec<u8> = (0..500).map(|i| if i % 3 == 0 { 0xFF } else { (i * 7 % 128) as u8 }).collect();
        let after_ff = |i: usize| i > 0 && data[i - 1] == 0xFF;
        let digits =
            |i: usize| if after_ff(i) { format!("{:07b}", data[i]) } else { format!("{:08b}", data[i]) };
        let want: String = (0..data.len()).map(digits).collect();
        assert_eq!(text(&Bits::of_jpeg_ls(&data)), want);
    }

    #[test]
    fn what_is_left_may_only_be_padding() {
        let of = |data: &[u8]| Bits::of_jpeg(data).0;
        assert!(of(&[1, 2, 3]).ends_at(24) && !of(&[1, 2, 3]).ends_at(25));
        assert!(of(&[1, 2, 3]).ends_at(9) && !of(&[1, 2, 3]).ends_at(8));
        assert!(of(&[1, 2, 3, 0, 0, 0xFF, 0]).ends_at(17) && !of(&[1, 2, 3, 0, 1, 0]).ends_at(17));
        assert!(of(&[]).word(0) == Some(0) && of(&[]).word(8).is_none());
    }
}
