//! Variables with their optimiser state, shared by both optimisers.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

use crate::{
    OpError,
    activation::CHUNK,
    element::{check_kind, check_shape, storage_slice, with_values},
    error::Checked,
};

/// A variable, its `K` running moments, and whether its weight decays.
pub(super) struct Slot<const K: usize> {
    pub name: String,
    pub var: Var,
    pub decays: bool,
    moments: Moments<K>,
}

/// The running moments of a variable, where the variable is.
enum Moments<const K: usize> {
    Cpu([Vec<f32>; K]),
    #[cfg(feature = "cuda")]
    Gpu([Tensor; K]),
}

/// Pairs every variable with zeroed moments.
pub(super) fn slots<const K: usize>(
    op: &'static str,
    named_vars: Vec<(String, Var)>,
    decays: impl Fn(&str, &Tensor) -> bool,
) -> Result<Vec<Slot<K>>> {
    let mut slots: Vec<Slot<K>> = Vec::with_capacity(named_vars.len());
    for (name, var) in named_vars {
        let decays = decays(&name, &var);
        check_variable(op, &var)?;
        let moments = Moments::of(vec![var.zeros_like()?; K])?;
        slots.push(Slot { name, var, decays, moments });
    }
    let mut names: Vec<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(OpError::Setting { op, reason: format!("two variables are named {}", pair[0]) }.into());
    }
    Ok(slots)
}

impl<const K: usize> Moments<K> {
    /// Keeps copies of `K` tensors, where they are.
    fn of(tensors: Vec<Tensor>) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if tensors.iter().all(|tensor| tensor.device().is_cuda()) {
            let copies = tensors.iter().map(Tensor::copy).collect::<Result<Vec<_>>>()?;
            return Ok(Self::Gpu(exactly(copies)?));
        }
        let values = |tensor: &Tensor| with_values("state", tensor, |values: &[f32]| Ok(values.to_vec()));
        Ok(Self::Cpu(exactly(tensors.iter().map(values).collect::<Result<Vec<_>>>()?)?))
    }

    fn on_cpu(&mut self) -> Option<&mut [Vec<f32>; K]> {
        match self {
            Self::Cpu(moments) => Some(moments),
            #[cfg(feature = "cuda")]
            Self::Gpu(_) => None,
        }
    }
}

fn exactly<T, const K: usize>(values: Vec<T>) -> Result<[T; K]> {
    let refuse = |values: Vec<T>| OpError::State { reason: format!("{} moments, not {K}", values.len()) };
    Ok(values.try_into().map_err(refuse)?)
}

/// Refuses a variable that no optimiser here can change.
fn check_variable(op: &'static str, var: &Var) -> Checked<()> {
    if cfg!(feature = "cuda") && var.device().is_cuda() && var.dtype() == DType::F32 {
        return Ok(());
    }
    check_kind(op, "variable", var, DType::F32)
}

/// The variables on a GPU that have a gradient; `decay` says what weight decay leaves of a
/// weight and what it adds to its gradient.
#[cfg(feature = "cuda")]
pub(super) fn on_gpu<const K: usize>(
    op: &'static str,
    slots: &[Slot<K>],
    grads: &GradStore,
    decay: impl Fn(bool) -> (f32, f32),
) -> Result<crate::cuda::Changes> {
    let mut changes = crate::cuda::Changes::default();
    for slot in slots {
        if let (Moments::Gpu(moments), Some(gradient)) = (&slot.moments, grads.get(&slot.var)) {
            check_shape(op, "gradient", gradient, slot.var.dims())?;
            changes.push(op, &slot.var, gradient, moments, decay(slot.decays))?;
        }
    }
    Ok(changes)
}

/// Calls `update(weight, gradient, moments)` for corresponding pieces of every
/// variable on the CPU that has a gradient; `prepare` makes the update of one variable.
pub(super) fn update_all<const K: usize, U>(
    op: &'static str,
    slots: &mut [Slot<K>],
    grads: &GradStore,
    prepare: impl Fn(bool) -> U,
) -> Result<()>
where
    U: Fn(&mut [f32], &[f32], [&mut [f32]; K]) + Sync,
{
    for slot in slots {
        let Some(gradient) = grads.get(&slot.var) else {
            continue;
        };
        let Some(moments) = slot.moments.on_cpu() else {
            continue;
        };
        check_kind(op, "gradient", gradient, DType::F32)?;
        check_shape(op, "gradient", gradient, slot.var.dims())?;
        let step = Step { op, update: prepare(slot.decays), moments: Mutex::new(moments) };
        slot.var.inplace_op2(&gradient.contiguous()?, &step)?;
    }
    Ok(())
}

struct Step<'a, U, const K: usize> {
    op: &'static str,
    update: U,
    moments: Mutex<&'a mut [Vec<f32>; K]>,
}

impl<U, const K: usize> InplaceOp2 for Step<'_, U, K>
where
    U: Fn(&mut [f32], &[f32], [&mut [f32]; K]) + Sync,
{
    fn name(&self) -> &'static str {
        self.op
    }

    fn cpu_fwd(
        &self,
        weight: &mut CpuStorage,
        weight_layout: &Layout,
        gradient: &CpuStorage,
        gradient_layout: &Layout,
    ) -> Result<()> {
        let gradient = storage_slice::<f32>(self.op, gradient, gradient_layout)?;
        let (CpuStorage::F32(weight), Some((start, end))) = (weight, weight_layout.contiguous_offsets())
        else {
            return Err(OpError::DType {
                op: self.op,
                argument: "variable",
                got: "not contiguous f32".to_owned(),
                expected: "contiguous f32".to_owned(),
            }
            .into());
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let mut moments: [_; K] = moments.each_mut().map(|moment| moment.chunks_mut(CHUNK));
        let pieces: Vec<_> = weight[start..end]
            .chunks_mut(CHUNK)
            .zip(gradient.chunks(CHUNK))
            .map(|(weight, gradient)| {
                let moments = moments.each_mut().map(|moment| moment.next().unwrap_or_default());
                (weight, gradient, moments)
            })
            .collect();
        pieces
            .into_par_iter()
            .for_each(|(weight, gradient, moments)| (self.update)(weight, gradient, moments));
        Ok(())
    }
}

/// The moments as tensors named `<variable>.<moment>`, on the devices of their variables.
pub(super) fn save<const K: usize>(slots: &[Slot<K>], names: [&str; K]) -> Result<BTreeMap<String, Tensor>> {
    let mut state = BTreeMap::new();
    for slot in slots {
        for (index, name) in names.iter().enumerate() {
            let tensor = match &slot.moments {
                Moments::Cpu(moments) => Tensor::from_slice(&moments[index], slot.var.shape(), &Device::Cpu)?,
                #[cfg(feature = "cuda")]
                Moments::Gpu(moments) => moments[index].copy()?,
            };
            state.insert(format!("{}.{name}", slot.name), tensor);
        }
    }
    Ok(state)
}

/// Replaces the moments by saved ones, from whatever device; changes nothing if one does
/// not fit.
pub(super) fn load<const K: usize>(
    slots: &mut [Slot<K>],
    names: [&str; K],
    state: &BTreeMap<String, Tensor>,
) -> Result<()> {
    let refuse = |reason: String| OpError::State { reason };
    if state.len() != slots.len() * K {
        return Err(refuse(format!("{} tensors, expected {}", state.len(), slots.len() * K)).into());
    }
    let mut loaded = Vec::with_capacity(slots.len());
    for slot in &*slots {
        let mut saved = Vec::with_capacity(K);
        for name in names {
            let key = format!("{}.{name}", slot.name);
            let tensor = state.get(&key).ok_or_else(|| refuse(format!("{key} is missing")))?;
            if tensor.dims() != slot.var.dims() {
                return Err(refuse(format!(
                    "{key} has shape {:?}, the variable {:?}",
                    tensor.dims(),
                    slot.var.dims()
                ))
                .into());
            }
            let tensor = tensor.to_device(slot.var.device())?;
            if tensor.dtype() != DType::F32 {
                let (got, expected) = (tensor.dtype().as_str().to_owned(), "f32".to_owned());
                return Err(OpError::DType { op: "load_state", argument: "state", got, expected }.into());
            }
            saved.push(tensor);
        }
        loaded.push(Moments::of(saved)?);
    }
    for (slot, moments) in slots.iter_mut().zip(loaded) {
        slot.moments = moments;
    }
    Ok(())
}
