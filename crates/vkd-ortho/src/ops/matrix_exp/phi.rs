//! φ₁ of a batch of matrices on a device, and its derivative along a direction by the same steps.
//!
//! Sixteen terms of the series by powers up to the fourth (Paterson and Stockmeyer, SIAM J. Comput. 2(1), 1973): six
//! products. The argument is halved until they are enough, which each matrix decides for itself on the device, and doubled
//! again: [`NEAR`] times always by cuBLAS, further by a kernel that does nothing for matrices that need no more.

use crate::ops::kernels::{Sizes, TILE};
use candle_core::{DType, Result, Tensor};
use vkd_norm::program::{Arg, Program, Runner, Size, count};

/// Doublings that are carried out by cuBLAS, whether a matrix needs them or not.
const NEAR: usize = 4;

/// The most doublings; an argument that needs more gives NaN.
const MOST: usize = 20;

/// A matrix of each of a batch, and its derivative along the direction if there is one.
#[derive(Clone)]
pub(super) struct Dual {
    pub(super) value: Tensor,
    pub(super) tangent: Option<Tensor>,
}

/// A product, and the two parts of its derivative.
struct Parts {
    value: Tensor,
    tangents: Option<[Tensor; 2]>,
}

impl Parts {
    fn of(a: &Dual, b: &Dual) -> Result<Self> {
        let tangents = match (&a.tangent, &b.tangent) {
            (Some(da), Some(db)) => Some([a.value.matmul(db)?, da.matmul(&b.value)?]),
            _ => None,
        };
        Ok(Self { value: a.value.matmul(&b.value)?, tangents })
    }

    fn sum(self) -> Result<Dual> {
        let tangent = self.tangents.map(|[one, other]| one + other).transpose()?;
        Ok(Dual { value: self.value, tangent })
    }
}

/// What all steps share: who runs them, and how many matrices of which size.
struct Steps<'a> {
    runner: &'a dyn Runner,
    sizes: Sizes,
    /// Rows of a matrix.
    m: usize,
    /// `2^-d` and `d` of each matrix, once that is known.
    state: Option<Tensor>,
}

/// φ₁ of `argument`, `(batch, m, m)` in f64, and its derivative along the tangent.
pub(super) fn phi(runner: &dyn Runner, sizes: Sizes, argument: Dual) -> Result<Dual> {
    let m = argument.value.dim(1)?;
    let mut steps = Steps { runner, sizes, m, state: None };
    let second = Parts::of(&argument, &argument)?.sum()?;
    let third = Parts::of(&second, &argument)?.sum()?;
    let fourth = Parts::of(&second, &second)?.sum()?;
    steps.state = Some(steps.halvings(&third.value, &fourth.value)?);
    let powers = [argument, second, third, fourth];
    // 1/(j + 1)! of the terms 4 block to 4 block + 3, and one more at the end.
    let series = |block: usize| {
        let mut coefficients = [0f64; 5];
        let mut factorial: f64 = (1..=4 * block).map(|j| j as f64).product();
        for (at, coefficient) in coefficients.iter_mut().enumerate() {
            factorial *= (4 * block + at + 1) as f64;
            *coefficient = factorial.recip();
        }
        coefficients
    };
    let mut phi = steps.terms(None, &powers, series(3), 0)?;
    for block in (0..3).rev() {
        let [c0, c1, c2, c3, _] = series(block);
        let product = Parts::of(&phi, &powers[3])?;
        phi = steps.terms(Some(product), &powers[..3], [c0, c1, c2, c3, 0.], 4)?;
    }
    let product = Parts::of(&powers[0], &phi)?;
    let mut exp = steps.terms(Some(product), &[], [1., 0., 0., 0., 0.], 1)?;
    for turn in 0..NEAR {
        [phi, exp] = steps.double(&phi, &exp, turn)?;
    }
    steps.double_far(phi, exp)
}

impl Steps<'_> {
    fn sized(&self) -> Result<[Arg; 2]> {
        Ok([count(self.sizes.op, self.sizes.batch)?, count(self.sizes.op, self.m)?])
    }

    fn square(&self, program: &mut Program) -> Arg {
        program.buffer(DType::F64, self.sizes.batch * self.m * self.m)
    }

    fn whole(&self, buffer: &Tensor) -> Result<Tensor> {
        self.sizes.matrices(buffer, self.m, self.m)
    }

    fn halvings(&self, third: &Tensor, fourth: &Tensor) -> Result<Tensor> {
        let (op, batch, m) = (self.sizes.op, self.sizes.batch, self.m);
        let [batches, rows] = self.sized()?;
        let mut program = Program::default();
        let sums = program.buffer(DType::F64, batch * m * 2);
        let state = program.buffer(DType::F64, batch * 2);
        let size = Size { grid: [m, batch.min(65535), 1], ..Size::rows(1, m) };
        let args = [Arg::Input(0), Arg::Input(1), sums, batches, rows];
        program.launch("matrix_exp_rows".to_owned(), size, &args)?;
        let args = [sums, state, batches, rows, count(op, MOST)?];
        program.launch("matrix_exp_state".to_owned(), Size::rows(batch, m), &args)?;
        Ok(self.runner.run(&program, &[third, fourth])?.swap_remove(1))
    }

    /// A launch on tensors of which some may be absent, and its buffers as matrices.
    fn launch(
        &self,
        kernel: &str,
        inputs: &[Option<&Tensor>],
        outputs: usize,
        rest: &[Arg],
    ) -> Result<Vec<Tensor>> {
        let mut program = Program::default();
        let (mut found, mut args) = (Vec::new(), Vec::new());
        for input in inputs.iter().copied().chain([self.state.as_ref()]) {
            args.push(input.map_or(Arg::Null, |_| Arg::Input(found.len())));
            found.extend(input);
        }
        args.extend((0..outputs).map(|_| self.square(&mut program)));
        args.extend(self.sized()?);
        args.extend_from_slice(rest);
        self.sizes.each(&mut program, kernel.to_owned(), self.m * self.m, &args)?;
        self.runner.run(&program, &found)?.iter().map(|buffer| self.whole(buffer)).collect()
    }

    fn terms(
        &self,
        product: Option<Parts>,
        powers: &[Dual],
        [c0, c1, c2, c3, c4]: [f64; 5],
        power: u32,
    ) -> Result<Dual> {
        let run = |parts: [Option<&Tensor>; 2],
                   powers: [Option<&Tensor>; 4],
                   c0: f64|
         -> Result<Tensor> {
            let rest = [&[Arg::U32(power)][..], &[c0, c1, c2, c3, c4].map(Arg::F64)].concat();
            let inputs = [&parts[..], &powers].concat();
            Ok(self.launch("matrix_exp_terms", &inputs, 1, &rest)?.swap_remove(0))
        };
        let values = [0, 1, 2, 3].map(|at| Some(&powers.get(at)?.value));
        let value = run([product.as_ref().map(|p| &p.value), None], values, c0)?;
        let parts = product.as_ref().map(|p| p.tangents.as_ref());
        let tracked = match parts {
            Some(parts) => parts.is_some(),
            None => powers.iter().any(|power| power.tangent.is_some()),
        };
        if !tracked {
            return Ok(Dual { value, tangent: None });
        }
        let tangents = [0, 1, 2, 3].map(|at| powers.get(at)?.tangent.as_ref());
        let parts = match parts.flatten() {
            Some([one, other]) => [Some(one), Some(other)],
            None => [None; 2],
        };
        Ok(Dual { value, tangent: Some(run(parts, tangents, 0.)?) })
    }

    fn double(&self, phi: &Dual, exp: &Dual, turn: usize) -> Result<[Dual; 2]> {
        let (product, square) = (Parts::of(exp, phi)?, Parts::of(exp, exp)?);
        let rest = [count(self.sizes.op, turn)?];
        let run = |product: [Option<&Tensor>; 2],
                   phi: &Tensor,
                   square: [Option<&Tensor>; 2],
                   exp: &Tensor|
         -> Result<[Tensor; 2]> {
            let inputs = [product[0], product[1], Some(phi), square[0], square[1], Some(exp)];
            let mut found = self.launch("matrix_exp_double", &inputs, 2, &rest)?;
            let exp = found.swap_remove(1);
            Ok([found.swap_remove(0), exp])
        };
        let of = |part| [Some(part), None];
        let [value, whole] = run(of(&product.value), &phi.value, of(&square.value), &exp.value)?;
        let mut results = [Dual { value, tangent: None }, Dual { value: whole, tangent: None }];
        if let (Some([a, b]), Some([c, d]), Some(dphi), Some(dexp)) =
            (&product.tangents, &square.tangents, &phi.tangent, &exp.tangent)
        {
            let tangents: [Tensor; 2] = run([Some(a), Some(b)], dphi, [Some(c), Some(d)], dexp)?;
            for (result, tangent) in results.iter_mut().zip(tangents) {
                result.tangent = Some(tangent);
            }
        }
        Ok(results)
    }

    /// The doublings from [`NEAR`] to [`MOST`], as far as each matrix needs them, and its φ₁ then.
    fn double_far(&self, phi: Dual, exp: Dual) -> Result<Dual> {
        let [batches, rows] = self.sized()?;
        let op = self.sizes.op;
        let mut inputs = vec![&phi.value, &exp.value];
        if let (Some(dphi), Some(dexp)) = (&phi.tangent, &exp.tangent) {
            inputs.extend([dphi, dexp]);
        }
        let planes = inputs.len();
        inputs.extend(&self.state);
        let (first, state) = ([0, 1, 2, 3].map(Arg::Input), Arg::Input(planes));
        let filled =
            |set: [Arg; 4]| set.map(|arg| if rank(arg) < planes { arg } else { Arg::Null });

        let mut program = Program::default();
        let result: Vec<Arg> = (0..planes / 2).map(|_| self.square(&mut program)).collect();
        let mut set = || -> [Arg; 4] {
            let mut buffers = [Arg::Null; 4];
            buffers.iter_mut().take(planes).for_each(|at| *at = self.square(&mut program));
            buffers
        };
        let [odd, even] = [set(), set()];
        let tiles = self.m.div_ceil(TILE);
        let grid = [tiles * planes, tiles, self.sizes.batch.min(65535)];
        let size = Size { grid, block: [256, 1], shared: 0 };
        let mut from = filled(first);
        for turn in NEAR..MOST {
            let to = if (turn - NEAR).is_multiple_of(2) { odd } else { even };
            let rest = [batches, rows, count(op, turn)?];
            let args = [&from[..], &[state], &to, &rest].concat();
            program.launch("matrix_exp_double_far".to_owned(), size, &args)?;
            from = to;
        }
        for (at, out) in result.iter().enumerate() {
            // φ₁ and its tangent are numbers 0 and 2 of a set.
            let rest = [state, *out, batches, rows, count(op, NEAR)?];
            let args = [&[first[2 * at], odd[2 * at], even[2 * at]][..], &rest].concat();
            self.sizes.each(&mut program, "matrix_exp_pick".to_owned(), self.m * self.m, &args)?;
        }
        let found = self.runner.run(&program, &inputs)?;
        let tangent = result.get(1).map(|_| self.whole(&found[1])).transpose()?;
        Ok(Dual { value: self.whole(&found[0])?, tangent })
    }
}

/// The number of an input.
fn rank(arg: Arg) -> usize {
    match arg {
        Arg::Input(at) => at,
        _ => 0,
    }
}
