//! Activations made larger, or cut at a bound.

use std::sync::Arc;

use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::{
    context::{Context, launch},
    feature::{Feature, GradientSlot, forward_makes_a_token, token_gradient},
    memory::Numbers,
};
use crate::{Act, OpError, activation::Dims};

pub(crate) fn pad_end(x: &Feature, rows: usize, cols: usize) -> Result<Feature> {
    if rows == 0 && cols == 0 {
        return Ok(x.clone());
    }
    let small = x.dims;
    let large = Dims { h: small.h + rows, w: small.w + cols, ..small };
    let y = fit(&*Context::of(x.token.device())?, &x.values, small, large)?;
    x.produce_from("pad_end", y, large, move |context, dy| fit(context, &dy, large, small))
}

/// Images of another height and width, cut or filled with zeros at the ends.
fn fit(context: &Context, from: &Numbers, old: Dims, new: Dims) -> Result<Numbers> {
    let to = Numbers::unspecified(context, new.count(), from.kind)?;
    launch!(
        context,
        "fit_canvas",
        from.kind.suffix(),
        context.elementwise(new.count()),
        from.address(),
        to.address(),
        old.h as i32,
        old.w as i32,
        new.h as i32,
        new.w as i32,
        new.c as i32,
        new.count() as i64,
    );
    Ok(to)
}

pub(crate) fn relu(x: &Feature) -> Result<Feature> {
    const OP: &str = "relu";
    let context = Context::of(x.token.device())?;
    let y = Numbers::unspecified(&context, x.values.len, x.values.kind)?;
    let (config, count) = (context.elementwise(y.len), y.len as i64);
    let (lo, hi) = Act::Relu.bounds::<f32>();
    launch!(context, "clamp", y.kind.suffix(), config, x.values.address(), y.address(), lo, hi, count);
    // The input says as well as the result where the gradient ends.
    let input = Arc::clone(&x.values);
    x.produce_from(OP, y, x.dims, move |context, dy| {
        let (config, kind) = (context.elementwise(dy.len), dy.kind);
        launch!(
            context,
            "clamp_gradient",
            kind.suffix(),
            config,
            dy.address(),
            input.address(),
            lo,
            hi,
            count
        );
        Ok(dy)
    })
}

pub(crate) fn concat_channels(first: &Feature, second: &Feature) -> Result<Feature> {
    let dims = Dims { c: first.dims.c + second.dims.c, ..first.dims };
    if (Dims { c: first.dims.c, ..second.dims }) != first.dims {
        let expected = format!("[{}, D, {}, {}]", dims.n, dims.h, dims.w);
        let got = second.dims.to_vec();
        return Err(OpError::Shape { op: CONCAT, argument: "second", got, expected }.into());
    }
    if first.values.kind != second.values.kind {
        let [expected, got] = [first, second].map(|part| part.values.kind.suffix().to_owned());
        return Err(OpError::DType { op: CONCAT, argument: "second", got, expected }.into());
    }
    let context = Context::of(first.token.device())?;
    let y = Numbers::unspecified(&context, dims.count(), first.values.kind)?;
    let mut at = 0;
    for part in [first, second] {
        copy_columns(&context, (&part.values, part.dims.c, 0), (&y, dims.c, at), part.dims.c)?;
        at += part.dims.c;
    }
    Feature::produce(y, dims, |_, output| {
        let parts = [first, second].map(|part| (Arc::clone(&part.gradient), part.dims));
        first.token.apply_op2(&second.token, Concat { parts, output })
    })
}

const CONCAT: &str = "concat_channels";

/// Numbers, how many of them make a row, and the first column that is copied.
type Columns<'a> = (&'a Numbers, usize, usize);

fn copy_columns(context: &Context, from: Columns<'_>, to: Columns<'_>, width: usize) -> Result<()> {
    let count = from.0.len / from.1 * width;
    launch!(
        context,
        "copy_columns",
        from.0.kind.suffix(),
        context.elementwise(count),
        from.0.address(),
        from.1 as i32,
        from.2 as i32,
        to.0.address(),
        to.1 as i32,
        to.2 as i32,
        width as i32,
        count as i64,
    );
    Ok(())
}

struct Concat {
    parts: [(Arc<GradientSlot>, Dims); 2],
    output: Arc<GradientSlot>,
}

impl CustomOp2 for Concat {
    fn name(&self) -> &'static str {
        CONCAT
    }

    forward_makes_a_token!(2);

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        _: &Tensor,
        token_dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let context = Context::of(token_dy.device())?;
        let dy = self.output.take(CONCAT)?;
        let whole = self.parts[0].1.c + self.parts[1].1.c;
        let part = |index: usize, at: usize, token: &Tensor| -> Result<Option<Tensor>> {
            if !token.track_op() {
                return Ok(None);
            }
            let (slot, dims) = &self.parts[index];
            let dx = Numbers::unspecified(&context, dims.count(), dy.kind)?;
            copy_columns(&context, (&dy, whole, at), (&dx, dims.c, 0), dims.c)?;
            slot.add(&context, dx)?;
            Ok(Some(token_gradient(token_dy)))
        };
        Ok((part(0, 0, first)?, part(1, self.parts[0].1.c, second)?))
    }
}
