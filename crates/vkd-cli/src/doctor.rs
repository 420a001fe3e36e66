//! `vkd doctor`: whether machine, data and teacher are fit for a recipe.

use crate::dry_run::bytes;
use crate::machine::{self, kibibytes};
use crate::recipe_args::RecipeArgs;
use crate::shown::{Shown, for_task};
use candle_core::{Result, bail};
use indicatif::ProgressBar;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use vkd_train::{
    ComputeDevice, DataConfig, Dataset, DetectionDataset, DetectionRecipe, OnCorrupt, RecipeOf,
    Samples,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Decode every image, on all processors, and name those that can't be read; without it image files are only looked at
    #[arg(long)]
    decode: bool,
}

/// The findings, line by line.
#[derive(Default)]
pub(crate) struct Findings {
    text: String,
    problems: usize,
}

impl Findings {
    fn fine(&mut self, what: &str, found: &str) {
        self.text.push_str(&format!("ok       {what}: {found}\n"));
    }

    fn note(&mut self, what: &str, found: &str) {
        self.text.push_str(&format!("note     {what}: {found}\n"));
    }

    fn problem(&mut self, what: &str, found: &str) {
        self.problems += 1;
        self.text.push_str(&format!("PROBLEM  {what}: {found}\n"));
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut found = Findings::default();
    machine(&mut found);
    match args.recipe.load() {
        Ok(recipe) => for_task!(recipe, recipe => of_task(&recipe, args.decode, &mut found)),
        Err(e) => found.problem("recipe", &vkd_train::plain(&e)),
    }
    crate::print(&found.text)?;
    match found.problems {
        0 => Ok(()),
        n => bail!("doctor: {n} problem{}", if n == 1 { "" } else { "s" }),
    }
}

fn machine(found: &mut Findings) {
    let commit = machine::commit().map(|c| format!(", commit {c}")).unwrap_or_default();
    found.fine("vkd", &format!("{}{commit}", env!("CARGO_PKG_VERSION")));
    found.fine("machine", &format!("{}, {}", machine::description(), std::env::consts::OS));
    let memory = |key| kibibytes("/proc/meminfo", key).map(|n| bytes(n as f64));
    match (memory("MemTotal"), memory("MemAvailable")) {
        (Some(total), Some(free)) => found.fine("memory", &format!("{total}, {free} available")),
        _ => found.note("memory", "not known on this system"),
    }
    found.fine("instructions", instructions());
    let set = |name: &str| std::env::var(name).map_or("not set".to_owned(), |v| format!("={v}"));
    found.fine(
        "threads",
        &format!(
            "{} arms side by side with one thread each; alone {} (RAYON_NUM_THREADS {}, CANDLE_NUM_THREADS {})",
            machine::processors(),
            candle_core::utils::get_num_threads(),
            set("RAYON_NUM_THREADS"),
            set("CANDLE_NUM_THREADS")
        ),
    );
}

/// Whether the recipe's device is there.
fn device(device: ComputeDevice, found: &mut Findings) {
    let with = match cfg!(feature = "cuda") {
        true => "with CUDA; training.device = \"cuda\" takes a GPU",
        false => "without CUDA",
    };
    match (device, device.describe()) {
        (_, Err(e)) => found.problem("device", &vkd_train::plain(&e)),
        (ComputeDevice::Cpu, Ok(_)) => found.fine("device", &format!("CPU; built {with}")),
        (ComputeDevice::Cuda(_), Ok(name)) => found.fine("device", &name),
    }
}

/// What the row kernels can use.
#[cfg(target_arch = "x86_64")]
fn instructions() -> &'static str {
    match is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        true => "AVX2 and FMA",
        false => "baseline x86-64: the row kernels run at about half their speed",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn instructions() -> &'static str {
    "those of the target"
}

fn of_task<W: Shown>(recipe: &RecipeOf<W>, decode: bool, found: &mut Findings) {
    found.fine("recipe", &format!("{}, arms {}", recipe.name, recipe.arms.join(", ")));
    device(recipe.training.device, found);
    let Some(data) = W::look_at(recipe, decode, found) else { return };
    match (vkd_train::check(recipe, &data), &recipe.teacher.checkpoint) {
        (Err(e), _) => found.problem("networks", &vkd_train::plain(&e)),
        (Ok(()), Some(path)) => found.fine("teacher", &format!("{} fits", path.display())),
        (Ok(()), None) => found.fine("teacher", "is trained first; all sizes fit"),
    }
}

/// Looks at a data set of images with classes.
pub(crate) fn classes(config: &DataConfig, decode: bool, found: &mut Findings) -> Option<Dataset> {
    if let Some(dir) = &config.dir {
        folders(dir, !decode, found);
    }
    let data = match Dataset::open(config) {
        Ok(data) => data,
        Err(e) => {
            found.problem("data", &vkd_train::plain(&e));
            return None;
        }
    };
    found.fine("data", &overview(&data));
    for (part, indices) in
        [("training", &data.train), ("validation", &data.validation), ("test", &data.test)]
    {
        let mut counts = vec![0usize; data.class_names.len()];
        for &index in indices {
            if let Some(count) = counts.get_mut(data.label(index) as usize) {
                *count += 1;
            }
        }
        let empty: Vec<&str> = data
            .class_names
            .iter()
            .zip(&counts)
            .filter(|(_, n)| **n == 0)
            .map(|(name, _)| name.as_str())
            .collect();
        let (least, most) = (counts.iter().min().unwrap_or(&0), counts.iter().max().unwrap_or(&0));
        match (empty.is_empty(), part) {
            (true, _) => found.fine(part, &format!("{least} to {most} images a class")),
            (false, "training") => found.problem(part, &format!("no image of {}", shown(&empty))),
            (false, _) => found.note(part, &format!("no image of {}", shown(&empty))),
        }
    }
    if decode {
        decoded(&data, config.on_corrupt, found);
    }
    if config.labels < data.class_names.len() {
        let (labels, classes) = (config.labels, data.class_names.len());
        found.note("labels", &format!("{labels} for {classes} classes: some have none"));
    }
    Some(data)
}

/// The sizes of a data set.
fn overview(data: &impl Samples) -> String {
    let [train, validation, test] = data.counts();
    let classes = data.class_names().len();
    format!(
        "{}: {train} training, {validation} validation, {test} test images of {classes} classes",
        data.name()
    )
}

/// Looks at a data set of images with boxes.
pub(crate) fn objects(
    recipe: &DetectionRecipe,
    decode: bool,
    found: &mut Findings,
) -> Option<DetectionDataset> {
    let data = match DetectionDataset::open(&recipe.data) {
        Ok(data) => data,
        Err(e) => {
            found.problem("data", &vkd_train::plain(&e));
            return None;
        }
    };
    found.fine("data", &overview(&data));
    for (part, indices) in
        [("training", &data.train), ("validation", &data.validation), ("test", &data.test)]
    {
        let (mut counts, mut bare) = (vec![0usize; data.class_names.len()], 0);
        for &index in indices {
            let all = data.annotations(index).unwrap_or_default();
            bare += usize::from(all.is_empty());
            for class in all.iter().map(|a| a.class as usize) {
                if let Some(count) = counts.get_mut(class) {
                    *count += 1;
                }
            }
        }
        let boxes: usize = counts.iter().sum();
        let none = counts.iter().filter(|n| **n == 0).count();
        let text = format!("{boxes} boxes, {bare} images without; {none} classes never occur");
        match (boxes, part) {
            (0, "training") => found.problem(part, "no boxes"),
            _ => found.fine(part, &text),
        }
    }
    let counts = data.counts();
    let odd = [
        (counts.crowds, "crowds, not learnt from"),
        (counts.empty, "boxes without area, left out"),
        (counts.clipped, "boxes beyond their image, cut at its border"),
    ];
    for (n, what) in odd {
        if n > 0 {
            found.note("boxes", &format!("{n} {what}"));
        }
    }
    if decode {
        let bar = ProgressBar::new(data.len() as u64);
        let read = |index: usize| {
            let error = data.sample(index).err().map(|e| vkd_train::plain(&e));
            bar.inc(1);
            error
        };
        let unreadable: Vec<String> = (0..data.len()).filter_map(read).collect();
        bar.finish_and_clear();
        report_unreadable(&unreadable, data.len(), OnCorrupt::Stop, found);
    }
    Some(data)
}

/// Decodes all images; the unreadable ones by name, each with what is wrong.
fn decoded(data: &Dataset, on_corrupt: OnCorrupt, found: &mut Findings) {
    let bar = ProgressBar::new(data.len() as u64);
    let unreadable = data.unreadable(|| bar.inc(1));
    bar.finish_and_clear();
    report_unreadable(&unreadable, data.len(), on_corrupt, found);
}

fn report_unreadable(
    unreadable: &[String],
    all: usize,
    on_corrupt: OnCorrupt,
    found: &mut Findings,
) {
    if unreadable.is_empty() {
        return found.fine("images", &format!("all {all} decoded"));
    }
    let list = format!(
        "{} of {all} can't be read:\n         {}",
        unreadable.len(),
        unreadable.join("\n         ")
    );
    match on_corrupt {
        OnCorrupt::Stop => found.problem("images", &list),
        // As the recipe wishes.
        OnCorrupt::Skip => found.note("images", &list),
    }
}

/// The first few of many names.
fn shown(names: &[&str]) -> String {
    match names {
        [first @ .., _, _] if names.len() > 6 => {
            format!("{} and {} more", first[..4].join(", "), names.len() - 4)
        }
        _ => names.join(", "),
    }
}

/// Pictures in the class folders below `dir`, if it has any: how many, of which classes none, and with `headers` which don't
/// begin as one.
fn folders(dir: &Path, headers: bool, found: &mut Findings) {
    let entries = |dir: &Path| -> Vec<PathBuf> {
        let read = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let mut all: Vec<PathBuf> = read.collect();
        all.sort();
        all
    };
    // `train` and `val` with the classes below, or the classes themselves.
    let mut classes: BTreeMap<PathBuf, usize> = BTreeMap::new();
    let (mut broken, mut pending) = (Vec::new(), vec![(dir.to_owned(), 0)]);
    while let Some((folder, depth)) = pending.pop() {
        let (mut pictures, mut below) = (0, false);
        for path in entries(&folder) {
            if path.is_dir() {
                below = true;
                if depth < 2 {
                    pending.push((path, depth + 1));
                }
            } else if depth > 0 && is_picture(&path) {
                pictures += 1;
                if headers && image::image_dimensions(&path).is_err() {
                    broken.push(path);
                }
            }
        }
        if depth > 0 && !below {
            classes.insert(folder, pictures);
        }
    }
    let name = |path: &Path| path.strip_prefix(dir).unwrap_or(path).display().to_string();
    let pictures: usize = classes.values().sum();
    if pictures == 0 && classes.is_empty() {
        return;
    }
    found.fine("folders", &format!("{} class folders, {pictures} pictures", classes.len()));
    let empty: Vec<String> =
        classes.iter().filter(|(_, n)| **n == 0).map(|(path, _)| name(path)).collect();
    if !empty.is_empty() {
        let empty: Vec<&str> = empty.iter().map(String::as_str).collect();
        found.problem("folders", &format!("{} empty: {}", empty.len(), shown(&empty)));
    }
    if !broken.is_empty() {
        let names: Vec<String> = broken.iter().map(|path| name(path)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        found.problem("pictures", &format!("{} can't be read: {}", names.len(), shown(&names)));
    }
}

fn is_picture(path: &Path) -> bool {
    let known = ["jpg", "jpeg", "png", "bmp", "webp"];
    let extension = path.extension().and_then(|e| e.to_str()).map(str::to_lowercase);
    extension.is_some_and(|e| known.contains(&e.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_folders_and_broken_pictures_are_found() {
        let dir = tempfile::tempdir().unwrap();
        for class in ["train/cat", "train/dog", "val/cat"] {
            std::fs::create_dir_all(dir.path().join(class)).unwrap();
        }
        let picture = image::GrayImage::new(4, 4);
        picture.save(dir.path().join("train/cat/a.png")).unwrap();
        picture.save(dir.path().join("val/cat/b.PNG")).unwrap();
        std::fs::write(dir.path().join("train/cat/c.jpg"), "no picture").unwrap();
        std::fs::write(dir.path().join("train/cat/notes.txt"), "left alone").unwrap();
        let mut found = Findings::default();
        folders(dir.path(), true, &mut found);
        assert_eq!(found.problems, 2, "{}", found.text);
        for part in [
            "3 class folders, 3 pictures",
            "folders: 1 empty: train/dog",
            "1 can't be read: train/cat/c.jpg",
        ] {
            assert!(found.text.contains(part), "{part}: {}", found.text);
        }
        let mut none = Findings::default();
        folders(&dir.path().join("train/cat"), true, &mut none);
        assert!(none.text.is_empty(), "no class folders: another kind of data");
        assert_eq!(shown(&["a", "b", "c", "d", "e", "f", "g"]), "a, b, c, d and 3 more");
    }
}
