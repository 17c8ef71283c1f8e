//! Which NCCL is used: the one that is in the process already, and no other.

mod nccl_double;

use std::sync::Arc;

use dw_launch::nccl::{Library, Nccl, loaded, version};
use dw_launch::{Collectives, Solo};
use nccl_double::{Counters, NoStream, compile};

#[test]
fn only_what_is_loaded_already_is_used() {
    let dir = tempfile::tempdir().unwrap();
    // By its soname the loader finds it again, as it finds libtorch's.
    let path = compile(dir.path(), &["-Wl,-soname,libnccl.so.2"]);
    assert_eq!((loaded(), version()), (None, None));
    let e = Library::open_on_all(&Solo).unwrap_err().to_string();
    let expected = "libtorch's CUDA half has not loaded libnccl.so.2\nhint: ";
    assert!(e.contains(expected) && e.contains("rank 0 on "), "{e}");
    assert_eq!(loaded(), None, "neither has loaded one");

    let counters = Counters::of(&path);
    let origin = loaded().unwrap();
    let path = path.canonicalize().unwrap();
    assert_eq!((origin.version.as_str(), &origin.path), ("2.28.9", &path));
    assert_eq!(origin.to_string(), format!("2.28.9 ({})", path.display()));
    assert_eq!(version().as_deref(), Some("2.28.9"));
    let library = Library::open_on_all(&Solo).unwrap();
    let nccl = Nccl::join(library, Arc::new(Solo), Box::new(NoStream)).unwrap();
    assert_eq!(nccl.name(), "NCCL 2.28.9 over none (one process)");
    nccl.leave();
    assert_eq!(counters.get("aborts"), 1, "it is the one that was loaded");
}

#[test]
fn an_old_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = compile(dir.path(), &["-DVERSION=21705"]);
    let e = Library::open(&path).unwrap_err().to_string();
    let place = path.canonicalize().unwrap();
    let expected = format!("NCCL 2.17.5 ({}) is too old: 2.18 or newer is needed", place.display());
    assert!(e.contains(&expected), "{e}");
}
