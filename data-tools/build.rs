//! Passes the git revision to the compiler, for `--version`.

include!("../tools/git_revision.rs");

fn main() {
    git_revision();
}
