//! Draws max|QᵀQ - I| against the scale of the parameter, for the three maps, as SVG on standard output.
//!
//! `cargo run --release -p vkd-ortho --example residual_vs_scale > docs/images/residual-vs-scale.svg`

use candle_core::{DType, Device, Result, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use vkd_ortho::{OrthogonalMap, stiefel_residual};

const SHAPE: (usize, usize) = (768, 192);
const DECADES: std::ops::RangeInclusive<i32> = -6..=6;
/// Plot area in pixels: left, top, width, height.
const AREA: (f64, f64, f64, f64) = (70., 20., 480., 330.);
/// Exponents of the vertical axis.
const RANGE: (f64, f64) = (-17., -5.);

/// Gaussian entries; with `rank`, the rows below the top block span that many dimensions only.
fn parameter(rank: Option<usize>) -> Result<Tensor> {
    let (n, k) = SHAPE;
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut gaussian = |rows: usize, columns: usize| {
        let values: Vec<f64> = (0..rows * columns).map(|_| rng.sample(StandardNormal)).collect();
        Tensor::from_vec(values, (rows, columns), &Device::Cpu)
    };
    let top = gaussian(k, k)?;
    let bottom = match rank {
        Some(rank) => gaussian(n - k, rank)?.matmul(&gaussian(rank, k)?)?,
        None => gaussian(n - k, k)?,
    };
    Tensor::cat(&[top, bottom], 0)
}

/// `(decade, log10 of the residual)` at every scale.
fn series(map: OrthogonalMap, dtype: DType, raw: &Tensor) -> Result<Vec<(f64, f64)>> {
    let point = |decade: i32| {
        let scaled = (raw * 10f64.powi(decade))?.to_dtype(dtype)?;
        // A residual of zero is drawn at the lower edge.
        let residual = stiefel_residual(&map.apply(&scaled)?)?.max(1e-17);
        Ok((f64::from(decade), residual.log10()))
    };
    DECADES.map(point).collect()
}

fn at((decade, exponent): (f64, f64)) -> (f64, f64) {
    let (left, top, width, height) = AREA;
    let (first, last) = (f64::from(*DECADES.start()), f64::from(*DECADES.end()));
    let x = left + width * (decade - first) / (last - first);
    (x, top + height * (RANGE.1 - exponent) / (RANGE.1 - RANGE.0))
}

fn main() -> Result<()> {
    let (left, top, width, height) = AREA;
    let (right, bottom) = (left + width, top + height);
    println!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 400\" font-family=\"sans-serif\" font-size=\"12\">"
    );
    println!("<rect width=\"800\" height=\"400\" fill=\"white\"/>");
    for exponent in (RANGE.0 as i32..=RANGE.1 as i32).step_by(2) {
        let (_, y) = at((0., f64::from(exponent)));
        println!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"#ddd\"/>");
        println!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">1e{exponent}</text>",
            left - 6.,
            y + 4.
        );
    }
    for decade in DECADES.step_by(2) {
        let (x, _) = at((f64::from(decade), 0.));
        println!("<path d=\"M{x:.1} {top}V{bottom}\" stroke=\"#eee\"/>");
        println!(
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">1e{decade}</text>",
            bottom + 16.
        );
    }
    for (law, name) in [(-6., "law of f32"), (-13., "law of f64")] {
        let (_, y) = at((0., law));
        println!("<path d=\"M{left} {y:.1}H{right}\" stroke=\"black\" stroke-dasharray=\"6 4\"/>");
        println!("<text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", y - 4.);
    }
    let (middle, side) = (left + width / 2., top + height / 2.);
    println!(
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">standard deviation of the parameter</text>",
        bottom + 38.
    );
    println!(
        "<text transform=\"translate(16 {side}) rotate(-90)\" text-anchor=\"middle\">max |QᵀQ − I|</text>"
    );

    let colors = ["#1b6ca8", "#c8553d", "#3a7d44"];
    let mut row = 0;
    for (rank, what) in [(None, "Gaussian"), (Some(SHAPE.1 / 2), "half rank below")] {
        let raw = parameter(rank)?;
        for dtype in [DType::F32, DType::F64] {
            for (map, color) in OrthogonalMap::ALL.into_iter().zip(colors) {
                let points: Vec<String> = series(map, dtype, &raw)?
                    .into_iter()
                    .map(at)
                    .map(|(x, y)| format!("{x:.1},{y:.1}"))
                    .collect();
                let dash = if rank.is_some() { " stroke-dasharray=\"2 3\"" } else { "" };
                let weight = if dtype == DType::F32 { 2.2 } else { 1.1 };
                let style = format!("stroke=\"{color}\" stroke-width=\"{weight}\"{dash}");
                println!("<polyline points=\"{}\" fill=\"none\" {style}/>", points.join(" "));
                let y = top + 10. + 18. * f64::from(row);
                println!("<path d=\"M{} {y}h22\" {style}/>", right + 12.);
                println!(
                    "<text x=\"{}\" y=\"{}\">{map}, {}, {what}</text>",
                    right + 38.,
                    y + 4.,
                    dtype.as_str()
                );
                row += 1;
            }
        }
    }
    println!("</svg>");
    Ok(())
}
