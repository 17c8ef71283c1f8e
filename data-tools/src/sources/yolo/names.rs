//! The description of a YOLO data set: `data.yaml`, or only class names, one per line.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// The contents of `data.yaml` that matter here.
#[derive(Debug, Default, PartialEq)]
pub struct Description {
    /// Class names by class number.
    pub names: Vec<String>,
    /// Folder that the paths of the splits are relative to.
    pub path: Option<String>,
    /// Count of keypoint values that follow each box, in data sets for pose estimation.
    pub keypoints: Option<usize>,
    /// Splits and their paths: folders of images or lists of image files.
    pub splits: Vec<(&'static str, Vec<String>)>,
}

#[derive(Deserialize)]
struct Yaml {
    names: Names,
    nc: Option<i64>,
    path: Option<String>,
    kpt_shape: Option<[usize; 2]>,
    train: Option<Paths>,
    val: Option<Paths>,
    test: Option<Paths>,
}

/// Class names by class number. They are deserialised as strings, which keeps the text of the file:
/// an untagged enum would turn the names `no` and `1.10` into `false` and `1.1`.
struct Names(BTreeMap<i64, Option<String>>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ListOrMap;
        impl<'de> Visitor<'de> for ListOrMap {
            type Value = BTreeMap<i64, Option<String>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list or a map of class names")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                let list = Vec::deserialize(SeqAccessDeserializer::new(seq))?;
                Ok((0..).zip(list).collect())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(map))
            }
        }
        d.deserialize_any(ListOrMap).map(Self)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Several(Vec<String>),
}

/// Parses `data.yaml`.
///
/// # Errors
/// Malformed YAML, missing or repeated names, class numbers that are not 0, 1, 2, ..., a wrong
/// `nc`.
pub fn parse_yaml(text: &str) -> Result<Description, String> {
    let yaml: Yaml = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let Names(names) = yaml.names;
    if let Some((n, (found, _))) = (0..).zip(&names).find(|(n, (found, _))| n != *found) {
        return Err(format!("`names`: expected the class number {n}, found {found}"));
    }
    let given = |(n, name): (i64, Option<String>)| {
        name.ok_or_else(|| {
            format!("`names`: class {n} has no name\nhint: write the name `null` in quotes")
        })
    };
    let names = names.into_iter().map(given).collect::<Result<Vec<_>, _>>()?;
    check(&names)?;
    if let Some(nc) = yaml.nc.filter(|nc| *nc != names.len() as i64) {
        return Err(format!("`nc` is {nc}, but `names` has {} names", names.len()));
    }
    let all = [("train", yaml.train), ("val", yaml.val), ("test", yaml.test)];
    let paths = |p: Paths| match p {
        Paths::One(p) => vec![p],
        Paths::Several(p) => p,
    };
    let splits = all.into_iter().filter_map(|(name, p)| Some((name, paths(p?))));
    let keypoints = yaml.kpt_shape.map(|[count, dimensions]| count.saturating_mul(dimensions));
    Ok(Description { names, path: yaml.path, keypoints, splits: splits.collect() })
}

/// Parses class names, one per line.
///
/// # Errors
/// No names, an empty name, or a repeated name.
pub fn parse_list(text: &str) -> Result<Description, String> {
    let names: Vec<String> = text.trim_end().lines().map(|l| l.trim().to_owned()).collect();
    check(&names)?;
    Ok(Description { names, ..Description::default() })
}

fn check(names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Err("expected at least one class name, found none".into());
    }
    for (n, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(format!("the name of class {n} is empty"));
        }
        if let Some(first) = names[..n].iter().position(|other| other == name) {
            return Err(format!("classes {first} and {n} have the same name"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_a_list_or_a_map() {
        let list = parse_yaml("train: ../train/images\nval: [a, b]\nnc: 2\nnames: ['x y', 7]\n");
        let list = list.unwrap();
        assert_eq!(list.names, ["x y", "7"]);
        let paths = |p: &[&str]| p.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            list.splits,
            [("train", paths(&["../train/images"])), ("val", paths(&["a", "b"]))]
        );
        let map = parse_yaml("path: x\ntest:\nnames:\n  0: a\n  1: b\ndownload: |\n  z\n").unwrap();
        assert_eq!((map.names, map.path.as_deref()), (paths(&["a", "b"]), Some("x")));
        assert!(map.splits.is_empty() && map.keypoints.is_none());
        let pose = parse_yaml("names: [a]\nkpt_shape: [17, 3]\n").unwrap();
        assert_eq!(pose.keypoints, Some(51));
        assert_eq!(parse_list("a\r\nb c\n\n").unwrap().names, ["a", "b c"]);
    }

    #[test]
    fn unquoted_names_are_the_text_of_the_file() {
        for text in
            ["[no, 1.10, on, 007, '~', a b]", "{0: no, 1: 1.10, 2: on, 3: 007, 4: '~', 5: a b}"]
        {
            let found = parse_yaml(&format!("names: {text}\n")).unwrap().names;
            assert_eq!(found, ["no", "1.10", "on", "007", "~", "a b"], "{text}");
        }
        for (text, word) in [
            ("[a, null]", "class 1 has no name\nhint"),
            ("{0: a, 1: ~}", "class 1 has no name\nhint"),
            ("[a, [b]]", "line 2"),
            ("a", "line 2"),
        ] {
            let problem = parse_yaml(&format!("nc: 1\nnames: {text}\n")).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
    }

    #[test]
    fn invalid_descriptions_are_refused() {
        let mut bomb = "a: &a [x,x,x,x,x,x,x,x]\n".to_owned();
        for (last, c) in ('a'..'j').zip('b'..='j') {
            let items = vec![format!("*{last}"); 7].join(",");
            bomb.extend([format!("{c}: &{c} [{items}]\n")]);
        }
        bomb.push_str("names: *j\n");
        let deep = format!("names: {}", "[".repeat(100_000));
        for text in [
            "",
            "names: []",
            "train: x",
            "names: {0: a, 2: b}",
            "names: [a, a]",
            "names: [a]\nnc: 2",
            "names: [''] ",
            &*bomb,
            &*deep,
        ] {
            assert!(parse_yaml(text).is_err(), "{text:.60}");
        }
        assert!(parse_list("").is_err() && parse_list("a\n\nb").is_err());
    }
}
