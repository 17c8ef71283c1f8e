//! Class names, and the classes of all runs.

use std::collections::HashMap;

/// A unique name for each category: a missing or empty name is replaced, and the category id is
/// appended to a duplicate name.
pub(super) fn labels(categories: &[i64], names: &[String]) -> Vec<String> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for n in names {
        *counts.entry(n.trim()).or_default() += 1;
    }
    let label = |(k, id): (usize, &i64)| match names.get(k).map(|n| n.trim()) {
        None | Some("") => format!("class {id}"),
        Some(n) if counts[n] > 1 => format!("{n} (id {id})"),
        Some(n) => n.to_string(),
    };
    categories.iter().enumerate().map(label).collect()
}

/// A class of the page.
pub(super) struct Class {
    pub name: String,
    /// Index of the class in each run; `None` in a run that lacks it.
    pub places: Vec<Option<usize>>,
}

/// The classes of all runs, merged by category id in order of first occurrence. `runs` are the
/// category ids and labels of each run.
pub(super) fn merge(runs: &[(&[i64], &[String])]) -> Vec<Class> {
    let mut out: Vec<Class> = vec![];
    let mut at: HashMap<i64, usize> = HashMap::new();
    for (run, (categories, labels)) in runs.iter().enumerate() {
        for (k, (&id, name)) in categories.iter().zip(*labels).enumerate() {
            let i = *at.entry(id).or_insert_with(|| {
                out.push(Class { name: name.clone(), places: vec![None; runs.len()] });
                out.len() - 1
            });
            out[i].places[run] = Some(k);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_and_missing_names_become_unique() {
        let names = ["cat", "cat", " ", "dog"].map(String::from);
        assert_eq!(
            labels(&[1, 2, 3, 4, 5], &names),
            ["cat (id 1)", "cat (id 2)", "class 3", "dog", "class 5"]
        );
    }
}
