//! Class names for people, and which class of one run is which of another.

use std::collections::HashMap;

use super::Input;

/// A name for each category; nameless ones and namesakes are told apart by their ids.
pub(super) fn labels(categories: &[i64], names: &[String]) -> Vec<String> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for n in names {
        *seen.entry(n.trim()).or_default() += 1;
    }
    let label = |(k, id): (usize, &i64)| match names.get(k).map(|n| n.trim()) {
        None | Some("") => format!("class {id}"),
        Some(n) if seen[n] > 1 => format!("{n} (id {id})"),
        Some(n) => n.to_string(),
    };
    categories.iter().enumerate().map(label).collect()
}

/// A class of the page: its name, and its place in each run that has it.
pub(super) struct Class {
    pub name: String,
    pub places: Vec<Option<usize>>,
}

/// The classes of all runs by category id, those of the first run first.
pub(super) fn classes(inputs: &[Input]) -> Vec<Class> {
    let mut out: Vec<Class> = vec![];
    let mut at: HashMap<i64, usize> = HashMap::new();
    for (run, input) in inputs.iter().enumerate() {
        let names = labels(input.problem.categories, input.names);
        for (k, (&id, name)) in input.problem.categories.iter().zip(names).enumerate() {
            let i = *at.entry(id).or_insert_with(|| {
                out.push(Class { name, places: vec![None; inputs.len()] });
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
    fn namesakes_and_the_nameless() {
        let names = ["cat", "cat", " ", "dog"].map(String::from);
        assert_eq!(
            labels(&[1, 2, 3, 4, 5], &names),
            ["cat (id 1)", "cat (id 2)", "class 3", "dog", "class 5"]
        );
    }
}
