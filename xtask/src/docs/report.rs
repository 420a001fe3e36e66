//! One run's report: what `vkd distill` writes, schema 1.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::Result;

/// What one `report.json` says.
pub(super) struct Report {
    pub(super) task: String,
    pub(super) dataset: String,
    pub(super) seed: u64,
    pub(super) seconds: f64,
    pub(super) teacher: BTreeMap<String, f64>,
    pub(super) arms: Vec<Arm>,
}

pub(super) struct Arm {
    pub(super) name: String,
    pub(super) terms: BTreeMap<String, f64>,
    pub(super) metrics: BTreeMap<String, f64>,
    pub(super) residual: Option<f64>,
}

impl Report {
    /// Reads schema 1; keys that it does not know are left alone.
    pub(super) fn new(value: &Value) -> Result<Self> {
        if value["schema"] != 1 {
            return Err(format!("expected schema 1, got {}", value["schema"]));
        }
        let arms = value["arms"].as_array().ok_or("`arms` is not an array")?;
        let report = Self {
            task: text(value, "task")?,
            dataset: text(value, "dataset")?,
            seed: value["seed"].as_u64().ok_or("`seed` is not a whole number")?,
            seconds: number(&value["seconds"], "seconds")?,
            teacher: numbers(&value["teacher"]["metrics"], "teacher.metrics")?,
            arms: arms.iter().map(Arm::new).collect::<Result<_>>()?,
        };
        let names: BTreeSet<&str> = report.arms.iter().map(|arm| arm.name.as_str()).collect();
        if names.is_empty() || names.len() != report.arms.len() {
            return Err("no arms, or two of the same name".to_owned());
        }
        Ok(report)
    }

    /// What must agree before reports are averaged: the arms, their losses and what was measured.
    pub(super) fn design(&self) -> String {
        let mut text = format!("{} {}", self.task, self.dataset);
        for arm in &self.arms {
            let metrics: Vec<&String> = arm.metrics.keys().collect();
            text += &format!(" {} {:?} {metrics:?}", arm.name, arm.terms);
        }
        text
    }
}

impl Arm {
    fn new(value: &Value) -> Result<Self> {
        let residual = &value["projector_residual_max"];
        Ok(Self {
            name: text(value, "name")?,
            terms: numbers(&value["terms"], "terms")?,
            metrics: numbers(&value["metrics"], "metrics")?,
            residual: match residual {
                Value::Null => None,
                value => Some(number(value, "projector_residual_max")?),
            },
        })
    }
}

fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).ok_or_else(|| format!("`{key}` is not a text"))
}

fn number(value: &Value, key: &str) -> Result<f64> {
    value.as_f64().ok_or_else(|| format!("`{key}` is not a number"))
}

fn numbers(value: &Value, key: &str) -> Result<BTreeMap<String, f64>> {
    let object = value.as_object().ok_or_else(|| format!("`{key}` is not an object"))?;
    object.iter().map(|(name, value)| Ok((name.clone(), number(value, name)?))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::Report;

    /// A report of two arms with the given accuracies.
    pub(in crate::docs) fn report(seed: u64, vkd: f64, none: f64) -> Value {
        json!({"schema": 1, "task": "classification", "dataset": "digits", "seed": seed,
            "seconds": 10.0, "teacher": {"metrics": {"accuracy": 0.95}},
            "arms": [
                {"name": "none", "terms": {"task": 1.0}, "metrics": {"accuracy": none},
                 "projector_residual_max": null},
                {"name": "vkd", "terms": {"task": 1.0, "feature": 2.5},
                 "metrics": {"accuracy": vkd}, "projector_residual_max": 3e-7}]})
    }

    #[test]
    fn a_report_of_another_shape_fails() {
        for (key, value) in [
            ("schema", json!(2)),
            ("seed", json!("0")),
            ("arms", json!([])),
            ("teacher", json!(null)),
            ("task", json!(null)),
        ] {
            let mut report = report(0, 0.5, 0.5);
            report[key] = value;
            assert!(Report::new(&report).is_err(), "{key}");
        }
    }
}
