//! The house rules that a compiler does not check: who may use whom, and how long a file may be.

use std::path::{Path, PathBuf};

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

fn rust_files(dir: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = vec![];
    sources(&root.join(dir), &mut found);
    let name = |p: &PathBuf| p.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    found.iter().map(|p| (name(p), std::fs::read_to_string(p).unwrap())).collect()
}

/// Modules in dependency order: each may use those before it and itself.
const MODULES: [&str; 11] = [
    "boxes", "torch", "device", "loss", "config", "model", "assign", "data", "eval", "train",
    "show",
];

/// Pairs that the order would forbid, with the reason why they stand.
const ALLOWED: [(&str, &str, &str); 2] = [
    ("config", "assign", "[assign] is defined beside the strategies"),
    ("config", "model", "backbones and norms are closed enums of the model"),
];

#[test]
fn modules_use_only_those_before_them() {
    for (file, text) in rust_files("src") {
        let module = file.trim_start_matches("src/").split(['/', '.']).next().unwrap().to_owned();
        let Some(own) = MODULES.iter().position(|m| *m == module) else { continue };
        for (other, name) in MODULES.iter().enumerate() {
            let uses = text.contains(&format!("crate::{name}::"))
                || text.contains(&format!("crate::{name};"));
            // Starting a run wires everything together, as the binaries do.
            let wiring = file.ends_with("train/start.rs") || file.ends_with("command.rs");
            let allowed =
                other <= own || wiring || ALLOWED.iter().any(|(a, b, _)| *a == module && b == name);
            assert!(!uses || allowed, "{file} uses `{name}`, which comes after `{module}`");
        }
    }
}

/// A strategy is a file of its own: no other strategy knows it, and whoever trains, loads or evaluates knows none.
#[test]
fn strategies_are_known_by_the_list_alone() {
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
    // `FcosConfig` of `fcos.rs`; the list of strategies and its users may name them, the rest of the program may not.
    let camel = |n: &str| n.split('_').map(|p| p[..1].to_uppercase() + &p[1..]).collect::<String>();
    let files = names.iter().filter(|n| **n != "mod" && !n.ends_with("_config"));
    let mut forbidden: Vec<String> = files.map(|n| format!("{}Config", camel(n))).collect();
    forbidden.extend(["assign::strategies", "loss_cls_pos", "center_prior"].map(str::to_owned));
    for (file, text) in rust_files("src").iter().filter(|(f, _)| !f.starts_with("src/assign/")) {
        let code = text.split("#[cfg(test)]").next().unwrap();
        for known in &forbidden {
            assert!(!code.contains(known.as_str()), "{file} knows `{known}`");
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
fn assignment_never_talks_to_other_ranks() {
    for (file, text) in rust_files("src/assign") {
        assert!(
            !text.contains("dw_launch"),
            "{file} names the collectives; a strategy returns local sums"
        );
    }
}

#[test]
fn tools_and_launcher_use_nothing_of_ours() {
    for (dir, forbidden) in [
        ("base/src", ["dw_", "dw::", "tch::"]),
        ("data-tools/src", ["dw_launch", "dw::", "tch::"]),
        ("launcher/src", ["dw_shards", "dw::", "tch::"]),
        ("weights/src", ["dw_shards", "dw::", "tch::"]),
        ("metric/src", ["dw_shards", "dw::", "tch::"]),
    ] {
        for (file, text) in rust_files(dir) {
            for f in forbidden {
                assert!(
                    !text.contains(&format!("use {f}")) && !text.contains(&format!(" {f}")),
                    "{file} uses {f}"
                );
            }
        }
    }
}

#[test]
fn files_stay_small_and_binaries_thin() {
    for dir in
        ["src", "base/src", "launcher/src", "data-tools/src", "weights/src", "metric/src", "tests"]
    {
        for (file, text) in rust_files(dir) {
            let lines = text.lines().count();
            let most = if file.contains("src/bin/") { 80 } else { 500 };
            assert!(lines <= most, "{file}: {lines} lines, at most {most}: split it");
            assert!(text.starts_with("//!"), "{file}: expected a header that says what it is for");
        }
    }
}

/// libtorch looks for its CUDA half once, at the first call that may need an accelerator: `device::open` comes before
/// anything else that touches libtorch, in every program that can compute on a GPU. `app::run` does it for the binaries.
#[test]
fn every_main_opens_the_device_first() {
    let mains = ["src/bin", "benches", "tests"].into_iter().flat_map(rust_files);
    let mut checked = 0;
    for (file, text) in mains.filter(|(_, text)| text.contains("\nfn main()")) {
        let body = &text[text.find("\nfn main()").unwrap()..];
        let body = &body[..body.find("\n}\n").unwrap()];
        let place = |words: &str| body.find(words);
        if file.starts_with("src/bin") {
            assert!(place("app::run(Start {").is_some(), "{file}: main goes through app::run");
            assert!(
                !body.contains("tch::") && !body.contains("torch::"),
                "{file}: libtorch before app::run"
            );
            checked += 1;
        } else if let Some(pick) = place("device::pick(") {
            let open = place("device::open(").unwrap_or(usize::MAX);
            let first = ["tch::", "torch::", "Tensor::", "nccl::"]
                .iter()
                .filter_map(|w| place(w))
                .chain([pick])
                .min()
                .unwrap();
            assert!(open < first, "{file}: device::open must come before libtorch is used");
            checked += 1;
        }
    }
    assert!(checked >= 6, "only {checked} programs found");
}

#[test]
fn unsafe_code_says_why_it_is_sound() {
    for dir in ["src", "base/src", "launcher/src", "data-tools/src", "weights/src", "metric/src"] {
        for (file, text) in rust_files(dir) {
            let lines: Vec<&str> = text.lines().collect();
            for (i, line) in lines.iter().enumerate().filter(|(_, l)| l.contains("unsafe {")) {
                let near = lines[i.saturating_sub(4)..=i].iter().any(|l| l.contains("SAFETY"));
                assert!(near, "{file}:{}: unsafe without a SAFETY comment: {line}", i + 1);
            }
        }
    }
}
