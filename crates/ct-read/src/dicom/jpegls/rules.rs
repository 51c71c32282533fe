//! How errors are coded, what is remembered of them, and what they make of a prediction
//! (T.87 annex A).

use super::scan::Scan;
use crate::dicom::bits::Bits;

/// What follows from the parameters of a scan.
pub struct Rules {
    /// Largest sample.
    pub max_value: i32,
    /// Largest error of a sample.
    pub near: i32,
    /// After how many errors the statistics are halved.
    pub reset: u16,
    /// Number of different errors.
    pub range: i32,
    /// Bits of an escaped error.
    qbpp: u32,
    /// Bits of the longest code.
    pub limit: u32,
    /// Gradient to its region, -4 to 4, from `-max_value` on.
    pub regions: Vec<i8>,
}

/// Statistics of one context.
#[derive(Clone, Copy)]
pub struct Context {
    /// Sum of the sizes of errors.
    pub a: u32,
    /// Sum of errors; in the contexts of run interruption the number of negative ones.
    pub b: i32,
    /// Correction of the prediction.
    pub c: i16,
    /// Number of errors.
    pub n: u16,
    /// Golomb order of the next error in regular mode: reckoned when the others change, since
    /// the bits of the next sample wait for it.
    pub k: u8,
}

impl Rules {
    /// Those of a scan.
    pub fn new(scan: &Scan<'_>) -> Self {
        let bits_for = |values: i32| i32::BITS - (values - 1).leading_zeros();
        let step = 2 * scan.near + 1;
        let range = (scan.max_value + 2 * scan.near) / step + 1;
        let bpp = bits_for(scan.max_value + 1).max(2);
        let [t1, t2, t3] = scan.thresholds;
        let max_value = scan.max_value as usize;
        let mut regions = vec![0; 2 * max_value + 1];
        for (region, smallest) in (1..).zip([scan.near + 1, t1, t2, t3]) {
            regions[max_value + smallest as usize..].fill(region);
            regions[..=max_value - smallest as usize].fill(-region);
        }
        Self {
            max_value: scan.max_value,
            near: scan.near,
            reset: scan.reset as u16,
            range,
            qbpp: bits_for(range),
            limit: 2 * (bpp + bpp.max(8)),
            regions,
        }
    }

    /// Whether nothing is lost and samples take whole bits: then they wrap around by themselves.
    pub fn is_plain(&self) -> bool {
        self.near == 0 && (self.max_value + 1).cast_unsigned().is_power_of_two()
    }

    /// A number in limited Golomb code at a place (A.5.3), and its bits. `None` where the bits end,
    /// where they are no code, and beyond `range`, since no error is larger when it is mapped.
    #[inline(always)]
    pub fn golomb(&self, bits: &Bits, at: usize, k: u32, limit: u32) -> Option<(i32, u32)> {
        let longest = limit - self.qbpp - 1;
        let word = bits.word(at)?;
        let n_zeros = word.leading_zeros();
        let (mapped, n_bits) = if n_zeros < longest && n_zeros + k < Bits::N_CERTAIN {
            // The bit that ends the zeros becomes bit `k`.
            let low = top(word << n_zeros, k + 1);
            ((n_zeros << k).wrapping_add(low).wrapping_sub(1 << k), n_zeros + 1 + k)
        } else {
            seldom_golomb(bits, at, k, longest, self.qbpp)?
        };
        (mapped <= self.range as u32).then_some((mapped as i32, n_bits))
    }

    /// Takes the next error of a context (A.6).
    #[inline(always)]
    pub fn update<const PLAIN: bool>(&self, context: &mut Context, error: i32) {
        let step = if PLAIN { 1 } else { 2 * self.near + 1 };
        let (mut a, mut b) = (context.a + error.unsigned_abs(), context.b + error * step);
        let mut n = context.n;
        if n == self.reset {
            a >>= 1;
            b = if b >= 0 { b >> 1 } else { -((1 - b) >> 1) };
            n >>= 1;
        }
        n += 1;
        // No telling which way an error goes, so without branches: all bits of these are equal.
        let count = i32::from(n);
        let is_low = (b + count - 1) >> 31;
        let is_high = -b >> 31;
        b += (count & is_low) - (count & is_high);
        let c = (i32::from(context.c) + is_low - is_high).clamp(-128, 127) as i16;
        *context = Context { a, b: b.clamp(1 - count, 0), c, n, k: golomb_order(n, a) };
    }

    /// A sample from its prediction and error (A.4.5, A.8).
    #[inline(always)]
    pub fn restored<const PLAIN: bool>(&self, predicted: i32, error: i32) -> i32 {
        if PLAIN {
            return (predicted + error) & self.max_value;
        }
        let step = 2 * self.near + 1;
        let value = predicted + error * step;
        let value = if value < -self.near {
            value + self.range * step
        } else if value > self.max_value + self.near {
            value - self.range * step
        } else {
            value
        };
        value.clamp(0, self.max_value)
    }
}

/// As [`Rules::golomb`], for codes that are escaped, or longer than a word holds for certain.
#[cold]
#[inline(never)]
fn seldom_golomb(bits: &Bits, at: usize, k: u32, longest: u32, qbpp: u32) -> Option<(u32, u32)> {
    let mut n_zeros = 0;
    loop {
        let n_more = bits.word(at + n_zeros as usize)?.leading_zeros();
        n_zeros += n_more.min(Bits::N_CERTAIN - 1);
        if n_zeros > longest {
            return None;
        }
        if n_more < Bits::N_CERTAIN {
            break;
        }
    }
    let word = bits.word(at + n_zeros as usize + 1)?;
    Some(if n_zeros < longest {
        (n_zeros << k | top(word, k), n_zeros + 1 + k)
    } else {
        (top(word, qbpp) + 1, n_zeros + 1 + qbpp)
    })
}

/// The upper `n_bits` of a word, at most 32 of them.
#[inline(always)]
pub fn top(word: u64, n_bits: u32) -> u32 {
    (word >> 1 >> (63 - n_bits)) as u32
}

/// A sign that many numbers take without a branch.
#[derive(Clone, Copy)]
pub struct Sign(i32);

impl Sign {
    /// That of a number.
    #[inline(always)]
    pub fn of(number: i32) -> Self {
        Self(number >> 31)
    }

    /// The number where the sign is positive, else its negative.
    #[inline(always)]
    pub fn apply(self, number: i32) -> i32 {
        (number ^ self.0) - self.0
    }
}

/// Smallest `k` with `n << k >= a` (A.5.1). `n` is not 0.
#[inline(always)]
pub fn golomb_order(n: u16, a: u32) -> u8 {
    let n = u32::from(n);
    // With this one, both have their highest bit in one place.
    let k = n.leading_zeros().saturating_sub(a.leading_zeros());
    // No error of 16 bits needs more.
    (k + u32::from(n << k < a)).min(24) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_the_smallest_that_is_large_enough() {
        let orders = |n: u16| {
            let largest = 1u64 << (17 + u32::from(n).ilog2());
            let sizes = (0..400).chain((9..40).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]));
            sizes.filter(move |a| *a < largest.min(1 << 32)).map(move |a| (n, a))
        };
        for (n, a) in (1..70).chain([1000, 4095, 4096, u16::MAX]).flat_map(orders) {
            let want = (0..).find(|k| u64::from(n) << k >= a).unwrap();
            assert_eq!(golomb_order(n, a as u32), want, "{n} {a}");
        }
    }

    /// Lays a number of `n_zeros` and `low` behind some other bits, and reads it back.
    #[track_caller]
    fn check(rules: &Rules, limit: u32, (n_zeros, k, low): (usize, u32, u32), want: Option<i32>) {
        let longest = (limit - rules.qbpp - 1) as usize;
        let n_low = if n_zeros < longest { k } else { rules.qbpp } as usize;
        for n_before in 0..9 {
            let text = format!("{}{}1{low:0n_low$b}", "1".repeat(n_before), "0".repeat(n_zeros));
            let text = if n_low == 0 { &text[..n_before + n_zeros + 1] } else { &text };
            let bytes = text.as_bytes().chunks(8);
            // Padding of zeros; no byte of these is FF, which would be stuffed.
            let byte =
                |bits: &[u8]| bits.iter().enumerate().fold(0, |byte, (i, bit)| byte | (bit & 1) << (7 - i));
            let data: Vec<u8> = bytes.map(byte).collect();
            if data.contains(&0xFF) {
                continue;
            }
            let got = rules.golomb(&Bits::of_jpeg_ls(&data), n_before, k, limit);
            let want = want.map(|want| (want, (n_zeros + 1 + n_low) as u32));
            assert_eq!(got, want, "{n_zeros} zeros, order {k}, {low} after {n_before}");
        }
    }

    #[test]
    fn codes_of_every_length_are_read() {
        let scan = Scan { max_value: 65_535, near: 0, thresholds: [18, 67, 276], reset: 64, data: &[] };
        let rules = Rules::new(&scan);
        for k in 0..16 {
            for n_zeros in 0..47usize {
                let number = n_zeros << k;
                check(&rules, rules.limit, (n_zeros, k, 0), (number <= 65_536).then_some(number as i32));
            }
            check(&rules, rules.limit, (47, k, 77), Some(78));
            check(&rules, rules.limit, (48, k, 77), None);
            check(&rules, rules.limit, (63, k, 77), None);
        }
        check(&rules, rules.limit, (1, 4, 9), Some(25));
        // Few different errors leave room for more zeros than a word holds for certain.
        let scan = Scan { max_value: 65_535, near: 255, thresholds: [256, 1000, 2000], reset: 64, data: &[] };
        let rules = Rules::new(&scan);
        assert_eq!((rules.range, rules.qbpp, rules.limit), (130, 8, 64));
        check(&rules, rules.limit, (54, 0, 0), Some(54));
        check(&rules, rules.limit, (55, 0, 99), Some(100));
        check(&rules, rules.limit + 8, (60, 0, 0), Some(60));
        check(&rules, rules.limit + 8, (63, 1, 99), Some(100));
        check(&rules, rules.limit + 8, (64, 0, 1), None);
    }
}
