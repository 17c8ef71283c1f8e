//! Which settings determine a run's numbers. A resumed run must have the same ones.

use toml::{Table, Value};

use super::Config;

/// Keys, or sections ending in a dot, that may change when a run is resumed: they do not affect
/// what a step computes (`train.images_per_rank` and `train.accumulate` are compared as the global
/// batch). A key that is not listed is taken to determine the result.
const MAY_CHANGE: [&str; 16] = [
    "data.shards",
    "data.val_split",
    "data.workers",
    "data.prefetch_mib",
    "eval.",
    "checkpoint.",
    "train.epochs",
    "train.max_steps",
    "train.images_per_rank",
    "train.accumulate",
    "train.threads",
    "train.bucket_mib",
    "train.first_bucket_mib",
    "train.step_deadline_s",
    "train.start_deadline_s",
    "train.tensorboard",
];

/// A key whose value differs between two configurations.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// Key, such as `train.lr`.
    pub key: String,
    /// Value in the run that is resumed.
    pub old: String,
    /// Requested value.
    pub new: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.old, self.new)
    }
}

/// The differences between a run's settings and the requested ones: first those that determine the
/// result, then those that may change.
pub fn changes(run: &Config, requested: &Config) -> (Vec<Change>, Vec<Change>) {
    let table = |c: &Config| Table::try_from(c).unwrap_or_default();
    let mut found = vec![];
    compare(&table(run), &table(requested), "", &mut found);
    found.into_iter().partition(|c| determines_result(&c.key))
}

fn determines_result(key: &str) -> bool {
    !MAY_CHANGE.iter().any(|k| if k.ends_with('.') { key.starts_with(k) } else { key == *k })
}

/// Collects the keys whose values differ; a key that one table lacks has the value `unset`.
fn compare(old: &Table, new: &Table, prefix: &str, found: &mut Vec<Change>) {
    let text = |v: Option<&Value>| v.map_or_else(|| "unset".to_owned(), ToString::to_string);
    let keys = new.keys().chain(old.keys().filter(|k| !new.contains_key(*k)));
    for k in keys {
        let key = format!("{prefix}{k}");
        match (old.get(k), new.get(k)) {
            (Some(Value::Table(a)), Some(Value::Table(b))) => {
                compare(a, b, &format!("{key}."), found);
            }
            (a, b) if a == b => {}
            (a, b) => found.push(Change { key, old: text(a), new: text(b) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_determine_the_result_are_separated() {
        let run = Config::default();
        let mut requested = run.clone();
        (requested.train.lr, requested.train.threads) = (0.5, 3);
        requested.assign = crate::assign::AssignConfig::Dw(crate::assign::DwConfig {
            beta: 2.0,
            ..Default::default()
        });
        requested.eval.every_epochs = 4;
        let (determine, may) = changes(&run, &requested);
        let keys = |c: &[Change]| c.iter().map(|c| c.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&determine), ["assign.beta", "train.lr"]);
        assert_eq!(keys(&may), ["train.threads", "eval.every_epochs"]);
        assert_eq!(determine[1].to_string(), "train.lr: 0.01 -> 0.5");
        assert_eq!(changes(&run, &run), (vec![], vec![]));
        for key in MAY_CHANGE {
            let known = super::super::keys()
                .iter()
                .any(|k| if key.ends_with('.') { k.starts_with(key) } else { k == key });
            assert!(known, "{key} is not a key");
        }
    }

    /// A key that is added to the list by mistake lets runs mix settings silently.
    #[test]
    fn the_settings_that_may_change_are_those_of_the_documentation() {
        let page = include_str!("../../docs/training.md");
        let (_, list) = page.split_once("**Other settings may change**").unwrap();
        let (list, _) = list.split_once("`--work-dir`").unwrap();
        let mut documented: Vec<String> = list
            .split('`')
            .skip(1)
            .step_by(2)
            .map(|k| k.strip_prefix('[').map_or(k.to_owned(), |s| s.replace(']', ".")))
            .collect();
        // Compared as the global batch.
        documented.extend(["train.images_per_rank", "train.accumulate"].map(str::to_owned));
        documented.sort();
        let mut listed = MAY_CHANGE.to_vec();
        listed.sort_unstable();
        assert_eq!(documented, listed);
    }
}
