//! Variables with their optimiser state, shared by both optimisers.

use std::collections::BTreeMap;

use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;
use std::sync::{Mutex, PoisonError};

use crate::{
    OpError,
    activation::CHUNK,
    element::{check_kind, check_shape, storage_slice, with_values},
};

/// A variable, its `K` running moments, and whether its weight decays.
pub(super) struct Slot<const K: usize> {
    pub name: String,
    pub var: Var,
    pub decays: bool,
    moments: [Vec<f32>; K],
}

/// Pairs every variable with zeroed moments.
pub(super) fn slots<const K: usize>(
    op: &'static str,
    named_vars: Vec<(String, Var)>,
    decays: impl Fn(&str, &Tensor) -> bool,
) -> Result<Vec<Slot<K>>> {
    let mut slots: Vec<Slot<K>> = Vec::with_capacity(named_vars.len());
    for (name, var) in named_vars {
        check_kind(op, "variable", &var, DType::F32)?;
        let decays = decays(&name, &var);
        let moments = std::array::from_fn(|_| vec![0.0; var.elem_count()]);
        slots.push(Slot { name, var, decays, moments });
    }
    let mut names: Vec<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(OpError::Setting { op, reason: format!("two variables are named {}", pair[0]) }.into());
    }
    Ok(slots)
}

/// Calls `update(weight, gradient, moments)` for corresponding pieces of every
/// variable that has a gradient; `prepare` makes the update of one variable.
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
        check_kind(op, "gradient", gradient, DType::F32)?;
        check_shape(op, "gradient", gradient, slot.var.dims())?;
        let step = Step { op, update: prepare(slot.decays), moments: Mutex::new(&mut slot.moments) };
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

/// The moments as tensors named `<variable>.<moment>`.
pub(super) fn save<const K: usize>(slots: &[Slot<K>], names: [&str; K]) -> BTreeMap<String, Tensor> {
    let mut state = BTreeMap::new();
    for slot in slots {
        for (name, values) in names.iter().zip(&slot.moments) {
            // A slice of the variable's own length always fits its shape.
            if let Ok(tensor) = Tensor::from_slice(values, slot.var.shape(), &Device::Cpu) {
                state.insert(format!("{}.{name}", slot.name), tensor);
            }
        }
    }
    state
}

/// Replaces the moments by saved ones; changes nothing if one does not fit.
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
        let mut moments: [Vec<f32>; K] = std::array::from_fn(|_| Vec::new());
        for (name, moment) in names.iter().zip(&mut moments) {
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
            check_kind("load_state", "state", tensor, DType::F32)?;
            *moment = with_values("load_state", tensor, |values: &[f32]| Ok(values.to_vec()))?;
        }
        loaded.push(moments);
    }
    for (slot, moments) in slots.iter_mut().zip(loaded) {
        slot.moments = moments;
    }
    Ok(())
}
