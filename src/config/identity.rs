//! What makes a run the run it is: the settings that decide its numbers. A run that goes on from a
//! checkpoint must have the same ones.

use toml::{Table, Value};

use super::Config;

/// Keys, or sections ending in a dot, that may change on the way: none of them changes what the steps
/// before and after compute (`train.images_per_rank` is compared as the global batch).
const MAY_CHANGE: [&str; 14] = [
    "data.shards",
    "data.val_split",
    "data.workers",
    "data.prefetch_mib",
    "eval.",
    "checkpoint.",
    "train.epochs",
    "train.max_steps",
    "train.images_per_rank",
    "train.threads",
    "train.bucket_mib",
    "train.first_bucket_mib",
    "train.step_deadline_s",
    "train.start_deadline_s",
];

/// A key whose value differs between two configurations.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// As `train.lr`.
    pub key: String,
    /// What the run has.
    pub old: String,
    /// What is asked for.
    pub new: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.old, self.new)
    }
}

/// The differences between a run's settings and those asked for: first the keys that decide the
/// result, then those that may change.
pub fn changes(run: &Config, asked: &Config) -> (Vec<Change>, Vec<Change>) {
    let table = |c: &Config| Table::try_from(c).unwrap_or_default();
    let mut found = vec![];
    compare(&table(run), &table(asked), "", &mut found);
    found.into_iter().partition(|c| decides(&c.key))
}

fn decides(key: &str) -> bool {
    !MAY_CHANGE.iter().any(|k| if k.ends_with('.') { key.starts_with(k) } else { key == *k })
}

/// Both tables come from the same structure; a key that one of them lacks is told as `unset`.
fn compare(old: &Table, new: &Table, prefix: &str, found: &mut Vec<Change>) {
    let text = |v: Option<&Value>| v.map_or_else(|| "unset".to_owned(), ToString::to_string);
    let keys = new.keys().chain(old.keys().filter(|k| !new.contains_key(*k)));
    for k in keys {
        let key = format!("{prefix}{k}");
        match (old.get(k), new.get(k)) {
            (Some(Value::Table(a)), Some(Value::Table(b))) => {
                compare(a, b, &format!("{key}."), found)
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
    fn what_decides_the_result_is_told_apart() {
        let run = Config::default();
        let mut asked = run.clone();
        (asked.train.lr, asked.train.threads) = (0.5, 3);
        asked.assign = crate::assign::AssignConfig::Dw(crate::assign::DwConfig {
            beta: 2.0,
            ..Default::default()
        });
        asked.eval.every_epochs = 4;
        let (decide, may) = changes(&run, &asked);
        let keys = |c: &[Change]| c.iter().map(|c| c.key.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&decide), ["assign.beta", "train.lr"]);
        assert_eq!(keys(&may), ["train.threads", "eval.every_epochs"]);
        assert_eq!(decide[1].to_string(), "train.lr: 0.01 -> 0.5");
        assert_eq!(changes(&run, &run), (vec![], vec![]));
        for key in MAY_CHANGE {
            let known = super::super::keys()
                .iter()
                .any(|k| if key.ends_with('.') { k.starts_with(key) } else { k == key });
            assert!(known, "{key} is no key");
        }
    }
}
