//! Convolution by gathering the windows of a block of rows, for every stride, dilation and number of groups.

use super::cpu::{blocks, each};
use super::geometry::Geometry;
use crate::ops::{Real, gemm};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};

/// Pixels of one block: its windows stay in the second-level cache.
pub(super) fn pixels(g: &Geometry) -> usize {
    ((1 << 16) / g.depth()).clamp(16, 1024)
}

/// Calls `visit(offset in the image, offset in the windows, values)` for every run of values that a window of one group
/// shares with the image; taps outside the image are left out.
fn runs(
    g: &Geometry,
    group: usize,
    first: usize,
    rows: usize,
    mut visit: impl FnMut(usize, usize, usize),
) {
    let ([height, width, c], w, [cg, _]) = (g.input, &g.window, g.group());
    let (cols, [kh, kw], depth) = (g.output[1], w.kernel, g.depth());
    for y in 0..rows {
        for i in 0..kh {
            let Some(row) = w.pixel(0, first + y, i, height) else { continue };
            for x in 0..cols {
                let target = (y * cols + x) * depth + i * kw * cg;
                if g.groups == 1 && w.dilation[1] == 1 {
                    // The taps of a row lie side by side.
                    let start = x * w.stride[1];
                    let skip = w.padding[1].saturating_sub(start).min(kw);
                    let end = (width + w.padding[1]).saturating_sub(start).min(kw);
                    if skip < end {
                        let from = (row * width + start + skip - w.padding[1]) * c;
                        visit(from, target + skip * c, (end - skip) * c);
                    }
                } else {
                    for j in 0..kw {
                        if let Some(col) = w.pixel(1, x, j, width) {
                            visit((row * width + col) * c + group * cg, target + j * cg, cg);
                        }
                    }
                }
            }
        }
    }
}

/// Overwrites `windows` with those of one group in `rows` result rows from `first` on. What lies outside the image must be
/// zero there already; it lies at the same places for every image and group.
fn gather<T: Real>(
    g: &Geometry,
    image: &[T],
    group: usize,
    [first, rows]: [usize; 2],
    windows: &mut [T],
) {
    runs(g, group, first, rows, |from, to, len| {
        let (to, from) = (&mut windows[to..to + len], &image[from..from + len]);
        // A call of memcpy costs more than a few moves.
        if len <= 8 {
            to.iter_mut().zip(from).for_each(|(t, f)| *t = *f);
        } else {
            to.copy_from_slice(from);
        }
    });
}

/// Adds bias and convolution to the zeros of `out`.
pub(super) fn forward<T: Real>(
    g: &Geometry,
    xs: &[T],
    packed: &[T],
    bias: Option<&[T]>,
    out: &mut [T],
) {
    let ([_, cols, o], [_, og], depth) = (g.output, g.group(), g.depth());
    each(g.multiplications(), blocks(g, g.rows_of(pixels(g)), out), |mut block| {
        block.start(bias);
        let image = &xs[block.image * g.input_len()..][..g.input_len()];
        let pixels = block.rows * cols;
        let mut windows = vec![T::zero(); pixels * depth];
        for group in 0..g.groups {
            gather(g, image, group, [block.first, block.rows], &mut windows);
            let filters = &packed[group * depth * og..][..depth * og];
            matmul(
                gemm::rows_mut(&mut block.out[group * og..], pixels, og, o),
                Accum::Add,
                MatRef::from_row_major_slice(&windows, pixels, depth),
                MatRef::from_row_major_slice(filters, og, depth).transpose(),
                T::one(),
                Par::Seq,
            );
        }
    });
}

/// Adds the adjoint of the convolution to `out`: each window's gradient goes back to its pixels, image by image.
pub(super) fn scatter<T: Real>(g: &Geometry, grad: &[T], packed: &[T], out: &mut [T]) {
    let ([_, cols, o], [_, og], depth) = (g.output, g.group(), g.depth());
    if grad.is_empty() || out.is_empty() {
        return;
    }
    let rows = g.rows_of(pixels(g));
    let tasks = out.chunks_mut(g.input_len()).zip(grad.chunks(g.output_len())).collect();
    each(g.multiplications(), tasks, |(out, grad)| {
        let mut windows = vec![T::zero(); rows * cols * depth];
        for (block, grad) in grad.chunks(rows * cols * o).enumerate() {
            let pixels = grad.len() / o;
            for group in 0..g.groups {
                let filters = &packed[group * depth * og..][..depth * og];
                let windows = &mut windows[..pixels * depth];
                gemm::product_here(
                    MatMut::from_row_major_slice_mut(windows, pixels, depth),
                    MatRef::from_row_major_slice_with_stride(&grad[group * og..], pixels, og, o),
                    MatRef::from_row_major_slice(filters, og, depth),
                );
                runs(g, group, block * rows, pixels / cols, |to, from, len| {
                    let (to, from) = (&mut out[to..to + len], &windows[from..from + len]);
                    to.iter_mut().zip(from).for_each(|(t, f)| *t += *f);
                });
            }
        }
    });
}

/// Adds the filter gradient of the blocks `(image, first row, rows)` to `part`.
pub(super) fn weight_grad<T: Real>(
    g: &Geometry,
    xs: &[T],
    grad: &[T],
    units: &[(usize, usize, usize)],
    part: &mut [T],
    par: Par,
) {
    let ([_, cols, o], [_, og], depth) = (g.output, g.group(), g.depth());
    let (mut windows, mut last) = (vec![], None);
    for &(image, first, rows) in units {
        let pixels = rows * cols;
        if last.replace((first, rows)) != Some((first, rows)) {
            windows.clear();
            windows.resize(pixels * depth, T::zero());
        }
        let xs = &xs[image * g.input_len()..][..g.input_len()];
        let grad = &grad[image * g.output_len() + first * cols * o..][..pixels * o];
        for group in 0..g.groups {
            gather(g, xs, group, [first, rows], &mut windows);
            let windows = MatRef::from_row_major_slice(&windows, pixels, depth);
            let grad = MatRef::from_row_major_slice_with_stride(&grad[group * og..], pixels, og, o);
            let part = &mut part[group * depth * og..][..depth * og];
            let part = MatMut::from_row_major_slice_mut(part, og, depth);
            matmul(part, Accum::Add, grad.transpose(), windows, T::one(), par);
        }
    }
}
