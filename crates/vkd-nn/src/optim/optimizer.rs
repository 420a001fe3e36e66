//! What all optimisers share: checked parameters in the order of their names, groups, state, clipping.

use super::{Rule, device, map_parts};
use crate::ops::native_dtype;
use candle_core::backprop::GradStore;
use candle_core::{
    CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor, Var, WithDType, bail,
};
use num_traits::Float;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use vkd_norm::flags;

/// What one parameter has of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Factor of the learning rate; zero freezes.
    pub lr_scale: f64,
    /// Weight decay, in place of the configuration's.
    pub weight_decay: f64,
}

/// An optimiser: [`AdamW`](crate::AdamW), [`Sgd`](crate::Sgd) or [`Lamb`](crate::Lamb).
///
/// State is kept by variable name, so that it can be saved, and is in the variable's dtype. A result does not depend on the
/// order of the parameters or on the number of threads.
///
/// A variable of a half type has its state in f32, and there a `master` of itself as well: the update is made on the master
/// and the variable is its rounding, else steps below the half type's resolution would be lost. A value that is set from
/// outside is where its master goes on.
pub struct Optimizer<R> {
    rule: R,
    step: u64,
    /// Sorted by name.
    parameters: Vec<Parameter>,
}

struct Parameter {
    name: String,
    var: Var,
    group: Group,
    slots: Mutex<Slots>,
}

enum Slots {
    F32(Vec<Vec<f32>>),
    F64(Vec<Vec<f64>>),
    /// Flat tensors beside a variable that is not on the CPU.
    Device(Vec<Tensor>),
}

/// Element types of the updates.
pub trait Value: WithDType + Float {}
impl Value for f32 {}
impl Value for f64 {}

/// Numbers of one update of one parameter.
#[derive(Clone, Copy)]
pub struct At {
    /// Steps, this one included.
    pub(super) step: i32,
    pub(super) lr: f64,
    pub(super) weight_decay: f64,
    /// Factor of the gradient.
    pub(super) scale: f64,
}

impl<R: Rule> Optimizer<R> {
    /// An optimiser over `parameters`; `decays` says by name and variable whether the configuration's weight decay
    /// applies.
    ///
    /// # Errors
    /// A setting out of range, a name that stands twice, or a variable of a dtype other than f64, f32, bf16 and f16.
    pub fn new(
        parameters: Vec<(String, Var)>,
        config: R,
        decays: impl Fn(&str, &Var) -> bool,
    ) -> Result<Self> {
        let decay = config.weight_decay();
        Self::with_groups(parameters, config, |name, var| Group {
            lr_scale: 1.,
            weight_decay: if decays(name, var) { decay } else { 0. },
        })
    }

    /// As [`new`](Self::new), with learning rate and weight decay of each parameter by name and variable.
    ///
    /// # Errors
    /// Those of [`new`](Self::new), and a group with a factor or decay that is negative or not finite.
    pub fn with_groups(
        parameters: Vec<(String, Var)>,
        config: R,
        group: impl Fn(&str, &Var) -> Group,
    ) -> Result<Self> {
        config.check()?;
        let op = R::NAME;
        let slots = config.slots().len();
        let mut parameters = parameters
            .into_iter()
            .map(|(name, var)| {
                let n = var.elem_count();
                let slots = match (var.dtype(), var.device()) {
                    (DType::F32, Device::Cpu) => Slots::F32(vec![vec![0.; n]; slots]),
                    (DType::F64, Device::Cpu) => Slots::F64(vec![vec![0.; n]; slots]),
                    (DType::BF16 | DType::F16, Device::Cpu) => {
                        let mut slots = vec![vec![0.; n]; slots];
                        slots.push(var.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?);
                        Slots::F32(slots)
                    }
                    (DType::F32 | DType::F64 | DType::BF16 | DType::F16, _) => {
                        Slots::Device(device::slots(&var, slots)?)
                    }
                    (dtype, _) => bail!("{op}: expected floats, got {name} with {dtype:?}"),
                };
                let group = group(&name, &var);
                // Negated comparisons: NaN is refused too.
                let good = |x: f64| x >= 0. && x.is_finite();
                if !(good(group.lr_scale) && good(group.weight_decay)) {
                    bail!("{op}: expected a finite lr_scale and weight decay of at least 0 for {name}, got {group:?}")
                }
                Ok(Parameter { name, var, group, slots: Mutex::new(slots) })
            })
            .collect::<Result<Vec<_>>>()?;
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        // Two of a name would overwrite each other's state in a checkpoint.
        if let Some(twice) = parameters.windows(2).find(|w| w[0].name == w[1].name) {
            bail!("{op}: expected each name once, got {} twice", twice[0].name)
        }
        Ok(Self { rule: config, step: 0, parameters })
    }

    /// One update with learning rate `lr`. A parameter without a gradient keeps its value and state.
    ///
    /// # Errors
    /// A learning rate that is negative or not finite, or a gradient of another shape or dtype than its parameter, by
    /// name; parameters on the CPU before it have been updated then. A variable of a half type takes a gradient in f32 as well.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<()> {
        self.scaled_step(grads, lr, 1., None)
    }

    /// [`step`](Self::step) with the gradients scaled down to a global norm of `max_norm`, if theirs is larger; returns
    /// the norm before, f64 of rank 0.
    ///
    /// The scale goes into the update, so the gradients are read once more than without, and never written. As in
    /// PyTorch it is `max_norm / (norm + 1e-6)`.
    ///
    /// Where all gradients are on one device, norm and scale stay there and nobody waits for them. A norm that is not finite is then
    /// no error: parameters and state stay as they were, and it sets a bit of [`flags`], as `global_norm`. The host has counted
    /// a step by then, which it doesn't after an error: that shows in AdamW's and LAMB's correction of their bias alone.
    /// [`global_norm`] of the same gradients says which parameter it was.
    ///
    /// # Errors
    /// Those of [`step`](Self::step), those of [`global_norm`], and a `max_norm` that is not positive; nothing is
    /// changed by the last two.
    pub fn clipped_step(&mut self, grads: &GradStore, lr: f64, max_norm: f64) -> Result<Tensor> {
        if !(max_norm > 0.) {
            bail!("{}: expected a max_norm above 0, got {max_norm}", R::NAME)
        }
        if let Some(there) = self.on_one_device(grads) {
            let [norm, factor] = device::clip(&there, max_norm)?;
            flags::expect("global_norm", "finite gradients", &norm, [0., f64::MAX])?;
            self.scaled_step(grads, lr, 1., Some(&factor))?;
            return Ok(norm);
        }
        let norm = global_norm(self.parameters.iter().map(|p| (p.name.as_str(), &p.var)), grads)?;
        self.scaled_step(grads, lr, (max_norm / (norm + 1e-6)).min(1.), None)?;
        Tensor::new(norm, &Device::Cpu)
    }

    /// The gradients of the parameters, where there are any and all are of floats on one device that is not the CPU.
    fn on_one_device(&self, grads: &GradStore) -> Option<Vec<Tensor>> {
        let there: Vec<Tensor> =
            self.parameters.iter().filter_map(|p| grads.get(&p.var).cloned()).collect();
        let device = there.first()?.device();
        let fits = |grad: &Tensor| grad.device().same_device(device) && grad.dtype().is_float();
        (!device.is_cpu() && there.iter().all(fits)).then_some(there)
    }

    /// `clip` is one more factor, of parameters that are not on the CPU: one number in f64 on their device; NaN changes nothing.
    fn scaled_step(
        &mut self,
        grads: &GradStore,
        lr: f64,
        scale: f64,
        clip: Option<&Tensor>,
    ) -> Result<()> {
        if !(lr >= 0. && lr.is_finite()) {
            bail!("{}: expected a learning rate of at least 0, got {lr}", R::NAME)
        }
        self.step = self.step.saturating_add(1);
        let mut elsewhere = Vec::new();
        for p in &self.parameters {
            let Some(grad) = grads.get(&p.var) else { continue };
            if grad.dims() != p.var.dims() {
                bail!(
                    "{}: expected a gradient of {:?} for {}, got {:?}",
                    R::NAME,
                    p.var.dims(),
                    p.name,
                    grad.dims()
                )
            }
            let at = At {
                step: i32::try_from(self.step).unwrap_or(i32::MAX),
                lr: lr * p.group.lr_scale,
                weight_decay: p.group.weight_decay,
                scale,
            };
            let grad = grad.to_dtype(native_dtype(grad.dtype()))?.contiguous()?;
            let slots = p.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(&*slots, Slots::Device(_)) {
                if grad.dtype() != native_dtype(p.var.dtype()) {
                    bail!(
                        "{}: expected parameter and gradient of one dtype for {}",
                        R::NAME,
                        p.name
                    )
                }
                elsewhere.push((at, p, grad, slots));
                continue;
            }
            drop(slots);
            let update = Update { rule: &self.rule, p, at };
            p.var.as_tensor().inplace_op2(&grad, &update)?;
        }
        let jobs = elsewhere.iter_mut().filter_map(|(at, p, grad, slots)| match &mut **slots {
            Slots::Device(slots) => {
                let (grad, clip) = (grad.clone(), clip.cloned());
                Some(device::Job { at: *at, var: &p.var, grad, clip, slots })
            }
            _ => None,
        });
        self.rule.update_all_on_devices(&mut jobs.collect::<Vec<_>>())
    }

    /// Buffers as `NAME.SLOT`, flat, for a checkpoint; the step count travels beside them.
    ///
    /// # Errors
    /// None on the CPU; on a device what copying says.
    pub fn state(&self) -> Result<(u64, BTreeMap<String, Tensor>)> {
        let mut state = BTreeMap::new();
        for p in &self.parameters {
            let tensors = match &*p.slots.lock().unwrap_or_else(PoisonError::into_inner) {
                Slots::F32(slots) => tensors(slots)?,
                Slots::F64(slots) => tensors(slots)?,
                Slots::Device(slots) => {
                    slots.iter().map(|s| s.to_device(&Device::Cpu)).collect::<Result<_>>()?
                }
            };
            for (slot, tensor) in p.slot_names(&self.rule).zip(tensors) {
                state.insert(format!("{}.{slot}", p.name), tensor);
            }
        }
        Ok((self.step, state))
    }

    /// Takes up a [`state`](Self::state).
    ///
    /// # Errors
    /// A missing buffer or one of another size or dtype, by name; nothing is changed then.
    pub fn load_state(&mut self, step: u64, state: &HashMap<String, Tensor>) -> Result<()> {
        let op = R::NAME;
        let read = |p: &Parameter| -> Result<Slots> {
            let dtype = native_dtype(p.var.dtype());
            let get = |slot: &str| match state.get(&format!("{}.{slot}", p.name)) {
                Some(t) if t.elem_count() == p.var.elem_count() && t.dtype() == dtype => {
                    t.flatten_all()
                }
                Some(t) => bail!(
                    "{op}: {}.{slot}: expected {} values of {dtype:?}, got {:?} of {:?}",
                    p.name,
                    p.var.elem_count(),
                    t.dims(),
                    t.dtype()
                ),
                None => bail!("{op}: expected the state {}.{slot}, got no such tensor", p.name),
            };
            let tensors = p.slot_names(&self.rule).map(get).collect::<Result<Vec<_>>>()?;
            if !p.var.device().is_cpu() {
                // A copy: the slots are written in place.
                let here = |t: &Tensor| t.to_device(p.var.device())?.force_contiguous();
                return Ok(Slots::Device(tensors.iter().map(here).collect::<Result<_>>()?));
            }
            Ok(match dtype {
                DType::F32 => {
                    Slots::F32(tensors.iter().map(|t| t.to_vec1()).collect::<Result<_>>()?)
                }
                _ => Slots::F64(tensors.iter().map(|t| t.to_vec1()).collect::<Result<_>>()?),
            })
        };
        let all = self.parameters.iter().map(read).collect::<Result<Vec<_>>>()?;
        for (p, slots) in self.parameters.iter().zip(all) {
            *p.slots.lock().unwrap_or_else(PoisonError::into_inner) = slots;
        }
        self.step = step;
        Ok(())
    }
}

impl Parameter {
    fn slot_names<R: Rule>(&self, rule: &R) -> impl Iterator<Item = &'static str> + use<R> {
        let half = native_dtype(self.var.dtype()) != self.var.dtype();
        rule.slots().iter().copied().chain(half.then_some("master"))
    }
}

fn tensors<T: WithDType>(slots: &[Vec<T>]) -> Result<Vec<Tensor>> {
    slots.iter().map(|s| Tensor::from_slice(s, s.len(), &Device::Cpu)).collect()
}

struct Update<'a, R> {
    rule: &'a R,
    p: &'a Parameter,
    at: At,
}

impl<R: Rule> Update<'_, R> {
    /// The update of values of a half type, whose masters are the last slot.
    fn half<H: WithDType>(&self, values: &mut [H], g: &[f32], slots: &mut [Vec<f32>]) {
        let Some((masters, slots)) = slots.split_last_mut() else { return };
        let narrow = |master: f32| H::from_f64(f64::from(master));
        for (master, value) in masters.iter_mut().zip(&*values) {
            if narrow(*master) != *value {
                *master = value.to_f64() as f32;
            }
        }
        self.rule.update(&self.at, masters, g, slots);
        for (value, master) in values.iter_mut().zip(masters) {
            *value = narrow(*master);
        }
    }
}

impl<R: Rule> InplaceOp2 for Update<'_, R> {
    fn name(&self) -> &'static str {
        R::NAME
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<()> {
        let (to, from) = (dense(R::NAME, l1)?, dense(R::NAME, l2)?);
        let mut slots = self.p.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match (s1, s2, &mut *slots) {
            (CpuStorage::F32(p), CpuStorage::F32(g), Slots::F32(slots)) => {
                self.rule.update(&self.at, &mut p[to], &g[from], slots)
            }
            (CpuStorage::F64(p), CpuStorage::F64(g), Slots::F64(slots)) => {
                self.rule.update(&self.at, &mut p[to], &g[from], slots)
            }
            (CpuStorage::BF16(p), CpuStorage::F32(g), Slots::F32(slots)) => {
                self.half(&mut p[to], &g[from], slots)
            }
            (CpuStorage::F16(p), CpuStorage::F32(g), Slots::F32(slots)) => {
                self.half(&mut p[to], &g[from], slots)
            }
            _ => bail!(
                "{}: expected parameter and gradient of one dtype for {}",
                R::NAME,
                self.p.name
            ),
        }
        Ok(())
    }
}

/// The range of a contiguous layout.
pub(super) fn dense(op: &str, layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("{op}: expected a contiguous tensor, got {layout:?}"),
    }
}

/// Values of one task of a parallel pass: with four arrays of f32 it stays in the second cache.
pub(super) const CHUNK: usize = 1 << 14;

/// Euclidean norm of all gradients of `parameters` together.
///
/// Squares are summed in f64, over blocks of a fixed size and in the order given: the number of threads changes no bit. A
/// parameter without a gradient counts as zero. Off the CPU the sums of all gradients of a dtype are copied to the host at once:
/// the number is for who wants to see it. [`Optimizer::clipped_step`] does without.
///
/// # Errors
/// A gradient with an entry that is not finite, or with squares beyond f64, by name; one that is no float.
pub fn global_norm<'a>(
    parameters: impl IntoIterator<Item = (&'a str, &'a Var)>,
    grads: &GradStore,
) -> Result<f64> {
    const OP: &str = "global_norm";
    let mut total = 0.;
    let (mut names, mut others) = (Vec::new(), Vec::new());
    for (name, var) in parameters {
        let Some(grad) = grads.get(var) else { continue };
        if !grad.device().is_cpu() {
            if !grad.dtype().is_float() {
                bail!("{OP}: expected a gradient of floats for {name}, got {:?}", grad.dtype())
            }
            names.push(name);
            others.push(grad.clone());
            continue;
        }
        let grad = grad.to_dtype(native_dtype(grad.dtype()))?.contiguous()?;
        let sum = match grad.dtype() {
            DType::F32 => {
                vkd_norm::dense::with_slices::<f32, _, 1>(OP, [&grad], |[g]| Ok(squares(g)))?
            }
            DType::F64 => {
                vkd_norm::dense::with_slices::<f64, _, 1>(OP, [&grad], |[g]| Ok(squares(g)))?
            }
            dtype => bail!("{OP}: expected a gradient of floats for {name}, got {dtype:?}"),
        };
        if !sum.is_finite() {
            bail!("{OP}: expected a finite gradient for {name}, got a sum of squares of {sum}")
        }
        total += sum;
    }
    if !others.is_empty() {
        for (name, sum) in names.into_iter().zip(device::squares(&others)?) {
            if !sum.is_finite() {
                bail!("{OP}: expected a finite gradient for {name}, got a sum of squares of {sum}")
            }
            total += sum;
        }
    }
    Ok(total.sqrt())
}

/// Sum of squares in f64.
pub(super) fn squares<T: Value>(values: &[T]) -> f64 {
    let parts = values.chunks(CHUNK);
    block_sums(values.len(), parts, |part| {
        lane_sums(part.iter().map(|v| WithDType::to_f64(*v).powi(2)))
    })
}

/// Sum of `work` over the parts of a pass over `len` values, joined in order.
pub(super) fn block_sums<P: Send>(
    len: usize,
    parts: impl Iterator<Item = P>,
    work: impl Fn(P) -> f64 + Send + Sync,
) -> f64 {
    map_parts(len, parts, work).into_iter().sum()
}

/// Sum over eight lanes, so that no addition waits for the one before it.
#[inline(always)]
pub(super) fn lane_sums(terms: impl Iterator<Item = f64>) -> f64 {
    let mut lanes = [0f64; 8];
    for (i, term) in terms.enumerate() {
        lanes[i % 8] += term;
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests;
