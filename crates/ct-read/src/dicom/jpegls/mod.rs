//! JPEG-LS, lossless and near-lossless (ITU-T T.87 | ISO/IEC 14495-1), one component.
//!
//! A decoder of our own, since the one that dicom-rs offers is a C++ library.
//! Names of variables follow the standard: `ra` to `rd` are the neighbours,
//! `a`, `b`, `c`, `n` the statistics of a context.

mod rules;
mod scan;

use pulp::{Arch, NullaryFnOnce};

use self::rules::{Context, Rules, Sign, golomb_order, top};
use self::scan::Scan;
use super::bits::Bits;
use crate::fault::Fault;

/// Decodes a stream to `rows * cols` words. `rows` and `cols` are those of the
/// header, which the stream's own have been held against.
///
/// # Errors
/// [`Fault::Pixels`] when the stream breaks a rule or ends too early.
pub fn decode(stream: &[u8], rows: usize, cols: usize) -> Result<Vec<u16>, Fault> {
    let scan = Scan::read(stream)?;
    let coder = Coder::new(&scan);
    // Compiled for several processors: counting zeros and shifting are most of the work.
    if coder.rules.is_plain() {
        Arch::new().dispatch(Lines::<true> { coder, rows, cols })
    } else {
        Arch::new().dispatch(Lines::<false> { coder, rows, cols })
    }
}

/// All lines of an image. `PLAIN` is what [`Rules::is_plain`] says.
struct Lines<const PLAIN: bool> {
    coder: Coder,
    rows: usize,
    cols: usize,
}

impl<const PLAIN: bool> NullaryFnOnce for Lines<PLAIN> {
    type Output = Result<Vec<u16>, Fault>;

    #[inline(always)]
    fn call(self) -> Self::Output {
        let Self { mut coder, rows, cols } = self;
        // Lines carry one sample before and one after themselves (A.2.1).
        let mut previous = vec![0i32; cols + 2];
        let mut current = vec![0i32; cols + 2];
        let mut words = Vec::with_capacity(rows * cols);
        for _ in 0..rows {
            previous[cols + 1] = previous[cols];
            current[0] = previous[1];
            coder.line::<PLAIN>(&previous, &mut current)?;
            words.extend(current[1..=cols].iter().map(|sample| *sample as u16));
            std::mem::swap(&mut previous, &mut current);
        }
        coder.finish()?;
        Ok(words)
    }
}

#[cold]
#[inline(never)]
fn wrong(why: &str) -> Fault {
    Fault::Pixels { why: format!("its JPEG-LS stream {why}") }
}

fn impossible() -> Fault {
    wrong("ends too early or has an impossible code")
}

/// Contexts of regular mode are 0 to 364; these follow.
const INTERRUPTION: usize = 365;
/// Room for every number of nine bits, so that none has to be checked.
const N_CONTEXTS: usize = 512;

/// Order of run lengths (A.7.1.1).
const RUN_ORDER: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

struct Coder {
    rules: Rules,
    bits: Bits,
    /// The next bit.
    at: usize,
    contexts: Box<[Context; N_CONTEXTS]>,
    run_index: usize,
}

impl Coder {
    fn new(scan: &Scan<'_>) -> Self {
        let rules = Rules::new(scan);
        let a = ((rules.range as u32 + 32) >> 6).max(2);
        let start = Context { a, b: 0, c: 0, n: 1, k: golomb_order(1, a) };
        let contexts = Box::new([start; N_CONTEXTS]);
        Self { rules, bits: Bits::of_jpeg_ls(scan.data), at: 0, contexts, run_index: 0 }
    }

    /// Checks that the bits end where the image does.
    fn finish(&self) -> Result<(), Fault> {
        if self.at > self.bits.len() {
            return Err(wrong("ends too early"));
        }
        if self.bits.ends_at(self.at) { Ok(()) } else { Err(wrong("holds more than its pixels")) }
    }

    /// Decodes one line; both lines start with the sample left of the image, and end with the one
    /// right of it.
    #[inline(always)]
    fn line<const PLAIN: bool>(&mut self, previous: &[i32], current: &mut [i32]) -> Result<(), Fault> {
        let cols = current.len() - 2;
        let above = &previous[..cols + 2];
        let current = &mut current[..cols + 1];
        let mut x = 1;
        while x <= cols {
            x = self.regular_samples::<PLAIN>(above, current, x).ok_or_else(impossible)?;
            if x > cols {
                break;
            }
            let n_run = self.run(cols + 1 - x)?;
            let ra = current[x - 1];
            current[x..x + n_run].fill(ra);
            x += n_run;
            if x <= cols {
                current[x] = self.interruption(ra, above[x])?;
                self.run_index = self.run_index.saturating_sub(1);
                x += 1;
            }
        }
        Ok(())
    }

    /// Decodes samples from `x` on; returns where a run starts, or the end of the line.
    #[inline(always)]
    fn regular_samples<const PLAIN: bool>(
        &mut self,
        above: &[i32],
        current: &mut [i32],
        mut x: usize,
    ) -> Option<usize> {
        let (rules, bits, contexts) = (&self.rules, &self.bits, &mut *self.contexts);
        let regions = &rules.regions[..];
        let region = |gradient: i32| i32::from(regions[(gradient + rules.max_value) as usize]);
        let mut at = self.at;
        let (mut ra, mut rb, mut rc) = (current[x - 1], above[x], above[x - 1]);
        let mut middle = region(rb - rc);
        while x < current.len() {
            let rd = above[x + 1];
            let right = region(rd - rb);
            let q = 81 * right + 9 * middle + region(rc - ra);
            if q == 0 {
                break;
            }
            let sign = Sign::of(q);
            let context = &mut contexts[sign.apply(q) as usize % N_CONTEXTS];
            // The median of the two and their plane (A.4.1), corrected.
            let edge = (ra + rb - rc).max(ra.min(rb)).min(ra.max(rb));
            let predicted = (edge + sign.apply(context.c.into())).clamp(0, rules.max_value);
            let k = u32::from(context.k);
            let (mapped, n_bits) = rules.golomb(bits, at, k, rules.limit)?;
            at += n_bits as usize;
            let is_inverted = (PLAIN || rules.near == 0) && k == 0 && 2 * context.b <= -i32::from(context.n);
            let error = (mapped >> 1) ^ -(mapped & 1 ^ i32::from(is_inverted));
            rules.update::<PLAIN>(context, error);
            ra = rules.restored::<PLAIN>(predicted, sign.apply(error));
            current[x] = ra;
            (rc, rb, middle) = (rb, rd, right);
            x += 1;
        }
        self.at = at;
        Some(x)
    }

    /// Length of a run of at most `n_left` samples (A.7.1).
    fn run(&mut self, n_left: usize) -> Result<usize, Fault> {
        let mut n_run = 0;
        while self.take(1)? == 1 {
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
        n_run += self.take(RUN_ORDER[self.run_index])? as usize;
        if n_run >= n_left { Err(wrong("has a run beyond its line")) } else { Ok(n_run) }
    }

    /// Up to 16 bits as a number.
    fn take(&mut self, n_bits: u32) -> Result<u32, Fault> {
        let word = self.bits.word(self.at).ok_or_else(impossible)?;
        self.at += n_bits as usize;
        Ok(top(word, n_bits))
    }

    /// The sample that ends a run (A.7.2).
    fn interruption(&mut self, ra: i32, rb: i32) -> Result<i32, Fault> {
        let rules = &self.rules;
        let is_flat = (ra - rb).abs() <= rules.near;
        let kind = i32::from(is_flat);
        let context = &mut self.contexts[INTERRUPTION + kind as usize];
        let spread = context.a + if is_flat { u32::from(context.n >> 1) } else { 0 };
        let k = u32::from(golomb_order(context.n, spread));
        let limit = rules.limit - RUN_ORDER[self.run_index] - 1;
        let (mapped, n_bits) = rules.golomb(&self.bits, self.at, k, limit).ok_or_else(impossible)?;
        self.at += n_bits as usize;
        let doubled = mapped + kind;
        let is_odd = doubled & 1 == 1;
        let size = (doubled + 1) >> 1;
        let error = if (k != 0 || 2 * context.b >= i32::from(context.n)) == is_odd { -size } else { size };
        if error < 0 {
            context.b += 1;
        }
        context.a += ((mapped + 1 - kind) >> 1) as u32;
        if context.n == rules.reset {
            context.a >>= 1;
            context.b >>= 1;
            context.n >>= 1;
        }
        context.n += 1;
        Ok(match (is_flat, ra > rb) {
            (true, _) => rules.restored::<false>(ra, error),
            (false, true) => rules.restored::<false>(rb, -error),
            (false, false) => rules.restored::<false>(rb, error),
        })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;

    use super::*;

    /// Samples that take whole bits wrap around by themselves, and by the general rule.
    #[test]
    fn the_plain_way_is_the_general_one() {
        let cases: Vec<serde_json::Value> =
            serde_json::from_str(include_str!("../../../tests/reference/codec_streams.json")).unwrap();
        let mut n_compared = 0;
        for case in cases.iter().filter(|case| case["syntax"] == "1.2.840.10008.1.2.4.80") {
            let stream = base64::engine::general_purpose::STANDARD.decode(case["stream"].as_str().unwrap());
            let stream = stream.unwrap();
            let [rows, cols] = ["rows", "cols"].map(|name| case[name].as_u64().unwrap() as usize);
            let coder = || Coder::new(&Scan::read(&stream).unwrap());
            assert!(coder().rules.is_plain());
            let general = Lines::<false> { coder: coder(), rows, cols }.call().unwrap();
            assert_eq!(
                Lines::<true> { coder: coder(), rows, cols }.call().unwrap(),
                general,
                "{}",
                case["name"]
            );
            n_compared += 1;
        }
        assert!(n_compared > 20);
    }
}
