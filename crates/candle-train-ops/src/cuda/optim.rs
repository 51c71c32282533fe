//! Optimisers over many variables at once.
#![expect(unsafe_code, reason = "a kernel takes a struct; each block says why it is sound")]

use std::rc::Rc;

use candle_core::{
    Result, Tensor,
    cuda_backend::cudarc::driver::{DevicePtr, DeviceRepr, LaunchConfig},
};

use super::{
    context::{Address, Context, address_of, launch},
    feature::check_f32,
};

/// Variables of one launch: a kernel's parameters have 4 KiB.
const AT_ONCE: usize = 64;

/// A variable with its gradient and moments, as the kernels take it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Variable {
    weight: Address,
    gradient: Address,
    first: Address,
    second: Address,
    count: i64,
    /// What weight decay leaves of the weight, for AdamW.
    keep: f32,
    /// What it adds to the gradient, for SGD.
    decay: f32,
}

/// As `struct Variables` of the kernels, which hold as many.
#[repr(C)]
#[derive(Clone, Copy)]
struct Variables([Variable; AT_ONCE]);

const _: () = assert!(size_of::<Variables>() == 3072);

// SAFETY: numbers in C's order, as `struct Variables` of the kernels.
unsafe impl DeviceRepr for Variables {}

/// Variables on one GPU that are to be changed together. Holds their gradients until then.
#[derive(Default)]
pub(crate) struct Changes {
    /// Of the first variable's device, which must be that of the others.
    context: Option<Rc<Context>>,
    variables: Vec<Variable>,
    gradients: Vec<Tensor>,
}

/// Constants of a step of AdamW.
#[derive(Clone, Copy)]
pub(crate) struct AdamWStep {
    pub keep: [f32; 2],
    pub take: [f32; 2],
    pub step_size: f32,
    pub root_scale: f32,
    pub eps: f32,
}

impl Changes {
    /// Takes in a variable; `keep` and `decay` say how its weight decays.
    pub fn push(
        &mut self,
        op: &'static str,
        weight: &Tensor,
        gradient: &Tensor,
        moments: &[Tensor],
        (keep, decay): (f32, f32),
    ) -> Result<()> {
        check_f32(op, "gradient", gradient)?;
        let context = match &self.context {
            Some(context) => Rc::clone(context),
            None => Rc::clone(self.context.insert(Context::of(gradient.device())?)),
        };
        let gradient = gradient.contiguous()?;
        let moment =
            |index: usize| moments.get(index).map_or(Ok(0), |m| address_of(&context.device, op, "moment", m));
        self.variables.push(Variable {
            weight: address_of(&context.device, op, "variable", weight)?,
            gradient: address_of(&context.device, op, "gradient", &gradient)?,
            first: moment(0)?,
            second: moment(1)?,
            count: weight.elem_count() as i64,
            keep,
            decay,
        });
        self.gradients.push(gradient);
        Ok(())
    }

    pub fn adamw(&self, step: AdamWStep) -> Result<()> {
        self.in_groups(|context, config, group, _| {
            let AdamWStep { keep: [keep1, keep2], take: [take1, take2], step_size, root_scale, eps } = step;
            launch!(
                context, "adamw", "", config, group, keep1, take1, keep2, take2, step_size, root_scale, eps
            );
            Ok(())
        })
    }

    pub fn sgd(&self, momentum: f32, nesterov: bool, lr: f32) -> Result<()> {
        self.in_groups(|context, config, group, _| {
            launch!(context, "sgd", "", config, group, momentum, i32::from(nesterov), lr);
            Ok(())
        })
    }

    /// The sum of the squares of all gradients; waits for the GPU.
    pub fn sum_of_squares(&self) -> Result<f64> {
        let mut sum = 0.0;
        self.in_groups(|context, config, group, n_variables| {
            let n_partial = config.grid_dim.0 as usize * n_variables;
            // SAFETY: the kernel writes every one.
            let partial = unsafe { context.device.alloc::<f64>(n_partial)? };
            let at = partial.device_ptr(&context.stream).0;
            launch!(context, "sum_of_squares", "", config, group, at);
            sum += context.device.clone_dtoh(&partial)?.iter().sum::<f64>();
            Ok(())
        })?;
        Ok(sum)
    }

    fn in_groups(
        &self,
        mut queue: impl FnMut(&Context, LaunchConfig, Variables, usize) -> Result<()>,
    ) -> Result<()> {
        let Some(context) = &self.context else {
            return Ok(());
        };
        for group in self.variables.chunks(AT_ONCE) {
            let mut variables = Variables([Variable::default(); AT_ONCE]);
            variables.0[..group.len()].copy_from_slice(group);
            let largest = group.iter().map(|variable| variable.count).max().unwrap_or(0);
            // Blocks of a small variable find nothing to do and end at once.
            let blocks = (largest as usize).div_ceil(256 * 8).clamp(1, 128);
            let config = LaunchConfig {
                grid_dim: (blocks as u32, group.len() as u32, 1),
                block_dim: (256, 1, 1),
                shared_mem_bytes: 0,
            };
            queue(context, config, variables, group.len())?;
        }
        Ok(())
    }
}
