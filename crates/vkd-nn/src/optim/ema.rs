//! Moving averages of a model's variables.

use super::blend::{Pair, blend_all};
use crate::ops::native_dtype;
use crate::{VarStore, is_buffer};
use candle_core::{DType, Result, Tensor, bail};
use std::collections::{BTreeMap, HashMap};

const OP: &str = "ema";

/// Exponential moving average of the parameters of a [`VarStore`]; buffers are copied as they stand.
///
/// `e = d·e + (1 - d)·p` in place, one pass per parameter. With warm-up, `d` is the smaller of `decay` and
/// `(1 + t) / (10 + t)` at update `t`, counted from one, so that the first values are soon forgotten. To evaluate the
/// average, [`VarStore::load`] its [`tensors`](Self::tensors) into a second model's store. Averages of a half type are f32:
/// the shares that a decay near one adds are below a half type's resolution.
///
/// # Example
/// ```
/// # use candle_core::{DType, Device};
/// use vkd_nn::{Ema, VarStore, linear};
/// let store = VarStore::new(0, DType::F32, &Device::Cpu);
/// linear(2, 3, store.builder())?;
/// let mut ema = Ema::new(&store, 0.999, true)?;
/// // .. an optimiser's step ..
/// ema.update()?;
/// let average = VarStore::new(0, DType::F32, &Device::Cpu);
/// linear(2, 3, average.builder())?;
/// average.load(&ema.tensors().into_iter().collect())?;
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct Ema {
    store: VarStore,
    averages: BTreeMap<String, Tensor>,
    decay: f64,
    warmup: bool,
    updates: u64,
}

impl Ema {
    /// Starts from the present values.
    ///
    /// # Errors
    /// A decay outside `[0, 1)`, or a variable that is no float, by name.
    pub fn new(store: &VarStore, decay: f64, warmup: bool) -> Result<Self> {
        if !(0. ..1.).contains(&decay) {
            bail!("{OP}: expected a decay in [0, 1), got {decay}")
        }
        let mut averages = BTreeMap::new();
        for (name, tensor) in store.tensors() {
            let dtype = native_dtype(tensor.dtype());
            if !matches!(dtype, DType::F32 | DType::F64) {
                bail!("{OP}: expected floats, got {dtype:?} in {name}")
            }
            averages.insert(name, tensor.to_dtype(dtype)?.force_contiguous()?);
        }
        Ok(Self { store: store.clone(), averages, decay, warmup, updates: 0 })
    }

    /// Takes in the present values.
    ///
    /// # Errors
    /// A variable that was created since the average began, by name; nothing is changed then.
    pub fn update(&mut self) -> Result<()> {
        let tensors = self.store.tensors();
        if let Some(name) = tensors.keys().find(|n| !self.averages.contains_key(*n)) {
            bail!("{OP}: expected the variables that it began with, got also {name}")
        }
        self.updates = self.updates.saturating_add(1);
        let decay = self.present_decay();
        let pairs = tensors.into_iter().filter_map(|(name, from)| {
            let keep = if is_buffer(&name) { 0. } else { decay };
            let to = self.averages.get(&name)?.clone();
            Some(Pair { to, from, keep, take: 1. - keep })
        });
        blend_all(OP, &pairs.collect::<Vec<_>>())
    }

    /// The decay of the last update.
    pub fn present_decay(&self) -> f64 {
        let t = self.updates as f64;
        if self.warmup { self.decay.min((1. + t) / (10. + t)) } else { self.decay }
    }

    /// Updates so far; a checkpoint keeps it beside the [`tensors`](Self::tensors).
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// The averages and buffers, by name. They share memory with the average: copy what has to stay.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.averages.clone()
    }

    /// Takes up averages and count from a checkpoint.
    ///
    /// # Errors
    /// A missing tensor, or one of another shape or dtype, by name; nothing is changed then.
    pub fn load(&mut self, updates: u64, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let read = |(name, old): (&String, &Tensor)| match tensors.get(name) {
            Some(t) if t.dims() == old.dims() && t.dtype() == old.dtype() => {
                Ok((name.clone(), t.to_device(old.device())?.force_contiguous()?))
            }
            Some(t) => bail!(
                "{OP}: {name}: expected {:?} of {:?}, got {:?} of {:?}",
                old.dims(),
                old.dtype(),
                t.dims(),
                t.dtype()
            ),
            None => bail!("{OP}: expected the average {name}, got no such tensor"),
        };
        self.averages = self.averages.iter().map(read).collect::<Result<_>>()?;
        self.updates = updates;
        Ok(())
    }
}
