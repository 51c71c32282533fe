//! Pooling of one plane of `B` channels side by side.

use std::ops::Range;

use candle_core::WithDType;

use crate::{activation::Dims, element::Element, kernels::multiversion, window::Window};

/// Extents of a pooling; planes are input or output pixels of `B` channels.
#[derive(Clone, Copy)]
pub(crate) struct Planes {
    pub input: Dims,
    pub output: Dims,
    pub window: Window,
}

impl Planes {
    /// Taps along one axis that fall inside the image.
    #[inline(always)]
    fn taps(&self, position: usize, kernel: usize, extent: usize) -> Range<usize> {
        let start = position * self.window.stride;
        let end = (extent + self.window.padding).saturating_sub(start);
        self.window.padding.saturating_sub(start)..kernel.min(end)
    }

    /// Calls `visit(output pixel, taps)`; `taps` calls `visit(input pixel, tap)`
    /// in reading order for every tap inside the image.
    #[inline(always)]
    pub(super) fn for_each_pixel(&self, mut visit: impl FnMut(usize, PixelTaps<'_>)) {
        for y in 0..self.output.h {
            self.for_each_pixel_of(y, &mut visit);
        }
    }

    /// The same for one row.
    #[inline(always)]
    pub(super) fn for_each_pixel_of(&self, y: usize, mut visit: impl FnMut(usize, PixelTaps<'_>)) {
        let taps_y = self.taps(y, self.window.kernel_h, self.input.h);
        for x in 0..self.output.w {
            let taps = PixelTaps {
                planes: self,
                y,
                x,
                taps_y: taps_y.clone(),
                taps_x: self.taps(x, self.window.kernel_w, self.input.w),
            };
            visit(y * self.output.w + x, taps);
        }
    }

    #[inline(always)]
    fn scale<T: Element>(&self) -> T {
        T::from_f64(1.0 / (self.window.kernel_h * self.window.kernel_w) as f64)
    }
}

/// The part of one window inside the image.
pub(super) struct PixelTaps<'a> {
    planes: &'a Planes,
    y: usize,
    x: usize,
    taps_y: Range<usize>,
    taps_x: Range<usize>,
}

impl PixelTaps<'_> {
    #[inline(always)]
    pub(super) fn for_each(self, mut visit: impl FnMut(usize, usize)) {
        let window = self.planes.window;
        for tap_y in self.taps_y {
            let row = window.source(self.y, tap_y) * self.planes.input.w;
            for tap_x in self.taps_x.clone() {
                let pixel = row + window.source(self.x, tap_x);
                visit(pixel, tap_y * window.kernel_w + tap_x);
            }
        }
    }
}

multiversion! {
    /// Maximum of each window, and which tap it was, as a number of the same type.
    fn maximum<T: Element, const B: usize>(planes: Planes, y: &mut [T], winners: &mut [T], x: &[T]) {
        let (y, _) = y.as_chunks_mut::<B>();
        let (winners, _) = winners.as_chunks_mut::<B>();
        let (x, _) = x.as_chunks::<B>();
        planes.for_each_pixel(|to, taps| {
            let mut best = [T::Wide::from_f64(f64::NEG_INFINITY); B];
            // A first tap wins even as -inf.
            let mut first = true;
            let mut winner = [T::label(0); B];
            taps.for_each(|from, tap| {
                let (x, tap) = (x[from].map(T::widen), T::label(tap));
                for lane in 0..B {
                    #[expect(clippy::eq_op, reason = "true for NaN alone")]
                    let nan = x[lane] != x[lane];
                    let wins = (x[lane] > best[lane]) | nan | first;
                    best[lane] = if wins { x[lane] } else { best[lane] };
                    winner[lane] = if wins { tap } else { winner[lane] };
                }
                first = false;
            });
            y[to] = best.map(T::narrow);
            winners[to] = winner;
        });
    }
}

multiversion! {
    /// Maximum of each window where no gradient will be asked for.
    fn maximum_alone<T: Element, const B: usize>(planes: Planes, y: &mut [T], x: &[T]) {
        let (y, _) = y.as_chunks_mut::<B>();
        let (x, _) = x.as_chunks::<B>();
        planes.for_each_pixel(|to, taps| {
            let mut best = [T::Wide::from_f64(f64::NEG_INFINITY); B];
            taps.for_each(|from, _| {
                let x = x[from].map(T::widen);
                for lane in 0..B {
                    #[expect(clippy::eq_op, reason = "true for NaN alone")]
                    let nan = x[lane] != x[lane];
                    best[lane] = if (x[lane] > best[lane]) | nan { x[lane] } else { best[lane] };
                }
            });
            y[to] = best.map(T::narrow);
        });
    }
}

multiversion! {
    /// Adds each gradient to the pixel that won; `dx` starts as zeros.
    fn maximum_backward<T: Element, const B: usize>(
        planes: Planes,
        dx: &mut [T::Wide],
        dy: &[T],
        winners: &[T],
    ) {
        let (dx, _) = dx.as_chunks_mut::<B>();
        let (dy, _) = dy.as_chunks::<B>();
        let (winners, _) = winners.as_chunks::<B>();
        planes.for_each_pixel(|from, taps| {
            let (dy, winner) = (dy[from].map(T::widen), winners[from]);
            taps.for_each(|to, tap| {
                let (dx, tap) = (&mut dx[to], T::label(tap));
                for lane in 0..B {
                    let gradient = if winner[lane].same(tap) { dy[lane] } else { T::Wide::ZERO };
                    dx[lane] += gradient;
                }
            });
        });
    }
}

multiversion! {
    /// Mean of each window, padding counted as zeros.
    fn mean<T: Element, const B: usize>(planes: Planes, y: &mut [T], x: &[T]) {
        let (y, _) = y.as_chunks_mut::<B>();
        let (x, _) = x.as_chunks::<B>();
        let scale = planes.scale::<T::Wide>();
        planes.for_each_pixel(|to, taps| {
            let mut sum = [T::Wide::ZERO; B];
            taps.for_each(|from, _| {
                for lane in 0..B {
                    sum[lane] += x[from][lane].widen();
                }
            });
            y[to] = sum.map(|sum| T::narrow(sum * scale));
        });
    }
}

multiversion! {
    /// Spreads each gradient over its window; `dx` starts as zeros.
    fn mean_backward<T: Element, const B: usize>(planes: Planes, dx: &mut [T::Wide], dy: &[T]) {
        let (dx, _) = dx.as_chunks_mut::<B>();
        let (dy, _) = dy.as_chunks::<B>();
        let scale = planes.scale::<T::Wide>();
        planes.for_each_pixel(|from, taps| {
            let gradient = dy[from].map(|gradient| gradient.widen() * scale);
            taps.for_each(|to, _| {
                for lane in 0..B {
                    dx[to][lane] += gradient[lane];
                }
            });
        });
    }
}
