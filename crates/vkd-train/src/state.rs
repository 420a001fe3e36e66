//! What a training carries from step to step, and its one form on disk.

use crate::audit::FirstSteps;
use crate::checkpoints::Saved;
use crate::optimizer::{AnyOptimizer, optimizer};
use crate::recipe::TrainingConfig;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use std::collections::{BTreeMap, HashMap};
use vkd_nn::{Ema, VarStore};
use vkd_tasks::{DistillTask, Phase};

/// First parts of the names in a checkpoint.
const MODEL: &str = "model.";
const OPTIMIZER: &str = "optimizer.";
const EMA: &str = "ema.";
/// The two numbers that no tensor holds otherwise. As tensors, because text need not give every bit back.
const RESIDUAL: &str = "largest_residual";
const BEST: &str = "best_validation";

/// A phase with what it trains and how.
pub(crate) struct PhaseState {
    pub(crate) phase: Phase,
    /// Updates a step.
    repeats: u64,
    pub(crate) parameters: Vec<(String, Var)>,
    pub(crate) audit: FirstSteps,
    pub(crate) optimizer: Box<dyn AnyOptimizer>,
}

/// Everything that decides what the next step does, but for what is a function of the seed and the step: random
/// streams, learning rate and the place in the data.
pub(crate) struct State {
    store: VarStore,
    pub(crate) step: u64,
    pub(crate) phases: Vec<PhaseState>,
    pub(crate) ema: Option<Ema>,
    /// Largest residual so far.
    pub(crate) residual: Option<f64>,
    /// Best validation so far.
    pub(crate) best: Option<f64>,
}

impl State {
    pub(crate) fn new(
        task: &impl DistillTask,
        store: &VarStore,
        training: &TrainingConfig,
    ) -> Result<Self> {
        let phase = |phase: &Phase| -> Result<PhaseState> {
            let parameters: Vec<_> = store
                .parameters()
                .into_iter()
                .filter(|(name, _)| name.starts_with(phase.prefix))
                .collect();
            let optimizer = optimizer(training, parameters.clone())?;
            Ok(PhaseState {
                phase: phase.clone(),
                repeats: task.repeats(phase),
                parameters,
                audit: FirstSteps::default(),
                optimizer,
            })
        };
        let ema = training.ema_decay.map(|decay| Ema::new(store, decay, true)).transpose()?;
        Ok(Self {
            store: store.clone(),
            step: 0,
            phases: task.phases().iter().map(phase).collect::<Result<_>>()?,
            ema,
            residual: None,
            best: None,
        })
    }

    /// Every tensor of a checkpoint.
    pub(crate) fn tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut all = BTreeMap::new();
        let mut add = |prefix: &str, tensors: BTreeMap<String, Tensor>| {
            all.extend(tensors.into_iter().map(|(name, t)| (format!("{prefix}{name}"), t)));
        };
        add(MODEL, self.store.tensors());
        for p in &self.phases {
            add(&format!("{OPTIMIZER}{}.", p.phase.name), p.optimizer.tensors()?);
        }
        if let Some(ema) = &self.ema {
            add(EMA, ema.tensors());
        }
        for (name, value) in [(RESIDUAL, self.residual), (BEST, self.best)] {
            if let Some(value) = value {
                all.insert(name.to_owned(), Tensor::new(value, &Device::Cpu)?);
            }
        }
        Ok(all)
    }

    /// Takes up a checkpoint of `arm` and `seed`.
    ///
    /// # Errors
    /// A checkpoint of another part or seed, a tensor that is missing or doesn't fit, and one that the present settings don't know; the file is named.
    pub(crate) fn load(&mut self, saved: &Saved, arm: &str, seed: u64) -> Result<()> {
        let note = &saved.note;
        if (note.arm.as_str(), note.seed) != (arm, seed) {
            bail!(
                "{}: expected the state of {arm}, seed {seed}, got that of {}, seed {}",
                saved.path.display(),
                note.arm,
                note.seed
            )
        }
        self.load_tensors(saved.note.step, &saved.tensors).map_err(|e| {
            candle_core::Error::Msg(format!("{}: {}", saved.path.display(), crate::plain(&e)))
        })
    }

    fn load_tensors(&mut self, step: u64, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let under = |prefix: &str| -> HashMap<String, Tensor> {
            let part = |(name, t): (&String, &Tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), t.clone()))
            };
            tensors.iter().filter_map(part).collect()
        };
        let number = |name: &str| tensors.get(name).map(Tensor::to_scalar::<f64>).transpose();
        self.store.load(&under(MODEL))?;
        for p in &mut self.phases {
            p.optimizer
                .take_up(step * p.repeats, &under(&format!("{OPTIMIZER}{}.", p.phase.name)))?;
        }
        if let Some(ema) = &mut self.ema {
            ema.load(step, &under(EMA))?;
        }
        (self.residual, self.best) = (number(RESIDUAL)?, number(BEST)?);
        self.step = step;
        // What nobody took up belongs to other settings.
        let known = self.tensors()?;
        match tensors.keys().filter(|name| !known.contains_key(*name)).min() {
            Some(name) => bail!("expected the state of this training, got also {name}"),
            None => Ok(()),
        }
    }

    /// The name of a variable that is not finite.
    pub(crate) fn broken(&self) -> Result<Option<String>> {
        for (name, tensor) in self.store.tensors() {
            let sum = tensor.abs()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            if !sum.is_finite() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Runs `f` with the averages in place of the variables, where averages are kept.
    pub(crate) fn averaged<T>(&self, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(ema) = &self.ema else { return f() };
        let own = |(name, t): (String, Tensor)| Ok((name, t.copy()?));
        let live = self.store.tensors().into_iter().map(own).collect::<Result<_>>()?;
        self.store.load(&ema.tensors().into_iter().collect())?;
        let result = f();
        self.store.load(&live)?;
        result
    }

    /// Leaves the averages in the variables, where averages are kept: they are the result of the training.
    pub(crate) fn settle(&self) -> Result<()> {
        match &self.ema {
            Some(ema) => self.store.load(&ema.tensors().into_iter().collect()),
            None => Ok(()),
        }
    }
}
