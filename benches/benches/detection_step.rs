//! A whole step of detection with V_kD, and V_kD's part of it alone: projectors, normalisers and losses, forward and backward.

use std::process::ExitCode;

use candle_core::{DType, Device, Result, Var, bail};
use vkd_benches::{Suite, Work, run};
use vkd_nn::{AdamW, AdamWConfig, Context, VarStore};
use vkd_tasks::{
    DetectionBatch, DetectionTask, DetectorTeacher, DistillTask, Distiller, FeatureMap, Layout,
    Taps, weighted_sum,
};
use vkd_train::{Detection, DetectionBatches, DetectionDataset, DetectionRecipe, Workload, decays};

const SCENES: &str = include_str!("../../recipes/scenes.toml");
const VIDT: &str = include_str!("../../recipes/coco-vidt-nano.toml");
const ARM: &str = "vkd";

/// A recipe, its data and one batch.
struct Setting {
    recipe: DetectionRecipe,
    data: DetectionDataset,
    batch: DetectionBatch,
}

impl Setting {
    /// Of scenes whatever the recipe, so that no files are needed; of ViDT only the number of classes is not COCO's.
    fn new(work: &Work, text: &str, name: &str) -> Result<Self> {
        let [batch, size] = work.shape[..] else {
            bail!("{}: expected batch and size of the image", work.name)
        };
        let channels = if text == VIDT { 3 } else { 1 };
        let set = [
            format!(
                "data.source={{ kind = \"scenes\", train = 64, size = {size}, channels = {channels} }}"
            ),
            "data.sides=[]".to_owned(),
            "data.augment={}".to_owned(),
            "data.workers=0".to_owned(),
            format!("training.batch={batch}"),
        ];
        let recipe = DetectionRecipe::parse(text, name, &set)?;
        let data = DetectionDataset::open(&recipe.data)?;
        let batch = DetectionBatches::new(&data, &recipe.data, batch, recipe.seed)?.get(0)?;
        Ok(Self { recipe, data, batch })
    }

    fn context(&self) -> Context {
        Context::train(0, 0, self.batch.sample_ids.clone())
    }

    /// As drawn: what it has learnt changes no time.
    fn teacher(&self) -> Result<DetectorTeacher> {
        let store = VarStore::new(1, DType::F32, &Device::Cpu);
        Detection::declare_teacher(&self.recipe, &self.data, store.builder())?;
        Detection::teacher(&self.recipe, &self.data, &store)
    }

    /// The recipe's taps.
    fn distiller(&self, store: &VarStore) -> Result<Distiller> {
        let Self { recipe, data, .. } = self;
        Detection::distiller(recipe, recipe.arm(ARM)?, data, store, None)
    }

    fn optimizer(&self, store: &VarStore) -> Result<AdamW> {
        AdamW::new(store.parameters(), AdamWConfig::default(), |name, var| decays(name, var.rank()))
    }
}

/// Both networks forward, the detector's loss and V_kD's, backward and AdamW.
fn step(setting: Setting) -> Result<impl FnMut() -> Result<()> + use<>> {
    let store = VarStore::new(0, DType::F32, &Device::Cpu);
    let (teacher, distiller) = (Some(setting.teacher()?), Some(setting.distiller(&store)?));
    let task: DetectionTask =
        Detection::student_task(&setting.recipe, &setting.data, &store, teacher, distiller)?;
    let mut optimizer = setting.optimizer(&store)?;
    Ok(move || {
        let [phase] = task.phases() else { bail!("expected one phase") };
        let output = task.step(&setting.batch, phase, &setting.context())?;
        optimizer.step(&output.loss.backward()?, 1e-4)
    })
}

/// From the features of both networks to the gradient of the student's, and AdamW of the projectors.
fn part(setting: Setting) -> Result<impl FnMut() -> Result<()> + use<>> {
    let (store, student) =
        (VarStore::new(0, DType::F32, &Device::Cpu), VarStore::new(0, DType::F32, &Device::Cpu));
    let distiller = setting.distiller(&store)?;
    let mut optimizer = setting.optimizer(&store)?;
    let DetectionBatch { images, padding, .. } = &setting.batch;
    let teacher = setting.teacher()?.forward(images, padding)?.taps;
    let task = Detection::student_task(&setting.recipe, &setting.data, &student, None, None)?;
    let mut features = Vec::new();
    for tap in &setting.recipe.distill.tap {
        let Some(found) = task.evaluate(images, padding)?.taps.remove(&tap.student) else {
            bail!("expected a tap {}", tap.student)
        };
        // Grids come as views of channels that lie last.
        let last = match found.layout() {
            Layout::Grid => found.tensor().permute((0, 2, 3, 1))?.contiguous()?,
            _ => found.tensor().contiguous()?,
        };
        features.push((tap.student.clone(), found, Var::from_tensor(&last.detach())?));
    }
    Ok(move || {
        let mut taps = Taps::new();
        for (name, found, var) in &features {
            let tensor = match found.layout() {
                Layout::Grid => var.permute((0, 3, 1, 2))?,
                _ => var.as_tensor().clone(),
            };
            let map = FeatureMap::new(tensor, found.layout())?;
            let map = match found.padding() {
                Some(mask) => map.with_padding(mask.clone())?,
                None => map,
            };
            taps.insert(name.clone(), map);
        }
        let terms = distiller.feature_terms(&taps, &teacher, &setting.context())?;
        let grads = weighted_sum(&terms)?.backward()?;
        if let Some((name, ..)) = features.iter().find(|(_, _, var)| grads.get(var).is_none()) {
            bail!("{name}: the backward pass did not reach it")
        }
        optimizer.step(&grads, 1e-4)
    })
}

fn main() -> ExitCode {
    let scenes = |work: &Work| Setting::new(work, SCENES, "scenes.toml");
    let vidt = |work: &Work| Setting::new(work, VIDT, "coco-vidt-nano.toml");
    run(|suite: &mut Suite| {
        suite.works("step/scenes_b16_s64", |work| step(scenes(work)?))?;
        suite.works("step/scenes_vkd_part", |work| part(scenes(work)?))?;
        suite.works("step/vidt_nano_b2_s512", |work| step(vidt(work)?))?;
        suite.works("step/vidt_nano_vkd_part", |work| part(vidt(work)?))
    })
}
