//! Depthwise convolution of one plane of `B` channels side by side: every channel
//! has its own window.

use crate::{
    element::Element,
    kernels::{multiversion, pooling::Planes},
};

multiversion! {
    /// `y[p] = sum over taps t of x[p + t] w[t]`; `weight` is `[tap][B]`.
    fn forward<T: Element, const B: usize>(planes: Planes, y: &mut [T], x: &[T], weight: &[T]) {
        let (y, _) = y.as_chunks_mut::<B>();
        let (x, _) = x.as_chunks::<B>();
        let (weight, _) = weight.as_chunks::<B>();
        planes.for_each_pixel(|to, taps| {
            let mut sum = [T::zero(); B];
            taps.for_each(|from, tap| {
                let (x, weight) = (&x[from], &weight[tap]);
                for lane in 0..B {
                    sum[lane] += x[lane] * weight[lane];
                }
            });
            y[to] = sum;
        });
    }
}

multiversion! {
    /// `dx[p + t] += dy[p] w[t]`.
    fn input_gradient<T: Element, const B: usize>(
        planes: Planes,
        dx: &mut [T],
        dy: &[T],
        weight: &[T],
    ) {
        let (dx, _) = dx.as_chunks_mut::<B>();
        let (dy, _) = dy.as_chunks::<B>();
        let (weight, _) = weight.as_chunks::<B>();
        planes.for_each_pixel(|from, taps| {
            let dy = dy[from];
            taps.for_each(|to, tap| {
                let (dx, weight) = (&mut dx[to], &weight[tap]);
                for lane in 0..B {
                    dx[lane] += dy[lane] * weight[lane];
                }
            });
        });
    }
}

multiversion! {
    /// `dw[t] += sum over p of x[p + t] dy[p]`; every row of pixels is summed on its own
    /// in `row_sums`, `[tap][B]` like the f64 result, so that rounding does not grow with
    /// the image.
    fn weight_gradient<T: Element, const B: usize>(
        planes: Planes,
        sums: &mut [f64],
        row_sums: &mut [T],
        x: &[T],
        dy: &[T],
    ) {
        let (x, _) = x.as_chunks::<B>();
        let (dy, _) = dy.as_chunks::<B>();
        for row in 0..planes.output.h {
            row_sums.fill(T::zero());
            let (row_lanes, _) = row_sums.as_chunks_mut::<B>();
            planes.for_each_pixel_of(row, |from, taps| {
                let dy = dy[from];
                taps.for_each(|to, tap| {
                    let (x, sum) = (&x[to], &mut row_lanes[tap]);
                    for lane in 0..B {
                        sum[lane] += x[lane] * dy[lane];
                    }
                });
            });
            for (sum, row_sum) in sums.iter_mut().zip(&*row_sums) {
                *sum += row_sum.to_f64();
            }
        }
    }
}
