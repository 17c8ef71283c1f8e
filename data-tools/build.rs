//! Build script: exports the git revision for `--version`.

include!("../tools/git_revision.rs");

fn main() {
    git_revision();
}
