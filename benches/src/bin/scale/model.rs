//! What a step costs on n ranks, by a model of four numbers: fitted to one rank and to the sums of two and four, held against the steps
//! of two and four, then used for sizes that nobody has measured.

use candle_core::{Error, Result, bail};
use serde_json::Value;
use vkd_models::{Architecture, DeitConfig, ModelConfig, RegnetConfig, VidtConfig};

/// Bytes of a bucket, as recipes have it.
const BUCKET: f64 = (16 << 20) as f64;
/// Sums of a step that every task has beside the buckets: which gradients there are, and loss and terms.
const SMALL: f64 = 2.;
/// Those of a batch norm, two forward and one backward, and those of a tap: of its rows, and where both sides are standardised three
/// forward on each and two backward.
const BATCH_NORM: f64 = 3.;
const TAP: f64 = 1.;
const STANDARDIZED_TAP: f64 = TAP + 8.;
/// Batch norms of a DeiT with a convolutional stem.
const STEM: f64 = 3.;

/// Rows of a file of measurements.
struct Rows(Vec<Value>);

impl Rows {
    /// A number of the only row of some ranks, threads and images.
    fn step(&self, (ranks, threads, images): (u64, u64, u64), key: &str) -> Result<f64> {
        let found = self.0.iter().find(|row| {
            row["name"] == crate::STEP
                && (row["ranks"].as_u64(), row["threads"].as_u64(), row["images_a_rank"].as_u64())
                    == (Some(ranks), Some(threads), Some(images))
        });
        match found.and_then(|row| row[key].as_f64()) {
            Some(value) => Ok(value),
            None => {
                bail!("scale: expected {key} of {ranks} x {threads} with {images} images, got none")
            }
        }
    }

    /// Seconds of a call, and seconds a byte, from the smallest and the largest sum of some ranks.
    fn sums(&self, ranks: u64) -> Result<(f64, f64)> {
        let of = |row: &Value| Some((row["bytes"].as_f64()?, row["median_s"].as_f64()?));
        let rows = self.0.iter().filter(|r| r["name"] == crate::SUM && r["ranks"] == ranks);
        let all: Vec<(f64, f64)> = rows.filter_map(of).collect();
        match (all.first(), all.last()) {
            (Some((few, latency)), Some((many, long))) if many > few => {
                Ok((*latency, (long - latency) / (many - few)))
            }
            _ => bail!("scale: expected sums of {ranks} ranks, got none"),
        }
    }
}

/// Prints what a file of measurements says, and what follows from it, as Markdown.
pub(crate) fn print(file: &str) -> Result<()> {
    let rows = Rows(serde_json::from_str(&std::fs::read_to_string(file)?).map_err(Error::wrap)?);
    let median = |of| rows.step(of, "median_s");
    // One thread alone with four images and with eight: a step is fixed + image times images.
    let image = (median((1, 1, 8))? - median((1, 1, 4))?) / 4.;
    let fixed = median((1, 1, 4))? - 4. * image;
    let efficiency = median((1, 2, 16))? / median((2, 1, 8))?;
    let waiting = rows.step((2, 1, 8), "in_calls_s")? / median((2, 1, 8))?;
    println!("| fitted | value |\n| --- | --- |");
    println!("| an image, one thread | {:.0} ms |", 1e3 * image);
    println!("| a step without images, one thread | {:.0} ms |", 1e3 * fixed);
    for ranks in [2, 4] {
        let (latency, byte) = rows.sums(ranks)?;
        println!(
            "| a sum over {ranks} ranks | {:.0} µs and {:.2} GB/s |",
            1e6 * latency,
            1e-9 / byte
        );
    }
    println!(
        "\nTwo ranks of one thread against one of two, 16 images: efficiency {efficiency:.2}; {:.1} % of the step in calls.\n",
        100. * waiting
    );

    // What is predicted before it is measured has no such row yet.
    let measured = |of, key: &str, show: &dyn Fn(f64) -> String| {
        rows.step(of, key).map_or_else(|_| "not yet".to_owned(), show)
    };
    let bytes = 4. * parameters()?;
    let calls = (bytes / BUCKET).ceil() + SMALL + TAP + STEM * BATCH_NORM;
    println!(
        "| | images a rank | predicted s | measured s | predicted MB | measured MB | predicted calls | measured calls |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (ranks, images, cores) in [(2u64, 8u64, 1.), (4, 4, 0.5), (4, 6, 0.5)] {
        let (latency, byte) = rows.sums(ranks)?;
        let predicted = (fixed + image * images as f64) / cores + calls * latency + bytes * byte;
        let of = (ranks, 1, images);
        println!(
            "| {ranks} ranks of {cores} core | {images} | {predicted:.2} | {} | {:.1} | {} | {calls} | {} |",
            measured(of, "median_s", &|s| format!("{s:.2}")),
            1e-6 * bytes,
            measured(of, "bytes", &|bytes| format!("{:.1}", 1e-6 * bytes)),
            measured(of, "calls", &|calls| calls.to_string())
        );
    }
    println!();
    table(
        "DeiT-S, the recipe's 512 images a step",
        &deit_small()?,
        &[8, 16, 32, 64, 128, 256, 512],
        |_| 512.,
    );
    table("ViDT-tiny at 800 x 1333, two images a GPU", &vidt_tiny()?, &[8, 16, 32, 64], |gpus| {
        2. * gpus
    });
    Ok(())
}

/// Values that the measured step trains: DeiT-Ti and the projector's free parameter.
fn parameters() -> Result<f64> {
    Ok(imagenet(Architecture::Deit(DeitConfig::student(192))).cost()?.parameters as f64
        + 192. * 3024.)
}

fn imagenet(architecture: Architecture) -> ModelConfig {
    ModelConfig { image_size: 224, channels: 3, classes: 1000, architecture }
}

/// What a distillation asks for: trained values, and multiply-adds of an image by student and teacher.
struct Work {
    parameters: f64,
    student: f64,
    teacher: f64,
    /// Sums beside those that every task has.
    calls: f64,
}

fn deit_small() -> Result<Work> {
    let student = imagenet(Architecture::Deit(DeitConfig::student(384))).cost()?;
    let teacher = imagenet(Architecture::Regnet(RegnetConfig::regnety_160())).cost()?;
    Ok(Work {
        parameters: student.parameters as f64 + 384. * 3024.,
        student: student.multiply_adds as f64,
        teacher: teacher.multiply_adds as f64,
        calls: TAP + STEM * BATCH_NORM,
    })
}

fn vidt_tiny() -> Result<Work> {
    let cost = |config: VidtConfig| config.cost(3, 91, [800, 1333]);
    let (student, teacher) = (cost(VidtConfig::tiny())?, cost(VidtConfig::base())?);
    Ok(Work {
        // Six taps of 256 x 256 with gain and bias.
        parameters: student.parameters as f64 + 6. * (256. * 256. + 512.),
        student: student.multiply_adds as f64,
        teacher: teacher.multiply_adds as f64,
        // And one of the objects.
        calls: 6. * STANDARDIZED_TAP + 1.,
    })
}

/// Of one GPU of the H100's kind; assumed, not measured.
mod gpu {
    /// Floating-point operations a second that training reaches: 40 % of the dense bf16 peak.
    pub(super) const RATE: f64 = 4e14;
    /// Bytes a second of its memory.
    pub(super) const MEMORY: f64 = 3e12;
    /// Bytes a second to GPUs of its node of eight, and to those of others (400 Gb/s each).
    pub(super) const LINKS: [f64; 2] = [3e11, 5e10];
    /// Seconds of a call within a node, and for each doubling of nodes.
    pub(super) const LATENCY: f64 = 2e-5;
}

/// Prints the model for GPUs.
fn table(title: &str, work: &Work, gpus: &[u32], batch: impl Fn(f64) -> f64) {
    println!(
        "{title}: {:.1} M values, {:.1} G and {:.1} G multiply-adds an image of student and teacher.\n",
        1e-6 * work.parameters,
        1e-9 * work.student,
        1e-9 * work.teacher
    );
    println!(
        "| GPUs | images each | compute ms | sums ms | step ms | efficiency | with bf16 sums beside the backward pass |"
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let bytes = 4. * work.parameters;
    let calls = (bytes / BUCKET).ceil() + SMALL + work.calls;
    for &count in gpus {
        let n = f64::from(count);
        let images = batch(n) / n;
        // A student's pass three times, two operations a multiply-add; AdamW reads four numbers a value and writes three.
        let image = 2. * (3. * work.student + work.teacher) / gpu::RATE;
        let compute = images * image + 28. * work.parameters / gpu::MEMORY;
        let nodes = (n / 8.).max(1.);
        let link = gpu::LINKS[usize::from(nodes > 1.)];
        let latency = calls * gpu::LATENCY * (1. + nodes.log2());
        let transfer = 2. * (n - 1.) / n * bytes / link;
        let (sums, beside) = (latency + transfer, compute.max(latency + transfer / 2.));
        println!(
            "| {count} | {images} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} ms, {:.2} |",
            1e3 * compute,
            1e3 * sums,
            1e3 * (compute + sums),
            images * image / (compute + sums),
            1e3 * beside,
            images * image / beside
        );
    }
    println!();
}
