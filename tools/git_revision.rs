// Build script part: tells the compiler the git revision, for `--version`.

fn git_revision() {
    let git = |args: &[&str]| std::process::Command::new("git").args(args).output().ok().filter(|o| o.status.success());
    let text = |o: std::process::Output| String::from_utf8_lossy(&o.stdout).trim().to_owned();
    let revision = git(&["rev-parse", "--short=10", "HEAD"]).map_or_else(|| "no git".into(), text);
    println!("cargo:rustc-env=DW_GIT={revision}");
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]).map(text) {
        let top = git(&["rev-parse", "--show-toplevel"]).map(text).unwrap_or_default();
        let path = std::path::Path::new(&head);
        let path = if path.is_absolute() { path.to_owned() } else { std::env::current_dir().unwrap_or_default().join(path) };
        println!("cargo:rerun-if-changed={}", path.display());
        println!("cargo:rerun-if-changed={top}/tools/git_revision.rs");
    }
}
