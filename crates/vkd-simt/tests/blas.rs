//! Products against three plain loops in f64, over odd sizes, all types and transpositions, gaps between columns and matrices.
#![allow(clippy::unwrap_used, reason = "a helper of tests fails as a test does")]

mod device;

use device::*;
use half::{bf16, f16};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    F16,
    Bf16,
    F32,
    F64,
}
use Kind::{Bf16, F16, F32, F64};

impl Kind {
    /// `cudaDataType_t`, and bytes.
    fn code(self) -> (i32, usize) {
        match self {
            F32 => (0, 4),
            F64 => (1, 8),
            F16 => (2, 2),
            Bf16 => (14, 2),
        }
    }

    fn bytes(self, values: &[f64]) -> Vec<u8> {
        let bytes = |&value: &f64| match self {
            F16 => f16::from_f64(value).to_le_bytes().to_vec(),
            Bf16 => bf16::from_f64(value).to_le_bytes().to_vec(),
            F32 => (value as f32).to_le_bytes().to_vec(),
            F64 => value.to_le_bytes().to_vec(),
        };
        values.iter().flat_map(bytes).collect()
    }

    fn values(self, bytes: &[u8]) -> Vec<f64> {
        let value = |bytes: &[u8]| match self {
            F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
            Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f64(),
            F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
            F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
        };
        bytes.chunks_exact(self.code().1).map(value).collect()
    }

    fn epsilon(self) -> f64 {
        match self {
            F16 => f16::EPSILON.to_f64(),
            Bf16 => bf16::EPSILON.to_f64(),
            F32 => f64::from(f32::EPSILON),
            F64 => f64::EPSILON,
        }
    }

    /// The factor of a sum of this type.
    fn scale(self, value: f64) -> Scale {
        let mut bytes = self.bytes(&[value]);
        bytes.resize(8, 0xAA);
        Scale(bytes.try_into().unwrap())
    }
}

/// Numbers that all types have, or nearly: quarters from -2 to 2.
fn numbers(count: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) % 17
    };
    (0..count).map(|_| next() as f64 / 4. - 2.).collect()
}

#[derive(Clone, Copy, Debug)]
struct Case {
    /// Factors, result, and what it is summed in with the number of `cublasComputeType_t`.
    kinds: (Kind, Kind, Kind, i32),
    operations: (i32, i32),
    sizes: (usize, usize, usize),
    batch: usize,
    alpha: f64,
    beta: f64,
    /// Numbers between columns, and between matrices.
    gap: usize,
    /// The second factor is the same for all.
    is_shared: bool,
}

/// A batch of matrices on the host: numbers, leading dimension, stride.
struct Batch {
    values: Vec<f64>,
    ld: usize,
    stride: usize,
}

impl Batch {
    fn new(rows: usize, columns: usize, batch: usize, gap: usize, seed: u64) -> Self {
        let ld = rows + gap;
        let stride = ld * columns + gap;
        // No byte more than the last matrix has.
        let count = (batch - 1) * stride + (columns - 1) * ld + rows;
        Self { values: numbers(count, seed), ld, stride }
    }
}

fn check(case: Case) {
    let Case {
        kinds: (from, to, by, sums), operations: (op_a, op_b), batch, alpha, beta, gap, ..
    } = case;
    let (m, n, k) = case.sizes;
    let turned = |rows, columns, op| if op == 0 { (rows, columns) } else { (columns, rows) };
    let ((a_rows, a_columns), (b_rows, b_columns)) = (turned(m, k, op_a), turned(k, n, op_b));
    let a = Batch::new(a_rows, a_columns, batch, gap, 1);
    let mut b = Batch::new(b_rows, b_columns, if case.is_shared { 1 } else { batch }, gap, 2);
    if case.is_shared {
        b.stride = 0;
    }
    let mut c = Batch::new(m, n, batch, gap, 3);
    let addresses = [&a, &b].map(|part| upload(&from.bytes(&part.values)));
    // Where C isn't read it may be NaN.
    if beta == 0. {
        c.values.fill(f64::NAN);
    }
    let out = upload(&to.bytes(&c.values));

    let mut blas = 0;
    assert_eq!(cublasCreate_v2(Some(&mut blas)), 0);
    let int = |size: usize| size as i32;
    let strides = [&a, &b, &c].map(|part| (int(part.ld), part.stride as i64));
    let [(lda, stride_a), (ldb, stride_b), (ldc, stride_c)] = strides;
    let code = cublasGemmStridedBatchedEx(
        blas,
        op_a,
        op_b,
        int(m),
        int(n),
        int(k),
        Some(&by.scale(alpha)),
        addresses[0],
        from.code().0,
        lda,
        stride_a,
        addresses[1],
        from.code().0,
        ldb,
        stride_b,
        Some(&by.scale(beta)),
        out,
        to.code().0,
        ldc,
        stride_c,
        int(batch),
        sums,
        -1,
    );
    assert_eq!(code, 0, "{case:?}");
    let got = to.values(&download(out, c.values.len() * to.code().1));

    let at = |part: &Batch, i: usize, (row, column), op| {
        let (row, column) = if op == 0 { (row, column) } else { (column, row) };
        i * part.stride + column * part.ld + row
    };
    let mut want = c.values.clone();
    for i in 0..batch {
        for (row, column) in (0..m).flat_map(|row| (0..n).map(move |column| (row, column))) {
            let sum: f64 = (0..k)
                .map(|p| {
                    a.values[at(&a, i, (row, p), op_a)] * b.values[at(&b, i, (p, column), op_b)]
                })
                .sum();
            let place = at(&c, i, (row, column), 0);
            want[place] = alpha * sum + if beta == 0. { 0. } else { beta * c.values[place] };
        }
    }
    // Factors of at most 4 in size; each sum is rounded once in its own type and once in the result's.
    let size = 4. * k as f64 * alpha.abs() + 2. * beta.abs();
    let sum_epsilon = if by == F64 { F64.epsilon() } else { F32.epsilon() };
    let tolerance = size * (to.epsilon() + k as f64 * sum_epsilon);
    for (place, (got, want)) in got.iter().zip(&want).enumerate() {
        // Gaps are what they were, NaN too.
        let same = got == want || (got.is_nan() && want.is_nan());
        assert!(
            same || (got - want).abs() <= tolerance,
            "{case:?} at {place}: {got}, expected {want}"
        );
    }
    assert_eq!(cublasDestroy_v2(blas), 0);
}

const ALL_KINDS: [(Kind, Kind, Kind, i32); 9] = [
    (F64, F64, F64, 70),
    (F32, F32, F32, 68),
    (F32, F32, F32, 77),
    (F32, F32, F32, 75),
    (F16, F16, F32, 68),
    (F16, F16, F16, 64),
    (Bf16, Bf16, F32, 68),
    (F16, F32, F32, 68),
    (Bf16, F32, F32, 68),
];

#[test]
fn products_are_those_of_plain_loops() {
    on_device(|| {
        for kinds in ALL_KINDS {
            for operations in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (0, 2)] {
                for (sizes, batch) in
                    [((1, 1, 1), 1), ((3, 5, 7), 3), ((17, 9, 33), 2), ((1, 31, 6), 5)]
                {
                    for (alpha, beta, gap) in
                        [(1., 0., 0), (0.5, -2., 3), (1., 1., 0), (0., 0.5, 2)]
                    {
                        let is_shared = gap == 3;
                        check(Case {
                            kinds,
                            operations,
                            sizes,
                            batch,
                            alpha,
                            beta,
                            gap,
                            is_shared,
                        });
                    }
                }
            }
        }
    });
}

#[test]
fn large_products_too() {
    on_device(|| {
        for kinds in [ALL_KINDS[0], ALL_KINDS[1], ALL_KINDS[4], ALL_KINDS[6]] {
            for batch in [1, 3] {
                let case = Case {
                    kinds,
                    operations: (1, 0),
                    sizes: (129, 70, 65),
                    batch,
                    alpha: 1.,
                    beta: 0.25,
                    gap: 1,
                    is_shared: false,
                };
                check(case);
            }
        }
    });
}

/// A product of f64 matrices whose arguments a test changes.
#[derive(Clone, Copy)]
struct Plain {
    sizes: [i32; 3],
    a: (u64, i32, i64),
    b: (u64, i32, i64),
    c: (u64, i32, i64),
    batch: i32,
}

impl Plain {
    fn run(self, blas: u64) -> i32 {
        let ([m, n, k], (a, lda, sa), (b, ldb, sb), (c, ldc, sc)) =
            (self.sizes, self.a, self.b, self.c);
        cublasDgemmStridedBatched(
            blas,
            0,
            0,
            m,
            n,
            k,
            Some(&1.),
            a,
            lda,
            sa,
            b,
            ldb,
            sb,
            Some(&0.),
            c,
            ldc,
            sc,
            self.batch,
        )
    }
}

fn blas() -> u64 {
    let mut handle = 0;
    assert_eq!(cublasCreate_v2(Some(&mut handle)), 0);
    handle
}

#[test]
fn sums_of_nothing_are_zero_or_what_was_there() {
    on_device(|| {
        let c = upload(&F64.bytes(&[f64::NAN; 4]));
        let product =
            Plain { sizes: [2, 2, 0], a: (c, 2, 0), b: (c, 1, 0), c: (c, 2, 4), batch: 1 };
        assert_eq!(Plain { sizes: [0, 2, 3], b: (c, 3, 0), ..product }.run(blas()), 0);
        assert!(F64.values(&download(c, 32)).iter().all(|value| value.is_nan()));
        assert_eq!(product.run(blas()), 0);
        assert_eq!(F64.values(&download(c, 32)), [0.; 4]);
    });
}

#[test]
fn wrong_arguments_are_refused() {
    on_device(|| {
        let (a, b, c) = (upload(&[0; 48]), upload(&[0; 96]), allocate(64));
        let right = Plain { sizes: [2, 4, 3], a: (a, 2, 6), b: (b, 3, 12), c: (c, 2, 8), batch: 1 };
        let handle = blas();
        assert_eq!(right.run(handle), 0);
        assert_eq!(right.run(handle + 1), 1);
        let wrong = [
            Plain { sizes: [-2, 4, 3], ..right },
            Plain { sizes: [2, 4, -3], ..right },
            Plain { a: (a, 1, 6), ..right },
            Plain { b: (b, 2, 12), ..right },
            Plain { c: (c, 1, 8), ..right },
            Plain { batch: -1, ..right },
            Plain { a: (a, 2, -6), ..right },
        ];
        for (i, product) in wrong.into_iter().enumerate() {
            assert_eq!(product.run(handle), 7, "case {i}");
        }
        let (one, f16_to_f64) = (
            F64.scale(1.),
            [(2, 2, 1, 68), (0, 1, 0, 68), (0, 0, 1, 70), (2, 2, 2, 77), (3, 3, 3, 72)],
        );
        for (from_a, from_b, to, sums) in f16_to_f64 {
            let code = cublasGemmStridedBatchedEx(
                handle,
                0,
                0,
                1,
                1,
                1,
                Some(&one),
                a,
                from_a,
                1,
                1,
                b,
                from_b,
                1,
                1,
                Some(&one),
                c,
                to,
                1,
                1,
                1,
                sums,
                -1,
            );
            assert_eq!(code, 15, "{from_a} and {from_b} to {to} by {sums}");
        }
        let null = cublasGemmStridedBatchedEx(
            handle,
            0,
            0,
            1,
            1,
            1,
            None,
            a,
            1,
            1,
            1,
            b,
            1,
            1,
            1,
            Some(&one),
            c,
            1,
            1,
            1,
            1,
            70,
            -1,
        );
        assert_eq!(null, 7);
        assert_eq!(right.run(handle), 0);
    });
}

type Change = fn(Plain) -> Plain;

#[test]
fn operands_lie_in_their_blocks_and_apart() {
    let cases: [(&str, Change, i32); 7] = [
        ("A is too short", |p| Plain { sizes: [2, 4, 4], b: (p.b.0, 4, 0), ..p }, ILLEGAL_ADDRESS),
        ("B is too short", |p| Plain { sizes: [2, 5, 3], ..p }, ILLEGAL_ADDRESS),
        (
            "C is too short",
            |p| Plain { batch: 2, a: (p.a.0, 2, 0), b: (p.b.0, 3, 0), ..p },
            ILLEGAL_ADDRESS,
        ),
        (
            "a stride that goes too far",
            |p| Plain { batch: 2, c: (p.c.0, 2, 8), a: (p.a.0, 2, 1), sizes: [1, 1, 1], ..p },
            ILLEGAL_ADDRESS,
        ),
        (
            "not aligned",
            |p| Plain { sizes: [1, 1, 1], a: (p.a.0 + 4, 2, 0), ..p },
            MISALIGNED_ADDRESS,
        ),
        ("C in A", |p| Plain { sizes: [1, 1, 1], c: (p.a.0, 2, 0), ..p }, LAUNCH_FAILED),
        (
            "a batch written twice",
            |p| Plain {
                sizes: [2, 2, 1],
                batch: 2,
                c: (p.c.0, 2, 2),
                a: (p.a.0, 2, 0),
                b: (p.b.0, 1, 0),
            },
            LAUNCH_FAILED,
        ),
    ];
    for (name, change, code) in cases {
        on_device(|| {
            let (a, b, c) = (upload(&[0; 48]), upload(&[0; 96]), allocate(64));
            let right =
                Plain { sizes: [2, 4, 3], a: (a, 2, 6), b: (b, 3, 12), c: (c, 2, 8), batch: 1 };
            let handle = blas();
            assert_eq!(right.run(handle), 0);
            assert_eq!(change(right).run(handle), 13, "{name}");
            // What went wrong on the device stays.
            assert_eq!(cuCtxSynchronize(), code, "{name}");
            assert_eq!(right.run(handle), 13, "{name}");
        });
        on_device(|| assert_eq!(cuCtxSynchronize(), 0, "{name}"));
    }
}
