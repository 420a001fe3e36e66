//! ViDT-nano at its published widths, with 100 queries, learns eight scenes by heart in the loop that recipes use: each part
//! of it learns, down to the last refinement of a box, or the overlaps that AP asks for are not reached.

use candle_core::{DType, Device, Result, Tensor};
use std::collections::BTreeMap;
use std::time::Instant;
use vkd_models::{DetectorArchitecture, DetectorOutput, DetectorStudent, VidtConfig};
use vkd_nn::Context;
use vkd_train::{
    DetectionDataset, DetectionRecipe, EventKind, RunFolderOf, check, evaluate_detector, train_arm,
};

/// Images of the published sizes are too large for a test; the widths are its own.
const SIDE: usize = 64;

#[test]
#[ignore = "minutes; cargo xtask ci --full runs it"]
fn vidt_nano_learns_eight_scenes_by_heart() -> Result<()> {
    let recipe = DetectionRecipe::parse(include_str!("vidt_long.toml"), "vidt_long.toml", &[])?;
    // Dropout is against learning by heart.
    let nano = VidtConfig { decoder_dropout: 0., ..VidtConfig::nano() };
    assert_eq!(recipe.student, DetectorArchitecture::Vidt(nano));
    let data = DetectionDataset::open(&recipe.data)?;
    check(&recipe, &data)?;
    assert_eq!((data.train.len(), data.size(data.train[0])?), (8, [SIDE; 2]));

    let folder = tempfile::tempdir()?;
    let run = RunFolderOf::<vkd_train::Detection>::create(folder.path(), recipe, false)?;
    let start = Instant::now();
    let report = train_arm(&run, &data, "none", &mut |event| {
        if let EventKind::Step { loss, .. } = &event.kind {
            println!("step {:4}: loss {loss:.4}, {:.0?}", event.step, start.elapsed());
        }
        Ok(())
    })?;
    println!("{} steps in {:.0} s", run.recipe().training.steps, report.seconds);

    // From its file: what a run keeps is what has learnt.
    let student =
        DetectorStudent::load(&run.arm_path("none", "student.safetensors"), &Device::Cpu)?;
    let (scores, _) = evaluate_detector(&student, &data, &run.recipe().data, &data.train, 8)?;
    println!("on the training scenes: AP, AP50, .. {:?}", scores.stats());
    assert!(scores.ap.is_some_and(|ap| ap >= 0.9), "{scores:?}");

    let images = Tensor::zeros((2, 3, SIDE, SIDE), DType::F32, &Device::Cpu)?;
    let DetectorOutput::Queries(output) =
        student.network().forward(&images, None, &Context::eval())?
    else {
        candle_core::bail!("expected predictions of queries")
    };
    assert_eq!(output.logits.dims(), [7, 2, 100, 10]);
    assert_eq!(output.boxes.dims(), [7, 2, 100, 4]);
    let shapes: BTreeMap<&str, &[usize]> =
        output.taps.iter().map(|(name, tap)| (name.as_str(), tap.dims())).collect();
    let documented: BTreeMap<&str, &[usize]> = [
        ("patch0", &[2, 256, 8, 8][..]),
        ("patch1", &[2, 256, 4, 4]),
        ("patch2", &[2, 256, 2, 2]),
        ("patch3", &[2, 256, 1, 1]),
        ("body_det", &[2, 100, 256]),
        ("neck_det", &[7, 2, 100, 256]),
    ]
    .into();
    assert_eq!(shapes, documented);
    Ok(())
}
