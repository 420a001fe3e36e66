//! Draws the condition number of the shrunk covariance against N / d, for each estimator, as SVG on standard output.
//!
//! `cargo run --release -p vkd-norm --example conditioning_vs_rows > docs/images/whitening-conditioning.svg`

use candle_core::{Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vkd_norm::{Deficient, Moments, Shrinkage, WhitenConfig, WhitenMethod, Whitener};

/// Channels, and the condition number of the covariance that the rows are drawn from.
const CHANNELS: usize = 64;
const TRUE_CONDITION: f64 = 1e3;
const SEEDS: u64 = 8;
/// Exponents of the two axes, horizontal in powers of two.
const DOUBLINGS: std::ops::RangeInclusive<i32> = -4..=6;
const RANGE: (f64, f64) = (0., 8.);
/// Plot area in pixels: left, top, width, height.
const AREA: (f64, f64, f64, f64) = (70., 20., 480., 330.);

/// Gaussian rows with variances spread evenly in the logarithm.
fn rows(count: usize, seed: u64) -> Result<Tensor> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Box and Muller: no crate more for one figure.
    let mut gaussian = || {
        let (u, v): (f64, f64) = (1. - rng.random::<f64>(), rng.random());
        (-2. * u.ln()).sqrt() * (2. * std::f64::consts::PI * v).cos()
    };
    let mut values = Vec::with_capacity(count * CHANNELS);
    for _ in 0..count {
        for channel in 0..CHANNELS {
            let share = channel as f64 / (CHANNELS - 1) as f64;
            values.push(gaussian() * TRUE_CONDITION.powf(-0.5 * share));
        }
    }
    Tensor::from_vec(values, (count, CHANNELS), &Device::Cpu)
}

/// log10 of the condition number on what is whitened, from the lengths of PCA's rows.
fn condition(rows: &Tensor, shrinkage: Shrinkage, deficient: Deficient) -> Result<f64> {
    let config = WhitenConfig { method: WhitenMethod::Pca, shrinkage, deficient };
    let whitener = Whitener::new(&Moments::from_rows(rows, None)?, config)?;
    let squares = whitener.matrix()?.sqr()?.sum(1)?.to_vec1::<f64>()?;
    let squares = &squares[..whitener.rank()];
    let (least, most) =
        squares.iter().fold((f64::INFINITY, 0f64), |(l, m), &s| (l.min(s), m.max(s)));
    Ok((most / least).log10())
}

/// `(log2 of N / d, log10 of the condition number)`, the mean over seeds.
fn series(shrinkage: Shrinkage, deficient: Deficient) -> Result<Vec<(f64, f64)>> {
    let mut points = Vec::new();
    // Quarters of a doubling.
    for at in DOUBLINGS.start() * 4..=DOUBLINGS.end() * 4 {
        let doublings = f64::from(at) / 4.;
        let count = (CHANNELS as f64 * doublings.exp2()).round() as usize;
        let mut sum = 0.;
        for seed in 0..SEEDS {
            sum += condition(&rows(count, seed)?, shrinkage, deficient)?;
        }
        points.push((doublings, sum / SEEDS as f64));
    }
    Ok(points)
}

fn at((doublings, exponent): (f64, f64)) -> (f64, f64) {
    let (left, top, width, height) = AREA;
    let (first, last) = (f64::from(*DOUBLINGS.start()), f64::from(*DOUBLINGS.end()));
    let x = left + width * (doublings - first) / (last - first);
    let share = (RANGE.1 - exponent.clamp(RANGE.0, RANGE.1)) / (RANGE.1 - RANGE.0);
    (x, top + height * share)
}

fn frame() {
    let (left, top, width, height) = AREA;
    let (right, bottom) = (left + width, top + height);
    println!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 400\" font-family=\"sans-serif\" font-size=\"12\">"
    );
    println!("<rect width=\"800\" height=\"400\" fill=\"white\"/>");
    for exponent in RANGE.0 as i32..=RANGE.1 as i32 {
        let (_, y) = at((0., f64::from(exponent)));
        println!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>");
        let (x, y) = (left - 6., y + 4.);
        println!("<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">1e{exponent}</text>");
    }
    for doublings in DOUBLINGS.step_by(2) {
        let (x, _) = at((f64::from(doublings), 0.));
        println!("<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#eee\"/>");
        let label = f64::from(doublings).exp2();
        let y = bottom + 16.;
        println!("<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>");
    }
    let (_, y) = at((0., TRUE_CONDITION.log10()));
    println!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"black\" stroke-dasharray=\"6 4\"/>");
    let y = y - 4.;
    println!("<text x=\"{right}\" y=\"{y:.1}\" text-anchor=\"end\">of the population</text>");
    let (middle, side, below) = (left + width / 2., top + height / 2., bottom + 38.);
    println!(
        "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">N / d, with d = {CHANNELS}</text>"
    );
    println!(
        "<text transform=\"translate(16 {side}) rotate(-90)\" text-anchor=\"middle\">condition number</text>"
    );
}

fn main() -> Result<()> {
    frame();
    let (left, top, width, _) = AREA;
    let right = left + width;
    let estimators = [
        ("none, on the spanned subspace", Shrinkage::Fixed(0.), Deficient::Truncate, "#888"),
        ("fixed, 1e-4 of the mean variance", Shrinkage::Fixed(1e-4), Deficient::Full, "#c8553d"),
        ("fixed, 1e-2 of the mean variance", Shrinkage::Fixed(1e-2), Deficient::Full, "#e0a030"),
        ("Ledoit-Wolf", Shrinkage::LedoitWolf, Deficient::Full, "#1b6ca8"),
        ("OAS", Shrinkage::Oas, Deficient::Full, "#3a7d44"),
    ];
    for (row, (name, shrinkage, deficient, color)) in estimators.into_iter().enumerate() {
        let points: Vec<String> = series(shrinkage, deficient)?
            .into_iter()
            .map(at)
            .map(|(x, y)| format!("{x:.1},{y:.1}"))
            .collect();
        let style = format!("stroke=\"{color}\" stroke-width=\"2\"");
        println!("<polyline points=\"{}\" fill=\"none\" {style}/>", points.join(" "));
        let (x, y) = (right + 12., top + 10. + 20. * row as f64);
        println!("<path d=\"M{x} {y}h22\" {style}/>");
        println!("<text x=\"{}\" y=\"{}\">{name}</text>", x + 28., y + 4.);
    }
    println!("</svg>");
    Ok(())
}
