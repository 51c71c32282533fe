//! JPEG-LS, lossless and near-lossless (ITU-T T.87 | ISO/IEC 14495-1), one component.
//!
//! A decoder of our own, since the one that dicom-rs offers is a C++ library.
//! Names of variables follow the standard: `ra` to `rd` are the neighbours,
//! `a`, `b`, `c`, `n` the statistics of a context.

use crate::fault::Fault;

/// Decodes a stream to `rows * cols` words. `rows` and `cols` are those of the
/// header, which the stream's own have been held against.
///
/// # Errors
/// [`Fault::Pixels`] when the stream breaks a rule or ends too early.
pub fn decode(stream: &[u8], rows: usize, cols: usize) -> Result<Vec<u16>, Fault> {
    let scan = Scan::read(stream)?;
    let mut coder = Coder::new(&scan);
    let mut bits = Bits::new(scan.data);
    // Lines carry one sample before and one after themselves (A.2.1).
    let mut previous = vec![0i32; cols + 2];
    let mut current = vec![0i32; cols + 2];
    let mut words = Vec::with_capacity(rows * cols);
    for _ in 0..rows {
        previous[cols + 1] = previous[cols];
        current[0] = previous[1];
        coder.line(&mut bits, &previous, &mut current, cols)?;
        words.extend(current[1..=cols].iter().map(|sample| *sample as u16));
        std::mem::swap(&mut previous, &mut current);
    }
    bits.finish()?;
    Ok(words)
}

fn wrong(why: &str) -> Fault {
    Fault::Pixels { why: format!("its JPEG-LS stream {why}") }
}

/// Parameters of the one scan.
struct Scan<'a> {
    max_value: i32,
    near: i32,
    thresholds: [i32; 3],
    reset: i32,
    /// The coded data.
    data: &'a [u8],
}

impl<'a> Scan<'a> {
    fn read(stream: &'a [u8]) -> Result<Self, Fault> {
        let short = || wrong("ends in its header");
        let byte = |at: usize| stream.get(at).copied().map(i32::from).ok_or_else(short);
        let word = |at: usize| Ok::<i32, Fault>(byte(at)? << 8 | byte(at + 1)?);
        let mut at = 2;
        let (mut max_value, mut preset) = (None, None);
        loop {
            while byte(at)? == 0xFF {
                at += 1;
            }
            let (marker, length) = (byte(at)?, word(at + 1)?);
            match marker {
                // Frame header.
                0xF7 => {
                    let precision = byte(at + 3)?;
                    if !(2..=16).contains(&precision) {
                        return Err(wrong("has an impossible precision"));
                    }
                    max_value = Some((1 << precision) - 1);
                }
                // Preset parameters; mapping tables and oversize images do not occur in CT.
                0xF8 if byte(at + 3)? == 1 => {
                    let part = |i: usize| word(at + 4 + 2 * i);
                    preset = Some([part(0)?, part(1)?, part(2)?, part(3)?, part(4)?]);
                }
                0xF8 => return Err(wrong("has a mapping table")),
                0xDD if word(at + 3)? != 0 => return Err(wrong("has restart intervals")),
                0xDA => {
                    if byte(at + 3)? != 1 || byte(at + 7)? != 0 || byte(at + 8)? & 0x0F != 0 {
                        return Err(wrong("is not one plain component"));
                    }
                    let near = byte(at + 6)?;
                    let max_value = max_value.ok_or_else(|| wrong("has no frame header"))?;
                    // The length is the stream's word, not a fact.
                    let data = stream.get(at + 1 + length as usize..).ok_or_else(short)?;
                    return Self::checked(max_value, near, preset, data);
                }
                _ => {}
            }
            at += 1 + length as usize;
        }
    }

    fn checked(max_value: i32, near: i32, preset: Option<[i32; 5]>, data: &'a [u8]) -> Result<Self, Fault> {
        let of_preset = |i: usize| preset.map(|preset| preset[i]).filter(|value| *value != 0);
        let max_value = of_preset(0).unwrap_or(max_value);
        if near > 255.min(max_value / 2) {
            return Err(wrong("has an impossible error bound"));
        }
        let defaults = default_thresholds(max_value, near);
        let thresholds: [i32; 3] = std::array::from_fn(|i| of_preset(i + 1).unwrap_or(defaults[i]));
        let [t1, t2, t3] = thresholds;
        let reset = of_preset(4).unwrap_or(64);
        if !(near < t1
            && t1 <= t2
            && t2 <= t3
            && t3 <= max_value
            && (3..=max_value.max(255)).contains(&reset))
        {
            return Err(wrong("has impossible parameters"));
        }
        Ok(Self { max_value, near, thresholds, reset, data })
    }
}

/// Defaults of C.2.4.1.1.
fn default_thresholds(max_value: i32, near: i32) -> [i32; 3] {
    let clamp = |value: i32, low: i32| if value > max_value || value < low { low } else { value };
    let raw = if max_value >= 128 {
        let factor = (max_value.min(4095) + 128) / 256;
        [factor + 2 + 3 * near, 4 * factor + 3 + 5 * near, 17 * factor + 4 + 7 * near]
    } else {
        let factor = 256 / (max_value + 1);
        [2.max(3 / factor + 3 * near), 3.max(7 / factor + 5 * near), 4.max(21 / factor + 7 * near)]
    };
    let t1 = clamp(raw[0], near + 1);
    let t2 = clamp(raw[1], t1);
    [t1, t2, clamp(raw[2], t2)]
}

/// Statistics of one context; `b` counts negative errors in the contexts of run interruption.
#[derive(Clone, Copy)]
struct Context {
    a: i32,
    b: i32,
    c: i32,
    n: i32,
}

/// Contexts of regular mode are 0 to 364; these follow.
const INTERRUPTION: usize = 365;

/// Order of run lengths (A.7.1.1).
const RUN_ORDER: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

struct Coder {
    max_value: i32,
    near: i32,
    reset: i32,
    range: i32,
    /// Bits of an escaped error.
    qbpp: u32,
    limit: u32,
    /// Gradient to its region, -4 to 4, from `-max_value` on.
    regions: Vec<i8>,
    contexts: Vec<Context>,
    run_index: usize,
}

impl Coder {
    fn new(scan: &Scan<'_>) -> Self {
        let bits_for = |values: i32| i32::BITS - (values - 1).leading_zeros();
        let step = 2 * scan.near + 1;
        let range = (scan.max_value + 2 * scan.near) / step + 1;
        let bpp = bits_for(scan.max_value + 1).max(2);
        let start = Context { a: ((range + 32) / 64).max(2), b: 0, c: 0, n: 1 };
        let [t1, t2, t3] = scan.thresholds;
        let region = |gradient: i32| {
            let size = gradient.abs();
            let region = match size {
                _ if size <= scan.near => 0,
                _ if size < t1 => 1,
                _ if size < t2 => 2,
                _ if size < t3 => 3,
                _ => 4,
            };
            (region * gradient.signum()) as i8
        };
        Self {
            max_value: scan.max_value,
            near: scan.near,
            reset: scan.reset,
            range,
            qbpp: bits_for(range),
            limit: 2 * (bpp + bpp.max(8)),
            regions: (-scan.max_value..=scan.max_value).map(region).collect(),
            contexts: vec![start; INTERRUPTION + 2],
            run_index: 0,
        }
    }

    /// Decodes one line; both lines start with the sample left of the image.
    fn line(
        &mut self,
        bits: &mut Bits<'_>,
        previous: &[i32],
        current: &mut [i32],
        cols: usize,
    ) -> Result<(), Fault> {
        let mut x = 1;
        while x <= cols {
            let (ra, rb, rc, rd) = (current[x - 1], previous[x], previous[x - 1], previous[x + 1]);
            let region = |gradient: i32| i32::from(self.regions[(gradient + self.max_value) as usize]);
            let q = 81 * region(rd - rb) + 9 * region(rb - rc) + region(rc - ra);
            if q != 0 {
                current[x] = self.regular(bits, q, ra, rb, rc)?;
                x += 1;
                continue;
            }
            let n_run = self.run(bits, cols + 1 - x)?;
            current[x..x + n_run].fill(ra);
            x += n_run;
            if x <= cols {
                current[x] = self.interruption(bits, ra, previous[x])?;
                self.run_index = self.run_index.saturating_sub(1);
                x += 1;
            }
        }
        Ok(())
    }

    #[inline]
    fn regular(&mut self, bits: &mut Bits<'_>, q: i32, ra: i32, rb: i32, rc: i32) -> Result<i32, Fault> {
        let sign = q.signum();
        let context = &mut self.contexts[q.unsigned_abs() as usize];
        let edge = if rc >= ra.max(rb) {
            ra.min(rb)
        } else if rc <= ra.min(rb) {
            ra.max(rb)
        } else {
            ra + rb - rc
        };
        let predicted = (edge + sign * context.c).clamp(0, self.max_value);
        let k = golomb_order(context.n, context.a);
        let mapped = bits.golomb(k, self.limit, self.qbpp)?;
        let half = mapped >> 1;
        let is_odd = mapped & 1 == 1;
        let error = if self.near == 0 && k == 0 && context.b.saturating_mul(2) <= -context.n {
            if is_odd { half } else { -half - 1 }
        } else if is_odd {
            -half - 1
        } else {
            half
        };
        // Update (A.6). Hostile errors may wrap; samples are clamped whatever they are.
        context.b = context.b.wrapping_add(error.wrapping_mul(2 * self.near + 1));
        context.a = context.a.saturating_add(error.abs());
        if context.n == self.reset {
            context.a >>= 1;
            context.b = if context.b >= 0 { context.b >> 1 } else { -((1 - context.b) >> 1) };
            context.n >>= 1;
        }
        context.n += 1;
        if context.b <= -context.n {
            context.b = context.b.wrapping_add(context.n).max(1 - context.n);
            context.c = (context.c - 1).max(-128);
        } else if context.b > 0 {
            context.b = (context.b - context.n).min(0);
            context.c = (context.c + 1).min(127);
        }
        Ok(self.restored(predicted, sign * error))
    }

    /// A sample from its prediction and error (A.4.5, A.8).
    fn restored(&self, predicted: i32, error: i32) -> i32 {
        let step = 2 * self.near + 1;
        let value = predicted.wrapping_add(error.wrapping_mul(step));
        let value = if value < -self.near {
            value + self.range * step
        } else if value > self.max_value + self.near {
            value - self.range * step
        } else {
            value
        };
        value.clamp(0, self.max_value)
    }

    /// Length of a run of at most `n_left` samples (A.7.1).
    fn run(&mut self, bits: &mut Bits<'_>, n_left: usize) -> Result<usize, Fault> {
        let mut n_run = 0;
        while bits.take(1)? == 1 {
            let whole = 1usize << RUN_ORDER[self.run_index];
            let n_more = whole.min(n_left - n_run);
            n_run += n_more;
            if n_more == whole {
                self.run_index = (self.run_index + 1).min(31);
            }
            if n_run == n_left {
                return Ok(n_run);
            }
        }
        n_run += bits.take(RUN_ORDER[self.run_index])? as usize;
        if n_run >= n_left { Err(wrong("has a run beyond its line")) } else { Ok(n_run) }
    }

    /// The sample that ends a run (A.7.2).
    fn interruption(&mut self, bits: &mut Bits<'_>, ra: i32, rb: i32) -> Result<i32, Fault> {
        let is_flat = (ra - rb).abs() <= self.near;
        let kind = i32::from(is_flat);
        let context = &mut self.contexts[INTERRUPTION + kind as usize];
        let spread = context.a.saturating_add(if is_flat { context.n >> 1 } else { 0 });
        let k = golomb_order(context.n, spread);
        let mapped = bits.golomb(k, self.limit - RUN_ORDER[self.run_index] - 1, self.qbpp)?;
        let doubled = mapped + kind;
        let is_odd = doubled & 1 == 1;
        let size = (doubled + 1) >> 1;
        let error = if (k != 0 || 2 * context.b >= context.n) == is_odd { -size } else { size };
        if error < 0 {
            context.b += 1;
        }
        context.a = context.a.saturating_add((mapped + 1 - kind) >> 1);
        if context.n == self.reset {
            context.a >>= 1;
            context.b >>= 1;
            context.n >>= 1;
        }
        context.n += 1;
        Ok(match (is_flat, ra > rb) {
            (true, _) => self.restored(ra, error),
            (false, true) => self.restored(rb, -error),
            (false, false) => self.restored(rb, error),
        })
    }
}

/// Smallest `k` with `n << k >= a` (A.5.1).
#[inline]
fn golomb_order(n: i32, a: i32) -> u32 {
    let mut k = 0;
    while k < 24 && i64::from(n) << k < i64::from(a) {
        k += 1;
    }
    k
}

/// Bits of the coded data, the high ones first. A byte after `FF` holds seven (A.1).
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, from the top.
    cache: u64,
    n_cached: u32,
    /// Zero bits given out beyond the end.
    n_beyond: u32,
    is_after_ff: bool,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, cache: 0, n_cached: 0, n_beyond: 0, is_after_ff: false }
    }

    #[inline]
    fn fill(&mut self) -> Result<(), Fault> {
        while self.n_cached <= 56 {
            let byte = self.bytes.get(self.at).copied();
            // A marker ends the data.
            let Some(byte) = byte.filter(|byte| !(self.is_after_ff && byte & 0x80 != 0)) else {
                self.n_beyond += 8;
                self.n_cached += 8;
                // Zeros beyond the end may be cached, but not taken.
                if self.n_beyond > self.n_cached {
                    return Err(wrong("ends too early"));
                }
                continue;
            };
            let n_bits = if self.is_after_ff { 7 } else { 8 };
            self.cache |= u64::from(byte) << (64 - n_bits - self.n_cached);
            self.n_cached += n_bits;
            self.is_after_ff = byte == 0xFF;
            self.at += 1;
        }
        Ok(())
    }

    /// Checks that nothing was taken beyond the end.
    fn finish(&self) -> Result<(), Fault> {
        if self.n_beyond > self.n_cached { Err(wrong("ends too early")) } else { Ok(()) }
    }

    #[inline]
    fn drop(&mut self, n_bits: u32) {
        self.cache <<= n_bits;
        self.n_cached -= n_bits;
    }

    /// Up to 16 bits as a number.
    #[inline]
    fn take(&mut self, n_bits: u32) -> Result<u32, Fault> {
        if n_bits == 0 {
            return Ok(0);
        }
        if self.n_cached < n_bits {
            self.fill()?;
        }
        let value = (self.cache >> (64 - n_bits)) as u32;
        self.drop(n_bits);
        Ok(value)
    }

    /// A number in limited Golomb code (A.5.3).
    #[inline]
    fn golomb(&mut self, k: u32, limit: u32, qbpp: u32) -> Result<i32, Fault> {
        let longest = limit - qbpp - 1;
        if self.n_cached < 32 {
            self.fill()?;
        }
        let mut n_zeros = self.cache.leading_zeros();
        if n_zeros >= self.n_cached {
            // Longer than the cache: seldom, so bit by bit.
            n_zeros = 0;
            while self.take(1)? == 0 {
                n_zeros += 1;
                if n_zeros > longest {
                    return Err(wrong("has an impossible code"));
                }
            }
        } else {
            if n_zeros > longest {
                return Err(wrong("has an impossible code"));
            }
            self.drop(n_zeros + 1);
        }
        if n_zeros < longest {
            Ok((n_zeros << k | self.take(k)?) as i32)
        } else {
            Ok(self.take(qbpp)? as i32 + 1)
        }
    }
}
