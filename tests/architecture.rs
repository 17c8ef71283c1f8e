//! Rules about the structure of the code that the compiler does not check: dependencies between
//! modules and crates, sizes, and the order of start-up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Folders with the sources of all crates.
const SOURCES: [&str; 7] =
    ["src", "base/src", "launcher/src", "data-tools/src", "weights/src", "metric/src", "torch/src"];

fn collect(dir: &Path, endings: &[&str], out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, endings, out);
        } else if path.extension().is_some_and(|e| endings.iter().any(|x| e == *x)) {
            out.push(path);
        }
    }
}

/// Path (relative to the repository) and text of every file below `dir` with one of the extensions.
fn files(dir: &str, endings: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![];
    collect(&root.join(dir), endings, &mut found);
    found.sort();
    let name = |p: &PathBuf| p.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    found.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

fn rust_files(dir: &str) -> Vec<(String, String)> {
    files(dir, &["rs"])
}

/// The part of a file before its unit tests, which may use any module.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text)
}

/// The paths below `crate::` that a text uses, cut to their first two components, such as
/// `data::dataset`. Nested `{...}` lists are expanded.
fn used_paths(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, start) in text.match_indices("crate::") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &text[at + start.len()..];
        for path in expand(rest) {
            found.insert(path.split("::").take(2).collect::<Vec<_>>().join("::"));
        }
    }
    found
}

/// The paths that begin at the start of a text: `a::b`, `a::{b, c::d}` or `{a, b::c}`.
fn expand(text: &str) -> Vec<String> {
    let ident = |t: &str| t.chars().take_while(|c| c.is_alphanumeric() || *c == '_').count();
    if let Some(list) = text.strip_prefix('{') {
        let (mut depth, mut start, mut out) = (0, 0, vec![]);
        for (i, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    out.extend(expand(list[start..i].trim()));
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
        return out;
    }
    let head = &text[..ident(text)];
    match text[head.len()..].strip_prefix("::") {
        _ if head.is_empty() => vec![],
        Some(rest) if rest.starts_with('{') || ident(rest) > 0 => {
            expand(rest).iter().map(|p| format!("{head}::{p}")).collect()
        }
        _ => vec![head.to_owned()],
    }
}

/// The modules of `src` in dependency order: each one may use those before it and itself.
const MODULES: [&str; 12] = [
    "geometry", "device", "loss", "model", "assign", "data", "eval", "train", "show", "export",
    "config", "app",
];

#[test]
fn modules_use_only_those_before_them() {
    let mut seen = BTreeSet::new();
    for (file, text) in rust_files("src") {
        let module = file.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        if ["lib", "bin"].contains(&module.as_str()) {
            continue;
        }
        let own = MODULES.iter().position(|m| *m == module);
        let own = own.unwrap_or_else(|| panic!("{file}: `{module}` is missing from MODULES"));
        seen.insert(module.clone());
        for path in used_paths(without_tests(&text)) {
            let name = path.split("::").next().unwrap();
            if let Some(other) = MODULES.iter().position(|m| *m == name) {
                assert!(other <= own, "{file} uses `{name}`, which comes after `{module}`");
            }
        }
    }
    assert_eq!(seen.len(), MODULES.len(), "MODULES names modules that do not exist: {seen:?}");
}

/// The module path of a source file: `src/data/loader.rs` and `src/data/loader/mod.rs` are
/// `data::loader`.
fn module_path(file: &str, sources: &str) -> Vec<String> {
    let inner = file.strip_prefix(sources).unwrap().trim_start_matches('/').trim_end_matches(".rs");
    let mut path: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if path.last().is_some_and(|l| l == "mod") {
        path.pop();
    }
    path
}

/// Absolute module paths that a file uses through `crate::`, `super::` and `self::`.
fn dependencies(text: &str, own: &[String]) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    let mut add = |prefix: &[String], rest: &str| {
        for path in expand(rest) {
            let mut full = prefix.to_vec();
            full.extend(path.split("::").map(str::to_owned));
            found.insert(full);
        }
    };
    let standalone = |at: usize| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    };
    for (at, _) in text.match_indices("crate::").filter(|(at, _)| standalone(*at)) {
        add(&[], &text[at + "crate::".len()..]);
    }
    for (at, _) in text.match_indices("super::").filter(|(at, _)| standalone(*at)) {
        let mut rest = &text[at..];
        let mut prefix = own.to_vec();
        while let Some(inner) = rest.strip_prefix("super::") {
            prefix.pop();
            rest = inner;
        }
        add(&prefix, rest);
    }
    found
}

/// Sibling modules, in every folder of every crate, have no cyclic dependencies.
#[test]
fn modules_beside_each_other_form_no_circle() {
    for sources in SOURCES {
        let all: Vec<(Vec<String>, String)> = rust_files(sources)
            .into_iter()
            .filter(|(f, _)| !f.contains("/bin/") && !f.ends_with("/lib.rs"))
            .filter(|(f, _)| !f.ends_with("tests.rs") && !f.ends_with("testing.rs"))
            .map(|(f, text)| (module_path(&f, sources), text))
            .collect();
        let exists: BTreeSet<Vec<String>> = all.iter().map(|(path, _)| path.clone()).collect();
        let mut edges: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
        for (own, text) in &all {
            for target in dependencies(without_tests(text), own) {
                let common = own.iter().zip(&target).take_while(|(a, b)| a == b).count();
                if common >= own.len() || common >= target.len() {
                    continue;
                }
                let (from, to) = (own[..=common].to_vec(), target[..=common].to_vec());
                if exists.contains(&to) {
                    edges.entry(from).or_default().insert(to);
                }
            }
        }
        for start in edges.keys() {
            if let Some(circle) = path_back(start, &edges) {
                panic!("{sources}: modules use each other in a circle: {circle:?}");
            }
        }
    }
}

/// A cycle along `edges` through `start`.
fn path_back(
    start: &[String],
    edges: &BTreeMap<Vec<String>, BTreeSet<Vec<String>>>,
) -> Option<Vec<String>> {
    let mut stack = vec![vec![start.to_vec()]];
    let mut seen = BTreeSet::new();
    while let Some(path) = stack.pop() {
        for next in edges.get(path.last()?).into_iter().flatten() {
            if next.as_slice() == start {
                return Some(path.iter().map(|m| m.join("::")).collect());
            }
            if seen.insert(next.clone()) {
                let mut longer = path.clone();
                longer.push(next.clone());
                stack.push(longer);
            }
        }
    }
    None
}

/// A strategy is a separate file: no other strategy uses it, and code outside `assign` uses none.
#[test]
fn only_the_list_of_strategies_names_them() {
    let own: Vec<(String, String)> = rust_files("src/assign/strategies");
    let names: Vec<&str> =
        own.iter().map(|(f, _)| f.rsplit('/').next().unwrap().trim_end_matches(".rs")).collect();
    for (file, text) in own.iter().filter(|(f, _)| !f.ends_with("mod.rs")) {
        let name =
            file.rsplit('/').next().unwrap().trim_end_matches(".rs").trim_end_matches("_config");
        for other in names.iter().filter(|n| n.trim_end_matches("_config") != name && **n != "mod")
        {
            assert!(!text.contains(&format!("{other}::")), "{file} uses the strategy `{other}`");
        }
    }
    // Names such as `FcosConfig` of `fcos.rs`, which only `assign` may use.
    let camel = |n: &str| n.split('_').map(|p| p[..1].to_uppercase() + &p[1..]).collect::<String>();
    let files = names.iter().filter(|n| **n != "mod" && !n.ends_with("_config"));
    let mut forbidden: Vec<String> = files.map(|n| format!("{}Config", camel(n))).collect();
    forbidden.extend(["assign::strategies", "loss_cls_pos", "center_prior"].map(str::to_owned));
    for (file, text) in rust_files("src").iter().filter(|(f, _)| !f.starts_with("src/assign/")) {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for name in &forbidden {
            assert!(!code.contains(name.as_str()), "{file} names `{name}`");
        }
    }
    for (file, text) in own.iter().filter(|(f, _)| !f.ends_with("mod.rs")) {
        let name =
            file.rsplit('/').next().unwrap().trim_end_matches(".rs").trim_end_matches("_config");
        let others = forbidden
            .iter()
            .filter(|f| f.ends_with("Config") && **f != format!("{}Config", camel(name)));
        for other in others {
            assert!(!text.contains(other.as_str()), "{file} uses {other}");
        }
    }
}

#[test]
fn model_and_assignment_never_communicate() {
    for (file, text) in rust_files("src/assign").into_iter().chain(rust_files("src/model")) {
        assert!(!text.contains("dw_launch"), "{file} uses collectives; terms are local sums");
    }
}

/// The host waits for the GPU when it reads a tensor or copies one from pageable memory. Therefore
/// the numbers of a step are read through `dw_torch::Readback`, and targets are copied from
/// page-locked memory.
#[test]
fn the_step_never_waits_for_the_device() {
    let reads = ["double_value(", "int64_value(", "f64::try_from(", "f32::try_from("];
    let copies = [">::try_from(", "nonzero", "masked_select", "Device::Cpu", ".to_device("];
    // Code for start-up (parameters, weight files, constants) and for figures may wait.
    let start = ["src/model/params.rs", "src/model/weights", "src/assign/figures"];
    for dir in ["src/model", "src/assign", "src/loss", "src/train"] {
        for (file, text) in rust_files(dir) {
            let in_step = !file.starts_with("src/train")
                || ["step.rs", "sgd.rs", "flat.rs", "buckets.rs"].iter().any(|n| file.ends_with(n));
            if !in_step || start.iter().any(|s| file.starts_with(s)) {
                continue;
            }
            let code = |line: &&str| !line.trim_start().starts_with("//");
            let text: Vec<&str> = without_tests(&text).lines().filter(code).collect();
            let text = text.join("\n");
            for call in reads.iter().chain(&copies) {
                assert!(!text.contains(call), "{file}: `{call}`");
            }
        }
    }
}

/// The crates below `dw` use no other crate of the project than `dw-base`, and only `dw-torch` uses
/// libtorch.
#[test]
fn crates_use_only_those_below_them() {
    let all = ["dw", "dw_shards", "dw_launch", "dw_metric", "dw_weights", "dw_torch", "tch"];
    for (dir, own) in [
        ("base/src", &[][..]),
        ("data-tools/src", &["dw_shards"]),
        ("launcher/src", &["dw_launch"]),
        ("weights/src", &["dw_weights"]),
        ("metric/src", &["dw_metric"]),
        ("torch/src", &["dw_torch", "tch"]),
    ] {
        let forbidden: Vec<&str> = all.into_iter().filter(|name| !own.contains(name)).collect();
        for (file, text) in rust_files(dir) {
            for name in &forbidden {
                let path = format!("{name}::");
                let used = text.match_indices(&path).any(|(at, _)| {
                    !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                });
                assert!(!used, "{file} uses `{name}`");
            }
        }
    }
}

#[test]
fn files_are_small_have_a_header_and_lines_are_short() {
    for dir in SOURCES.into_iter().chain(["tests", "benches", "fuzz/fuzz_targets"]) {
        for (file, text) in files(dir, &["rs", "cpp", "h", "c", "cu", "cuh"]) {
            let lines = text.lines().count();
            let most = if file.contains("src/bin/") { 80 } else { 400 };
            assert!(lines <= most, "{file}: {lines} lines, at most {most}: split it");
            let rust = Path::new(&file).extension().is_some_and(|e| e == "rs");
            assert!(!rust || text.starts_with("//!"), "{file}: expected a header with its purpose");
            assert_short_lines(&file, &text);
        }
    }
    for dir in ["tools", "benches", "slurm"] {
        for (file, text) in files(dir, &["sh", "sbatch"]) {
            assert_short_lines(&file, &text);
        }
    }
}

fn assert_short_lines(file: &str, text: &str) {
    for (i, line) in text.lines().enumerate() {
        let width = line.chars().count();
        assert!(width <= 100, "{file}:{}: {width} columns, at most 100", i + 1);
    }
}

/// A function fits on a screen. rustfmt ends a function with a brace in the column of its `fn`.
#[test]
fn functions_fit_on_a_screen() {
    for dir in SOURCES {
        for (file, text) in rust_files(dir) {
            let lines: Vec<&str> = without_tests(&text).lines().collect();
            for (i, line) in lines.iter().enumerate() {
                let indent = line.len() - line.trim_start().len();
                let words: Vec<&str> = line.split_whitespace().collect();
                let is_fn = words.contains(&"fn") && !line.trim_start().starts_with("//");
                if !is_fn || line.ends_with(['}', ';']) {
                    continue;
                }
                let end = format!("{}}}", " ".repeat(indent));
                let length = lines[i..].iter().position(|l| *l == end).unwrap_or(0) + 1;
                assert!(length <= 60, "{file}:{}: {length} lines, at most 60", i + 1);
            }
        }
    }
}

/// libtorch looks for its CUDA library once, at the first call that may need an accelerator.
/// Therefore every program that can compute on a GPU calls `device::open` before any other use of
/// libtorch; `app::run` does this for the binaries.
#[test]
fn every_program_opens_the_device_first() {
    let mut checked = 0;
    for (file, text) in ["src/bin", "benches", "tests"].into_iter().flat_map(rust_files) {
        if file.starts_with("src/bin") {
            let body = enclosing_function(&text, text.find("fn main()").unwrap());
            assert!(body.contains("app::run(Start {"), "{file}: main goes through app::run");
            let early = body.contains("tch::") || body.contains("torch::");
            assert!(!early, "{file}: libtorch is used outside app::run");
            checked += 1;
        } else if let Some(at) = text.find(" device::pick(").filter(|_| !file.contains("arch")) {
            let body = enclosing_function(&text, at);
            let place = |words: &str| body.find(words).unwrap_or(usize::MAX);
            let uses = ["tch::", "torch::", "Tensor::", "nccl::", "device::pick("];
            let first = uses.iter().map(|w| place(w)).min().unwrap();
            let open = place("device::open(");
            assert!(open < first, "{file}: device::open must come before libtorch is used");
            checked += 1;
        }
    }
    assert!(checked >= 6, "only {checked} programs found");
}

/// The top-level function around a position.
fn enclosing_function(text: &str, at: usize) -> &str {
    let start = text[..at + 3].rfind("\nfn ").unwrap_or(0);
    let end = text[start..].find("\n}\n").map_or(text.len(), |end| start + end);
    &text[start..end]
}

#[test]
fn unsafe_code_has_a_safety_comment() {
    for dir in SOURCES {
        for (file, text) in rust_files(dir) {
            let lines: Vec<&str> = text.lines().collect();
            for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.contains("unsafe {")) {
                let near = lines[i.saturating_sub(4)..=i].iter().any(|l| l.contains("SAFETY"));
                assert!(near, "{file}:{}: unsafe without a SAFETY comment: {line}", i + 1);
            }
        }
    }
}
