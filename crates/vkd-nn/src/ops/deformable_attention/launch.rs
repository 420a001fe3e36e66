//! What deformable attention launches on a device.

use super::cpu::Geometry;
use candle_core::{DType, Result, bail};
use vkd_norm::program::{Arg, Program, Size, Word, accumulator, count, suffix};

const OP: &str = super::OP;

/// Columns of a head, and pixels of a map, that a warp sums.
fn gathered(dtype: DType) -> (usize, usize) {
    (32, if accumulator(dtype) == DType::F64 { 32 } else { 64 })
}

/// The table of the maps, and how many blocks of pixels all have.
fn maps(g: &Geometry, dtype: DType) -> (Vec<Word>, usize) {
    let mut words = Vec::with_capacity(4 * g.levels.len());
    let mut tiles = 0;
    for level in &g.levels {
        words.extend([level.start, level.rows, level.cols, tiles].map(|n| Word::U64(n as u64)));
        tiles += (level.rows * level.cols).div_ceil(gathered(dtype).1);
    }
    (words, tiles)
}

/// Queries, heads, width of a head, levels, points and pixels.
fn sizes(g: &Geometry) -> Result<Vec<Arg>> {
    // Rows and columns are compared as signed numbers, and points of a head counted in 32 bits.
    if g.pixels > i32::MAX as usize || g.queries.saturating_mul(g.points) > i32::MAX as usize {
        bail!("{OP}: expected less than 2^31 pixels and points of a level on a device")
    }
    let all = [g.queries, g.heads, g.dim, g.levels.len(), g.points, g.pixels];
    all.into_iter().map(|n| count(OP, n)).collect()
}

/// Of values, locations and weights; buffer 0 is the output.
pub(super) fn forward(g: &Geometry, dtype: DType) -> Result<Program> {
    let mut program = Program::default();
    let entries = g.batch * g.queries * g.heads * g.dim;
    let out = program.buffer(dtype, entries);
    let table = program.table(maps(g, dtype).0);
    let mut args = [0, 1, 2].map(Arg::Input).to_vec();
    args.extend([table, out, count(OP, entries)?]);
    args.extend(sizes(g)?);
    program.launch(format!("{OP}_{}", suffix(OP, dtype)?), Size::entries(entries), &args)?;
    Ok(program)
}

/// Of values, locations, weights and the output's gradient; buffers 0 to 2 are the gradients of the first three, of which that of the
/// values is empty where it is not wanted, and so are both others.
pub(super) fn backward(
    g: &Geometry,
    dtype: DType,
    of_values: bool,
    of_points: bool,
) -> Result<Program> {
    let (mut program, end, sizes) = (Program::default(), suffix(OP, dtype)?, sizes(g)?);
    let rows = g.batch * g.queries * g.heads;
    let taps = rows * g.levels.len() * g.points;
    let values = g.batch * g.pixels * g.heads * g.dim;
    let dvalues = program.buffer(dtype, if of_values { values } else { 0 });
    let points = if of_points { taps } else { 0 };
    let [dlocations, dweights] = [2 * points, points].map(|entries| program.buffer(dtype, entries));
    let (words, tiles) = maps(g, dtype);
    let table = program.table(words);
    let [values, locations, weights, grad] = [0, 1, 2, 3].map(Arg::Input);
    if of_points {
        let mut args = vec![values, locations, weights, grad, table, dlocations, dweights];
        args.push(count(OP, rows)?);
        args.extend(&sizes);
        let warps = 8;
        let grid = [rows.div_ceil(warps).max(1), 1, 1];
        let size = Size { grid, block: [32 * warps, 1], shared: 0 };
        program.launch(format!("{OP}_points_{end}"), size, &args)?;
    }
    if of_values {
        let tasks = g.dim.div_ceil(gathered(dtype).0) * tiles * g.heads * g.batch;
        let mut args = vec![locations, weights, grad, table, dvalues];
        args.extend([count(OP, tasks)?, count(OP, tiles)?]);
        args.extend(&sizes);
        let size = Size { grid: [tasks.div_ceil(4).max(1), 1, 1], block: [128, 1], shared: 0 };
        program.launch(format!("{OP}_values_{end}"), size, &args)?;
    }
    Ok(program)
}
