// Included by build scripts.

/// Exports the git revision as `DW_GIT`, for `--version`.
fn git_revision() {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(text)
    };
    let revision = git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|| "no git".into());
    println!("cargo:rustc-env=DW_GIT={revision}");
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        let top = git(&["rev-parse", "--show-toplevel"]).unwrap_or_default();
        // `join` returns an absolute `head` unchanged.
        let path = std::env::current_dir().unwrap_or_default().join(head);
        println!("cargo:rerun-if-changed={}", path.display());
        println!("cargo:rerun-if-changed={top}/tools/git_revision.rs");
    }
}
