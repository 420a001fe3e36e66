//! The baselines against results recorded from the code that people compare with, value and gradient.

use candle_core::{DType, Result, Tensor, Var, bail};
use vkd_loss::Reduction::{Mean, Sum};
use vkd_loss::baselines::{
    CckdConfig, CckdKernel, DistConfig, DkdConfig, Form, RowNorm, attention_transfer, cckd,
    deit_hard, deit_soft, dist, dkd, dkd_parts, fitnets, hinton, logit_standardization, pkt,
    rkd_angle, rkd_distance, spkd, vid,
};
use vkd_loss::{Term, cross_entropy, token_l2, weighted_sum};
use vkd_testkit::{Golden, Tolerance, assert_close};

struct Losses {
    golden: Golden,
    dtype: DType,
}

impl Losses {
    fn input(&self, key: &str) -> Result<Tensor> {
        self.golden.get(&format!("in.{key}"))?.to_dtype(self.dtype)
    }

    fn labels(&self) -> Result<Tensor> {
        self.golden.get("in.labels")?.to_dtype(DType::U32)
    }

    fn tolerance(&self) -> Tolerance {
        // The file's own figure for f32 code is 3e-6.
        Tolerance::relative(if self.dtype == DType::F64 { 1e-11 } else { 3e-6 })
    }

    /// `f` of the inputs `keys` must have the recorded value and a gradient for each of them.
    fn check(
        &self,
        name: &str,
        keys: &[&str],
        f: impl Fn(&[Tensor]) -> Result<Tensor>,
    ) -> Result<()> {
        let vars = keys
            .iter()
            .map(|key| Var::from_tensor(&self.input(key)?))
            .collect::<Result<Vec<_>>>()?;
        let inputs: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let loss = f(&inputs)?;
        assert_eq!((loss.rank(), loss.dtype()), (0, self.dtype));
        let what = format!("{name} {:?}", self.dtype);
        let want = self.golden.get(&format!("{name}.value"))?;
        assert_close(&what, &loss, &want, self.tolerance())?;
        let grads = loss.backward()?;
        for (key, var) in keys.iter().zip(&vars) {
            let want = self.golden.get(&format!("{name}.grad.{key}"))?;
            let Some(grad) = grads.get(var) else { bail!("{what}: no gradient for {key}") };
            assert_close(&format!("{what} gradient of {key}"), grad, &want, self.tolerance())?;
        }
        Ok(())
    }
}

fn both(f: impl Fn(&Losses) -> Result<()>) -> Result<()> {
    for dtype in [DType::F64, DType::F32] {
        f(&Losses { golden: Golden::open("kd_losses")?, dtype })?;
    }
    Ok(())
}

#[test]
fn on_logits() -> Result<()> {
    both(|g| {
        let (t, labels) = (g.input("logits_t")?, g.labels()?);
        let check = |name: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            g.check(name, &["logits_s"], |x| f(&x[0]))
        };
        check("kd_t4_alpha05.torchdistill", &|s| hinton(s, &t, &labels, 0.5, 4., Mean))?;
        check("deit_hard", &|s| deit_hard(s, &t, Mean))?;
        check("deit_hard_alpha05", &|s| {
            let parts = [cross_entropy(s, &labels, 0., Mean)?, deit_hard(s, &t, Mean)?];
            let term = |(i, value): (usize, &Tensor)| Term {
                name: i.to_string(),
                weight: 0.5,
                value: value.clone(),
            };
            weighted_sum(&parts.iter().enumerate().map(term).collect::<Vec<_>>())
        })?;
        check("deit_soft_t3", &|s| deit_soft(s, &t, 3., Form::Code, Mean))?;
        check("kl_t4.mdistiller", &|s| deit_soft(s, &t, 4., Form::Paper, Mean))?;
        check("dkd_a1_b8_t4.mdistiller", &|s| dkd(s, &t, &labels, DkdConfig::default(), Mean))?;
        check("dkd_tckd_only_t4.mdistiller", &|s| Ok(dkd_parts(s, &t, &labels, 4., Mean)?.tckd))?;
        check("dkd_nckd_only_t4.mdistiller", &|s| Ok(dkd_parts(s, &t, &labels, 4., Mean)?.nckd))?;
        for temperature in [1., 2.] {
            let config = DistConfig { temperature, ..DistConfig::default() };
            check(&format!("dist_b1_g1_tau{temperature}.torchdistill"), &|s| dist(s, &t, config))?;
        }
        let standardized = |s: &Tensor| logit_standardization(s, &t, 2., Mean);
        check("logit_std_t2_times_t_squared.paper_repo", &standardized)?;
        // torchdistill leaves the square of the temperature to the outer weight.
        check("logit_std_t2_soft_only.torchdistill", &|s| standardized(s)? / 4.)?;
        check("logit_std_t2_alpha01_beta9.torchdistill", &|s| {
            (cross_entropy(s, &labels, 0., Mean)? * 0.1)? + (standardized(s)? * 9.)?
        })
    })
}

#[test]
fn on_features() -> Result<()> {
    both(|g| {
        let (t, same) = (g.input("feat_t")?, g.input("feat_t_same")?);
        let check = |name: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            g.check(name, &["feat_s"], |x| f(&x[0]))
        };
        check("fitnet_feat.mdistiller", &|s| fitnets(s, &same, Form::Code))?;
        // Half the sum of squares per sample, of 16 channels.
        check("fitnet_feat.mdistiller", &|s| fitnets(s, &same, Form::Paper)? / 8.)?;
        check("pkt.mdistiller", &|s| pkt(s, &t, Form::Code))?;
        check("pkt.torchdistill", &|s| pkt(s, &t, Form::Code))?;
        check("spkd_feat_l2.mdistiller", &|s| spkd(s, &t, RowNorm::L2))?;
        check("spkd_feat_l1.torchdistill", &|s| spkd(s, &t, RowNorm::L1))?;
        check("rkd_distance.mdistiller", &|s| rkd_distance(s, &t, Mean))?;
        check("rkd_distance.mdistiller", &|s| rkd_distance(s, &t, Sum)? / 64.)?;
        check("rkd_angle.mdistiller", &|s| rkd_angle(s, &t, Mean))?;
        check("rkd_angle.mdistiller", &|s| rkd_angle(s, &t, Sum)? / 512.)?;
        for (name, distance, angle) in
            [("rkd_25_50.mdistiller", 25., 50.), ("rkd_1_2.torchdistill", 1., 2.)]
        {
            check(name, &|s| {
                (rkd_distance(s, &t, Mean)? * distance)? + (rkd_angle(s, &t, Mean)? * angle)?
            })?;
        }
        for (kernel_name, kernel) in
            [("gaussian", CckdKernel::Gaussian { gamma: 0.4 }), ("bilinear", CckdKernel::Bilinear)]
        {
            for (rows_name, unit_rows) in [("raw", false), ("unit", true)] {
                for (end, form) in [(".torchdistill", Form::Code), ("_squared", Form::Paper)] {
                    let config = CckdConfig { kernel, unit_rows, form };
                    let name = format!("cckd_{kernel_name}_{rows_name}{end}");
                    check(&name, &|s| cckd(s, &t, config))?;
                }
            }
        }
        Ok(())
    })
}

#[test]
fn pkt_of_the_paper_is_pinned() -> Result<()> {
    both(|g| {
        // No published code sums over the others alone: the value is NumPy's, of the formula with its guards of 1e-7;
        // without them it is 0.1947502163.
        let loss = pkt(&g.input("feat_s")?, &g.input("feat_t")?, Form::Paper)?;
        let want = Tensor::new(0.1947499916f64, loss.device())?;
        let digits = if g.dtype == DType::F64 { 5e-10 } else { 3e-6 };
        assert_close("pkt", &loss, &want, Tolerance::relative(digits))
    })
}

#[test]
fn on_maps() -> Result<()> {
    both(|g| {
        let (t, small) = (g.input("map_t")?, g.input("map_t_small")?);
        let check = |name: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>| {
            g.check(name, &["map_s"], |x| f(&x[0]))
        };
        let same = g.input("map_t_same")?;
        check("fitnet_map.mdistiller", &|s| fitnets(s, &same, Form::Code))?;
        check("at_p2.mdistiller", &|s| attention_transfer(s, &t, 2., Form::Code))?;
        check("at_code.torchdistill", &|s| attention_transfer(s, &t, 2., Form::Code))?;
        check("at_paper.torchdistill", &|s| attention_transfer(s, &t, 2., Form::Paper))?;
        check("at_p2_teacher3x3.mdistiller", &|s| attention_transfer(s, &small, 2., Form::Code))?;
        check("spkd_map_l2.mdistiller", &|s| spkd(s, &t, RowNorm::L2))?;
        check("spkd_map_l1.torchdistill", &|s| spkd(s, &t, RowNorm::L1))
    })
}

/// The recorded regressor: three 1x1 convolutions with relu between.
fn regress(map: &Tensor, weights: &[Tensor]) -> Result<Tensor> {
    let (b, _, h, w) = map.dims4()?;
    let mut xs = map.permute((0, 2, 3, 1))?.flatten_to(2)?;
    for (i, weight) in weights.iter().enumerate() {
        xs = if i > 0 { xs.relu()? } else { xs };
        xs = xs.matmul(&weight.flatten_from(1)?.t()?)?;
    }
    xs.reshape((b, h, w, ()))?.permute((0, 3, 1, 2))
}

#[test]
fn variational() -> Result<()> {
    both(|g| {
        let keys = ["map_s", "vid_w1", "vid_w2", "vid_w3", "vid_log_scale"];
        let t = g.input("map_t")?;
        g.check("vid.mdistiller", &keys, |x| vid(&regress(&x[0], &x[1..4])?, &t, &x[4]))?;
        let t = g.input("map_t_small")?;
        g.check("vid_teacher3x3.mdistiller", &keys, |x| {
            let pooled = x[0].reshape((8, 16, 3, 2, 3, 2))?.mean(5)?.mean(3)?;
            vid(&regress(&pooled, &x[1..4])?, &t, &x[4])
        })
    })
}

#[test]
fn token_matching() -> Result<()> {
    both(|g| {
        let names = ["tok_patch0", "tok_patch1", "tok_body", "tok_neck"];
        let keys = names.map(|name| format!("{name}_s"));
        g.check("vidt_token_matching", &keys.each_ref().map(String::as_str), |x| {
            let mut terms = Vec::new();
            for (name, s) in names.iter().zip(x) {
                let t = g.input(&format!("{name}_t"))?;
                let patches = name.contains("patch");
                let last =
                    |x: &Tensor| if patches { x.permute((0, 2, 3, 1)) } else { Ok(x.clone()) };
                let value = token_l2(&last(s)?, &last(&t)?, Mean)?;
                // The neck counts once for each of its three layers.
                let weight = if *name == "tok_neck" { 3. } else { 1. };
                terms.push(Term { name: (*name).to_owned(), weight, value });
            }
            weighted_sum(&terms)?.sqrt()
        })
    })
}
